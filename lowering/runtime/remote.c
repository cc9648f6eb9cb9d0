/* The entries of a Program that a board has loaded through TVM's RPC: functions of TVM's packed calling convention.
 *
 * Inputs and outputs are tensors of the caller's, on the board and in the Program's order; the constants, the arena and the stage on
 * which calls run alone are regions of this library, which go with it.
 *
 *   open(inputs, calls, threads)             how many tensors are inputs, how many calls there are; starts the workers
 *   allocate(region, nbytes)                 memory of `UNWRITTEN` bytes that begins at a page
 *   write(region, offset, bytes), read(region, offset, nbytes) -> bytes
 *   main(inputs..., outputs...)              the whole Program
 *   run(first, last, inputs..., outputs...)  the calls from `first` to `last - 1`
 *   time(repeats, each, inputs..., outputs...) -> bytes     microseconds as float64, see `timing.c`
 *   time_calls(rounds, calls, inputs..., outputs...) -> bytes     the same of some calls (int32) by themselves
 *   protect(access, offset, nbytes)          pages of the stage
 *   run_alone(call, shared, offsets) -> int  one call on the stage, where the scratch and the arguments lie at offsets (int64), by one
 *                                            worker or all; gives the offset that it touched and must not, `NOWHERE` if none */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <tvm/ffi/c_api.h>

#include "sepwise.h"

enum { ARENA = 0, CONSTANT = 1, STAGE = 4, REGIONS = 5 };
enum { MAX_TENSORS = 1024, MAX_CPUS = 1024, MAX_CALLS = 1024, MAX_PATH = 96, ALIGNMENT = 64, UNWRITTEN = 0xff };
#define NOWHERE INT64_MIN

#define ENTRY(name) int __tvm_ffi_##name(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result)

struct pool;
struct pool *sepwise_pool_create(int32_t threads, const int32_t *cpus, int32_t cpu_count);
void sepwise_pool_parallel_for(void *context, int32_t tasks, sepwise_task task, const void *argument);
void sepwise_pool_destroy(struct pool *pool);
void sepwise_time(sepwise_run_range run_range, int32_t first, int32_t last, const void *constants, const void *const *inputs,
                  void *const *outputs, void *arena, sepwise_parallel_for parallel_for, void *context, int32_t repeats,
                  int32_t each, double *us);
void sepwise_time_calls(sepwise_run_range run_range, const int32_t *calls, int32_t count, const void *constants,
                        const void *const *inputs, void *const *outputs, void *arena, sepwise_parallel_for parallel_for,
                        void *context, int32_t rounds, double *us);
int32_t sepwise_run_guarded(sepwise_run_range run_range, int32_t call, const void *const *operands, void *scratch,
                            sepwise_parallel_for parallel_for, void *context, void *stage, int64_t nbytes, uintptr_t *stray);
int32_t model_run_range(int32_t first, int32_t last, const void *constants, const void *const *inputs, void *const *outputs,
                        void *arena, sepwise_parallel_for parallel_for, void *context);

static struct region {
  uint8_t *start;
  int64_t nbytes;
} regions[REGIONS];
static int32_t input_count, call_count;
static struct pool *pool;

static int fail(const char *what) {
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", what);
  return -1;
}

static int give_int(int64_t value, TVMFFIAny *result) {
  *result = (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value};
  return 0;
}

/* The bytes of an argument, none where it is something else. */
static TVMFFIByteArray read_bytes(const TVMFFIAny *value) {
  switch (value->type_index) {
    case kTVMFFIByteArrayPtr: return *(const TVMFFIByteArray *)value->v_ptr;
    case kTVMFFIBytes: return *(const TVMFFIByteArray *)(value->v_obj + 1);
    case kTVMFFISmallBytes: return (TVMFFIByteArray){value->v_bytes, value->small_str_len};
    default: return (TVMFFIByteArray){NULL, 0};
  }
}

/* Where `nbytes` at an offset of a region lie, NULL where they do not all lie in it. */
static uint8_t *find(int64_t region, int64_t offset, int64_t nbytes) {
  if (region < 0 || region >= REGIONS || offset < 0 || nbytes < 0 || nbytes > regions[region].nbytes - offset) return NULL;
  return regions[region].start + offset;
}

static sepwise_parallel_for parallel_for(void) { return pool ? sepwise_pool_parallel_for : NULL; }

