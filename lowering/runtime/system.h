/* A program under qemu-user without a C library: where it starts, and system calls. Whoever includes this defines `begin`. */
#ifndef SYSTEM_H
#define SYSTEM_H

__attribute__((used)) _Noreturn void begin(void);

#if defined(__aarch64__)
enum { SYS_read = 63, SYS_write = 64, SYS_exit = 94, SYS_rt_sigaction = 134, SYS_mmap = 222, SYS_mprotect = 226 };
__asm__(".globl _start\n_start:\n  mov x29, #0\n  mov x30, #0\n  bl begin\n"); /* sp comes aligned to 16 */
#elif defined(__x86_64__)
enum { SYS_read = 0, SYS_write = 1, SYS_mmap = 9, SYS_mprotect = 10, SYS_rt_sigaction = 13, SYS_exit = 231 };
__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  call begin\n"); /* rsp comes aligned to 16 */
#elif defined(__arm__)
enum { SYS_read = 3, SYS_write = 4, SYS_mprotect = 125, SYS_rt_sigaction = 174, SYS_mmap = 192 /* mmap2 */, SYS_exit = 248 };
__asm__(".globl _start\n_start:\n  mov r11, #0\n  mov lr, #0\n  bl begin\n"); /* sp comes aligned to 8 */
#else
#error "no system calls known for this target"
#endif

static inline long call_system(long number, long a, long b, long c, long d, long e, long f) {
#if defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
#elif defined(__arm__)
  register long r0 __asm__("r0") = a;
  register long r1 __asm__("r1") = b;
  register long r2 __asm__("r2") = c;
  register long r3 __asm__("r3") = d;
  register long r4 __asm__("r4") = e;
  register long r5 __asm__("r5") = f;
  __asm__ volatile("push {r7}\n  mov r7, %1\n  svc #0\n  pop {r7}" /* r7 may be the frame pointer */
                   : "+r"(r0)
                   : "r"(number), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5)
                   : "memory");
  return r0;
#else
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
#endif
}

static inline _Noreturn void leave(int status) {
  for (;;) call_system(SYS_exit, status, 0, 0, 0, 0, 0);
}

#endif
