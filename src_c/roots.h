/* The cube root, for formulas: by operations that every compiler vectorises and NumPy has too, so that its twin
 * (cbrt in fastopt/reference.py) gets the same bits. Those of the C library's differ from one library to another.
 *
 * A float's bits are nearly its logarithm: a third of them, plus a constant, are those of its cube root but for 5 %.
 * The third is worked out as 1/4 * 5/4 * 17/16 * 257/256. Each iteration (Halley's) cubes the relative error. An
 * eighth of x is taken, because 2 x + y^3 would overflow. 0, infinity and NaN are their own cube roots. */
#ifndef ROOTS_H
#define ROOTS_H

#include <stdint.h>
#include <string.h>

#define CUBE_ROOT(T, BITS, CONSTANT, ITERATIONS)                                                              \
    static inline __attribute__((always_inline)) T cbrt_##T(T x)                                              \
    {                                                                                                         \
        const T eighth = x * (T)0.125;                                                                        \
        BITS bits;                                                                                            \
        memcpy(&bits, &eighth, sizeof bits);                                                                  \
        bits = bits >> 2;                                                                                     \
        bits = bits + (bits >> 2);                                                                            \
        bits = bits + (bits >> 4);                                                                            \
        bits = bits + (bits >> 8) + CONSTANT;                                                                 \
        T y;                                                                                                  \
        memcpy(&y, &bits, sizeof y);                                                                          \
        for (int k = 0; k < ITERATIONS; k++) {                                                                \
            const T cube = y * y * y;                                                                         \
            y = y * ((cube + 2 * eighth) / (2 * cube + eighth));                                              \
        }                                                                                                     \
        return x > 0 && x <= LARGEST_##T ? 2 * y : x;                                                         \
    }

#define LARGEST_float  FLT_MAX
#define LARGEST_double DBL_MAX

CUBE_ROOT(float, uint32_t, 709921077u, 2)
CUBE_ROOT(double, uint64_t, 0x2a9f7893782da1ceu, 3)

#define CBRT(x) _Generic((x), float: cbrt_float, double: cbrt_double)(x)

#endif
