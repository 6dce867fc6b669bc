/* Turns one format of formats.def into a row's entry for it. */
JOIN(OPTIMIZER, kernels, FORMAT, ISA),
#include "end_format.h"
