/* Every operation computes in its own type, as it is written: otherwise bits would depend on the compiler.
 * setup.py passes flags that ensure it whatever flags the environment adds; this stops any other build. */
#ifndef FASTOPT_ARITHMETIC_H
#define FASTOPT_ARITHMETIC_H

#include <float.h>

/* 16: as 0, but for _Float16, which nothing here computes in */
_Static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16,
               "fastopt: the compiler computes float in a wider type (FLT_EVAL_METHOD is not 0), so results would "
               "differ from other machines'; compile for SSE2 (-msse2 -mfpmath=sse) and not for the x87");

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) \
    || defined(__NO_SIGNED_ZEROS__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "fastopt: -ffast-math, or a part of it, would change results; compile with -fno-fast-math and -ffp-contract=off"
#endif

_Static_assert(sizeof 1.0 == sizeof(double), "fastopt: constants must be of double precision");

#endif
