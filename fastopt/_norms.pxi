# Norms of gradients, clipping, and steps that are skipped. Included by _plan.pyx.


cdef class Clipping:
    """The part of a step that comes before its update, checked; see `fastopt.Optimizer.step`. None: not asked for."""

    cdef readonly object max_value, max_norm_each, max_norm
    cdef readonly bint is_infinite, skip_nonfinite, zero_grads, needs_norm
    cdef double grad_scale

    def __init__(self, **asked):
        for name in asked:
            if name not in step_options.DEFAULTS:
                step_options.refuse(name)
        asked = {**step_options.DEFAULTS, **asked}
        self.grad_scale = options.check_grad_scale(asked["grad_scale"])
        self.max_value, self.max_norm_each, self.max_norm = [
            None if asked[name] is None else options.check_limit(name, asked[name])
            for name in ("max_value", "max_norm_each", "max_norm")
        ]
        self.is_infinite = options.is_infinity(asked["norm_type"])
        self.skip_nonfinite = options.check_flag("skip_nonfinite", asked["skip_nonfinite"])
        self.zero_grads = options.check_flag("zero_grads", asked["zero_grads"])
        self.needs_norm = self.max_norm is not None or self.max_norm_each is not None or self.skip_nonfinite

    cdef bint does_nothing(self) noexcept:
        """Whether the gradients are at most multiplied by grad_scale."""
        return not (self.needs_norm or self.zero_grads or self.max_value is not None)


cdef const fastopt_optimizer *auxiliary_row(int isa, const char *name) noexcept:
    cdef const fastopt_optimizer *row = table().isas[isa].auxiliary
    while row.name != NULL and strcmp(row.name, name):
        row += 1
    return row


cdef double factor_of(double limit, double norm) noexcept:
    """torch's rule; a NaN stays one."""
    cdef double factor = limit / (norm + 1e-6)
    return 1.0 if factor > 1.0 else factor


