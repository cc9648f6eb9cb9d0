/* As much of a C library as a bundle's example needs, over plain system calls: `main` is the example's, a stream is its
 * file's number. */
#include <stddef.h>
#include <stdint.h>

#include "system.h"

int main(void);

void *const stdin = (void *)0;
void *const stdout = (void *)1;
void *const stderr = (void *)2;

static size_t transfer(long number, char *memory, size_t nbytes, void *stream) {
  size_t done = 0;
  while (done < nbytes) {
    long moved = call_system(number, (long)(intptr_t)stream, (long)(memory + done), (long)(nbytes - done), 0, 0, 0);
    if (moved == -4) continue; /* EINTR */
    if (moved <= 0) break;
    done += (size_t)moved;
  }
  return done;
}

/* Both move single bytes: whole elements of others would have to be counted. */
size_t fread(void *to, size_t one, size_t count, void *stream) { return transfer(SYS_read, to, one * count, stream); }

size_t fwrite(const void *from, size_t one, size_t count, void *stream) {
  return transfer(SYS_write, (char *)from, one * count, stream);
}

int fputs(const char *text, void *stream) {
  size_t nbytes = 0;
  while (text[nbytes]) ++nbytes;
  return fwrite(text, 1, nbytes, stream) == nbytes ? 0 : -1;
}

int fflush(void *stream) {
  (void)stream;
  return 0;
}

_Noreturn void begin(void) { leave(main()); }
