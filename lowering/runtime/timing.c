/* Times a program where it runs, so that no interpreter is in the measurement. */
#define _GNU_SOURCE
#include <stdint.h>
#include <time.h>

#include "sepwise.h"

static double now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

/* Times `repeats` runs of the calls from `first` to `last - 1`, together (`each` 0: one time a run) or call by call
 * (`each` 1: `last - first` times a run, in the cache state that the whole run leaves). */
void sepwise_time(sepwise_run_range run_range, int32_t first, int32_t last, const void *constants,
                  const void *const *inputs, void *const *outputs, void *arena, sepwise_parallel_for parallel_for,
                  void *context, int32_t repeats, int32_t each, double *us) {
  for (int32_t repeat = 0; repeat < repeats; ++repeat) {
    int32_t step = each ? 1 : last - first;
    for (int32_t call = first; call < last; call += step) {
      double start = now_us();
      run_range(call, call + step, constants, inputs, outputs, arena, parallel_for, context);
      *us++ = now_us() - start;
    }
  }
}

/* Times some calls by themselves, in turn, to and fro, so that a drift evens out: `rounds` times each, in `us` those of one call
 * beside each other. */
void sepwise_time_calls(sepwise_run_range run_range, const int32_t *calls, int32_t count, const void *constants,
                        const void *const *inputs, void *const *outputs, void *arena, sepwise_parallel_for parallel_for,
                        void *context, int32_t rounds, double *us) {
  for (int32_t round = 0; round < rounds; ++round)
    for (int32_t place = 0; place < count; ++place) {
      int32_t each = round % 2 ? count - 1 - place : place;
      sepwise_time(run_range, calls[each], calls[each] + 1, constants, inputs, outputs, arena, parallel_for, context, 1, 0,
                   us + (int64_t)each * rounds + round);
    }
}