cdef class Norms:
    """The norms of the gradients of one call, and what the kernels multiply each gradient by."""

    cdef:
        Sums sums
        fastopt_coefficients coefficients
        double *raw       # of each gradient, times |grad_scale|
        double *clipped   # the same after max_value
        double *factors
        size_t raw_capacity, clipped_capacity, factors_capacity
        double total      # what the call returns
        bint is_finite, are_factors_equal

    def __init__(self):
        self.sums = Sums()

    def __dealloc__(self):
        free(self.raw)
        free(self.clipped)
        free(self.factors)

    cdef int measure(self, list tensors, int isa, int team, Clipping clipping, double grad_scale) except -1:
        """tensors: those that have a gradient."""
        cdef Py_ssize_t i, n = len(tensors)
        cdef double total, scale = abs(grad_scale)
        cdef bint is_value_clipped = clipping.max_value is not None
        grow(<void **>&self.raw, &self.raw_capacity, n, sizeof(double))
        grow(<void **>&self.clipped, &self.clipped_capacity, n, sizeof(double))
        grow(<void **>&self.factors, &self.factors_capacity, n, sizeof(double))
        if table().isas[isa].name == NULL:
            self.measure_twins(tensors, clipping, grad_scale)
        else:
            self.measure_kernels(tensors, isa, team, clipping, grad_scale)
        self.total = norm_of_norms(self.raw, n, clipping.is_infinite)
        for i in range(n):
            self.factors[i] = 1.0
        if clipping.max_norm_each is not None:
            for i in range(n):
                self.factors[i] = factor_of(clipping.max_norm_each, self.clipped[i])
        if clipping.max_norm is not None:
            for i in range(n):
                self.clipped[i] *= self.factors[i]
            total = factor_of(clipping.max_norm, norm_of_norms(self.clipped, n, clipping.is_infinite))
            for i in range(n):
                self.factors[i] *= total
        self.are_factors_equal = clipping.max_norm_each is None
        return 0

    cdef int run_sums(self, list tensors, int isa, int team, const char *name, int each) except -1:
        cdef const fastopt_optimizer *row = auxiliary_row(isa, name)
        cdef Tensor tensor
        cdef fastopt_kernel kernel
        cdef size_t i, n = len(tensors)
        cdef PyObject **items = (<PyListObject *>tensors).ob_item
        self.sums.begin(n, each)
        for i in range(n):
            tensor = <Tensor>items[i]
            kernel = row.sum_kernels[format_of[tensor.storage][tensor.gradient_storage][tensor.storage]][0]
            self.sums.add(&tensor.c, kernel, &self.coefficients)
        self.sums.run(team, takes_largest=not strcmp(name, b"largest"))
        return 0

    cdef int set_coefficients(self, list scalars) except -1:
        cdef Py_ssize_t k
        for k, value in enumerate([*scalars, 1.0, 0.0, 1.0]):
            self.coefficients.scalars[k] = value
        return 0

    cdef int measure_kernels(self, list tensors, int isa, int team, Clipping clipping, double grad_scale) except -1:
        cdef Py_ssize_t i, n = len(tensors)
        cdef double scale = abs(grad_scale), largest
        cdef bint is_value_clipped = clipping.max_value is not None
        self.is_finite = True
        if clipping.is_infinite:
            self.set_coefficients([])
            self.run_sums(tensors, isa, team, b"largest", 1)
            for i in range(n):
                largest = self.sums.totals[i]
                self.is_finite = self.is_finite and isfinite(largest)
                self.raw[i] = largest * scale
                self.clipped[i] = self.raw[i]
                if is_value_clipped and self.raw[i] > <double>clipping.max_value:
                    self.clipped[i] = clipping.max_value
            return 0
        if is_value_clipped and (clipping.max_norm is not None or clipping.max_norm_each is not None):
            self.set_coefficients([grad_scale, clipping.max_value, 1.0])
            self.run_sums(tensors, isa, team, b"clipped_norm", 2)
            for i in range(n):
                self.raw[i] = sqrt(self.sums.totals[2 * i]) * scale
                self.clipped[i] = sqrt(self.sums.totals[2 * i + 1])
        else:
            self.set_coefficients([])
            self.run_sums(tensors, isa, team, b"norm", 1)
            for i in range(n):
                self.raw[i] = self.clipped[i] = sqrt(self.sums.totals[i]) * scale
        for i in range(n):
            if not (isfinite(self.raw[i]) and isfinite(self.clipped[i])):
                self.measure_again(tensors, i, isa, team, clipping, grad_scale)
        return 0

    cdef int measure_again(
        self, list tensors, Py_ssize_t i, int isa, int team, Clipping clipping, double grad_scale
    ) except -1:
        """A sum that is not finite: an element is not finite, or the sum overflows; then of smaller values."""
        cdef double largest, shrink, scale = abs(grad_scale)
        cdef list one = [tensors[i]]
        self.set_coefficients([])
        self.run_sums(one, isa, team, b"largest", 1)
        largest = self.sums.totals[0]
        if not isfinite(largest):
            self.is_finite = False
            return 0
        shrink = ldexp(1.0, -int(np.frexp(largest)[1]))
        self.coefficients.scalars[0] = shrink
        self.run_sums(one, isa, team, b"norm", 1)
        self.raw[i] = sqrt(self.sums.totals[0]) / shrink * scale
        if clipping.max_value is None:
            self.clipped[i] = self.raw[i]
        elif not isfinite(self.clipped[i]):
            shrink = ldexp(1.0, -int(np.frexp(min(largest * scale, <double>clipping.max_value))[1]))
            self.set_coefficients([grad_scale, clipping.max_value, shrink])
            self.run_sums(one, isa, team, b"clipped_norm", 2)
            self.clipped[i] = sqrt(self.sums.totals[1]) / shrink
        return 0

    cdef int measure_twins(self, list tensors, Clipping clipping, double grad_scale) except -1:
        cdef Py_ssize_t i
        cdef Tensor tensor
        self.is_finite = True
        for i, tensor in enumerate(tensors):
            raw, clipped, is_finite = reference.norms(
                tensor.gradient_in_order(), grad_scale, clipping.max_value, clipping.is_infinite
            )
            self.raw[i], self.clipped[i] = raw, clipped
            self.is_finite = self.is_finite and is_finite
        return 0


cdef double norm_of_norms(const double *norms, Py_ssize_t n, bint is_infinite) noexcept:
    """The norm of all, in their order; a NaN is kept, and what is finite does not overflow on the way."""
    cdef double total = 0.0, largest = 0.0
    cdef Py_ssize_t i
    for i in range(n):
        if norms[i] > largest or norms[i] != norms[i]:
            largest = norms[i]
        if largest != largest:
            return largest
    if is_infinite or largest == 0.0 or not isfinite(largest):
        return largest
    for i in range(n):
        total += norms[i] * norms[i]
    if 1e-290 < total and isfinite(total):
        return sqrt(total)
    total = 0.0
    for i in range(n):
        total += (norms[i] / largest) * (norms[i] / largest)
    return largest * sqrt(total)


