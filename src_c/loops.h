/* The kernels of one row of a table in one format, for every subset of the optional buffers and the choice: one for update mode,
 * such as adam_0_float32_avx2; for some a second one without weight decay, adam_plain_0_float32_avx2; and where the
 * row has SUMS one for sum mode, lamb_sum_0_float32_avx2, and where it has COLUMN_SUMS one for these,
 * norm_columns_0_float32_avx2. All hold the same text of the formula. T is the type of the arithmetic.
 *
 * Every buffer is loaded into a local once, the formula computes on the locals, and update mode stores every
 * buffer once, at the end: reading back what was just stored waits for the store, for long where it
 * crosses a cache line. The buffers are function parameters because that is where `restrict` counts;
 * on local pointers gcc checks for overlap at run time, which small arrays pay for. */

#ifndef KERNELS /* else they are those of another format */

#define T           PASTE(computed_, PARAMETER)
#define UPDATE_LOOP JOIN(FORMULA, update, FORMAT, ISA)
#define SUM_LANES   JOIN(FORMULA, lanes, FORMAT, ISA)
#define SUM_LOOP    JOIN(FORMULA, sum, FORMAT, ISA)
#define COLUMN_LOOP JOIN(FORMULA, columns, FORMAT, ISA)

#define INDEX(name)    index_##name,
#define SCALAR(name)   const T name UNUSED = (T)scalars[index_##name];
#define FACTOR(name)   const T name UNUSED = needs_factors ? (T)call->factors[index_##name] : 1;
#define SUM(name)      double name UNUSED = 0;
#define HAS(name)      const int has_##name UNUSED = subset >> index_##name & 1;
#define POINTER(name)  , PASTE(stored_, STATES) *restrict name##_
#define WORK_POINTER(name) , const T *restrict name##_
#define PASS(name)     , name##_
#define ARGUMENT(name) , call->buffers[index_##name]
#define LOAD(name)     T name UNUSED = PASTE(load_, STATES)(name##_[i]);
#define LOAD_IF(name)  T name UNUSED = has_##name ? PASTE(load_, STATES)(name##_[i]) : 0;
#define LOAD_WORK(name) const T name UNUSED = name##_[i];
#define LOAD_COLUMN(name) const T name UNUSED = has_optional ? 0 : name##_[i];
#define STORE(name)    name##_[i] = PASTE(store_, STATES)(name, &random);
#define STORE_IF(name) if (has_##name) { STORE(name) }

#define BUFFERS                                                                             \
    PASTE(stored_, PARAMETER) *restrict p_, const PASTE(stored_, GRADIENT) *restrict g_     \
    FOR_EACH(POINTER, STATE) FOR_EACH(POINTER, OPTIONAL)                                    \
    FOR_EACH(WORK_POINTER, WORK) FOR_EACH(WORK_POINTER, COLUMNS)
#define PASS_BUFFERS                                                                        \
    p_, g_ FOR_EACH(PASS, STATE) FOR_EACH(PASS, OPTIONAL) FOR_EACH(PASS, WORK) FOR_EACH(PASS, COLUMNS)
#define CALL_BUFFERS                                                                        \
    call->buffers[index_p], call->buffers[index_g]                                          \
    FOR_EACH(ARGUMENT, STATE) FOR_EACH(ARGUMENT, OPTIONAL)                                  \
    FOR_EACH(ARGUMENT, WORK) FOR_EACH(ARGUMENT, COLUMNS)
#define BUFFER_INDICES                                                                      \
    FOR_EACH(INDEX, p, g) FOR_EACH(INDEX, STATE) FOR_EACH(INDEX, OPTIONAL)                  \
    FOR_EACH(INDEX, WORK) FOR_EACH(INDEX, COLUMNS)

