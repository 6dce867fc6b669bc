# One parameter, its states and its gradient: arrays that were checked, and the pointers that a kernel takes.
# Included by _plan.pyx.

# -- How arrays are stored -----------------------------------------------------------------------

cdef enum: FLOAT32, FLOAT64, FLOAT16, BFLOAT16, STORAGES, UNSEEN
cdef list STORAGE_NAMES = ["float32", "float64", "float16", "bfloat16"]
cdef int format_of[STORAGES][STORAGES][STORAGES]  # of parameter, gradient, states: a place in FORMATS, or -1
cdef int bfloat16_number = -1  # NumPy's number of the dtype; there is none until ml_dtypes has been imported
cdef object NDARRAY = np.ndarray


def _number_formats():
    cdef int p, g, s
    places = {stored: place for place, stored in enumerate(FORMATS.values())}
    for p, parameter in enumerate(STORAGE_NAMES):
        for g, gradient in enumerate(STORAGE_NAMES):
            for s, states in enumerate(STORAGE_NAMES):
                format_of[p][g][s] = places.get((parameter, gradient, states), -1)


_number_formats()


cdef int storage_of(cnp.ndarray array) except -2:
    """How an array is stored; -1 for what is no float that a kernel takes."""
    global bfloat16_number
    cdef int number = cnp.PyArray_TYPE(array)
    if number == cnp.NPY_FLOAT32:
        return FLOAT32
    if number == cnp.NPY_FLOAT64:
        return FLOAT64
    if number == cnp.NPY_FLOAT16:
        return FLOAT16
    if number < 256:  # NumPy's own dtypes; behind them are those of other packages
        return -1
    if bfloat16_number < 0 and "ml_dtypes" in sys.modules:
        bfloat16_number = np.dtype(sys.modules["ml_dtypes"].bfloat16).num
    return BFLOAT16 if number == bfloat16_number else -1


cdef void clip_on_its_way(
    fastopt_tensor *tensor, int isa, int parameter, int gradient, double scale, double limit
) noexcept:
    """Has a gradient multiplied by scale and clipped to ±limit before the kernel takes it."""
    cdef int to = FLOAT64 if parameter == FLOAT64 else FLOAT32
    if table().isas[isa].name != NULL:
        tensor.stage = table().isas[isa].converters[gradient * FASTOPT_STORAGES + to]
    tensor.stage_scale, tensor.stage_limit = scale, limit


cdef void stage_gradient(fastopt_tensor *tensor, int isa, int format, int gradient) noexcept:
    """Has the gradient converted, task by task, where kernels of the format take it in another storage."""
    cdef const fastopt_format *stored = &table().formats[format]
    tensor.stage, tensor.stage_scale, tensor.stage_limit, tensor.before = NULL, 1.0, INFINITY, NULL
    # 16 bits: exactly, to float32
    if table().isas[isa].name != NULL and strcmp(stored.gradient, stored.kernel_gradient):
        tensor.stage = table().isas[isa].converters[gradient * FASTOPT_STORAGES + FASTOPT_FLOAT32]


# -- Parameters --------------------------------------------------------------------------------

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArrayObject_fields:
        int flags


cdef int ALWAYS_WRITEABLE = cnp.NPY_ARRAY_WRITEABLE


cdef const int *flags_of(given) noexcept:
    """NumPy's flags of an array, as they are at any time."""
    return &(<PyArrayObject_fields *>given).flags if isinstance(given, NDARRAY) else &ALWAYS_WRITEABLE


cdef void *dtype_of(cnp.ndarray array) except NULL:
    """NumPy's only object for the native dtype of floats like an array's, which lives for ever."""
    cdef object dtype = cnp.PyArray_DescrFromType(cnp.PyArray_TYPE(array))
    return <void *>dtype


