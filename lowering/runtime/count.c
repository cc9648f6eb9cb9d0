/* A plugin of qemu's code generator: what each kernel call executes, block by block, and what misses modelled caches.
 *
 * The guest says which call runs by the system call MARK (see emulated.c): its argument is the index plus one, 0 for
 * none. Options: `counts=FILE`, where the answer goes at the end; `skip=N`, calls at the start that only warm the caches;
 * `prefetches=1` where loads of AArch64 into its zero register are prefetches; and for each core whose caches are modelled
 * `core=L1:WAYS:L2:WAYS:LINE:STREAMS`, sizes in bytes.
 *
 * A block is what qemu translates at once: straight-line code of one entry, which ends at a branch, at a page's end or after
 * 512 instructions. The file has lines
 *   block ID ADDRESS INSTRUCTIONS LOADS STORES CODE           instructions that were seen to load and to store; bytes in hex
 *   call INDEX                                                what follows ran in this call
 *   run ID COUNT LOAD_BYTES STORE_BYTES [the eight events]...   the events once a core, in the order of enum event
 *   edge FROM ID COUNT                                        times that block ID ran right behind block FROM
 * FROM is -1 at the start of a call, and for predecessors beyond MAX_EDGES. Counts are exact for one guest thread.
 *
 * A core has two levels of write-back caches, least recently used first out, indexed by virtual addresses, and a table of
 * streams beside the first: two misses at most REACH lines apart start a stream in their direction, and from then on a
 * hardware prefetcher has asked for what is missed within that reach of its head. Lone misses are remembered for a while, and
 * end no stream. Nothing waits for a store, or for a line that a prefetch asks for; that one is no load either.
 *
 * The declarations are those that version 1 to 5 of the plugin interface share; QEMU_PLUGIN_VERSION says which one to ask for. */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
typedef uint32_t memory_info;
struct qemu_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*translated)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*executed)(unsigned int, void *), int flags,
                                          void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *instruction,
                                      void (*accessed)(unsigned int, memory_info, uint64_t, void *), int flags, int kinds,
                                      void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id,
                                          void (*called)(plugin_id, unsigned int, int64_t, uint64_t, uint64_t, uint64_t,
                                                         uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(plugin_id id, void (*ended)(plugin_id, void *), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *instruction);
/* Up to qemu 9.0 it takes the instruction alone and returns the address of its bytes; since then it copies them and returns
 * how many. Called with all three arguments it does either. */
uintptr_t qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction, void *to, size_t nbytes);
unsigned int qemu_plugin_mem_size_shift(memory_info info);
bool qemu_plugin_mem_is_store(memory_info info);

__attribute__((visibility("default"))) int qemu_plugin_version = QEMU_PLUGIN_VERSION;

enum { MARK = 0x7a00, MAX_CORES = 8, MAX_EDGES = 8, MAX_STREAMS = 64, LONE_MISSES = 8, REACH = 4, MEMORY_READ_AND_WRITE = 3 };
enum { LOADS = 1, STORES = 2 };

enum event {
  L1_STREAMED, /* misses of the first level that nothing waits for: loads that continue a stream, stores that do not */
  L1_STORED,   /* stores that continue a stream */
  L1_DEMANDED, /* other loads */
  L1_WRITTEN,  /* lines that the first level writes back */
  L2_STREAMED,
  L2_STORED,
  L2_DEMANDED,
  L2_WRITTEN,
  EVENTS
};

/* Lines by set, the last used first; a line's number shifted by one, the lowest bit set where it was written. */
struct cache {
  uint64_t *lines;
  uint64_t sets;
  uint64_t ways;
};

struct stream {
  uint64_t head;     /* the line that was missed furthest on */
  int64_t direction; /* 1 or -1 */
};

struct core {
  struct cache l1;
  struct cache l2;
  struct stream streams[MAX_STREAMS]; /* the last used first */
  uint64_t lone[LONE_MISSES];         /* lines that were missed apart from any stream, the last first */
  int stream_count;
  int line_shift;
};

struct block;

struct edge {
  struct block *from;
  uint64_t count;
};

struct instruction {
  struct block *block;
  uint8_t kinds;
  bool prefetches;
};

struct block {
  int64_t number;
  uint64_t address;
  uint64_t size;
  uint64_t count;
  uint64_t bytes[2]; /* loaded and stored */
  struct edge edges[MAX_EDGES + 1];
  uint64_t events[MAX_CORES][EVENTS];
  struct block *next;         /* of all */
  struct block *next_touched; /* of those that ran in this call */
  bool wanted; /* whether the file speaks of it */
  uint64_t instruction_count;
  struct instruction *instructions;
  uint8_t *code;
};

static const uint64_t NO_LINE = UINT64_MAX - 1; /* clean */

static struct core cores[MAX_CORES];
static int core_count;
static struct block *blocks;
static struct block **last_block = &blocks;
static int64_t block_count;
static struct block *touched;
static struct block *previous;
static uint64_t slot; /* the running call's index plus one, 0 for none */
static uint64_t skipped;
static bool with_prefetches;
static FILE *file;

