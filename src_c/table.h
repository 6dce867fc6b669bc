/* Turns one row of optimizers.def into its entry of the table of kernels. */
{
    .name = QUOTE(OPTIMIZER),
    .state = QUOTE(STATE),
    .optional = QUOTE(OPTIONAL),
    .scalars = QUOTE(SCALARS),
    .kernels = (const fastopt_kernel *const[]){
#define EACH_FORMAT "format_kernels.h"
#include "formats.def"
    },
},
#include "end_row.h"
