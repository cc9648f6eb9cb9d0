/* Hooks of unicorn that count what a core executes: the first before each instruction, the second at each of its accesses.
 *
 * An instruction that loads several registers, or one wider than the core's words, makes several accesses; it counts once. */
#include <stdint.h>

enum { LOADED = 1, STORED = 2, UC_MEM_READ = 16 };

struct tally {
  uint64_t instructions;
  uint64_t loads; /* instructions that loaded */
  uint64_t stores;
  uint64_t load_bytes;
  uint64_t store_bytes;
  uint64_t seen; /* of LOADED and STORED, what the running instruction did */
};

void sepwise_tally_instruction(const void *core, uint64_t address, uint32_t size, struct tally *tally) {
  (void)core, (void)address, (void)size;
  ++tally->instructions;
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