/* The numbers that are the same for all elements. */
#define LOAD_SCALARS(is_plain)                                                              \
    const double *const scalars = call->coefficients->scalars;                              \
    const unsigned has_optional UNUSED = BUFFERS_OF(subset);                                \
    enum { FOR_EACH(INDEX, SCALARS) FOR_EACH(INDEX, COMMON_SCALARS) };                      \
    FOR_EACH(SCALAR, SCALARS)                                                               \
    SCALAR(grad_scale)                                                                      \
    const T weight_decay UNUSED = is_plain ? 0 : (T)scalars[index_weight_decay];            \
    SCALAR(decay)                                                                           \
    const T lost UNUSED = (T)(1.0 - scalars[index_decay]);

/* Element i, as the formula sees it. */
#define LOAD_ELEMENT(DECAYED)                                                               \
    T p UNUSED = READS_PARAMETER ? PASTE(load_, PARAMETER)(p_[i]) : 0;                      \
    FOR_EACH(LOAD, STATE)                                                                   \
    FOR_EACH(LOAD_IF, OPTIONAL)                                                             \
    FOR_EACH(LOAD_WORK, WORK)                                                               \
    FOR_EACH(LOAD_COLUMN, COLUMNS)                                                          \
    T g UNUSED = READS_GRADIENT ? grad_scale * PASTE(load_, GRADIENT)(g_[i]) : 0;           \
    g = READS_PARAMETER && weight_decay != 0 ? g + weight_decay * p : g;                    \
    p = READS_GRADIENT ? DECAYED : p; /* after the step there is no decay */                \
    FOR_EACH(SUM, SUMS)

/* How many numbers in 16 bits an element is stored in, each with random bits of its own; more come behind those. */
#define NUMBER_OF_STORES                                                                    \
    (1 + (sizeof(PASTE(stored_, STATES)) == 2) * (COUNT(STATE) + (unsigned)__builtin_popcount(BUFFERS_OF(subset))))

/* -- Update mode -- */

static ALWAYS_INLINE void UPDATE_LOOP(
    const unsigned subset UNUSED, const int is_plain, const fastopt_call *call, size_t begin, size_t end, BUFFERS)
{
    LOAD_SCALARS(is_plain)
    const uint64_t key = call->coefficients->random_key;
    /* the element's place in a Weyl sequence; counted here, because a product in the loop would cost more */
    uint32_t weyl = (uint32_t)key + (uint32_t)(call->first_element + begin) * WEYL;
    {
        const int needs_factors UNUSED = NEEDS_FACTORS(subset);
        enum { FOR_EACH(INDEX, FACTORS) count_factors };
        FOR_EACH(FACTOR, FACTORS)
        enum { FOR_EACH(INDEX, OPTIONAL) FOR_EACH(INDEX, CHOICE) count_optional };
        FOR_EACH(HAS, OPTIONAL)
        FOR_EACH(HAS, CHOICE)
/* Two vectors an iteration: a loop as short as SGD's waits for its own counter otherwise, and the
 * wider set would be the slower one. */
#pragma GCC unroll 2
        for (size_t i = begin; i < end; i++, weyl += WEYL) {
            random_bits random = {.start = weyl ^ (uint32_t)(key >> 32)};
            LOAD_ELEMENT(PASTE(decayed_, PARAMETER)(p, decay, lost, &random, NUMBER_OF_STORES))
#include QUOTE(formulas/FORMULA.h)
            if (WRITES_PARAMETER)
                p_[i] = PASTE(store_, PARAMETER)(p, &random);
            FOR_EACH(STORE, STATE)
            FOR_EACH(STORE_IF, OPTIONAL)
        }
    }
}

#define UPDATE_KERNEL_NAME(kind, subset) JOIN(PASTE(FORMULA, kind), subset, FORMAT, ISA)
#define UPDATE_KERNEL(kind, subset, is_plain)                                                              \
    static void UPDATE_KERNEL_NAME(kind, subset)(const fastopt_call *call, size_t begin, size_t end)       \
    {                                                                                                      \
        enum { BUFFER_INDICES };                                                                           \
        UPDATE_LOOP(subset, is_plain, call, begin, end, CALL_BUFFERS);                                     \
    }
