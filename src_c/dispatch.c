/* Which instruction sets this processor may run. __builtin_cpu_supports asks CPUID for the subset and
 * XGETBV whether the operating system saves its registers. */

#include "fastopt.h"
#include "names.h"

extern const fastopt_optimizer fastopt_optimizers_baseline[];
#ifdef __x86_64__
extern const fastopt_optimizer fastopt_optimizers_avx2[];
extern const fastopt_optimizer fastopt_optimizers_avx512[];
#endif

const fastopt_isa *fastopt_isas(void)
{
    static const fastopt_isa all[] = {
#ifdef __x86_64__
        {"avx512", fastopt_optimizers_avx512},
        {"avx2", fastopt_optimizers_avx2},
#endif
        {"baseline", fastopt_optimizers_baseline},
        {0},
    };
    size_t best = 0;
#ifdef __x86_64__
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2");
    /* every subset that isa_avx512.c names */
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
                       && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    best = avx512 ? 0 : avx2 ? 1 : 2;
#endif
    return all + best;
}

const fastopt_format *fastopt_formats(void)
{
    static const fastopt_format all[] = {
#define EACH_FORMAT "format_names.h"
#include "formats.def"
        {0},
    };
    return all;
}
