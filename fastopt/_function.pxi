# One call of a function of fastopt.functional: no plan, because nothing is kept from call to call but the options.
# Included by _plan.pyx.


cdef enum: MOST_ARRAYS = FASTOPT_MAX_BUFFERS + 8  # the buffers of a row, and its numbers


cdef class Function:
    """An optimizer as a function on arrays that the caller owns.

    names: the parameters of the function that are arrays, in the kernel's order. checked(options) returns the `Group`
    of options that were given by name, but for ``lr``. slow(args, kwargs): the same call by way of a plan; it takes
    everything that is not the usual case, and says what is wrong with a call. tuners() returns the thread tuners.
    """

    cdef object checked, slow, tuners
    cdef tuple names
    cdef size_t row
    cdef tuple last  # the options of the last call, as `items_of` gives them, and the group made of them
    cdef double default_lr, least_lr
    cdef Factors factors
    cdef bint is_slow  # always
    cdef int buffers  # how many of the names are of arrays like the parameter; those behind are of numbers

    def __init__(self, algorithm, tuple names, double default_lr, double least_lr, checked, slow, tuners):
        if len(names) > MOST_ARRAYS:
            raise ValueError(f"{algorithm.formula}: its function takes more than {MOST_ARRAYS} arrays; raise MOST_ARRAYS")
        self.names, self.default_lr, self.least_lr = names, default_lr, least_lr
        self.checked, self.slow, self.tuners = checked, slow, tuners
        self.row = list(TABLE).index(algorithm.formula)
        row = TABLE[algorithm.formula]
        self.factors = Factors(row)
        self.buffers = len(names) - len(row["numbers"])
        self.is_slow = bool(row["work"] or algorithm.vector_letters())
        self.last = ((), None)

    cdef Group group_of(self, dict options):
        """The group for options that were given by name: the last call's, if they are the very same objects."""
        cdef tuple last = self.last
        if last[1] is None or not is_group_unchanged(options, <tuple>last[0]):
            items = items_of(options)
            self.last = last = (items, self.checked(options))
        return <Group>last[1]

    cdef call(self, tuple args, dict kwargs):
        cdef fastopt_tensor c
        cdef fastopt_coefficients coefficients
        cdef cnp.ndarray param, array
        cdef Group group
        cdef dict options = kwargs.copy()
        cdef int64_t t
        cdef double lr = self.default_lr, grad_scale = 1.0
        cdef int isa = selected(), flags, k, other, storage, buffer, format, count = len(args)
        cdef int[3] stored
        cdef uintptr_t[MOST_ARRAYS] begin
        cdef uintptr_t[MOST_ARRAYS] end
        cdef const fastopt_optimizer *row
        cdef list numbers = []
        cdef Work work
        memset(&c, 0, sizeof(c))
        step = options.pop("step", None)
        if self.is_slow or count > len(self.names) or type(step) is not int or table().isas[isa].name == NULL:
            return self.slow(args, kwargs)
        given = options.pop("lr", self)
        if given is not self:
            if type(given) is not float or not self.least_lr <= <double>given < 1e300:
                return self.slow(args, kwargs)
            lr = given
        given = options.pop("grad_scale", self)
        if given is not self:
            if type(given) is not float or not -1e300 < <double>given < 1e300:
                return self.slow(args, kwargs)
            grad_scale = given
        t = step if 1 <= step < 4611686018427387904 else 0
        given = args[0] if count else options.get("param")
        param = given if type(given) is NDARRAY else None
        if t == 0 or param is None:
            return self.slow(args, kwargs)
        flags = cnp.NPY_ARRAY_ALIGNED
        flags |= cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_CHKFLAGS(param, cnp.NPY_ARRAY_C_CONTIGUOUS) else (
            cnp.NPY_ARRAY_F_CONTIGUOUS
        )
        stored[2] = -1
        for k in range(len(self.names)):
            begin[k] = end[k] = 0
            given = args[k] if k < count else options.pop(self.names[k], None)
            if given is None:
                continue
            if type(given) is not NDARRAY:
                return self.slow(args, kwargs)
            array = <cnp.ndarray>given
            storage = storage_of(array)
            if (
                storage < 0
                or not cnp.PyArray_CHKFLAGS(array, flags if k == 1 else flags | cnp.NPY_ARRAY_WRITEABLE)
                or not cnp.PyArray_ISNOTSWAPPED(array)
            ):
                return self.slow(args, kwargs)
            if k < self.buffers:
                buffer = k if k < 2 else 2
                if not cnp.PyArray_SAMESHAPE(array, param) or (k > 2 and stored[2] >= 0 and stored[2] != storage):
                    return self.slow(args, kwargs)
                stored[buffer] = storage
                c.call.buffers[k] = cnp.PyArray_DATA(array)
            else:
                if storage != FLOAT64 or cnp.PyArray_NDIM(array):
                    return self.slow(args, kwargs)
                numbers.append(array)
            begin[k] = <uintptr_t>cnp.PyArray_DATA(array)
            end[k] = begin[k] + cnp.PyArray_NBYTES(array)
            for other in range(k):
                if begin[other] < end[k] and begin[k] < end[other]:
                    return self.slow(args, kwargs)
        if len(numbers) != self.factors.n_numbers:
            return self.slow(args, kwargs)
        group = self.group_of(options)
        if group.callables or group.l1 != 0.0 or (group.lost is not None and stored[0] != FLOAT64):
            return self.slow(args, kwargs)
        c.count = cnp.PyArray_SIZE(param)
        if group.needs_factors and self.factors.n_sums and c.count >= PARALLEL_ELEMENTS:  # too many for the stack
            return self.slow(args, kwargs)
        if <double>group.h["lr"] != lr:
            items = items_of(options)
            group = group.with_lr(lr)
            self.last = (items, group)
        row = &table().isas[isa].optimizers[self.row]
        for k in range(self.buffers):
            if c.call.buffers[k] == NULL and (
                k < 2 + group.required or group.subset >> (k - 2 - group.required) & 1
            ):
                return self.slow(args, kwargs)
        if stored[2] < 0:
            stored[2] = stored[0]
        k = format_of[stored[0]][stored[1]][stored[2]]
        if k < 0 or stored[0] == FLOAT16:
            return self.slow(args, kwargs)
        other = k
        if row.kernels[k][group.subset] == NULL:
            other = format_of[stored[0]][stored[1]][stored[0]]
        c.kernel = faster_kernel(row, other, group.subset, group, row.kernels[other][group.subset])
        format = k
        stage_gradient(&c, isa, format, stored[1])
        for k in range(3):
            c.itemsizes[k] = 8 if stored[k] == FLOAT64 else 4 if stored[k] == FLOAT32 else 2
        group.fill(&coefficients, t, grad_scale)
        c.call.size = sizeof(fastopt_call)
        c.call.coefficients = &coefficients
        if group.needs_factors:
            work = self.run_with_factors(&c, row.sum_kernels[format][group.subset], group, t, numbers)
        else:
            work = self.run(&c)
        if work is not None:
            work.end()
        return None

    cdef Work run(self, fastopt_tensor *c):
        """The update, on more than one thread if it is long enough. Returns the work, None of a short array. The caller
        calls the work's `end` after all else has been written, because `end` runs Python code."""
        cdef Work work
        cdef int team
        if c.count < PARALLEL_ELEMENTS:
            run_alone(c)
            return None
        work = Work(self.tuners())
        work.begin(1)
        work.add(c)
        team = work.choose_team()
        work.cut()
        team = work.make_ready(team)
        work.run(team)
        return work

    cdef Work run_with_factors(
        self, fastopt_tensor *c, fastopt_kernel sum_kernel, Group group, int64_t t, list numbers
    ):
        """The step of a row whose update needs sums, or numbers of the tensor. Returns the same as `run`."""
        cdef Factors factors = self.factors
        cdef double[FASTOPT_MAX_SUMS * PARALLEL_BLOCKS] blocks
        cdef double[FASTOPT_MAX_SUMS] totals
        cdef double[FASTOPT_MAX_FACTORS] found
        cdef fastopt_kernel kernel = c.kernel
        cdef size_t k, block
        cdef list first = None
        cdef Work work
        named = {name: np.array([array[()]]) for name, array in zip(factors.number_names, numbers)}
        steps = np.array([t], np.int64)
        c.call.factors = found
        if factors.n_sums:
            if has_first_factors(group):
                first = factors.first(group, steps, named)
            for k in range(<size_t>factors.n_factors):
                found[k] = 1.0 if first is None else first[k][0]
            for k in range(<size_t>factors.n_sums):
                totals[k] = 0.0
            c.kernel, c.sum_count, c.call.sums = sum_kernel, factors.n_sums, blocks
            run_alone(c)
            c.kernel, c.sum_count, c.call.sums = kernel, 0, NULL
            for block in range((c.count + FASTOPT_SUM_BLOCK - 1) // FASTOPT_SUM_BLOCK):
                for k in range(<size_t>factors.n_sums):
                    totals[k] += blocks[block * factors.n_sums + k]
        prepared = factors.prepared(
            group,
            steps,
            {name: np.array([totals[k]]) for k, name in enumerate(factors.sum_names)}
            | {"elements": np.array([<double>c.count])},
            named,
        )
        for k in range(<size_t>factors.n_factors):
            found[k] = prepared[k][0]
        work = self.run(c)
        for array, values in zip(numbers, prepared[factors.n_factors:]):
            (<double *>cnp.PyArray_DATA(<cnp.ndarray>array))[0] = values[0]
        return work


cdef void run_alone(const fastopt_tensor *tensor) noexcept:
    """One tensor on the calling thread, whose arrays the caller's arguments keep alive."""
    cdef uint64_t mode = 0
    cdef bint flushes = flushes_denormal()
    if flushes:
        mode = fastopt_flush_subnormals()
    if tensor.count < ELEMENTS_UNDER_THE_GIL:
        fastopt_run_tensor(tensor)
    else:
        with nogil:
            fastopt_run_tensor(tensor)
    if flushes:
        fastopt_set_floating_mode(mode)


def as_function(Function function):
    def call(*args, **kwargs):
        return function.call(args, kwargs)
    return call
