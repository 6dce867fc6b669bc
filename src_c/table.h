/* Turns one row of optimizers.def into its entry of the table of kernels. */
{
    .name = QUOTE(OPTIMIZER),
    .state = QUOTE(STATE),
    .optional = QUOTE(OPTIONAL),
    .scalars = QUOTE(SCALARS),
    .kernels = {
        [FASTOPT_FLOAT32] = JOIN(OPTIMIZER, kernels, float32, ISA),
        [FASTOPT_FLOAT64] = JOIN(OPTIMIZER, kernels, float64, ISA),
    },
},
#include "end_row.h"
