/* Runs a call whose operands lie between pages that nothing may touch, and notes the first access to one. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "sepwise.h"

enum { SIGNALS = 2 };
static const int signals[SIGNALS] = {SIGSEGV, SIGBUS};
static struct sigaction before[SIGNALS];
static uintptr_t stage_start;
static size_t stage_bytes;
static _Atomic uintptr_t touched;

/* Opens the whole stage, so that the call comes to its end on whichever thread it runs. An access elsewhere happens again under
 * who was there before. */
static void note(int number, siginfo_t *info, void *context) {
  (void)context;
  uintptr_t address = (uintptr_t)info->si_addr, none = 0;
  if (address - stage_start < stage_bytes) {
    atomic_compare_exchange_strong(&touched, &none, address);
    mprotect((void *)stage_start, stage_bytes, PROT_READ | PROT_WRITE);
  } else {
    sigaction(number, &before[number == SIGBUS], NULL);
  }
}

/* Runs one call on operands by position, and gives where it touched what it must not, 0 if nowhere, in `stray`. One run at a
 * time in a process: handlers of signals belong to all of it. */
int32_t sepwise_run_guarded(sepwise_run_range run_range, int32_t call, const void *const *operands, void *scratch,
                            sepwise_parallel_for parallel_for, void *context, void *stage, int64_t nbytes,
                            uintptr_t *stray) {
  struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigemptyset(&action.sa_mask);
  stage_start = (uintptr_t)stage;
  stage_bytes = (size_t)nbytes;
  atomic_store(&touched, 0);
  for (int i = 0; i < SIGNALS; ++i) sigaction(signals[i], &action, &before[i]);
  int32_t status = run_range(call, call + 1, NULL, operands, NULL, scratch, parallel_for, context);
  for (int i = 0; i < SIGNALS; ++i) sigaction(signals[i], &before[i], NULL);
  *stray = atomic_load(&touched);
  return status;
}
