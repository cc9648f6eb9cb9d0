/* A plugin of qemu's code generator: guest instructions of each kernel call.
 *
 * The guest says which call runs by the system call MARK (see emulated.c): its argument is the index plus one, 0 for
 * none. At the end one line a call, `<index> <instructions>`, goes to the file given as `counts=`; index -1 is what
 * ran outside of calls. Counts are exact for one guest thread.
 *
 * The declarations are those that version 1 to 5 of the plugin interface share; QEMU_PLUGIN_VERSION says which one to ask for. */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_info;
struct qemu_plugin_tb;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*translated)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*executed)(unsigned int, void *), int flags,
                                          void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id,
                                          void (*called)(plugin_id, unsigned int, int64_t, uint64_t, uint64_t, uint64_t,
                                                         uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(plugin_id id, void (*ended)(plugin_id, void *), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);

__attribute__((visibility("default"))) int qemu_plugin_version = QEMU_PLUGIN_VERSION;

enum { MARK = 0x7a00, MAX_CALLS = 65536 };

static uint64_t instructions[MAX_CALLS + 1];
static unsigned int slot;
static unsigned int used;
static char path[4096];

static void executed(unsigned int cpu, void *data) {
  (void)cpu;
  instructions[slot] += (uintptr_t)data;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != MARK || a1 > MAX_CALLS) return;
  slot = (unsigned int)a1;
  if (slot > used) used = slot;
}

static void ended(plugin_id id, void *data) {
  (void)id, (void)data;
  FILE *file = fopen(path, "w");
  if (!file) return;
  for (unsigned int i = 0; i <= used; ++i) fprintf(file, "%d %" PRIu64 "\n", (int)i - 1, instructions[i]);
  fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc,
                                                               char **argv) {
  (void)info;
  for (int i = 0; i < argc; ++i)
    if (!strncmp(argv[i], "counts=", 7) && strlen(argv[i] + 7) < sizeof path) strcpy(path, argv[i] + 7);
  if (!path[0]) return -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
