/* A small thread pool: the caller is worker 0, the others wait, spinning for a moment and then asleep.
 *
 * A launch publishes a job by opening it in one atomic word; workers enter and leave it there. Tasks are split evenly
 * between the workers, each with a counter of its own in its own cache line; who has finished takes tasks from the others'
 * counters. The caller closes the job when no task is left and waits only for those that entered: a worker
 * that the system has not scheduled costs nothing but its help.
 *
 * Workers are pinned to cpus of their own. The caller is not, but when it is found on a worker's cpu it moves away,
 * because there it would share that cpu with the worker while another one idles.
 *
 * Calls from within a task, and calls while another thread holds the pool, run their tasks in the calling thread.
 * After a fork the child has no workers; it starts its own at its first launch. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sepwise.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

enum { MAX_WORKERS = 256, MAX_CPUS = 1024, SPIN_NS = 200000, PAUSES_A_CLOCK = 64 };

/* The job word: whether a job is open, which one, and how many workers are in it. */
#define INSIDE_MASK UINT64_C(0xffff)
#define OPEN UINT64_C(0x10000)
#define GENERATION UINT64_C(0x100000000)

/* One worker's share of the tasks. */
struct share {
  _Alignas(64) _Atomic int32_t next;
  int32_t end;
};

/* Lies in a page that the system wipes in a forked child: there `alive` reads 0. */
struct fork_mark {
  _Atomic uint32_t alive;
  _Atomic uint32_t starting;
};

struct pool;

struct worker {
  struct pool *pool;
  int32_t index;
  pthread_t thread;
};

struct pool {
  _Alignas(64) _Atomic uint64_t job;
  _Alignas(64) _Atomic uint32_t epoch; /* What sleepers wait on; changes with every job. */
  _Atomic uint32_t sleepers;
  _Atomic uint32_t stop;
  _Alignas(64) _Atomic uint32_t busy;
  sepwise_task task;
  const void *argument;
  int32_t threads;
  int32_t started; /* Workers besides the caller that run. */
  int32_t spin_ns;
  int32_t cpu_count;
  pid_t owner;
  struct fork_mark *mark;
  int32_t wipes; /* Whether the system wipes `mark` at a fork; otherwise `owner` tells. */
  int32_t cpus[MAX_WORKERS];
  unsigned char worker_cpu[MAX_CPUS];
  struct worker workers[MAX_WORKERS];
  struct share shares[MAX_WORKERS];
};

