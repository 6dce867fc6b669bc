/* Numbers below the normal ones: arithmetic on them costs some processors three times as much, others a
 * hundred times. While they are flushed, the calling thread takes those that it meets or makes for zero. */
#ifndef FASTOPT_SUBNORMALS_H
#define FASTOPT_SUBNORMALS_H

#include <stdint.h>

#if defined(__x86_64__)
#define FASTOPT_FLUSH 0x8040 /* MXCSR: flush to zero, denormals are zero */
static inline uint64_t fastopt_get_mode(void)
{
    uint32_t mode;
    __asm__ volatile("stmxcsr %0" : "=m"(mode));
    return mode;
}
static inline void fastopt_set_mode(uint64_t mode)
{
    const uint32_t low = (uint32_t)mode;
    __asm__ volatile("ldmxcsr %0" : : "m"(low));
}
#elif defined(__aarch64__)
#define FASTOPT_FLUSH (1 << 24) /* FPCR: FZ */
static inline uint64_t fastopt_get_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static inline void fastopt_set_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
#define FASTOPT_FLUSH 0
static inline uint64_t fastopt_get_mode(void) { return 0; }
static inline void fastopt_set_mode(uint64_t mode) { (void)mode; }
#endif

static inline uint64_t fastopt_flush_subnormals(void)
{
    const uint64_t before = fastopt_get_mode();
    fastopt_set_mode(before | FASTOPT_FLUSH);
    return before;
}

#endif
