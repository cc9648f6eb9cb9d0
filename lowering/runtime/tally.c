/* Hooks of unicorn that count what a core executes: before each block of straight-line code, before each instruction that is
 * not skipped, and at each of its accesses.
 *
 * Instructions are counted by block, as under qemu: those whose condition fails, which the hook of an instruction does not see,
 * take their turn like others. An instruction that loads several registers, or one wider than the core's words, makes several accesses; it counts once. */
#include <stdint.h>

enum { LOADED = 1, STORED = 2, UC_MEM_READ = 16 };

struct tally {
  uint64_t instructions;
  uint64_t loads; /* instructions that loaded */
  uint64_t stores;
  uint64_t load_bytes;
  uint64_t store_bytes;
  uint64_t seen; /* of LOADED and STORED, what the running instruction did */
  uint64_t thumb; /* whether instructions have two or four bytes, and not always four */
  uint64_t start; /* where the core has `code` */
  const uint8_t *code;
};

void sepwise_tally_block(const void *core, uint64_t address, uint32_t nbytes, struct tally *tally) {
  (void)core;
  if (!tally->thumb) {
    tally->instructions += nbytes / 4;
    return;
  }
  const uint8_t *at = tally->code + (address - tally->start), *end = at + nbytes;
  for (; at < end; at += at[1] >> 3 >= 0x1d ? 4 : 2) ++tally->instructions; /* Arm DDI 0403, A5.1: 11101, 11110 and 11111 */
}

void sepwise_tally_instruction(const void *core, uint64_t address, uint32_t nbytes, struct tally *tally) {
  (void)core, (void)address, (void)nbytes;
  tally->seen = 0;
}

void sepwise_tally_access(const void *core, int kind, uint64_t address, int nbytes, int64_t value, struct tally *tally) {
  (void)core, (void)address, (void)value;
  if (kind == UC_MEM_READ) {
    tally->loads += !(tally->seen & LOADED);
    tally->load_bytes += (uint64_t)nbytes;
    tally->seen |= LOADED;
  } else {
    tally->stores += !(tally->seen & STORED);
    tally->store_bytes += (uint64_t)nbytes;
    tally->seen |= STORED;
  }
}
