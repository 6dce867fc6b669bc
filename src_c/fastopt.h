/* The public header: how to find the kernels and how to call them.
 *
 * An embedder calls fastopt_get_table(FASTOPT_ABI_VERSION, sizeof(fastopt_call)) once, takes the first
 * instruction set of the table, looks its optimizer up by name, and calls
 * `kernels[format][subset](&call, 0, count)`. Kernels allocate nothing, keep no state of their own and may run
 * in any thread. */
#ifndef FASTOPT_H
#define FASTOPT_H

#include <stddef.h>
#include <stdint.h>

enum {
    FASTOPT_ABI_VERSION = 3, /* changes whenever a structure below or the meaning of a field does */
    FASTOPT_MAX_BUFFERS = 8,
    FASTOPT_MAX_SCALARS = 20,
    FASTOPT_MAX_SUMS = 4,
    FASTOPT_MAX_FACTORS = 5,
    FASTOPT_SUM_BLOCK = 4096, /* elements that are added up to one number of `sums` */
    FASTOPT_SUM_LANES = 16    /* element i of a block is added to lane i modulo this */
};

/* Numbers shared by the tensors of one parameter group that have made equally many steps. */
typedef struct {
    double scalars[FASTOPT_MAX_SCALARS]; /* the row's SCALARS, then grad_scale, weight_decay and decay */
    uint64_t random_key;                 /* of the random bits that round to bfloat16 in this step */
} fastopt_coefficients;

/* One tensor in one step: the structure that a kernel is called with. No buffer may overlap another. */
typedef struct {
    size_t size; /* sizeof(fastopt_call) as the caller was compiled; a kernel reads no field behind it */
    /* parameter, gradient, then the row's STATE and OPTIONAL buffers, then its WORK or COLUMNS in the type of the
     * arithmetic. An absent one is never read. Gradient, WORK and COLUMNS are only read; the others are read and written
     * in update mode and only read in sum mode. */
    void *buffers[FASTOPT_MAX_BUFFERS];
    const fastopt_coefficients *coefficients;
    const double *factors;  /* the row's FACTORS for this tensor, in sum mode 1 or those that the sums are made with; not
                             * read by a kernel that needs none */
    double *sums;           /* sum mode: the kernel stores SUMS[k] of block b at sums[b * number of SUMS + k]; a column
                             * kernel adds to sums[i] for each element i */
    uint64_t first_element; /* the number of the buffers' element 0, counted through all parameters */
} fastopt_call;

/* Computes the elements begin <= i < end. In sum mode `begin` is a multiple of FASTOPT_SUM_BLOCK, and `end`
 * is one too or the tensor's end. */
typedef void (*fastopt_kernel)(const fastopt_call *call, size_t begin, size_t end);

/* How numbers are stored. */
enum { FASTOPT_FLOAT32, FASTOPT_FLOAT64, FASTOPT_FLOAT16, FASTOPT_BFLOAT16, FASTOPT_STORAGES };

/* Copies numbers from one storage to another. On the way each is multiplied by `scale` and then clipped to
 * ±limit (a NaN stays), in float64 if `from` is that and `to` is not float32, else in float32: with 1 and infinity
 * it is a copy. Numbers that are stored in 16 bits are rounded to the nearest, of two equally near the even one. `to` may be
 * `from` where the storages are the same. */
typedef void (*fastopt_converter)(void *to, const void *from, size_t count, double scale, double limit);

/* A format of formats.def: how the parameter, its gradient and its states are stored. Its kernels take the
 * gradient as it is stored in `kernel_gradient`; where that is not `gradient`, it is to be converted first, by
 * converters[gradient * FASTOPT_STORAGES + kernel_gradient]. */
typedef struct {
    const char *name, *parameter, *gradient, *states, *kernel_gradient;
} fastopt_format;

/* A row of formulas.def. The lists are the row's own text: names separated by commas. */
typedef struct {
    const char *name, *state, *optional, *choice, *work, *columns, *scalars, *sums, *factors, *numbers;
    /* By format, in the order of formats.def, then by subset of the optional buffers and the choice: bit i of the
     * subset stands for the i-th of them, the next bit for the choice. A NULL kernel does not exist. Sum kernels exist
     * for rows with SUMS, with the choice where there is one; update kernels for rows that read the parameter. */
    const fastopt_kernel *const *kernels;
    const fastopt_kernel *const *sum_kernels;
    /* The same bits sooner, for calls whose weight_decay is 0; a NULL kernel does not exist. */
    const fastopt_kernel *const *plain_kernels;
    /* Add a number of each element to one of its own, which sums up columns; for rows with COLUMN_SUMS. */
    const fastopt_kernel *const *column_kernels;
} fastopt_optimizer;

typedef struct {
    const char *name;
    const fastopt_optimizer *optimizers; /* formulas.def; ends with a NULL name */
    const fastopt_optimizer *auxiliary;  /* auxiliary.def: norms of gradients, averages of parameters; likewise */
    const fastopt_converter *converters; /* converters[from * FASTOPT_STORAGES + to]; NULL: there is none */
} fastopt_isa;

typedef struct {
    const fastopt_isa *isas;       /* those that this processor and its system can run, best first; ends with a NULL name */
    const fastopt_format *formats; /* ends with a NULL name */
} fastopt_table;

/* The kernels; NULL if the caller was compiled for another version or size of the structures above. */
const fastopt_table *fastopt_get_table(uint32_t abi_version, size_t call_size);

/* 1 - beta^t for 0 <= beta < 1 and t >= 1, with a relative error below 1e-14 and the same bits everywhere. */
double fastopt_bias_correction(double beta, int64_t t);

#endif
