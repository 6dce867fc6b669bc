/* The public face of the kernels: what they are called with, and where to find them. */
#ifndef FASTOPT_H
#define FASTOPT_H

#include <stddef.h>
#include <stdint.h>

enum { FASTOPT_MAX_BUFFERS = 8, FASTOPT_MAX_SCALARS = 16 };

/* Updates the elements begin <= i < end. `buffers`: the parameter, the gradient, then the row's STATE
 * and OPTIONAL buffers in order (an absent one is not looked at); only the gradient may not be
 * written, and none may overlap another. `scalars`: the row's SCALARS, then grad_scale, weight_decay
 * and decay, which every row has. Where a buffer has to be rounded, the random bits are those of `key` and
 * of the element's number: `first` is that of the buffers' element 0. */
typedef void (*fastopt_kernel)(
    void *const *buffers, const double *scalars, size_t begin, size_t end, uint64_t key, uint64_t first);

/* A format of formats.def: how the parameter, its gradient and its states are stored. */
typedef struct {
    const char *name, *parameter, *gradient, *states;
} fastopt_format;

/* A row of optimizers.def. The lists are the row's own text: names separated by commas. */
typedef struct {
    const char *name, *state, *optional, *scalars;
    /* for every format, in their order, one kernel for every subset of the optional buffers; bit i
     * stands for the i-th of them */
    const fastopt_kernel *const *kernels;
} fastopt_optimizer;

typedef struct {
    const char *name;
    const fastopt_optimizer *optimizers; /* ends with a NULL name */
} fastopt_isa;

/* The instruction sets that this processor and its operating system can run, best first; ends with a
 * NULL name. */
const fastopt_isa *fastopt_isas(void);

/* The formats; ends with a NULL name. */
const fastopt_format *fastopt_formats(void);

#endif
