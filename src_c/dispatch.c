/* The public table. Which instruction sets this processor may run: __builtin_cpu_supports asks CPUID for the
 * subset and XGETBV whether the operating system saves its registers. */

#include "fastopt.h"

#define STRING(...) #__VA_ARGS__
#define QUOTE(...) STRING(__VA_ARGS__)

extern const fastopt_optimizer fastopt_optimizers_baseline[];
#ifdef __x86_64__
extern const fastopt_optimizer fastopt_optimizers_avx2[];
extern const fastopt_optimizer fastopt_optimizers_avx512[];
#endif

static const fastopt_format formats[] = {
#define FORMAT_ENTRY {QUOTE(FORMAT), QUOTE(PARAMETER), QUOTE(GRADIENT), QUOTE(STATES)},
#define EACH_FORMAT "entry.h"
#include "formats.def"
    {0},
};

/* Best first. A processor that runs one of them runs those behind it. */
static const fastopt_isa isas[] = {
#ifdef __x86_64__
    {"avx512", fastopt_optimizers_avx512},
    {"avx2", fastopt_optimizers_avx2},
#endif
    {"baseline", fastopt_optimizers_baseline},
    {0},
};

static const fastopt_table tables[] = {
    {isas, formats},
#ifdef __x86_64__
    {isas + 1, formats},
    {isas + 2, formats},
#endif
};

const fastopt_table *fastopt_get_table(uint32_t abi_version, size_t call_size)
{
    if (abi_version != FASTOPT_ABI_VERSION || call_size != sizeof(fastopt_call))
        return NULL;
#ifdef __x86_64__
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2");
    /* every subset that isa_avx512.c names */
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
                       && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    return tables + (avx512 ? 0 : avx2 ? 1 : 2);
#else
    return tables;
#endif
}