# -- Gradients without parameters ----------------------------------------------------------------


cdef Tensor loose_gradient(int isa, object key, object array):
    """A gradient alone, its elements in its own memory order if it is contiguous, else in C order.

    It has no label: there may be thousands in a call."""
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef cnp.ndarray grad
    if type(array) is NDARRAY:
        grad = <cnp.ndarray>array
    else:
        grad = arrays.plain(arrays.gradient_label(key), array)
    cdef int storage = storage_of(grad)
    if storage < 0 or not cnp.PyArray_ISNOTSWAPPED(grad):
        arrays.refuse_loose_dtype(key, grad)
    tensor.key, tensor.gradient = key, grad
    tensor.storage = FLOAT64 if storage == FLOAT64 else FLOAT32
    tensor.gradient_storage = storage
    tensor.order = "C"
    if cnp.PyArray_CHKFLAGS(grad, cnp.NPY_ARRAY_F_CONTIGUOUS) and not cnp.PyArray_IS_C_CONTIGUOUS(grad):
        tensor.order = "F"
    tensor.take_shape(grad)  # its memory in place of the parameter's, which is not read
    tensor.c.call.buffers[1] = cnp.PyArray_DATA(grad)
    tensor.c.itemsizes[0] = 8 if tensor.storage == FLOAT64 else 4
    tensor.c.itemsizes[1] = cnp.PyArray_ITEMSIZE(grad)
    if not cnp.PyArray_CHKFLAGS(grad, tensor.contiguity | cnp.NPY_ARRAY_ALIGNED) and tensor.c.count:
        tensor.take_source(grad)
    tensor.format = format_of[tensor.storage][storage][tensor.storage]
    stage_gradient(&tensor.c, isa, tensor.format, storage)
    return tensor


cdef class Gradients:
    """Gradients without parameters: their norm, and what clips them in place. tuners: of the number of threads."""

    cdef readonly list tensors
    cdef readonly double norm
    cdef Norms norms
    cdef Work work
    cdef int isa, team

    def __init__(self, keys, list grads, tuners):
        cdef Tensor tensor
        self.isa, self.norms, self.work = selected(), Norms(), Work(tuners)
        self.tensors = [loose_gradient(self.isa, key, grad) for key, grad in zip(keys, grads) if grad is not None]
        self.work.begin(len(self.tensors))
        for tensor in self.tensors:
            self.work.add(&tensor.c)
        self.work.cut()
        self.team = self.work.choose_team() if table().isas[self.isa].name != NULL else 1

    def are_known_to_be_writable(self):
        """Whether it is known without NumPy that they can be written in place, each element once."""
        return Intervals([], ()).hold_gradients(self.tensors)

    def measure(self, Clipping clipping):
        """The norm of all; what `clipping` asks for is worked out too."""
        self.norms.measure(self.tensors, self.isa, self.team, clipping, 1.0)
        self.norm = self.norms.total
        return self.norm

    def clip(self, limit=None):
        """Multiplies every gradient by its factor of `measure`, or clips its elements to ±limit, in place."""
        cdef Tensor tensor
        cdef Py_ssize_t i = 0, n = len(self.tensors)
        cdef int to
        while limit is None and i < n and self.norms.factors[i] == 1.0:
            i += 1
        if i == n:
            return
        for i in range(n):
            tensor = <Tensor>self.tensors[i]
            factor = 1.0 if limit is not None else self.norms.factors[i]
            if table().isas[self.isa].name == NULL:
                storage.clip_in_place(tensor.gradient, factor, INFINITY if limit is None else limit)
                continue
            to = FLOAT64 if tensor.storage == FLOAT64 else FLOAT32
            clip_on_its_way(
                &tensor.c, self.isa, tensor.storage, tensor.gradient_storage, factor,
                INFINITY if limit is None else limit,
            )
            tensor.c.write_back = table().isas[self.isa].converters[to * FASTOPT_STORAGES + tensor.gradient_storage]
            tensor.c.kernel = NULL
        if table().isas[self.isa].name != NULL:
            self.work.run(self.work.make_ready(self.team))
        self.work.end()


