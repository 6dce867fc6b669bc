/* One format of formats.def as a line of a list: FORMAT_ENTRY, which whoever wants the list defines. */
#ifdef KERNELS
#define KERNEL_GRADIENT float32
#else
#define KERNELS         FORMAT
#define KERNEL_GRADIENT GRADIENT
#endif
FORMAT_ENTRY
#undef FORMAT
#undef PARAMETER
#undef GRADIENT
#undef STATES
#undef KERNELS
#undef KERNEL_GRADIENT
