# One call of a function of fastopt.functional: no plan, because nothing is kept from call to call but the options.
# Included by _plan.pyx.


cdef class Function:
    """An optimizer as a function on arrays that the caller owns.

    names: the parameters of the function that are arrays, in the kernel's order. checked(options) returns the `Group`
    of options that were given by name, but for ``lr``. slow(args, kwargs): the same call by way of a plan; it takes
    everything that is not the usual case, and says what is wrong with a call.
    """

    cdef object checked, slow
    cdef tuple names
    cdef size_t row
    cdef tuple last  # the options of the last call, as `items_of` gives them, and the group made of them
    cdef double default_lr
    cdef bint is_simple  # whether the row has no sums, factors or numbers

    def __init__(self, algorithm, tuple names, double default_lr, checked, slow):
        self.names, self.default_lr, self.checked, self.slow = names, default_lr, checked, slow
        self.row = list(TABLE).index(algorithm.formula)
        row = TABLE[algorithm.formula]
        self.is_simple = not (row["sums"] or row["factors"] or row["numbers"])
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
        cdef int isa = selected(), flags, k, other, storage, buffer, count = len(args)
        cdef int[3] stored
        cdef uintptr_t[FASTOPT_MAX_BUFFERS] begin
        cdef uintptr_t[FASTOPT_MAX_BUFFERS] end
        cdef const fastopt_optimizer *row
        memset(&c, 0, sizeof(c))
        step = options.pop("step", None)
        if not self.is_simple or count > len(self.names) or type(step) is not int or table().isas[isa].name == NULL:
            return self.slow(args, kwargs)
        given = options.pop("lr", self)
        if given is not self:
            if type(given) is not float or not 0.0 <= <double>given < 1e300:
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
        if t == 0 or param is None or cnp.PyArray_SIZE(param) >= <Py_ssize_t>PARALLEL_ELEMENTS:
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
            buffer = k if k < 2 else 2
            if (
                storage < 0
                or not cnp.PyArray_CHKFLAGS(array, flags if k == 1 else flags | cnp.NPY_ARRAY_WRITEABLE)
                or not cnp.PyArray_ISNOTSWAPPED(array)
                or not cnp.PyArray_SAMESHAPE(array, param)
                or (k > 2 and stored[2] >= 0 and stored[2] != storage)
            ):
                return self.slow(args, kwargs)
            stored[buffer] = storage
            begin[k] = <uintptr_t>cnp.PyArray_DATA(array)
            end[k] = begin[k] + cnp.PyArray_NBYTES(array)
            for other in range(k):
                if begin[other] < end[k] and begin[k] < end[other]:
                    return self.slow(args, kwargs)
            c.call.buffers[k] = cnp.PyArray_DATA(array)
        group = self.group_of(options)
        if group.callables or group.l1 != 0.0 or (group.lost is not None and stored[0] != FLOAT64):
            return self.slow(args, kwargs)
        if <double>group.h["lr"] != lr:
            items = items_of(options)
            group = group.with_lr(lr)
            self.last = (items, group)
        row = &table().isas[isa].optimizers[self.row]
        for k in range(len(self.names)):
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
        stage_gradient(&c, isa, k, stored[1])
        for k in range(3):
            c.itemsizes[k] = 8 if stored[k] == FLOAT64 else 4 if stored[k] == FLOAT32 else 2
        group.fill(&coefficients, t, grad_scale)
        c.call.size = sizeof(fastopt_call)
        c.call.coefficients = &coefficients
        c.count = cnp.PyArray_SIZE(param)
        run_alone(&c)
        return None


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
