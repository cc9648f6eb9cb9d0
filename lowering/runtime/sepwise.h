/* What generated programs, the thread pool and the mains share. The generated C repeats the two types, so that it
 * compiles alone. */
#ifndef SEPWISE_H
#define SEPWISE_H

#include <stddef.h>
#include <stdint.h>

/* One task of a kernel call; `worker` selects the scratch. */
typedef void (*sepwise_task)(const void *argument, int32_t task, int32_t worker);

/* Runs tasks 0 to `tasks - 1` in any order on any of the context's workers, and returns when all are done. */
typedef void (*sepwise_parallel_for)(void *context, int32_t tasks, sepwise_task task, const void *argument);

/* `<prefix>_run_range`: the kernel calls from `first` to `last - 1`. */
typedef int32_t (*sepwise_run_range)(int32_t first, int32_t last, const void *constants, const void *const *inputs,
                                     void *const *outputs, void *arena, sepwise_parallel_for parallel_for,
                                     void *context);

#endif