#define KERNEL(subset)       UPDATE_KERNEL(, subset, 0)
#define PLAIN_KERNEL(subset) UPDATE_KERNEL(_plain, subset, 1)

/* Formats that differ in a storage which the row does not have are one, and the parameter's stands for all. What
 * follows a step has its state in the type of the arithmetic. */
#define IS_OF(storage, type) (sizeof(PASTE(stored_, storage)) == sizeof(type))
#define IS_NEEDED(subset)                                               \
    (!READS_PARAMETER ? 1                                               \
     : !READS_GRADIENT ? IS_OF(STATES, T)                               \
                       : BUFFERS_OF(subset) + COUNT(STATE) || IS_OF(STATES, PASTE(stored_, PARAMETER)))
#define NAME(subset) READS_PARAMETER && IS_NEEDED(subset) ? UPDATE_KERNEL_NAME(, subset) : 0,

/* The select and the two operations of weight decay take a fifth of Adam's time in the cache. With 16 bits they
 * hide behind others. */
#define HAS_PLAIN(subset) \
    (READS_PARAMETER && READS_GRADIENT && IS_NEEDED(subset) && IS_OF(PARAMETER, T) && IS_OF(STATES, T))
#define PLAIN_NAME(subset) HAS_PLAIN(subset) ? UPDATE_KERNEL_NAME(_plain, subset) : 0,

EACH_SUBSET(KERNEL)
EACH_SUBSET(PLAIN_KERNEL)
static const fastopt_kernel JOIN(FORMULA, kernels, FORMAT, ISA)[] = {EACH_SUBSET(NAME)};
static const fastopt_kernel JOIN(FORMULA, plain_kernels, FORMAT, ISA)[] = {EACH_SUBSET(PLAIN_NAME)};
#undef NAME

/* -- Sum mode -- */

#define NO_NAME(subset) 0,
#if COUNT(SUMS) == 0
static const fastopt_kernel JOIN(FORMULA, sum_kernels, FORMAT, ISA)[] = {EACH_SUBSET(NO_NAME)};
#else

#define ADD(name) lanes[index_##name][lane] = COMBINE(lanes[index_##name][lane], name);

/* Adds the elements offset … offset + count - 1 to the lanes. */
static ALWAYS_INLINE void SUM_LANES(
    const unsigned subset UNUSED, const fastopt_call *call, size_t offset, const size_t count,
    double (*restrict lanes)[FASTOPT_SUM_LANES], BUFFERS)
{
    LOAD_SCALARS(0)
    {
        const int needs_factors UNUSED = NEEDS_FACTORS(subset);
        enum { FOR_EACH(INDEX, FACTORS) count_factors };
        FOR_EACH(FACTOR, FACTORS)
        enum { FOR_EACH(INDEX, OPTIONAL) FOR_EACH(INDEX, CHOICE) count_optional };
        FOR_EACH(HAS, OPTIONAL)
        FOR_EACH(HAS, CHOICE)
        for (size_t lane = 0; lane < count; lane++) {
            const size_t i = offset + lane;
            LOAD_ELEMENT(decay * p)
#include QUOTE(formulas/FORMULA.h)
            enum { FOR_EACH(INDEX, SUMS) count_sums };
            FOR_EACH(ADD, SUMS)
        }
    }
}

/* A sum has one order on every machine. A block of FASTOPT_SUM_BLOCK elements is added up by itself: element i
 * of it goes to lane i mod 16, each lane adds its elements in order, and the lanes are added in pairs. */
