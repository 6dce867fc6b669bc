/* Turns one format of formats.def into the kernels of every row. */
#define T PASTE(computed_, PARAMETER)
#define EACH_ROW "loops.h"
#include "optimizers.def"
#undef T
#include "end_format.h"