/* Sets the addresses of the tensors among the arguments; 0 where one is no tensor, or not aligned as kernels take it to be. */
static int find_tensors(const TVMFFIAny *arguments, int32_t count, void **tensors) {
  if (count < input_count || count > MAX_TENSORS) return 0;
  for (int32_t i = 0; i < count; ++i) {
    if (arguments[i].type_index != kTVMFFIDLTensorPtr) return 0;
    const DLTensor *tensor = arguments[i].v_ptr;
    tensors[i] = (uint8_t *)tensor->data + tensor->byte_offset;
    if ((uintptr_t)tensors[i] % ALIGNMENT) return 0;
  }
  return 1;
}

static int run(int32_t first, int32_t last, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) {
  void *tensors[MAX_TENSORS];
  if (!find_tensors(arguments, count, tensors)) return fail("run: needed are tensors of all inputs and outputs, aligned to 64 bytes");
  if (model_run_range(first, last, regions[CONSTANT].start, (const void *const *)tensors, tensors + input_count,
                      regions[ARENA].start, parallel_for(), pool))
    return fail("run: there is no such call");
  return give_int(0, result);
}

/* Whether a cpu is the first of its core, as far as the system tells. */
static int is_first(int cpu) {
  char path[MAX_PATH];
  int first = cpu;
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
  FILE *file = fopen(path, "r");
  if (!file) return 1;
  if (fscanf(file, "%d", &first) != 1) first = cpu;
  fclose(file);
  return first == cpu;
}

/* The cpus that this process may use, one of each core first. */
static int32_t list_cpus(int32_t *cpus) {
  cpu_set_t allowed;
  int32_t count = 0;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return 0;
  for (int first = 1; first >= 0; --first)
    for (int cpu = 0; cpu < MAX_CPUS && cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &allowed) && is_first(cpu) == first) cpus[count++] = cpu;
  return count;
}

ENTRY(open) {
  (void)self;
  int32_t cpus[MAX_CPUS];
  if (count != 3 || pool) return fail("open: needed are inputs, calls and threads, once");
  input_count = (int32_t)arguments[0].v_int64;
  call_count = (int32_t)arguments[1].v_int64;
  if (arguments[2].v_int64 > 1 && !(pool = sepwise_pool_create((int32_t)arguments[2].v_int64, cpus, list_cpus(cpus))))
    return fail("open: no memory for the workers");
  return give_int(0, result);
}

