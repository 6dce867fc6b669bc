/* THE MAP. All that is compiled once for each instruction set starts here.
 *
 *   isa_<name>.c           names an instruction set, switches the compiler to it, and includes
 *   kernels.h              this file. It reads two tables, each twice:
 *     formulas.def           one row for each optimizer;
 *     auxiliary.def          one for what else is done to a tensor in a step: norms, averages. A row includes EACH_ROW:
 *     row.h                  in the first reading the row's kernels, in the second its entry in the table
 *       formats.def            one entry for each format; every entry includes EACH_FORMAT, which is
 *       loops.h                the kernels of one row in one format: the loops, which include
 *         formulas/<name>.h      the formula
 *       entry.h                or a line of a list of the formats
 *     converters.h           numbers from one storage to another
 *   dispatch.c             the public table: chooses the instruction sets, lists the formats
 *
 * storage.h loads and stores numbers, arithmetic.h refuses compilers that would change bits, roots.h has the cube
 * root; fastopt.h is the public header. bias.c, tasks.c and tasks.h stand apart. */

#include "arithmetic.h"
#include "fastopt.h"
#include "roots.h"
#include "storage.h"

/* -- Names made of names -- */

#define STRING(...) #__VA_ARGS__
#define QUOTE(...) STRING(__VA_ARGS__)
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define JOIN_(a, b, c, d) a##_##b##_##c##_##d
#define JOIN(a, b, c, d) JOIN_(a, b, c, d)

/* -- Lists of names: FOR_EACH(X, a, b, …) is X(a) X(b) …, up to 64 names, nothing for an empty list -- */

#define FOR_EACH(X, ...) FOR_EACH_(X, __VA_ARGS__)
#define FOR_EACH_(X, ...) __VA_OPT__(RESCAN(FOR_NEXT(X, __VA_ARGS__)))
#define FOR_NEXT(X, first, ...) X(first) __VA_OPT__(FOR_AGAIN NO_ARGUMENTS (X, __VA_ARGS__))
#define FOR_AGAIN() FOR_NEXT
#define NO_ARGUMENTS ()
#define RESCAN(...) RESCAN4(RESCAN4(RESCAN4(RESCAN4(__VA_ARGS__))))
#define RESCAN4(...) RESCAN16(RESCAN16(RESCAN16(RESCAN16(__VA_ARGS__))))
#define RESCAN16(...) RESCAN64(RESCAN64(RESCAN64(RESCAN64(__VA_ARGS__))))
#define RESCAN64(...) __VA_ARGS__
#define PLUS_ONE(name) + 1
#define COUNT(...) (0 FOR_EACH(PLUS_ONE, __VA_ARGS__))

/* The scalars that every row has after its own. */
#define COMMON_SCALARS grad_scale, weight_decay, decay

/* -- For formulas -- */

#define EPSILON(x) _Generic((x), float: __FLT_EPSILON__, double: __DBL_EPSILON__)

#define SQRT(x) _Generic((x), float: __builtin_sqrtf, double: __builtin_sqrt)(x)
#define ABS(x)  _Generic((x), float: __builtin_fabsf, double: __builtin_fabs)(x)

/* -- The kernels of every row, then the tables -- */

#define EACH_ROW "row.h"
#include "formulas.def"
#define EACH_ROW "row.h"
#include "auxiliary.def"

#define ROW_ENTRY                                                                                          \
    {                                                                                                      \
        .name = QUOTE(FORMULA), .state = QUOTE(STATE), .optional = QUOTE(OPTIONAL),                        \
        .choice = QUOTE(CHOICE), .work = QUOTE(WORK), .columns = QUOTE(COLUMNS),                           \
        .scalars = QUOTE(SCALARS), .sums = QUOTE(SUMS), .factors = QUOTE(FACTORS),                         \
        .numbers = QUOTE(NUMBERS), .kernels = ROW_KERNELS(kernels),                                        \
        .sum_kernels = ROW_KERNELS(sum_kernels), .plain_kernels = ROW_KERNELS(plain_kernels),              \
        .column_kernels = ROW_KERNELS(column_kernels),                                                     \
    },

#define OPTIMIZERS PASTE(fastopt_optimizers_, ISA)
extern const fastopt_optimizer OPTIMIZERS[];
const fastopt_optimizer OPTIMIZERS[] = {
#define EACH_ROW "row.h"
#include "formulas.def"
    {0},
};

#define AUXILIARY PASTE(fastopt_auxiliary_, ISA)
extern const fastopt_optimizer AUXILIARY[];
const fastopt_optimizer AUXILIARY[] = {
#define EACH_ROW "row.h"
#include "auxiliary.def"
    {0},
};

#include "converters.h"
