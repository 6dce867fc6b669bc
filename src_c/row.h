/* One row of formulas.def or auxiliary.def. Where ROW_ENTRY is defined, that; else the row's kernels in every format. */

#ifndef STATE
#define STATE
#endif
#ifndef OPTIONAL
#define OPTIONAL
#endif
#ifndef CHOICE
#define CHOICE
#endif
#ifndef WORK
#define WORK
#endif
#ifndef COLUMNS
#define COLUMNS
#endif
#ifndef SCALARS
#define SCALARS
#endif
#ifndef SUMS
#define SUMS
#endif
#ifndef COLUMN_SUMS
#define COLUMN_SUMS
#endif
#ifndef FACTORS
#define FACTORS
#endif
#ifndef NUMBERS
#define NUMBERS
#endif
#ifndef READS
#define READS p, g
#endif
#ifndef WRITES
#define WRITES p
#endif
#ifndef COMBINE
#define COMBINE(a, b) (a) + (b)
#endif

/* by kind of kernels: `kernels`, `sum_kernels`, `plain_kernels`, `column_kernels` */
#define ROW_KERNELS(kind) JOIN(FORMULA, of_all_formats, kind, ISA)

#ifdef ROW_ENTRY
ROW_ENTRY
#else

#define ROW_SAYS "formulas.def: the row " QUOTE(FORMULA) " has "
_Static_assert(2 + COUNT(STATE) + COUNT(OPTIONAL) + COUNT(WORK) + COUNT(COLUMNS) <= FASTOPT_MAX_BUFFERS,
               ROW_SAYS "too many STATE, OPTIONAL and WORK buffers; raise FASTOPT_MAX_BUFFERS in fastopt.h");
_Static_assert(!COUNT(WORK) || !COUNT(COLUMNS), ROW_SAYS "WORK and COLUMNS: rows of a matrix share them or they do not");
_Static_assert(COUNT(COLUMN_SUMS) <= 1, ROW_SAYS "more than one of COLUMN_SUMS");
_Static_assert(COUNT(SCALARS) + COUNT(COMMON_SCALARS) <= FASTOPT_MAX_SCALARS,
               ROW_SAYS "too many SCALARS; raise FASTOPT_MAX_SCALARS in fastopt.h");
_Static_assert(COUNT(SUMS) <= FASTOPT_MAX_SUMS, ROW_SAYS "too many SUMS; raise FASTOPT_MAX_SUMS in fastopt.h");
_Static_assert(COUNT(FACTORS) <= FASTOPT_MAX_FACTORS,
               ROW_SAYS "too many FACTORS; raise FASTOPT_MAX_FACTORS in fastopt.h");
_Static_assert(COUNT(OPTIONAL) + COUNT(CHOICE) <= 2,
               ROW_SAYS "too many OPTIONAL buffers and choices; extend EACH_SUBSET in row.h");
_Static_assert(COUNT(CHOICE) <= 1, ROW_SAYS "more than one CHOICE: which of them needs the SUMS?");
_Static_assert(!COUNT(CHOICE) || !COUNT(NUMBERS), ROW_SAYS "NUMBERS, which every kernel needs, and a CHOICE");

/* X(s) for every subset s of the optional buffers and the choice */
#if COUNT(OPTIONAL) + COUNT(CHOICE) == 0
#define EACH_SUBSET(X) X(0)
#elif COUNT(OPTIONAL) + COUNT(CHOICE) == 1
#define EACH_SUBSET(X) X(0) X(1)
#else
#define EACH_SUBSET(X) X(0) X(1) X(2) X(3)
#endif

/* Which buffers an element has besides parameter and gradient, and whether its tensor has sums and factors. */
#define BUFFERS_OF(subset)     ((subset) & ((1u << COUNT(OPTIONAL)) - 1))
#define NEEDS_FACTORS(subset)  (COUNT(CHOICE) == 0 || (subset) >> COUNT(OPTIONAL))

#define READ_p 1
#define READ_g 2
#define READ(name) | READ_##name
#define READS_PARAMETER (((0 FOR_EACH(READ, READS)) & READ_p) != 0)
#define READS_GRADIENT  (((0 FOR_EACH(READ, READS)) & READ_g) != 0)
#define WRITES_PARAMETER (((0 FOR_EACH(READ, WRITES)) & READ_p) != 0)

#define EACH_FORMAT "loops.h"
#include "formats.def"

/* A format without kernels of its own has those of another. */
#define FORMAT_ENTRY JOIN(FORMULA, kernels, KERNELS, ISA),
static const fastopt_kernel *const ROW_KERNELS(kernels)[] = {
#define EACH_FORMAT "entry.h"
#include "formats.def"
};
#undef FORMAT_ENTRY

#define FORMAT_ENTRY JOIN(FORMULA, sum_kernels, KERNELS, ISA),
static const fastopt_kernel *const ROW_KERNELS(sum_kernels)[] = {
#define EACH_FORMAT "entry.h"
#include "formats.def"
};
#undef FORMAT_ENTRY

#define FORMAT_ENTRY JOIN(FORMULA, column_kernels, KERNELS, ISA),
static const fastopt_kernel *const ROW_KERNELS(column_kernels)[] = {
#define EACH_FORMAT "entry.h"
#include "formats.def"
};
#undef FORMAT_ENTRY

#define FORMAT_ENTRY JOIN(FORMULA, plain_kernels, KERNELS, ISA),
static const fastopt_kernel *const ROW_KERNELS(plain_kernels)[] = {
#define EACH_FORMAT "entry.h"
#include "formats.def"
};
#undef FORMAT_ENTRY

#undef EACH_SUBSET
#endif

#undef FORMULA
#undef STATE
#undef OPTIONAL
#undef CHOICE
#undef WORK
#undef COLUMNS
#undef COLUMN_SUMS
#undef SCALARS
#undef SUMS
#undef FACTORS
#undef NUMBERS
#undef READS
#undef WRITES
#undef COMBINE
