/* What a compiler may call by itself, for targets without a C library. */
#include <stddef.h>
#include <stdint.h>

typedef uint8_t bytes16 __attribute__((vector_size(16), aligned(1), may_alias));

void *memcpy(void *restrict to, const void *restrict from, size_t nbytes) {
  uint8_t *t = to;
  const uint8_t *f = from;
  for (; nbytes >= 16; nbytes -= 16, t += 16, f += 16) *(bytes16 *)t = *(const bytes16 *)f;
  for (; nbytes; --nbytes) *t++ = *f++;
  return to;
}

void *memmove(void *to, const void *from, size_t nbytes) {
  if ((uintptr_t)to - (uintptr_t)from >= nbytes) return memcpy(to, from, nbytes);
  uint8_t *t = to;
  const uint8_t *f = from;
  while (nbytes) {
    --nbytes;
    t[nbytes] = f[nbytes];
  }
  return to;
}

void *memset(void *to, int value, size_t nbytes) {
  uint8_t *t = to;
  bytes16 vector = (bytes16){0} + (uint8_t)value;
  for (; nbytes >= 16; nbytes -= 16, t += 16) *(bytes16 *)t = vector;
  for (; nbytes; --nbytes) *t++ = (uint8_t)value;
  return to;
}

int memcmp(const void *a, const void *b, size_t nbytes) {
  const uint8_t *x = a, *y = b;
  for (; nbytes; --nbytes, ++x, ++y)
    if (*x != *y) return *x - *y;
  return 0;
}
