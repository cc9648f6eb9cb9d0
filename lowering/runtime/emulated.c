/* The main of a program under qemu-user: no C library, commands on standard input, answers on standard output.
 *
 * A command is four little-endian int64: what, where, at, nbytes.
 *   ALLOCATE where at nbytes     zeroed memory of that size; `at` is the index of an input or an output
 *   WRITE    where at nbytes     the bytes follow; `at` is an offset, or the index of an input or an output
 *   READ     where at nbytes     answered with the bytes
 *   RUN      call                answered with one int64: what the program returned
 * It ends at the end of its input. Around each call it makes the system call MARK, which no kernel has: what
 * watches the emulation learns from it which call runs. */
#include "sepwise.h"

enum { ALLOCATE = 1, WRITE = 2, READ = 3, RUN = 4 };
enum { ARENA = 0, CONSTANT = 1, INPUT = 2, OUTPUT = 3, SCRATCH = 4 };
enum { MAX_TENSORS = 1024, MARK = 0x7a00 };

int32_t model_run_range(int32_t first, int32_t last, const void *constants, const void *const *inputs,
                        void *const *outputs, void *arena, void *scratch, sepwise_parallel_for parallel_for,
                        void *context);

#if defined(__aarch64__)
enum { SYS_read = 63, SYS_write = 64, SYS_exit = 94, SYS_mmap = 222 };
__asm__(".globl _start\n_start:\n  mov x29, #0\n  mov x30, #0\n  bl serve\n"); /* sp comes aligned to 16 */
#elif defined(__x86_64__)
enum { SYS_read = 0, SYS_write = 1, SYS_exit = 231, SYS_mmap = 9 };
__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  call serve\n"); /* rsp comes aligned to 16 */
#elif defined(__arm__)
enum { SYS_read = 3, SYS_write = 4, SYS_exit = 248, SYS_mmap = 192 /* mmap2 */ };
__asm__(".globl _start\n_start:\n  mov r11, #0\n  mov lr, #0\n  bl serve\n"); /* sp comes aligned to 8 */
#else
#error "no system calls known for this target"
#endif

static long call_system(long number, long a, long b, long c, long d, long e, long f) {
#if defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
#elif defined(__arm__)
  register long r0 __asm__("r0") = a;
  register long r1 __asm__("r1") = b;
  register long r2 __asm__("r2") = c;
  register long r3 __asm__("r3") = d;
  register long r4 __asm__("r4") = e;
  register long r5 __asm__("r5") = f;
  __asm__ volatile("push {r7}\n  mov r7, %1\n  svc #0\n  pop {r7}" /* r7 may be the frame pointer */
                   : "+r"(r0)
                   : "r"(number), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5)
                   : "memory");
  return r0;
#else
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
#endif
}

static _Noreturn void leave(int status) {
  for (;;) call_system(SYS_exit, status, 0, 0, 0, 0, 0);
}

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

static void *allocate(int64_t nbytes) {
  long address = call_system(SYS_mmap, 0, nbytes ? nbytes : 1, 3 /* read, write */, 0x22 /* private, anonymous */, -1, 0);
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
  if (where < 0 || where > SCRATCH) leave(5);
  return (char *)regions[where] + at;
}

__attribute__((used)) _Noreturn void serve(void) {
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
                                         regions[ARENA], regions[SCRATCH], NULL, NULL);
        call_system(MARK, 0, 0, 0, 0, 0, 0);
        transfer(SYS_write, 1, &status, sizeof status, 0);
        break;
      }
      default: leave(5);
    }
  }
}
