/* The instruction set of every processor of the architecture: SSE2 on x86-64, NEON on AArch64. */
#define ISA baseline
#include "kernels.h"
