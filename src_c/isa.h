/* Everything that is compiled once per instruction set: all kernels, and the table that names them.
 * Included by isa_<name>.c, which defines ISA and may have switched the compiler to it. */

#include "fastopt.h"
#include "names.h"
#include "storage.h"

#define JOIN_(a, b, c, d) a##_##b##_##c##_##d
#define JOIN(a, b, c, d) JOIN_(a, b, c, d)
#define SQRT(x) _Generic((x), float: __builtin_sqrtf, double: __builtin_sqrt)(x)

/* FOR_EACH(X, a, b, …) is X(a) X(b) …, and nothing for an empty list, of up to 64 names. */
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

#define EACH_FORMAT "format_loops.h"
#include "formats.def"

#define TABLE_(isa) fastopt_optimizers_##isa
#define TABLE(isa) TABLE_(isa)
extern const fastopt_optimizer TABLE(ISA)[];
const fastopt_optimizer TABLE(ISA)[] = {
#define EACH_ROW "table.h"
#include "optimizers.def"
    {0},
};