static inline void pause_cpu(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static long futex(_Atomic uint32_t *word, int operation, uint32_t value) {
  return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Runs a share's tasks, then those that others have left. */
static void work(struct pool *pool, int32_t worker) {
  for (int32_t step = 0; step < pool->threads; ++step) {
    int32_t index = worker + step < pool->threads ? worker + step : worker + step - pool->threads;
    struct share *share = &pool->shares[index];
    while (atomic_load_explicit(&share->next, memory_order_relaxed) < share->end) {
      int32_t task = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
      if (task >= share->end) break;
      pool->task(pool->argument, task, worker);
    }
  }
}

/* Enters the open job, unless it is closed or already seen; gives whether it did, and which one. */
static int enter(struct pool *pool, uint64_t *seen) {
  uint64_t word = atomic_load_explicit(&pool->job, memory_order_acquire);
  while ((word & OPEN) && word / GENERATION != *seen) {
    if (atomic_compare_exchange_weak_explicit(&pool->job, &word, word + 1, memory_order_acquire, memory_order_acquire)) {
      *seen = word / GENERATION;
      return 1;
    }
  }
  return 0;
}

static void *serve(void *argument) {
  struct worker *self = argument;
  struct pool *pool = self->pool;
  uint64_t seen = 0;
  while (!atomic_load_explicit(&pool->stop, memory_order_acquire)) {
    uint32_t epoch = atomic_load(&pool->epoch);
    if (enter(pool, &seen)) {
      work(pool, self->index);
      atomic_fetch_sub_explicit(&pool->job, 1, memory_order_release);
      continue;
    }
    int64_t until = pool->spin_ns ? now_ns() + pool->spin_ns : 0;
    int changed = 0;
    while (pool->spin_ns && !changed && now_ns() < until) {
      for (int32_t i = 0; i < PAUSES_A_CLOCK && !changed; ++i) {
        changed = atomic_load_explicit(&pool->epoch, memory_order_acquire) != epoch;
        pause_cpu();
      }
    }
    if (!changed) {
      atomic_fetch_add(&pool->sleepers, 1);
      while (atomic_load(&pool->epoch) == epoch && !atomic_load(&pool->stop)) futex(&pool->epoch, FUTEX_WAIT, epoch);
      atomic_fetch_sub(&pool->sleepers, 1);
    }
  }
  return NULL;
}

/* Starts the workers; one that the system refuses is done without. */
static void start(struct pool *pool) {
  atomic_store(&pool->job, GENERATION);
  atomic_store(&pool->epoch, 0);
  atomic_store(&pool->sleepers, 0);
  atomic_store(&pool->stop, 0);
  atomic_store(&pool->busy, 0);
  pool->owner = getpid();
  pool->started = 0;
  for (int32_t i = 1; i < pool->threads; ++i) {
    struct worker *worker = &pool->workers[i];
    worker->pool = pool;
    worker->index = i;
    if (pthread_create(&worker->thread, NULL, serve, worker)) break;
    ++pool->started;
    if (pool->cpu_count) {
      cpu_set_t cpu;
      CPU_ZERO(&cpu);
      CPU_SET(pool->cpus[i], &cpu);
      pthread_setaffinity_np(worker->thread, sizeof cpu, &cpu);
    }
  }
  atomic_store(&pool->mark->alive, 1);
}

/* Creates a pool of `threads` workers, the caller counted. `cpus` are those to use, physical cores first; with fewer cpus
 * than workers nothing is pinned and nobody spins. NULL where there is no memory. */
struct pool *sepwise_pool_create(int32_t threads, const int32_t *cpus, int32_t cpu_count) {
  int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
  struct pool *pool = mmap(NULL, sizeof *pool, protection, flags, -1, 0);
  if (pool == MAP_FAILED) return NULL;
  long page_bytes = sysconf(_SC_PAGESIZE);
  pool->mark = mmap(NULL, page_bytes, protection, flags, -1, 0);
  if (pool->mark == MAP_FAILED) {
    munmap(pool, sizeof *pool);
    return NULL;
  }
  pool->wipes = !madvise(pool->mark, page_bytes, MADV_WIPEONFORK);
  pool->threads = threads < 1 ? 1 : threads > MAX_WORKERS ? MAX_WORKERS : threads;
  if (cpu_count >= pool->threads) {
    int here = sched_getcpu();
    pool->cpu_count = cpu_count;
    pool->spin_ns = SPIN_NS;
    pool->cpus[0] = here;
    int32_t taken = 1;
    for (int32_t i = 0; i < cpu_count && taken < pool->threads; ++i) {
      if (cpus[i] == here || cpus[i] < 0 || cpus[i] >= MAX_CPUS) continue;
      pool->cpus[taken++] = cpus[i];
      pool->worker_cpu[cpus[i]] = 1;
    }
    if (taken < pool->threads) {
      pool->cpu_count = 0;
      for (int32_t i = 0; i < MAX_CPUS; ++i) pool->worker_cpu[i] = 0;
    }
  }
  start(pool);
  return pool;
}

/* Moves the calling thread off the workers' cpus, once, without narrowing what it may use later. */
static void leave_worker_cpu(struct pool *pool) {
  cpu_set_t allowed, away;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
  int any = 0;
  CPU_ZERO(&away);
  for (int32_t cpu = 0; cpu < MAX_CPUS && cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || pool->worker_cpu[cpu]) continue;
    CPU_SET(cpu, &away);
    any = 1;
  }
  if (any && !sched_setaffinity(0, sizeof away, &away)) sched_setaffinity(0, sizeof allowed, &allowed);
}

/* Restarts the workers in a forked child. */
static void revive(struct pool *pool) {
  if (pool->wipes ? atomic_load_explicit(&pool->mark->alive, memory_order_acquire) : pool->owner == getpid()) return;
  if (!pool->wipes) atomic_store(&pool->mark->starting, 0);
  if (!atomic_exchange(&pool->mark->starting, 1)) start(pool);
  while (!atomic_load(&pool->mark->alive)) sched_yield();
}

/* The `sepwise_parallel_for` of a pool. */
void sepwise_pool_parallel_for(void *context, int32_t tasks, sepwise_task task, const void *argument) {
  struct pool *pool = context;
  revive(pool);
  if (pool->started == 0 || tasks < 2) {
    for (int32_t i = 0; i < tasks; ++i) task(argument, i, 0);
    return;
  }
  if (atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire)) {
    /* A task that launches must not touch the scratch of another worker; a stranger has its own scratch. */
    pthread_t self = pthread_self();
    int32_t worker = 0;
    for (int32_t i = 1; i <= pool->started; ++i)
      if (pthread_equal(pool->workers[i].thread, self)) worker = i;
    for (int32_t i = 0; i < tasks; ++i) task(argument, i, worker);
    return;
  }
  int cpu = pool->cpu_count ? sched_getcpu() : -1;
  if (cpu >= 0 && cpu < MAX_CPUS && pool->worker_cpu[cpu]) leave_worker_cpu(pool);
  pool->task = task;
  pool->argument = argument;
  int32_t base = tasks / pool->threads, extra = tasks % pool->threads, begin = 0;
  for (int32_t i = 0; i < pool->threads; ++i) {
    int32_t end = begin + base + (i < extra);
    atomic_store_explicit(&pool->shares[i].next, begin, memory_order_relaxed);
    pool->shares[i].end = end;
    begin = end;
  }
  uint64_t generation = atomic_load_explicit(&pool->job, memory_order_relaxed) / GENERATION + 1;
  atomic_store(&pool->job, (generation & UINT32_MAX) * GENERATION | OPEN);
  atomic_fetch_add(&pool->epoch, 1);
  if (atomic_load(&pool->sleepers)) futex(&pool->epoch, FUTEX_WAKE, INT32_MAX);
  work(pool, 0);
  atomic_fetch_and_explicit(&pool->job, ~OPEN, memory_order_acq_rel);
  for (int32_t spins = 0; atomic_load_explicit(&pool->job, memory_order_acquire) & INSIDE_MASK; ++spins) {
    pause_cpu();
    if (spins >= 4096 || !pool->spin_ns) sched_yield();
  }
  atomic_store_explicit(&pool->busy, 0, memory_order_release);
}

/* Ends the workers and frees the pool. No launch may be under way. */
void sepwise_pool_destroy(struct pool *pool) {
  int ours = pool->wipes ? atomic_load(&pool->mark->alive) != 0 : pool->owner == getpid();
  if (ours) {
    atomic_store(&pool->stop, 1);
    atomic_fetch_add(&pool->epoch, 1);
    futex(&pool->epoch, FUTEX_WAKE, INT32_MAX);
    for (int32_t i = 1; i <= pool->started; ++i) pthread_join(pool->workers[i].thread, NULL);
  }
  munmap(pool->mark, sysconf(_SC_PAGESIZE));
  munmap(pool, sizeof *pool);
}
