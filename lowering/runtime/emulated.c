/* The main of a program under qemu-user: no C library, commands on standard input, answers on standard output.
 *
 * A command is four little-endian int64: what, where, at, nbytes.
 *   ALLOCATE where at nbytes     zeroed memory of that size; `at` is the index of an input or an output
 *   WRITE    where at nbytes     the bytes follow; `at` is an offset, or the index of an input or an output
 *   READ     where at nbytes     answered with the bytes
 *   RUN      call                answered with one int64: what the program returned
 *   PROTECT  access at nbytes    pages of the stage, on which calls run alone
 *   RUN_ALONE call count nbytes  as many int64 follow: where in the stage the scratch and the arguments lie; answered with two
 *                                int64, what the program returned and 0; where the call touched what it must not,
 *                                TOUCHED and where in the stage that is, and the program ends
 * It ends at the end of its input. Around each call it makes the system call MARK, which no kernel has: what
 * watches the emulation learns from it which call runs. */
#include "sepwise.h"
#include "system.h"

enum { ALLOCATE = 1, WRITE = 2, READ = 3, RUN = 4, PROTECT = 5, RUN_ALONE = 6 };
enum { ARENA = 0, CONSTANT = 1, INPUT = 2, OUTPUT = 3, STAGE = 4 };
enum { MAX_TENSORS = 1024, MARK = 0x7a00, TOUCHED = 1 };

int32_t model_run_range(int32_t first, int32_t last, const void *constants, const void *const *inputs,
                        void *const *outputs, void *arena, sepwise_parallel_for parallel_for, void *context);

/* Moves all bytes or ends the program; the end of the input before the first byte is the regular end. */
static void transfer(long number, int file, void *memory, int64_t nbytes, int may_end) {
  char *at = memory;
  for (int64_t done = 0; done < nbytes;) {
    long moved = call_system(number, file, (long)(at + done), nbytes - done, 0, 0, 0);
    if (moved == -4) continue; /* EINTR */
    if (moved <= 0) leave(may_end && moved == 0 && done == 0 ? 0 : 3);
    done += moved;
  }
}

/* Memory with more mapped behind it, where prefetches reach, which are loads where they are counted. */
static void *allocate(int64_t nbytes) {
  int64_t behind = sizeof(void *) == 8 ? INT64_C(1) << 28 : 1;
  long address = call_system(SYS_mmap, 0, nbytes + behind, 3 /* read, write */, 0x4022 /* private, anonymous, not reserved */, -1, 0);
  if (address < 0 && address > -4096) leave(4);
  return (void *)address;
}

static void *regions[5];
static void *inputs[MAX_TENSORS];
static void *outputs[MAX_TENSORS];

static char *find(int64_t where, int64_t at) {
  if (where == INPUT || where == OUTPUT) {
    if (at < 0 || at >= MAX_TENSORS) leave(5);
    return (where == INPUT ? inputs : outputs)[at];
  }
  if (where < 0 || where > STAGE) leave(5);
  return (char *)regions[where] + at;
}

/* The handler of SIGSEGV while a call runs alone. */
static void tell_touched(int number, const char *info, void *context) {
  (void)number, (void)context;
  uintptr_t address = *(const uintptr_t *)(info + (sizeof(void *) == 8 ? 16 : 12)); /* si_addr */
  int64_t answer[2] = {TOUCHED, (int64_t)address - (int64_t)(uintptr_t)regions[STAGE]};
  transfer(SYS_write, 1, answer, sizeof answer, 0);
  leave(0);
}

static void handle_faults(void *handler) {
  struct { /* as the system has it; nothing is ever restored, but x86-64 wants to know how */
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
  } action = {handler, handler ? 0x04000004 /* SA_RESTORER, SA_SIGINFO */ : 0, handler, 0};
  if (call_system(SYS_rt_sigaction, 11 /* SIGSEGV */, (long)&action, 0, sizeof action.mask, 0, 0)) leave(6);
}

/* Runs one call between gaps, on memory that the command places. */
static int64_t run_alone(int32_t call, int64_t count) {
  int64_t offsets[1 + MAX_TENSORS];
  void *operands[1 + MAX_TENSORS];
  if (count < 1 || count > 1 + MAX_TENSORS) leave(5);
  transfer(SYS_read, 0, offsets, count * (int64_t)sizeof *offsets, 0);
  for (int64_t i = 0; i < count; ++i) operands[i] = (char *)regions[STAGE] + offsets[i];
  handle_faults((void *)tell_touched);
  int64_t status = model_run_range(call, call + 1, NULL, (const void *const *)(operands + 1), NULL, operands[0], NULL, NULL);
  handle_faults(NULL);
  return status;
}

_Noreturn void begin(void) {
  for (;;) {
    int64_t command[4];
    transfer(SYS_read, 0, command, sizeof command, 1);
    int64_t where = command[1], at = command[2], nbytes = command[3];
    switch (command[0]) {
      case ALLOCATE: {
        void *memory = allocate(nbytes);
        find(where, at);
        if (where == INPUT)
          inputs[at] = memory;
        else if (where == OUTPUT)
          outputs[at] = memory;
        else
          regions[where] = memory;
        break;
      }
      case WRITE: transfer(SYS_read, 0, find(where, at), nbytes, 0); break;
      case READ: transfer(SYS_write, 1, find(where, at), nbytes, 0); break;
      case RUN: {
        int32_t call = (int32_t)where;
        call_system(MARK, call + 1, 0, 0, 0, 0, 0);
        int64_t status = model_run_range(call, call + 1, regions[CONSTANT], (const void *const *)inputs, outputs,
                                         regions[ARENA], NULL, NULL);
        call_system(MARK, 0, 0, 0, 0, 0, 0);
        transfer(SYS_write, 1, &status, sizeof status, 0);
        break;
      }
      case PROTECT:
        if (call_system(SYS_mprotect, (long)(find(STAGE, at)), nbytes, where, 0, 0, 0)) leave(6);
        break;
      case RUN_ALONE: {
        int64_t answer[2] = {run_alone((int32_t)where, at), 0};
        transfer(SYS_write, 1, answer, sizeof answer, 0);
        break;
      }
      default: leave(5);
    }
  }
}