/* Puts a line first in its set. Gives whether it was there; what it drove out goes to `victim`. */
static bool use(struct cache *cache, uint64_t line, bool store, uint64_t *victim) {
  uint64_t *set = cache->lines + line % cache->sets * cache->ways;
  uint64_t moved = set[0];
  if (moved >> 1 == line) {
    set[0] |= store;
    return true;
  }
  for (uint64_t way = 1; way < cache->ways; ++way) {
    uint64_t here = set[way];
    set[way] = moved;
    moved = here;
    if (here >> 1 == line) {
      set[0] = here | store;
      return true;
    }
  }
  set[0] = line << 1 | store;
  *victim = moved;
  return false;
}

static int64_t distance(uint64_t from, uint64_t line) {
  int64_t step = (int64_t)(line - from);
  return step < -REACH || step > REACH ? 0 : step;
}

/* Whether a miss continues a stream, which learns from it; a miss near a lone one starts a stream. */
static bool continues(struct core *core, uint64_t line) {
  int found = 0;
  while (found < core->stream_count && !distance(core->streams[found].head, line)) ++found;
  bool foreseen = found < core->stream_count;
  struct stream next = {line, 1};
  if (foreseen) {
    next = core->streams[found];
    if (distance(next.head, line) * next.direction > 0) next.head = line;
  } else {
    int lone = 0;
    while (lone < LONE_MISSES - 1 && !distance(core->lone[lone], line)) ++lone;
    int64_t step = distance(core->lone[lone], line);
    memmove(core->lone + 1, core->lone, (size_t)lone * sizeof *core->lone);
    core->lone[0] = step ? NO_LINE : line;
    if (!step) return false;
    next.direction = step < 0 ? -1 : 1;
    found = core->stream_count - 1;
  }
  memmove(core->streams + 1, core->streams, (size_t)found * sizeof *core->streams);
  core->streams[0] = next;
  return foreseen;
}

static void touch(struct core *core, uint64_t line, bool store, bool prefetch, uint64_t *events) {
  uint64_t victim = NO_LINE, second = NO_LINE;
  if (use(&core->l1, line, store, &victim)) return;
  bool foreseen = prefetch || continues(core, line);
  enum event miss = store ? (foreseen ? L1_STORED : L1_STREAMED) : (foreseen ? L1_STREAMED : L1_DEMANDED);
  ++events[miss];
  if (!use(&core->l2, line, false, &second)) ++events[miss + L2_STREAMED - L1_STREAMED];
  events[L2_WRITTEN] += second & 1;
  if (victim & 1) {
    second = NO_LINE;
    ++events[L1_WRITTEN];
    use(&core->l2, victim >> 1, true, &second);
    events[L2_WRITTEN] += second & 1;
  }
}

static void accessed(unsigned int cpu, memory_info info, uint64_t address, void *data) {
  (void)cpu;
  if (!slot) return;
  struct instruction *instruction = data;
  struct block *block = instruction->block;
  bool store = qemu_plugin_mem_is_store(info);
  bool prefetch = instruction->prefetches;
  uint64_t nbytes = prefetch ? 1 : UINT64_C(1) << qemu_plugin_mem_size_shift(info);
  if (!prefetch) {
    instruction->kinds |= store ? STORES : LOADS;
    block->bytes[store] += nbytes;
  }
  for (int i = 0; i < core_count; ++i) {
    struct core *core = cores + i;
    uint64_t first = address >> core->line_shift, last = (address + nbytes - 1) >> core->line_shift;
    touch(core, first, store, prefetch, block->events[i]);
    if (last != first) touch(core, last, store, prefetch, block->events[i]);
  }
}

static void executed(unsigned int cpu, void *data) {
  (void)cpu;
  if (!slot) return;
  struct block *block = data;
  if (!block->count++) {
    block->next_touched = touched;
    touched = block;
  }
  struct edge *edge = block->edges;
  while (edge->from != previous && edge->count && edge < block->edges + MAX_EDGES) ++edge;
  if (edge < block->edges + MAX_EDGES) edge->from = previous;
  ++edge->count;
  previous = block;
}

/* Whether an instruction loads into the zero register: LDR with an immediate, LDUR, LDR with a register. */
static bool is_prefetch(const uint8_t *code) {
  uint32_t word = code[0] | (uint32_t)code[1] << 8 | (uint32_t)code[2] << 16 | (uint32_t)code[3] << 24;
  return (word & 0xffc0001f) == 0xf940001f || (word & 0xffe00c1f) == 0xf840001f || (word & 0xffe00c1f) == 0xf860081f;
}