# -- Units: rows, columns and the like ---------------------------------------------------------------

cdef size_t STRIP = 128  # as many columns are added up side by side, for their lanes lie in the nearest cache


def norms_of_units(cnp.ndarray array, size_t outer, size_t count, size_t inner):
    """The norms over the middle one of three axes, in C order: each has the bits of `global_norm` of that unit alone.

    array: contiguous in C order. None: only `reference.norms_over` can tell, for example of numbers that no kernel takes.
    """
    cdef int isa = selected(), storage = storage_of(array)
    cdef const fastopt_optimizer *row
    cdef fastopt_coefficients coefficients
    cdef fastopt_call call
    cdef fastopt_kernel kernel
    cdef const char *data = <const char *>cnp.PyArray_DATA(array)
    cdef size_t itemsize = cnp.PyArray_ITEMSIZE(array), i, strip, begin
    cdef cnp.ndarray found = np.zeros(outer * inner), memory
    cdef double *norms = <double *>cnp.PyArray_DATA(found)
    cdef double *sums
    cdef bint are_rows = inner == 1, are_finite = True
    if (
        table().isas[isa].name == NULL or storage not in (FLOAT32, FLOAT64) or not cnp.PyArray_ISNOTSWAPPED(array)
        or not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_ALIGNED)
    ):
        return None
    row = auxiliary_row(isa, b"norm")
    kernel = (row.sum_kernels if are_rows else row.column_kernels)[format_of[storage][storage][storage]][0]
    memory = np.empty(count // FASTOPT_SUM_BLOCK + 1 if are_rows else FASTOPT_SUM_LANES * STRIP)
    sums = <double *>cnp.PyArray_DATA(memory)
    coefficients.scalars[0], coefficients.scalars[1], coefficients.scalars[2] = 1.0, 0.0, 1.0
    coefficients.random_key = 0
    call.size, call.coefficients, call.first_element, call.factors = sizeof(fastopt_call), &coefficients, 0, NULL
    with nogil:
        for i in range(outer):
            if are_rows:
                norms[i] = square_of_row(kernel, &call, data, count, sums)
            else:
                for strip in range((inner + STRIP - 1) // STRIP):
                    begin = strip * STRIP
                    add_squares_of_columns(
                        kernel, &call, data + begin * itemsize, count, inner * itemsize, min(inner - begin, <size_t>STRIP),
                        sums, &norms[i * inner + begin],
                    )
            data += count * inner * itemsize
        for i in range(outer * inner):
            norms[i] = sqrt(norms[i])
            are_finite = are_finite and isfinite(norms[i])
    return found if are_finite else None


cdef double square_of_row(
    fastopt_kernel kernel, fastopt_call *call, const char *data, size_t count, double *blocks
) noexcept nogil:
    cdef size_t block
    cdef double total = 0.0
    call.buffers[1], call.sums = <void *>data, blocks
    kernel(call, 0, count)
    for block in range((count + FASTOPT_SUM_BLOCK - 1) // FASTOPT_SUM_BLOCK):
        total += blocks[block]
    return total


cdef void add_squares_of_columns(
    fastopt_kernel kernel, fastopt_call *call, const char *data, size_t rows, size_t stride, size_t columns, double *lanes,
    double *totals,
) noexcept nogil:
    """stride: from row to row, in bytes. lanes: room for FASTOPT_SUM_LANES numbers of each column."""
    cdef size_t block, row, half, lane, column
    for block in range((rows + FASTOPT_SUM_BLOCK - 1) // FASTOPT_SUM_BLOCK):
        memset(lanes, 0, FASTOPT_SUM_LANES * STRIP * sizeof(double))
        for row in range(block * FASTOPT_SUM_BLOCK, min((block + 1) * FASTOPT_SUM_BLOCK, rows)):
            call.buffers[1], call.sums = <void *>(data + row * stride), &lanes[row % FASTOPT_SUM_LANES * STRIP]
            kernel(call, 0, columns)
        half = FASTOPT_SUM_LANES // 2
        while half:
            for lane in range(half):
                for column in range(columns):
                    lanes[lane * STRIP + column] += lanes[(lane + half) * STRIP + column]
            half //= 2
        for column in range(columns):
            totals[column] += lanes[column]
