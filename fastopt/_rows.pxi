# Steps on a few rows of parameters. Included by _plan.pyx.


@cython.final
cdef class RowSteps:
    """For each row of a parameter the steps that it has made, while `update_rows` makes up for missed ones.

    until: how many steps of the parameter are counted. options: those of its group that hold since as many steps as
    `since`; None: whatever the group has.
    """

    cdef:
        readonly cnp.ndarray made
        readonly int64_t until, since
        readonly dict options

    def __init__(self, cnp.ndarray made, int64_t until, int64_t since=0, dict options=None):
        self.made, self.until, self.since, self.options = made, until, since, options


@cython.final
cdef class RowCall:
    """The rows of one parameter in one call, each once, and the sums of their gradients. Kept for the next call."""

    cdef:
        fastopt_tensor c
        fastopt_rows rows
        int64_t *numbers
        size_t *places  # of each row that was given, among `numbers`
        size_t *slots  # a hash table: places in `numbers` + 1, or 0
        size_t *first_missed
        fastopt_coefficients *missed
        size_t number_capacity, place_capacity, slot_capacity, first_missed_capacity, missed_capacity
        size_t count  # of rows
        cnp.ndarray gradient, sums, zeros
        RowSteps next_steps  # that hold when the step has been made, or None
        cnp.ndarray factors  # of each row, where rows have factors of their own
        dict pending  # by letter, what the parameter's vectors become for these rows

    def __dealloc__(self):
        free(self.numbers)
        free(self.places)
        free(self.slots)
        free(self.first_missed)
        free(self.missed)

    cdef int take_rows(self, Tensor tensor, object given) except -1:
        """Takes the rows of a parameter, each once, in the order in which they were first named."""
        cdef cnp.ndarray found
        cdef const int64_t *numbers
        cdef int64_t row, rows = tensor.dims[0]
        cdef size_t i, slot, n, mask = 1
        found = <cnp.ndarray>given if type(given) is NDARRAY else rows_checks.row_numbers(tensor.label, given)
        if (
            cnp.PyArray_TYPE(found) != cnp.NPY_INT64 or cnp.PyArray_NDIM(found) != 1
            or not cnp.PyArray_CHKFLAGS(found, cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED)
            or not cnp.PyArray_ISNOTSWAPPED(found)
        ):
            found = rows_checks.row_numbers(tensor.label, given)
        n, numbers = cnp.PyArray_SIZE(found), <const int64_t *>cnp.PyArray_DATA(found)
        while mask < 2 * n:
            mask *= 2
        grow(<void **>&self.numbers, &self.number_capacity, n, sizeof(int64_t))
        grow(<void **>&self.places, &self.place_capacity, n, sizeof(size_t))
        grow(<void **>&self.slots, &self.slot_capacity, mask, sizeof(size_t))
        memset(self.slots, 0, mask * sizeof(size_t))
        mask -= 1
        self.count = 0
        for i in range(n):
            row = numbers[i]
            if row < 0 or row >= rows:
                rows_checks.refuse_row(tensor.label, row, rows)
            slot = (<uint64_t>row * 0x9E3779B97F4A7C15ULL >> 32) & mask
            while self.slots[slot] and self.numbers[self.slots[slot] - 1] != row:
                slot = (slot + 1) & mask
            if not self.slots[slot]:
                self.numbers[self.count] = row
                self.count += 1
                self.slots[slot] = self.count
            self.places[i] = self.slots[slot] - 1
        return n

    cdef bint take_gradient(
        self, Tensor tensor, object given, size_t n, Intervals intervals, Intervals call_intervals
    ) except -1:
        """Takes the gradients of the ``n`` rows that were named. Returns whether they had to be rounded."""
        cdef bint is_rounded = False
        cdef cnp.ndarray grad = tensor.take_dtype(given, False, &is_rounded)
        shape = (n, *tensor.shape[1:])
        if (<object>grad).shape != shape:
            rows_checks.refuse_gradient_shape(tensor.label, (<object>grad).shape, shape)
        tensor.refuse_shared(grad, intervals, call_intervals)
        tensor.gap.end = 0  # it is known of this gradient's memory alone
        if is_rounded:
            grad = arrays.rounded(grad)
        if self.count < n:
            wide = grad if storage_of(grad) in (FLOAT32, FLOAT64) else grad.astype(np.float32)
            grad = self.added_up(np.require(wide, requirements=["C", "A"]), n)
            tensor.take_gradient_storage(grad, grad, storage_of(grad))
        elif not cnp.PyArray_CHKFLAGS(grad, cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED):
            grad = np.require(grad, requirements=["C", "A"])
        self.gradient = grad
        return is_rounded

    cdef cnp.ndarray added_up(self, cnp.ndarray grad, size_t n):
        """The sum of each row's gradients, float32 or float64, in the order in which they were given."""
        cdef size_t i, k, place, known = 0, elements = self.rows.elements
        cdef float *sum32
        cdef double *sum64
        cdef const float *from32 = <const float *>cnp.PyArray_DATA(grad)
        cdef const double *from64 = <const double *>cnp.PyArray_DATA(grad)
        shape = (self.count, *(<object>grad).shape[1:])
        if self.sums is None or (<object>self.sums).shape != shape or self.sums.dtype != grad.dtype:
            self.sums = np.empty(shape, grad.dtype)
        sum32, sum64 = <float *>cnp.PyArray_DATA(self.sums), <double *>cnp.PyArray_DATA(self.sums)
        for i in range(n):
            place = self.places[i] * elements
            if self.places[i] == known:
                known += 1
                if cnp.PyArray_TYPE(grad) == cnp.NPY_FLOAT32:
                    memcpy(&sum32[place], &from32[i * elements], elements * sizeof(float))
                else:
                    memcpy(&sum64[place], &from64[i * elements], elements * sizeof(double))
            elif cnp.PyArray_TYPE(grad) == cnp.NPY_FLOAT32:
                for k in range(elements):
                    sum32[place + k] += from32[i * elements + k]
            else:
                for k in range(elements):
                    sum64[place + k] += from64[i * elements + k]
        return self.sums

    cdef int look_back(self, Tensor tensor, Group group) except -1:
        """Finds out which steps each of the rows has missed, and the coefficients of these."""
        cdef RowSteps steps = tensor.row_steps
        cdef dict options = rows_checks.options_that_count(group.h)
        cdef int64_t since = 0, first = tensor.steps
        cdef const int64_t *made
        cdef size_t k, m
        if steps is None:
            steps = RowSteps(np.full(tensor.shape[0], tensor.steps, np.int64), tensor.steps)
        if steps.until != tensor.steps:
            rows_checks.refuse_other_steps(tensor)
        since = steps.since
        if steps.options is not None and not rows_checks.is_same(options, steps.options):
            since = tensor.steps
        made = <const int64_t *>cnp.PyArray_DATA(steps.made)
        for k in range(self.count):
            first = min(first, made[self.numbers[k]])
            if made[self.numbers[k]] < since:
                rows_checks.refuse_changed_options(tensor, self.numbers[k])
        grow(<void **>&self.first_missed, &self.first_missed_capacity, self.count, sizeof(size_t))
        for k in range(self.count):
            self.first_missed[k] = made[self.numbers[k]] - first
        self.rows.missed_count = tensor.steps - first
        grow(<void **>&self.missed, &self.missed_capacity, self.rows.missed_count, sizeof(fastopt_coefficients))
        for m in range(self.rows.missed_count):
            if group.callables:
                group.take_numbers(group.numbers_after(first + <int64_t>m))
            group.fill(&self.missed[m], first + <int64_t>m + 1, 1.0)
        group.resolved_for = -1
        self.rows.first_missed, self.rows.missed = self.first_missed, self.missed
        if self.zeros is None or cnp.PyArray_NBYTES(self.zeros) < <Py_ssize_t>self.rows.elements * 8:
            self.zeros = np.zeros(self.rows.elements)
        self.rows.zeros = cnp.PyArray_DATA(self.zeros)
        self.next_steps = RowSteps(steps.made, tensor.steps + 1, since, options)
        return 0

    cdef void make_ready(self, Tensor tensor) noexcept:
        """Takes the rest of the call from the tensor, whose kernel is known."""
        self.c = tensor.c
        self.c.call.buffers[1] = cnp.PyArray_DATA(self.gradient)
        self.c.count = self.count * self.rows.elements
        self.c.rows, self.c.source, self.c.pass_count = &self.rows, NULL, 0
        self.rows.numbers = self.numbers
        self.rows.factors, self.pending = NULL, None

    cdef void count_step(self, Tensor tensor) noexcept:
        """Records that the step has been made."""
        cdef size_t k
        cdef int64_t *made
        cdef double *vector
        cdef const double *values
        if self.pending is not None:
            for letter, pending in self.pending.items():
                vector = <double *>cnp.PyArray_DATA(<cnp.ndarray>tensor.by_rows.vectors[letter])
                values = <const double *>cnp.PyArray_DATA(<cnp.ndarray>pending)
                for k in range(self.count):
                    vector[self.numbers[k]] = values[k]
        if self.next_steps is not None:
            made = <int64_t *>cnp.PyArray_DATA(self.next_steps.made)
            for k in range(self.count):
                made[self.numbers[k]] = self.next_steps.until
            tensor.row_steps = self.next_steps

    cdef list factors_of(self, size_t k):
        return [] if self.rows.factors == NULL else self.factors[k].tolist()

    cdef int run_twin(self, Tensor tensor, algorithm, list used) except -1:
        """The same as the kernel does, by the NumPy twin, row by row."""
        cdef size_t k, m
        cdef tuple rows = (tensor.shape[0], self.rows.elements)
        cdef object now = tensor.now.reshape(rows)
        cdef object gradient = self.gradient.reshape(self.count, self.rows.elements)
        cdef object zeros = np.zeros(self.rows.elements, self.gradient.dtype)
        cdef list states = [tensor.states[x] if x in used else None for x in tensor.letters]
        states = [None if state is None else state.reshape(rows) for state in states]
        for k in range(self.count):
            row = self.numbers[k]
            p, own = now[row], [None if state is None else state[row] for state in states]
            first_element = tensor.c.call.first_element + <uint64_t>row * self.rows.elements
            if self.rows.first_missed != NULL:
                for m in range(self.first_missed[k], self.rows.missed_count):
                    twin_of_row(algorithm, p, zeros, own, &self.missed[m], first_element, [])
            twin_of_row(
                algorithm, p, gradient[k], own, tensor.c.call.coefficients, first_element, self.factors_of(k)
            )
        return 0


def row_steps_of(states, steps):
    """The `RowSteps` of a parameter that is given states by their names, after so many steps; None if it has none."""
    made = states.get(rows_checks.ROW_STEPS)
    return None if made is None else RowSteps(np.array(made, np.int64), steps)


cdef int twin_of_row(
    algorithm, p, gradient, list states, const fastopt_coefficients *coefficients, uint64_t first_element, list factors
) except -1:
    storage.update(
        algorithm, p, gradient, states, scalars_of(coefficients, algorithm), coefficients.random_key, first_element,
        factors,
    )
    return 0
