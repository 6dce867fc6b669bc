/* Turns the formula of one row of optimizers.def into kernels for one format. T is the type of the
 * arithmetic, FORMAT and ISA are the names that the kernels end in: adam_0_float32_avx2.
 *
 * Every buffer is loaded into a local once, the formula computes on the locals, and every buffer is
 * stored once, at the end: reading back what was just stored waits for the store, for long where it
 * crosses a cache line. The buffers are function parameters because that is where `restrict` counts;
 * on local pointers gcc checks for overlap at run time, which small arrays pay for. */

#define LOOP JOIN(OPTIMIZER, loop, FORMAT, ISA)
#define FORMULA QUOTE(optim/OPTIMIZER.h)

#define INDEX(name)    index_##name,
#define SCALAR(name)   const T name = (T)scalars[index_##name];
#define POINTER(name)  , PASTE(stored_, STATES) *restrict name##_
#define ARGUMENT(name) , buffers[index_##name]
#define HAS(name)      const int has_##name = subset >> index_##name & 1;
#define LOAD(name)     T name = PASTE(load_, STATES)(name##_[i]);
#define STORE(name)    name##_[i] = PASTE(store_, STATES)(name, &random);
#define LOAD_IF(name)  T name = has_##name ? PASTE(load_, STATES)(name##_[i]) : 0;
#define STORE_IF(name) if (has_##name) { STORE(name) }

static ALWAYS_INLINE void LOOP(
    const unsigned subset, const double *scalars, size_t begin, size_t end, uint64_t key, uint64_t first,
    PASTE(stored_, PARAMETER) *restrict p_, const PASTE(stored_, GRADIENT) *restrict g_
    FOR_EACH(POINTER, STATE) FOR_EACH(POINTER, OPTIONAL))
{
    enum { FOR_EACH(INDEX, SCALARS) FOR_EACH(INDEX, grad_scale, weight_decay, decay) };
    FOR_EACH(SCALAR, SCALARS)
    FOR_EACH(SCALAR, grad_scale, weight_decay, decay)
    (void)subset;
    /* counted here, because a product in the loop would cost more */
    uint32_t number = (uint32_t)key + (uint32_t)(first + begin) * WEYL;
    {
        enum { FOR_EACH(INDEX, OPTIONAL) count_optional };
        FOR_EACH(HAS, OPTIONAL)
/* Two vectors an iteration: a loop as short as SGD's waits for its own counter otherwise, and the
 * wider set would be the slower one. */
#pragma GCC unroll 2
        for (size_t i = begin; i < end; i++, number += WEYL) {
            random_bits random = {.start = number ^ (uint32_t)(key >> 32)};
            T p = PASTE(load_, PARAMETER)(p_[i]);
            FOR_EACH(LOAD, STATE)
            FOR_EACH(LOAD_IF, OPTIONAL)
            T g = grad_scale * PASTE(load_, GRADIENT)(g_[i]);
            g = weight_decay != 0 ? g + weight_decay * p : g;
            p = decay * p;
#include FORMULA
            p_[i] = PASTE(store_, PARAMETER)(p, &random);
            FOR_EACH(STORE, STATE)
            FOR_EACH(STORE_IF, OPTIONAL)
        }
    }
}

#define KERNEL(subset)                                                                              \
    static void JOIN(OPTIMIZER, subset, FORMAT, ISA)(                                               \
        void *const *buffers, const double *scalars, size_t begin, size_t end,                      \
        uint64_t key, uint64_t first)                                                               \
    {                                                                                               \
        enum { FOR_EACH(INDEX, p, g) FOR_EACH(INDEX, STATE) FOR_EACH(INDEX, OPTIONAL) };            \
        LOOP(subset, scalars, begin, end, key, first,                                               \
             buffers[index_p], buffers[index_g]                                                     \
             FOR_EACH(ARGUMENT, STATE) FOR_EACH(ARGUMENT, OPTIONAL));                               \
    }
/* Without any state the formats that differ in its storage are one: the parameter's stands for all. */
#define IS_NEEDED(subset) \
    ((subset FOR_EACH(PLUS_ONE, STATE)) || sizeof(PASTE(stored_, STATES)) == sizeof(PASTE(stored_, PARAMETER)))
#define NAME(subset) IS_NEEDED(subset) ? JOIN(OPTIMIZER, subset, FORMAT, ISA) : 0,

#define COUNT_OPTIONAL (0 FOR_EACH(PLUS_ONE, OPTIONAL))
#if COUNT_OPTIONAL == 0
#define EACH_SUBSET(X) X(0)
#elif COUNT_OPTIONAL == 1
#define EACH_SUBSET(X) X(0) X(1)
#elif COUNT_OPTIONAL == 2
#define EACH_SUBSET(X) X(0) X(1) X(2) X(3)
#else
#error "extend EACH_SUBSET: a row has more than two optional buffers"
#endif

EACH_SUBSET(KERNEL)
static const fastopt_kernel JOIN(OPTIMIZER, kernels, FORMAT, ISA)[] = {EACH_SUBSET(NAME)};

#undef EACH_SUBSET
#include "end_row.h"