static void translated(plugin_id id, struct qemu_plugin_tb *translation) {
  (void)id;
  struct block *block = calloc(1, sizeof *block);
  if (!block) abort();
  block->number = block_count++;
  block->address = qemu_plugin_tb_vaddr(translation);
  block->instruction_count = qemu_plugin_tb_n_insns(translation);
  block->instructions = calloc(block->instruction_count, sizeof *block->instructions);
  for (size_t i = 0; i < block->instruction_count; ++i)
    block->size += qemu_plugin_insn_size(qemu_plugin_tb_get_insn(translation, i));
  block->code = malloc(block->size);
  if (!block->instructions || !block->code) abort();
  uint8_t *to = block->code;
  for (size_t i = 0; i < block->instruction_count; ++i) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(translation, i);
    size_t nbytes = qemu_plugin_insn_size(instruction);
    uintptr_t answer = qemu_plugin_insn_data(instruction, to, nbytes);
    if (answer > nbytes) memcpy(to, (const void *)answer, nbytes);
    block->instructions[i].block = block;
    block->instructions[i].prefetches = with_prefetches && is_prefetch(to);
    to += nbytes;
    qemu_plugin_register_vcpu_mem_cb(instruction, accessed, 0, MEMORY_READ_AND_WRITE, block->instructions + i);
  }
  *last_block = block;
  last_block = &block->next;
  qemu_plugin_register_vcpu_tb_exec_cb(translation, executed, 0, block);
}

/* Writes what ran since the last time, for the call that ran, and forgets it. */
static void settle(void) {
  bool wanted = slot && !skipped;
  if (wanted) fprintf(file, "call %" PRIu64 "\n", slot - 1);
  for (struct block *block = touched; block; block = block->next_touched) {
    if (wanted) {
      block->wanted = true;
      fprintf(file, "run %" PRId64 " %" PRIu64 " %" PRIu64 " %" PRIu64, block->number, block->count, block->bytes[0],
              block->bytes[1]);
      for (int i = 0; i < core_count; ++i)
        for (int event = 0; event < EVENTS; ++event) fprintf(file, " %" PRIu64, block->events[i][event]);
      fprintf(file, "\n");
      for (int i = 0; i <= MAX_EDGES && block->edges[i].count; ++i) {
        struct block *from = block->edges[i].from;
        fprintf(file, "edge %" PRId64 " %" PRId64 " %" PRIu64 "\n", from ? from->number : INT64_C(-1), block->number,
                block->edges[i].count);
      }
    }
    block->count = 0;
    memset(block->bytes, 0, sizeof block->bytes);
    memset(block->edges, 0, sizeof block->edges);
    memset(block->events, 0, sizeof block->events);
  }
  if (slot && skipped) --skipped;
  touched = previous = NULL;
}

static void called(plugin_id id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != MARK) return;
  settle();
  slot = a1;
}

static void ended(plugin_id id, void *data) {
  (void)id, (void)data;
  settle();
  for (struct block *block = blocks; block; block = block->next) {
    if (!block->wanted) continue;
    uint64_t loads = 0, stores = 0;
    for (uint64_t i = 0; i < block->instruction_count; ++i) {
      loads += (block->instructions[i].kinds & LOADS) != 0;
      stores += (block->instructions[i].kinds & STORES) != 0;
    }
    fprintf(file, "block %" PRId64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " ", block->number, block->address,
            block->instruction_count, loads, stores);
    for (uint64_t i = 0; i < block->size; ++i) fprintf(file, "%02x", block->code[i]);
    fprintf(file, "\n");
  }
  fclose(file);
}

static bool make_cache(struct cache *cache, uint64_t nbytes, uint64_t ways, uint64_t line_bytes) {
  if (!ways || nbytes / line_bytes < ways) return false;
  cache->ways = ways;
  cache->sets = nbytes / line_bytes / ways;
  cache->lines = malloc(cache->sets * ways * sizeof *cache->lines);
  if (!cache->lines) return false;
  for (uint64_t i = 0; i < cache->sets * ways; ++i) cache->lines[i] = NO_LINE;
  return true;
}

static bool add_core(const char *text) {
  uint64_t l1, l1_ways, l2, l2_ways, line, stream_count;
  const char *format = "%" SCNu64 ":%" SCNu64 ":%" SCNu64 ":%" SCNu64 ":%" SCNu64 ":%" SCNu64;
  if (core_count == MAX_CORES || sscanf(text, format, &l1, &l1_ways, &l2, &l2_ways, &line, &stream_count) != 6) return false;
  if (!line || line & (line - 1) || !stream_count || stream_count > MAX_STREAMS) return false;
  struct core *core = cores + core_count++;
  while (line >> core->line_shift > 1) ++core->line_shift;
  core->stream_count = (int)stream_count;
  for (int i = 0; i < MAX_STREAMS; ++i) core->streams[i].head = NO_LINE; /* near to no line */
  for (int i = 0; i < LONE_MISSES; ++i) core->lone[i] = NO_LINE;
  return make_cache(&core->l1, l1, l1_ways, line) && make_cache(&core->l2, l2, l2_ways, line);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc,
                                                               char **argv) {
  (void)info;
  for (int i = 0; i < argc; ++i) {
    if (!strncmp(argv[i], "counts=", 7)) file = fopen(argv[i] + 7, "w");
    if (!strncmp(argv[i], "prefetches=", 11)) with_prefetches = argv[i][11] == '1';
    if (!strncmp(argv[i], "skip=", 5)) skipped = strtoull(argv[i] + 5, NULL, 10);
    if (!strncmp(argv[i], "core=", 5) && !add_core(argv[i] + 5)) return -1;
  }
  if (!file) return -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
