"""The compiled table for other Cython modules: ``from fastopt._kernels cimport table``. See src_c/fastopt.h."""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "fastopt.h" nogil:
    enum: FASTOPT_ABI_VERSION, FASTOPT_MAX_BUFFERS, FASTOPT_MAX_SCALARS, FASTOPT_MAX_SUMS, FASTOPT_MAX_FACTORS
    enum: FASTOPT_SUM_BLOCK, FASTOPT_SUM_LANES, FASTOPT_FLOAT32, FASTOPT_STORAGES
    ctypedef struct fastopt_coefficients:
        double scalars[FASTOPT_MAX_SCALARS]
        uint64_t random_key
    ctypedef struct fastopt_call:
        size_t size
        void *buffers[FASTOPT_MAX_BUFFERS]
        const fastopt_coefficients *coefficients
        const double *factors
        double *sums
        uint64_t first_element
    ctypedef void (*fastopt_kernel)(const fastopt_call *, size_t begin, size_t end) noexcept
    ctypedef void (*fastopt_converter)(void *to, const void *, size_t count, double scale, double limit) noexcept
    ctypedef struct fastopt_format:
        const char *name
        const char *parameter
        const char *gradient
        const char *states
        const char *kernel_gradient
    ctypedef struct fastopt_optimizer:
        const char *name
        const char *state
        const char *optional
        const char *choice
        const char *work
        const char *columns
        const char *scalars
        const char *sums
        const char *factors
        const char *numbers
        const fastopt_kernel *const *kernels
        const fastopt_kernel *const *sum_kernels
        const fastopt_kernel *const *plain_kernels
        const fastopt_kernel *const *column_kernels
    ctypedef struct fastopt_isa:
        const char *name
        const fastopt_optimizer *optimizers
        const fastopt_optimizer *auxiliary
        const fastopt_converter *converters
    ctypedef struct fastopt_table:
        const fastopt_isa *isas
        const fastopt_format *formats
    const fastopt_table *fastopt_get_table(uint32_t abi_version, size_t call_size)

cdef const fastopt_table *table() noexcept
cdef int selected() noexcept
cdef bint flushes_denormal() noexcept
cdef int forks() noexcept
