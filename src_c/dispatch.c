/* The public table. Which instruction sets this processor may run: __builtin_cpu_supports asks CPUID for the
 * subset and XGETBV whether the operating system saves its registers. */

#include "fastopt.h"

#define STRING(...) #__VA_ARGS__
#define QUOTE(...) STRING(__VA_ARGS__)

#define DECLARE(isa)                                                                     \
    extern const fastopt_optimizer fastopt_optimizers_##isa[], fastopt_auxiliary_##isa[]; \
    extern const fastopt_converter fastopt_converters_##isa[];
#define ISA_ENTRY(isa) {#isa, fastopt_optimizers_##isa, fastopt_auxiliary_##isa, fastopt_converters_##isa},

DECLARE(baseline)
#ifdef __x86_64__
DECLARE(avx2)
DECLARE(avx512)
#endif

static const fastopt_format formats[] = {
#define FORMAT_ENTRY \
    {QUOTE(FORMAT), QUOTE(PARAMETER), QUOTE(GRADIENT), QUOTE(STATES), QUOTE(KERNEL_GRADIENT)},
#define EACH_FORMAT "entry.h"
#include "formats.def"
    {0},
};

/* Best first. A processor that runs one of them runs those behind it. */
static const fastopt_isa isas[] = {
#ifdef __x86_64__
    ISA_ENTRY(avx512)
    ISA_ENTRY(avx2)
#endif
    ISA_ENTRY(baseline)
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
