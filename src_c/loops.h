/* Turns the formula of one row of optimizers.def into kernels for one dtype. T is float or double,
 * DTYPE and ISA are the names that the kernels end in: adam_0_float32_avx2.
 *
 * Every buffer is loaded into a local once, the formula computes on the locals, and every buffer is
 * stored once, at the end: reading back what was just stored waits for the store, for long where it
 * crosses a cache line. The buffers are function parameters because that is where `restrict` counts;
 * on local pointers gcc checks for overlap at run time, which small arrays pay for. */

#define LOOP JOIN(OPTIMIZER, loop, DTYPE, ISA)
#define FORMULA QUOTE(optim/OPTIMIZER.h)

#define INDEX(name)    index_##name,
#define SCALAR(name)   const T name = (T)scalars[index_##name];
#define POINTER(name)  , T *restrict name##_
#define ARGUMENT(name) , buffers[index_##name]
#define HAS(name)      const int has_##name = subset >> index_##name & 1;
#define LOAD(name)     T name = name##_[i];
#define STORE(name)    name##_[i] = name;
#define LOAD_IF(name)  T name = has_##name ? name##_[i] : 0;
#define STORE_IF(name) if (has_##name) name##_[i] = name;

static ALWAYS_INLINE void LOOP(
    const unsigned subset, const double *scalars, size_t begin, size_t end,
    T *restrict p_, const T *restrict g_ FOR_EACH(POINTER, STATE) FOR_EACH(POINTER, OPTIONAL))
{
    enum { FOR_EACH(INDEX, SCALARS) FOR_EACH(INDEX, grad_scale, weight_decay, decay) };
    FOR_EACH(SCALAR, SCALARS)
    FOR_EACH(SCALAR, grad_scale, weight_decay, decay)
    (void)subset;
    {
        enum { FOR_EACH(INDEX, OPTIONAL) count_optional };
        FOR_EACH(HAS, OPTIONAL)
/* Two vectors an iteration: a loop as short as SGD's waits for its own counter otherwise, and the
 * wider set would be the slower one. */
#pragma GCC unroll 2
        for (size_t i = begin; i < end; i++) {
            LOAD(p)
            FOR_EACH(LOAD, STATE)
            FOR_EACH(LOAD_IF, OPTIONAL)
            T g = grad_scale * g_[i];
            g = weight_decay != 0 ? g + weight_decay * p : g;
            p = decay * p;
#include FORMULA
            STORE(p)
            FOR_EACH(STORE, STATE)
            FOR_EACH(STORE_IF, OPTIONAL)
        }
    }
}

#define KERNEL(subset)                                                                              \
    static void JOIN(OPTIMIZER, subset, DTYPE, ISA)(                                                \
        void *const *buffers, const double *scalars, size_t begin, size_t end)                      \
    {                                                                                               \
        enum { FOR_EACH(INDEX, p, g) FOR_EACH(INDEX, STATE) FOR_EACH(INDEX, OPTIONAL) };            \
        LOOP(subset, scalars, begin, end,                                                           \
             buffers[index_p], buffers[index_g]                                                     \
             FOR_EACH(ARGUMENT, STATE) FOR_EACH(ARGUMENT, OPTIONAL));                               \
    }
#define NAME(subset) JOIN(OPTIMIZER, subset, DTYPE, ISA),

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
static const fastopt_kernel JOIN(OPTIMIZER, kernels, DTYPE, ISA)[] = {EACH_SUBSET(NAME)};

#undef EACH_SUBSET
#include "end_row.h"