@cython.final
cdef class Tensor:
    """One parameter, its states and its gradient: arrays that were checked, and the pointers that a kernel takes.

    index: its place among all. key: its name or number. given: the array that the user passed. group: the number of
    its group. first_element: the number of its element 0, counted through all parameters.
    """

    cdef:
        # every step reads these: they lie side by side
        readonly int64_t steps
        const int *flags  # NumPy's, of the array that is kept
        void *param_dtype  # NumPy's only object for it, which lives for ever
        void *gradient_dtype
        fastopt_tensor c
        cnp.ndarray gradient  # while a step runs; for as long as it is bound
        cnp.ndarray original  # of a gradient that was rounded
        Gap gap  # around the last gradient that was found to share no memory
        int contiguity  # NumPy's flag of the parameter's order
        int rank
        cnp.npy_intp *dims
        int storage, gradient_storage, state_storage  # the gradient's is UNSEEN before there has been one
        int format  # of these three
        list trails  # one for each follower, see _followers.pxi
        fastopt_pass *passes
        const void *param_apart  # that were found to share no memory with trails
        const void *gradient_apart
        const void *zeroed  # the address of the last gradient that zeros could be written into, with all others
        readonly Py_ssize_t index, group
        # and these in some
        fastopt_source *source  # how the gradient lies, if it ever lay in another layout
        readonly object key
        readonly object given, param  # as the user passed it, and a plain view; None if every call hands it over
        readonly cnp.ndarray handed  # the parameter of this call, if it was handed over
        readonly str label, order
        readonly object dtype
        readonly tuple shape
        readonly dict states  # by the formula's letters
        bint is_known_orphan  # the user has been warned that only the optimizer refers to its array
        readonly list letters  # of the states' buffers, in the kernel's order
        cnp.ndarray number_array  # the row's NUMBERS
        double *numbers  # its memory
        size_t pass_capacity
        tuple number_letters, work_letters
        readonly dict work  # the row's WORK arrays by their letters, and what else `Algorithm.transform` keeps; None at first
        object row_call  # see `RowCall`; None before there was a call for rows
        readonly object row_steps  # see `RowSteps`; None where no rows are behind
        readonly ByRows by_rows  # None for a parameter that is updated as one
        readonly size_t shape_subset  # the OPTIONAL buffers that its shape needs, as bits

    def __init__(self, algorithm, Py_ssize_t index, key, given, Py_ssize_t group, uint64_t first_element):
        self.index, self.key, self.given, self.group = index, key, given, group
        self.label = arrays.label_of(key)
        self.param = arrays.checked_parameter(self.label, given)
        self.flags = flags_of(given)
        self.order, self.dtype = arrays.order_of(self.param), self.param.dtype
        refused = algorithm.check_shape(self.param.shape)
        if refused is not None:
            raise ValueError(f"{self.label}: {refused}")
        self.letters = [*TABLE[algorithm.formula]["state"], *TABLE[algorithm.formula]["optional"]]
        self.work_letters = TABLE[algorithm.formula]["work"]
        if self.work_letters:
            self.c.first_work = 2 + len(self.letters)
        self.states, self.trails = {}, []
        self.number_letters = TABLE[algorithm.formula]["numbers"]
        self.number_array = np.zeros(len(self.number_letters))
        self.numbers = <double *>cnp.PyArray_DATA(self.number_array)
        self.storage = self.state_storage = storage_of(self.param)
        self.gradient_storage = UNSEEN
        self.c.itemsizes[0] = self.param.itemsize
        self.take_shape(self.param)
        self.param_dtype = dtype_of(self.param)
        self.c.call.first_element = first_element
        self.shape_subset = algorithm.bits_of(algorithm.optional_by_shape(self.shape))
        vectors = algorithm.vectors(self.shape)
        if vectors:
            if self.order == "F":
                rows_checks.refuse_order_of_rows(self.label)
            self.by_rows = ByRows(algorithm, self.shape, vectors, self.storage == FLOAT64)
            self.c.rows = &self.by_rows.rows
            self.c.first_work = 2 + len(self.letters) if self.by_rows.columns else 0
            for k, columns in enumerate(self.by_rows.columns.values()):
                self.c.call.buffers[self.c.first_work + k] = cnp.PyArray_DATA(<cnp.ndarray>columns)

    cdef int take_shape(self, cnp.ndarray array) except -1:
        """Takes the shape of an array in its order, and its memory for the parameter's."""
        cdef int k
        self.shape, self.rank = (<object>array).shape, cnp.PyArray_NDIM(array)
        self.dims = <cnp.npy_intp *>calloc(self.rank + 1, sizeof(cnp.npy_intp))
        if self.dims == NULL:
            raise MemoryError
        for k in range(self.rank):
            self.dims[k] = cnp.PyArray_DIMS(array)[k]
        self.contiguity = cnp.NPY_ARRAY_C_CONTIGUOUS if self.order == "C" else cnp.NPY_ARRAY_F_CONTIGUOUS
        self.c.count = cnp.PyArray_SIZE(array)
        self.c.call.size = sizeof(fastopt_call)
        self.c.call.buffers[0] = cnp.PyArray_DATA(array)
        return 0

    def __dealloc__(self):
        free(self.source)
        free(self.dims)
        free(self.passes)

    @property
    def now(self):
        """The parameter: the array of this call, if it was handed over, else the one that is kept."""
        return self.param if self.handed is None else self.handed

    @property
    def array(self):
        """The gradient."""
        return self.gradient

    def gradient_in_order(self):
        """The gradient's elements in the parameter's memory order."""
        return self.gradient.reshape(self.shape).ravel(self.order)

    def number_views(self):
        """The NUMBERS by their letters, as arrays without dimensions that may be written into."""
        return {letter: self.number_array[k, ...] for k, letter in enumerate(self.number_letters)}

    def numbers_by_letter(self):
        return {letter: self.numbers[k] for k, letter in enumerate(self.number_letters)}

    @property
    def vectors(self):
        """By letter, the states that are float64 arrays of a shape of their own."""
        return {} if self.by_rows is None else self.by_rows.vectors

    cdef int make_work(self) except -1:
        """Makes the row's WORK arrays, once."""
        cdef Py_ssize_t k
        if self.work is None:
            dtype = np.float64 if self.storage == FLOAT64 else np.float32
            self.work = {x: np.empty(self.shape, dtype, order=self.order) for x in self.work_letters}
        for k in range(len(self.work_letters)):
            self.c.call.buffers[self.c.first_work + k] = cnp.PyArray_DATA(<cnp.ndarray>self.work[self.work_letters[k]])
        return 0

    cdef int take_numbers(self, dict values) except -1:
        cdef Py_ssize_t k
        for k in range(len(self.number_letters)):
            self.numbers[k] = values[self.number_letters[k]]
        return 0

    @property
    def address(self):
        return <uintptr_t>self.c.call.buffers[0]

    @property
    def end_element(self):
        """The number of the element behind the last one."""
        return self.c.call.first_element + self.c.count

    def name_of(self, Py_ssize_t buffer, names):
        """The name of the parameter (buffer 0), of a state, or of what follows the parameter (-1) in messages; names:
        the states', by letter."""
        if buffer < 0:
            return f"the average or mirror of {self.label}"
        return f"the state {names[self.letters[buffer - 2]]!r} of {self.label}" if buffer else self.label

    cdef void take_states(self, dict states) noexcept:
        """Puts states in place that `arrays.checked_states` returned, or `arrays.arena` made."""
        cdef Py_ssize_t k
        cdef cnp.ndarray state
        self.states = states
        self.state_storage = self.storage  # of those that are not there
        for k in range(len(self.letters)):
            state = states.get(self.letters[k])
            self.c.call.buffers[2 + k] = NULL
            if state is not None:
                self.c.call.buffers[2 + k] = cnp.PyArray_DATA(state)
                self.state_storage = storage_of(state)
        self.c.itemsizes[2] = 8 if self.state_storage == FLOAT64 else 4 if self.state_storage == FLOAT32 else 2
        self.gradient_storage = UNSEEN  # the format is found anew

    cdef inline bint has_form(self, cnp.ndarray array, void *dtype, int flags) noexcept:
        """Whether an array has a dtype that is this very object, the parameter's shape, and NumPy's flags."""
        cdef int k
        if (
            <void *>cnp.PyArray_DESCR(array) != dtype or cnp.PyArray_NDIM(array) != self.rank
            or not cnp.PyArray_CHKFLAGS(array, flags)
        ):
            return False
        for k in range(self.rank):
            if cnp.PyArray_DIMS(array)[k] != self.dims[k]:
                return False
        return True

    cdef int take_param(self, object given) except -1:
        """Takes an array that the caller hands over for this call; returns whether it lies elsewhere than the last."""
        cdef cnp.ndarray param
        cdef int flags = self.contiguity | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE
        param = <cnp.ndarray>given if type(given) is NDARRAY else arrays.plain(self.label, given)
        if not self.has_form(param, self.param_dtype, flags):
            if (
                storage_of(param) != self.storage or not cnp.PyArray_ISNOTSWAPPED(param)
                or not self.has_form(param, cnp.PyArray_DESCR(param), flags)
            ):
                arrays.refuse_other_param(self.label, self.dtype, self.shape, self.order, given)
        self.handed = param
        if cnp.PyArray_DATA(param) == self.c.call.buffers[0]:
            return False
        self.c.call.buffers[0] = cnp.PyArray_DATA(param)
        return True

    cdef void keep_param(self, object given) noexcept:
        """Keeps the array that was handed over, after a call that was made."""
        self.param, self.given, self.handed = self.handed, given, None
        self.flags = flags_of(given)

    cdef void release_gradient(self) noexcept:
        self.gradient = self.original = None

    cdef void release_param(self, bint keeps) noexcept:
        """Goes back to the array that is kept, or to none."""
        self.handed = None
        if keeps:
            self.c.call.buffers[0] = cnp.PyArray_DATA(<cnp.ndarray>self.param)
        elif self.given is not None:
            self.param = self.given = None
            self.flags = &ALWAYS_WRITEABLE

    cdef bint is_writeable(self) noexcept:
        """Whether the array that is kept has not become read-only since the optimizer was given it."""
        return self.flags[0] & cnp.NPY_ARRAY_WRITEABLE != 0

    cdef inline bint take_gradient_again(self, cnp.ndarray grad) noexcept:
        """Takes a gradient of the last one's form that lies near it, if this is one: nothing more has to be checked."""
        if (
            self.c.source != NULL or not self.gap_has(grad)
            or not self.has_form(grad, self.gradient_dtype, self.contiguity | cnp.NPY_ARRAY_ALIGNED)
        ):
            return False
        self.gradient = grad
        self.c.call.buffers[1] = cnp.PyArray_DATA(grad)
        return True

    cdef inline bint gap_has(self, cnp.ndarray grad) noexcept:
        """Whether memory of the gradient's size, where the gradient begins, is written by no step."""
        cdef uintptr_t begin = address_of(grad)
        return self.gap.begin <= begin and begin + self.c.count * self.c.itemsizes[1] <= self.gap.end

    cdef int take_gradient(
        self, object given, bint is_bound, Intervals intervals, Intervals call_intervals
    ) except -1:
        """Checks a gradient and takes its pointer. Returns whether it had to be rounded to the parameter's dtype."""
        cdef int k
        cdef bint is_rounded = False
        cdef cnp.ndarray grad = self.take_dtype(given, is_bound, &is_rounded)
        if cnp.PyArray_NDIM(grad) != self.rank:
            arrays.refuse_gradient_shape(self.label, self.shape, grad)
        for k in range(self.rank):
            if cnp.PyArray_DIMS(grad)[k] != self.dims[k]:
                arrays.refuse_gradient_shape(self.label, self.shape, grad)
        self.original = None
        if is_rounded:
            self.refuse_shared(grad, intervals, call_intervals)
            self.original, grad = grad, arrays.rounded(grad)
        if cnp.PyArray_CHKFLAGS(grad, self.contiguity | cnp.NPY_ARRAY_ALIGNED) or not self.c.count:
            if not self.gap_has(grad):
                self.refuse_shared(grad, intervals, call_intervals)
            self.c.source = NULL
        else:
            self.refuse_shared(grad, intervals, call_intervals)
            if is_bound:
                arrays.refuse_bound_layout(self.label, self.order)
            self.take_source(grad)
        self.gradient = grad
        self.c.call.buffers[1] = cnp.PyArray_DATA(grad)
        return is_rounded

    cdef inline cnp.ndarray take_dtype(self, object given, bint is_bound, bint *is_rounded):
        """Takes note of how a gradient is stored, and returns it as an array; is_rounded: whether it is to be rounded to
        the parameter's dtype."""
        cdef cnp.ndarray grad
        cdef int storage
        if type(given) is not NDARRAY:
            grad = arrays.plain_gradient(self.label, self.dtype, given, is_bound)
        else:
            grad = <cnp.ndarray>given
        storage = storage_of(grad)
        is_rounded[0] = (
            storage == FLOAT64 and self.storage == FLOAT32 and not is_bound and cnp.PyArray_ISNOTSWAPPED(grad)
        )
        if is_rounded[0]:
            storage = FLOAT32
        if storage != self.gradient_storage or not cnp.PyArray_ISNOTSWAPPED(grad):
            self.take_gradient_storage(given, grad, storage)
        return grad

    cdef int refuse_shared(self, cnp.ndarray grad, Intervals intervals, Intervals call_intervals) except -1:
        self.gap = Gap(0, <uintptr_t>-1)
        intervals.refuse_gradient(self, grad)
        if call_intervals is not None:
            call_intervals.refuse_gradient(self, grad)
        return 0

    cdef int take_gradient_storage(self, object given, cnp.ndarray grad, int storage) except -1:
        """Takes note of how gradients are stored from now on."""
        cdef int format = -1
        if storage >= 0 and cnp.PyArray_ISNOTSWAPPED(grad):
            format = format_of[self.storage][storage][self.state_storage]
        if format < 0:
            arrays.refuse_gradient_dtype(self.label, self.dtype, grad, given)
        self.gradient_storage, self.format, self.gap.end, self.zeroed = storage, format, 0, NULL
        self.gradient_dtype = dtype_of(grad) if storage == storage_of(grad) else NULL  # else it is rounded
        self.c.itemsizes[1] = 8 if storage == FLOAT64 else 4 if storage == FLOAT32 else 2
        self.c.kernel = NULL
        return 0

    cdef bint is_known_to_zero(self) noexcept:
        """Whether zeros may be written into the gradient, because it lies where the last one lay."""
        return (
            self.c.source == NULL and self.original is None and cnp.PyArray_DATA(self.gradient) == self.zeroed
            and cnp.PyArray_CHKFLAGS(self.gradient, cnp.NPY_ARRAY_WRITEABLE)
        )

    cdef int take_source(self, cnp.ndarray grad) except -1:
        """Has a gradient of another layout gathered, task by task."""
        if self.source == NULL:
            self.source = <fastopt_source *>calloc(1, sizeof(fastopt_source))
            if self.source == NULL:
                raise MemoryError
        fastopt_source_of(
            self.source, cnp.PyArray_DATA(grad), cnp.PyArray_ITEMSIZE(grad), self.rank,
            <const Py_ssize_t *>self.dims, <const Py_ssize_t *>cnp.PyArray_STRIDES(grad),
            self.contiguity == cnp.NPY_ARRAY_F_CONTIGUOUS,
        )
        self.c.source = self.source
        return 0