static ALWAYS_INLINE void SUM_LOOP(
    const unsigned subset, const fastopt_call *call, size_t begin, size_t end, BUFFERS)
{
    for (size_t block = begin; block < end; block += FASTOPT_SUM_BLOCK) {
        const size_t block_end = end - block < FASTOPT_SUM_BLOCK ? end : block + FASTOPT_SUM_BLOCK;
        double lanes[COUNT(SUMS)][FASTOPT_SUM_LANES] = {0};
        size_t i = block;
        for (; i + FASTOPT_SUM_LANES <= block_end; i += FASTOPT_SUM_LANES) {
            __asm__("" : "+r"(i)); /* keeps gcc from vectorising this loop in place of the one over lanes */
            SUM_LANES(subset, call, i, FASTOPT_SUM_LANES, lanes, PASS_BUFFERS);
        }
        SUM_LANES(subset, call, i, block_end - i, lanes, PASS_BUFFERS);
        double *const sums = call->sums + block / FASTOPT_SUM_BLOCK * COUNT(SUMS);
        for (size_t k = 0; k < COUNT(SUMS); k++) {
            for (size_t half = FASTOPT_SUM_LANES / 2; half; half /= 2)
                for (size_t lane = 0; lane < half; lane++)
                    lanes[k][lane] = COMBINE(lanes[k][lane], lanes[k][lane + half]);
            sums[k] = lanes[k][0];
        }
    }
}

#define SUM_KERNEL_NAME(subset) JOIN(PASTE(FORMULA, _sum), subset, FORMAT, ISA)
#define SUM_KERNEL(subset)                                                                             \
    static void SUM_KERNEL_NAME(subset)(const fastopt_call *call, size_t begin, size_t end)            \
    {                                                                                                  \
        enum { BUFFER_INDICES };                                                                       \
        SUM_LOOP(subset, call, begin, end, CALL_BUFFERS);                                              \
    }
#define NAME(subset) IS_NEEDED(subset) && NEEDS_FACTORS(subset) ? SUM_KERNEL_NAME(subset) : 0,

EACH_SUBSET(SUM_KERNEL)
static const fastopt_kernel JOIN(FORMULA, sum_kernels, FORMAT, ISA)[] = {EACH_SUBSET(NAME)};
#undef NAME
#endif

/* -- Sums of columns -- */

#if COUNT(COLUMN_SUMS) == 0
static const fastopt_kernel JOIN(FORMULA, column_kernels, FORMAT, ISA)[] = {EACH_SUBSET(NO_NAME)};
#else

/* Adds a number of each element to one of its own, so that the rows of a matrix, one after the other, are added up
 * to its columns. */
static ALWAYS_INLINE void COLUMN_LOOP(
    const unsigned subset UNUSED, const fastopt_call *call, size_t begin, size_t end, double *restrict sums, BUFFERS)
{
    LOAD_SCALARS(0)
    for (size_t i = begin; i < end; i++) {
        LOAD_ELEMENT(decay * p)
#include QUOTE(formulas/FORMULA.h)
        sums[i] += COLUMN_SUMS;
    }
}

#define COLUMN_KERNEL_NAME(subset) JOIN(PASTE(FORMULA, _columns), subset, FORMAT, ISA)
#define COLUMN_KERNEL(subset)                                                                          \
    static void COLUMN_KERNEL_NAME(subset)(const fastopt_call *call, size_t begin, size_t end)         \
    {                                                                                                  \
        enum { BUFFER_INDICES };                                                                       \
        COLUMN_LOOP(subset, call, begin, end, call->sums, CALL_BUFFERS);                               \
    }
#define NAME(subset) COLUMN_KERNEL_NAME(subset),

EACH_SUBSET(COLUMN_KERNEL)
static const fastopt_kernel JOIN(FORMULA, column_kernels, FORMAT, ISA)[] = {EACH_SUBSET(NAME)};
#undef NAME
#endif

#undef T
#endif

#undef FORMAT
#undef PARAMETER
#undef GRADIENT
#undef STATES
#undef KERNELS