ENTRY(allocate) {
  (void)self;
  if (count != 2 || arguments[0].v_int64 < 0 || arguments[0].v_int64 >= REGIONS) return fail("allocate: there is no such region");
  struct region *region = &regions[arguments[0].v_int64];
  int64_t nbytes = arguments[1].v_int64;
  if (region->start) return fail("allocate: the region is there already");
  void *start = mmap(NULL, nbytes > 0 ? (size_t)nbytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return fail("allocate: the board has not so much memory");
  memset(start, UNWRITTEN, (size_t)nbytes);
  *region = (struct region){start, nbytes};
  return give_int(0, result);
}

ENTRY(write) {
  (void)self;
  if (count != 3) return fail("write: needed are the region, the offset and bytes");
  TVMFFIByteArray data = read_bytes(&arguments[2]);
  uint8_t *at = find(arguments[0].v_int64, arguments[1].v_int64, (int64_t)data.size);
  if (!data.data || !at) return fail("write: does not lie in the region");
  memcpy(at, data.data, data.size);
  return give_int(0, result);
}

ENTRY(read) {
  (void)self;
  uint8_t *at = count == 3 ? find(arguments[0].v_int64, arguments[1].v_int64, arguments[2].v_int64) : NULL;
  if (!at) return fail("read: does not lie in the region");
  TVMFFIByteArray bytes = {(const char *)at, (size_t)arguments[2].v_int64};
  return TVMFFIBytesFromByteArray(&bytes, result);
}

ENTRY(main) {
  (void)self;
  return run(0, call_count, arguments, count, result);
}

ENTRY(run) {
  (void)self;
  if (count < 2) return fail("run: needed are the first call and the last");
  return run((int32_t)arguments[0].v_int64, (int32_t)arguments[1].v_int64, arguments + 2, count - 2, result);
}

/* Memory for `count` times, NULL where there is none; `give_times` gives them and frees it. */
static double *allocate_times(size_t count) {
  double *us = mmap(NULL, count * sizeof *us + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return us == MAP_FAILED ? NULL : us;
}

static int give_times(double *us, size_t count, TVMFFIAny *result) {
  TVMFFIByteArray bytes = {(const char *)us, count * sizeof *us};
  int status = TVMFFIBytesFromByteArray(&bytes, result);
  munmap(us, count * sizeof *us + 1);
  return status;
}

ENTRY(time) {
  (void)self;
  void *tensors[MAX_TENSORS];
  if (count < 2 || !find_tensors(arguments + 2, count - 2, tensors)) return fail("time: needed are repeats, each and the tensors");
  int32_t repeats = (int32_t)arguments[0].v_int64, each = arguments[1].v_int64 != 0;
  size_t times = (size_t)repeats * (size_t)(each ? call_count : 1);
  double *us = allocate_times(times);
  if (!us) return fail("time: no memory for so many times");
  sepwise_time(model_run_range, 0, call_count, regions[CONSTANT].start, (const void *const *)tensors, tensors + input_count,
               regions[ARENA].start, parallel_for(), pool, repeats, each, us);
  return give_times(us, times, result);
}

ENTRY(time_calls) {
  (void)self;
  void *tensors[MAX_TENSORS];
  if (count < 2 || !find_tensors(arguments + 2, count - 2, tensors)) return fail("time_calls: needed are rounds, calls and the tensors");
  TVMFFIByteArray places = read_bytes(&arguments[1]);
  int32_t rounds = (int32_t)arguments[0].v_int64, number = (int32_t)(places.size / sizeof(int32_t)), calls[MAX_CALLS];
  if (number > MAX_CALLS) return fail("time_calls: too many calls");
  if (number) memcpy(calls, places.data, (size_t)number * sizeof *calls);
  for (int32_t place = 0; place < number; ++place)
    if (calls[place] < 0 || calls[place] >= call_count) return fail("time_calls: there is no such call");
  size_t times = (size_t)rounds * (size_t)number;
  double *us = allocate_times(times);
  if (!us) return fail("time_calls: no memory for so many times");
  sepwise_time_calls(model_run_range, calls, number, regions[CONSTANT].start, (const void *const *)tensors, tensors + input_count,
                     regions[ARENA].start, parallel_for(), pool, rounds, us);
  return give_times(us, times, result);
}

ENTRY(protect) {
  (void)self;
  uint8_t *at = count == 3 ? find(STAGE, arguments[1].v_int64, arguments[2].v_int64) : NULL;
  if (!at || mprotect(at, (size_t)arguments[2].v_int64, (int)arguments[0].v_int64)) return fail("protect: not allowed there");
  return give_int(0, result);
}

ENTRY(run_alone) {
  (void)self;
  const void *operands[MAX_TENSORS];
  TVMFFIByteArray places = count == 3 ? read_bytes(&arguments[2]) : (TVMFFIByteArray){NULL, 0};
  size_t operand_count = places.size / sizeof(int64_t);
  if (!operand_count || operand_count > MAX_TENSORS) return fail("run_alone: needed are the places of the scratch and the arguments");
  for (size_t i = 0; i < operand_count; ++i) {
    int64_t offset;
    memcpy(&offset, places.data + i * sizeof offset, sizeof offset);
    operands[i] = regions[STAGE].start + offset;
  }
  int shared = arguments[1].v_int64 != 0;
  uintptr_t stray = 0;
  if (sepwise_run_guarded(model_run_range, (int32_t)arguments[0].v_int64, operands + 1, (void *)(uintptr_t)operands[0],
                          shared ? parallel_for() : NULL, shared ? pool : NULL, regions[STAGE].start, regions[STAGE].nbytes, &stray))
    return fail("run_alone: there is no such call");
  return give_int(stray ? (int64_t)(stray - (uintptr_t)regions[STAGE].start) : NOWHERE, result);
}

/* When the library is unloaded. */
__attribute__((destructor)) static void close_all(void) {
  if (pool) sepwise_pool_destroy(pool);
  for (int i = 0; i < REGIONS; ++i)
    if (regions[i].start) munmap(regions[i].start, regions[i].nbytes > 0 ? (size_t)regions[i].nbytes : 1);
}
