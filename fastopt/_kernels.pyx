# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary: buffers in, pointers out, one prange over the threads' parts.

A `Plan` holds the parameters and states of one optimizer, cut into one flat list of chunks. It checks all
that a step needs before the first write.
"""

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer, Py_buffer,
)
from cpython.dict cimport PyDict_CheckExact, PyDict_Next
from cpython.memoryview cimport PyMemoryView_FromBuffer
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

import sys
from collections.abc import Mapping

import numpy as np

from fastopt import storage

cdef extern from "fastopt.h" nogil:
    enum: FASTOPT_MAX_BUFFERS, FASTOPT_MAX_SCALARS
    ctypedef void (*fastopt_kernel)(void *const *, const double *, size_t, size_t, uint64_t, uint64_t) noexcept
    ctypedef struct fastopt_format:
        const char *name
        const char *parameter
        const char *gradient
        const char *states
    ctypedef struct fastopt_optimizer:
        const char *name
        const char *state
        const char *optional
        const char *scalars
        const fastopt_kernel *const *kernels
    ctypedef struct fastopt_isa:
        const char *name
        const fastopt_optimizer *optimizers
    const fastopt_isa *fastopt_isas()
    const fastopt_format *fastopt_formats()

cdef extern from "subnormals.h" nogil:
    uint64_t fastopt_flush_subnormals()
    void fastopt_set_mode(uint64_t mode)

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define FASTOPT_OPENMP _OPENMP
    #else
    #define FASTOPT_OPENMP 0
    #define omp_get_max_threads() 1
    #endif
    #ifdef __VERSION__
    #define FASTOPT_COMPILER __VERSION__
    #else
    #define FASTOPT_COMPILER "unknown"
    #endif
    #include <pthread.h>
    static int fastopt_forks = 0;
    static void fastopt_forked(void) { fastopt_forks++; }
    static void fastopt_watch_forks(int before)
    {
        fastopt_forks = before;
        pthread_atfork(NULL, NULL, fastopt_forked);
    }
    static size_t fastopt_take(size_t *next, size_t end)
    {
        /* looked at first: many threads that all write to a part in which nothing is left wait for each other */
        return __atomic_load_n(next, __ATOMIC_RELAXED) < end ? __atomic_fetch_add(next, 1, __ATOMIC_RELAXED) : end;
    }
    """
    int FASTOPT_OPENMP
    const char *FASTOPT_COMPILER
    size_t fastopt_take(size_t *next, size_t end) nogil
    int omp_get_max_threads()
    int forks "fastopt_forks"  # between the last program that was started and this process
    void fastopt_watch_forks(int before)

# -- The table of kernels, as the C side has it --------------------------------------------------

COMMON_SCALARS = ("grad_scale", "weight_decay", "decay")


def names(bytes text):
    """The names in a list of optimizers.def."""
    return tuple(name.strip() for name in text.decode().split(",") if name.strip())


cdef const fastopt_isa *ISAS = fastopt_isas()


def _read_table():
    table = {}
    cdef const fastopt_optimizer *row = ISAS[0].optimizers
    while row.name != NULL:
        table[row.name.decode()] = {
            "state": names(row.state),
            "optional": names(row.optional),
            "scalars": names(row.scalars) + COMMON_SCALARS,
        }
        row += 1
    return table


def _read_isas():
    found = []
    cdef const fastopt_isa *isa = ISAS
    while isa.name != NULL:
        found.append(isa.name.decode())
        isa += 1
    return (*found, "numpy")


def _read_formats():
    found = {}
    cdef const fastopt_format *format = fastopt_formats()
    while format.name != NULL:
        found[format.name.decode()] = (format.parameter.decode(), format.gradient.decode(), format.states.decode())
        format += 1
    return found


FORMATS = _read_formats()
"""By its name, how a format stores parameter, gradient and states."""

# How an array may be stored, as a small number; what is stored in 16 bits of which NumPy knows nothing comes
# as a view of uint16.
cdef enum: FLOAT32, FLOAT64, FLOAT16, BFLOAT16, STORAGES, UNSEEN
cdef list STORAGE_NAMES = ["float32", "float64", "float16", "bfloat16"]
cdef size_t[STORAGES] ITEMSIZES = [4, 8, 2, 2]
cdef int format_of[STORAGES][STORAGES][STORAGES]  # of parameter, gradient, states: a place in FORMATS, or -1


def _number_formats():
    cdef int p, g, s
    places = {stored: place for place, stored in enumerate(FORMATS.values())}
    for p, parameter in enumerate(STORAGE_NAMES):
        for g, gradient in enumerate(STORAGE_NAMES):
            for s, states in enumerate(STORAGE_NAMES):
                format_of[p][g][s] = places.get((parameter, gradient, states), -1)


_number_formats()
TABLE = _read_table()
ISA_NAMES = _read_isas()
OPENMP = FASTOPT_OPENMP
COMPILER = FASTOPT_COMPILER.decode()

# -- Settings of the process ---------------------------------------------------------------------

cdef int active_isa = 0  # an index into ISA_NAMES; the last one is the NumPy twin
cdef bint flush_denormal = False  # while a kernel or a twin runs


def _is_forked():
    """Whether Linux started this process by a fork alone, without a program of its own (PF_FORKNOEXEC)."""
    try:
        with open("/proc/self/stat") as file:
            return int(file.read().rpartition(")")[2].split()[6]) & 0x40 != 0
    except OSError:
        return False


# One fork is behind us already if a child is the first to import fastopt: its parent may have had a team
# for another library's work.
fastopt_watch_forks(_is_forked())


def max_threads():
    """The most threads that OpenMP's own settings allow: 1 without OpenMP."""
    return omp_get_max_threads()


def select_isa(int index):
    global active_isa
    active_isa = index


def selected_isa():
    return active_isa


def set_flush_denormal(bint mode):
    global flush_denormal
    flush_denormal = mode


cdef object NDARRAY = np.ndarray

# -- Small helpers -------------------------------------------------------------------------------

cdef inline double product_error(double a, double b, double product) noexcept:
    """What rounding took from ``product = a * b``, exactly (Dekker 1971)."""
    cdef double split = 134217729.0  # 2^27 + 1
    cdef double a_high = split * a - (split * a - a), b_high = split * b - (split * b - b)
    cdef double a_low = a - a_high, b_low = b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


cdef inline void multiply(double *high, double *low, double b_high, double b_low) noexcept:
    """A number held as the sum of two doubles, times another."""
    cdef double product = high[0] * b_high
    cdef double rest = product_error(high[0], b_high, product) + (high[0] * b_low + low[0] * b_high)
    high[0] = product + rest
    low[0] = rest - (high[0] - product)


cdef struct Squares:
    double beta
    int count
    double high[64]  # with low: beta, beta^2, beta^4, ..., those above 1e-20
    double low[64]

cdef Squares[2] squares  # of the numbers that were asked for last: a step asks for the same two every time
cdef int oldest = 0


cdef Squares *squares_of(double beta) noexcept:
    global oldest
    cdef int k
    for k in range(2):
        if squares[k].count and squares[k].beta == beta:
            return &squares[k]
    k = oldest
    oldest = 1 - oldest
    squares[k].beta = squares[k].high[0] = beta
    squares[k].low[0] = 0.0
    squares[k].count = 1
    return &squares[k]


def bias_correction(double beta, int64_t t, /):
    """``1 - beta**t`` for ``0 <= beta < 1``, ``t >= 1``; no cancellation, relative error below 1e-14.

    By squaring, with some 100 bits: only additions and multiplications, which give the same bits on every
    machine. A library's log, exp or pow does not.
    """
    cdef double power = 1.0, power_low = 0.0
    cdef Squares *known = squares_of(beta)
    cdef int k = 0
    while True:
        if t & 1:
            multiply(&power, &power_low, known.high[k], known.low[k])
        t >>= 1
        if not t:
            return (1.0 - power) - power_low
        k += 1
        if k == known.count:
            known.high[k], known.low[k] = known.high[k - 1], known.low[k - 1]
            multiply(&known.high[k], &known.low[k], known.high[k - 1], known.low[k - 1])
            if known.high[k] < 1e-20:  # and what is left of t takes it into the power
                return 1.0
            known.count += 1


def unedited(object mappings, list seen):
    """Whether these are still dicts of the very keys and values that ``seen`` has, key, value, key, value, in a
    tuple for each: much faster than to compare them."""
    cdef Py_ssize_t place, k, n
    cdef PyObject *key = NULL
    cdef PyObject *value = NULL
    cdef tuple items
    if type(mappings) is not list or len(mappings) != len(seen):
        return False
    for k in range(len(seen)):
        mapping, items = (<list>mappings)[k], seen[k]
        if not PyDict_CheckExact(mapping) or 2 * len(<dict>mapping) != len(items):
            return False
        place = n = 0
        while PyDict_Next(mapping, &place, &key, &value):
            if key != <PyObject *>PyTuple_GET_ITEM(items, n) or value != <PyObject *>PyTuple_GET_ITEM(items, n + 1):
                return False
            n += 2
    return True


def label_of(key):
    """What messages call the parameter of that number or name."""
    return f"parameter {key}" if isinstance(key, int) else repr(key)


cdef str listing(list labels):
    """Labels for a message, however many there are."""
    more = f" and {len(labels) - 9} more" if len(labels) > 10 else ""
    return ", ".join(labels[:9] if more else labels) + more


cdef uint64_t mixed(uint64_t x) noexcept:
    """Every bit of the result depends on every bit of x (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL
    return x ^ (x >> 31)


cdef uint64_t key_of(uint64_t seed, int64_t step) noexcept:
    """The key of the random bits of a step."""
    return mixed(mixed(seed + 1) + <uint64_t>step * 0x9E3779B97F4A7C15ULL)


cdef object BFLOAT16_DTYPE = None


cdef bint is_bfloat16(object array):
    """Whether it is an array or scalar of ml_dtypes.bfloat16; there is none as long as nobody has imported that."""
    global BFLOAT16_DTYPE
    if BFLOAT16_DTYPE is None:
        ml_dtypes = sys.modules.get("ml_dtypes")
        if ml_dtypes is None:
            return False
        BFLOAT16_DTYPE = np.dtype(ml_dtypes.bfloat16)
    return isinstance(array, (np.ndarray, np.generic)) and array.dtype == BFLOAT16_DTYPE


cdef object buffered(object array):
    """The array as the buffer protocol knows it."""
    return np.asarray(array).view(np.uint16) if is_bfloat16(array) else array


cdef int storage_of(Py_buffer *view) noexcept:
    """How a native array is stored, by its buffer; -1 for what is no float."""
    cdef const char *code = view.format
    if code == NULL:
        return -1
    if code[0] == b"=" or code[0] == b"@":
        code += 1
    if code[0] == 0 or code[1] != 0:
        return -1
    if code[0] == b"f" and view.itemsize == 4:
        return FLOAT32
    if code[0] == b"d" and view.itemsize == 8:
        return FLOAT64
    if code[0] == b"e" and view.itemsize == 2:
        return FLOAT16
    return -1


cdef bint same_shape(Py_buffer *a, Py_buffer *b) noexcept:
    cdef int k
    if a.ndim != b.ndim:
        return False
    for k in range(a.ndim):
        if a.shape[k] != b.shape[k]:
            return False
    return True


cdef bint in_order(Py_buffer *view, char order) noexcept:
    """Whether elements lie one after the other, aligned, in C or Fortran order."""
    if view.len == 0:
        return True
    if <uintptr_t>view.buf % view.itemsize:
        return False
    if view.ndim == 1:
        return view.strides[0] == view.itemsize or view.shape[0] <= 1
    return PyBuffer_IsContiguous(view, order)


def state_dtypes(parameter):
    """The names of the dtypes that the states of a parameter may have, by the name of its own."""
    return list(dict.fromkeys(states for p, _, states in FORMATS.values() if p == parameter))


cdef tuple shape_of(Py_buffer *view):
    return tuple([view.shape[k] for k in range(view.ndim)])


# -- The work of one step ------------------------------------------------------------------------

# A task is what a thread takes at a time: large enough that taking it costs nothing, small enough
# that threads end together. Tensors are cut where the parameter meets a cache line, so that only the
# first chunk of a large one pays for vectors that straddle two lines: NumPy aligns to 16 bytes.
#
# Each thread has a part of the tasks, the same in every step, because it finds that in its caches, and two
# threads' caches may lie far apart. Whoever is done with his own takes from the others': one that lost its
# core for a while holds up nobody for longer than a task.
cdef size_t TASK = 16384
cdef size_t LINE = 64
cdef size_t PARALLEL_ELEMENTS = 65536  # fewer run on the calling thread, whatever was asked for
cdef size_t HELD_ELEMENTS = 4096  # fewer take some microseconds, for which the GIL is not given away
cdef size_t TENSOR_ELEMENTS = 64  # the time of so many is what a tensor takes besides

cdef struct Shared:  # by the tensors of one group that have made as many steps
    double scalars[FASTOPT_MAX_SCALARS]
    uint64_t key  # of the random bits of this step
    int64_t group, made

cdef struct Tensor:
    void *buffers[FASTOPT_MAX_BUFFERS]
    const Shared *shared
    fastopt_kernel kernel  # NULL: no gradient in this step, or the NumPy twin's
    uint64_t first  # the number of element 0, counted through all parameters
    size_t size
    int storage, gradient_storage, state_storage  # the gradient's is UNSEEN before there has been one
    int format  # of these three
    char order
    void *scratch  # where a gradient of another layout is gathered
    int scratch_storage
    void *checked  # the last gradient that was found to overlap nothing

cdef struct Chunk:
    size_t tensor, begin, end

cdef struct Part:
    size_t next, end  # tasks
    char apart[112]  # from what another thread writes

cdef struct Interval:
    uintptr_t begin, end


cdef class Group:
    """What a step takes of a parameter group: its scalars, the optional states in use, the seed.

    coefficients(h, lr, t): the row's SCALARS for hyper-parameters ``h`` and step ``t`` (1 first). lr: a float, or a
    callable that returns one for a number of steps made. subset: the optional states in use, as the bits that
    number the row's kernels. sign, weight_decay, decoupled: what the scalars of every row are made of.
    """

    cdef size_t subset
    cdef uint64_t seed
    cdef object coefficients, lr
    cdef dict h
    cdef double sign, weight_decay, decoupled

    def __init__(
        self, coefficients, dict h, lr, size_t subset, uint64_t seed, double sign, double weight_decay,
        double decoupled,
    ):
        self.coefficients, self.h, self.lr, self.subset, self.seed = coefficients, h, lr, subset, seed
        self.sign, self.weight_decay, self.decoupled = sign, weight_decay, decoupled

    def rate(self, made):
        """The learning rate after so many steps."""
        return self.lr(made) if callable(self.lr) else self.lr

    cdef void common(self, double *scalars, double lr, double grad_scale) noexcept:
        """COMMON_SCALARS."""
        scalars[0] = self.sign * grad_scale
        scalars[1] = self.weight_decay
        scalars[2] = 1.0 - lr * self.decoupled

    def scalars(self, t):
        """All scalars of step ``t``, in the kernel's order."""
        cdef double[3] common
        lr = self.rate(t - 1)
        self.common(common, lr, 1.0)
        return (*self.coefficients(self.h, lr, t), common[0], common[1], common[2])


cdef void run_task(const Tensor *tensors, const Chunk *chunk, const Chunk *end, bint flush) noexcept nogil:
    cdef const Tensor *tensor
    cdef uint64_t mode = fastopt_flush_subnormals() if flush else 0
    while chunk < end:
        tensor = tensors + chunk.tensor
        if tensor.kernel != NULL:
            tensor.kernel(
                tensor.buffers, tensor.shared.scalars, chunk.begin, chunk.end, tensor.shared.key, tensor.first
            )
        chunk += 1
    if flush:
        fastopt_set_mode(mode)


cdef void run_parts(
    Part *parts, int team, int own, const Tensor *tensors, const Chunk *chunks, const size_t *tasks, bint flush
) noexcept nogil:
    cdef int k
    cdef size_t task
    cdef Part *part
    for k in range(team):
        part = &parts[(own + k) % team]
        task = fastopt_take(&part.next, part.end)
        while task < part.end:
            run_task(tensors, chunks + tasks[task], chunks + tasks[task + 1], flush)
            task = fastopt_take(&part.next, part.end)


cdef class Plan:
    """Parameters and states of one optimizer, checked once, and what a step does to them.

    kernel: a name of TABLE. params: arrays. keys: their names or numbers. groups: the group that each
    belongs to. states: for each parameter, arrays by their letter in the formula, in its shape and order,
    of one dtype that there is a format for. steps: int64, one an array, counted up by `step`. state_names:
    what messages call the states, by their letter.

    In `params` and `states`, views take the place of the arrays: nobody can give them another shape, and
    no subclass answers for them.
    """

    cdef:
        readonly str kernel
        readonly list params, keys, labels, states
        readonly object steps
        list names
        list interval_names  # of whom each is: a parameter's number, and a state's in `names` or 0
        dict state_names
        dict place  # of each key
        dict scratch
        Py_ssize_t count, scalar_count
        size_t task_count, elements
        size_t row  # of the kernel, in every instruction set's table
        Tensor *tensors
        Py_buffer *owned  # of parameters
        Py_buffer *views  # of gradients, while a step runs; for as long as they are bound
        char *active  # whether each has a gradient in this step
        Shared *shared
        Py_ssize_t shared_count
        Chunk *chunks
        size_t *tasks
        Part *parts
        int most_parts
        Interval *intervals
        size_t interval_count
        int64_t[::1] step_view, group_view
        int busy  # inside a step: 1 and the forks when it began; else 0
        readonly list bound  # the gradients that `bind` was given, or None
        list sorted_groups  # what the tensors were sorted by, if the next step with bound gradients finds them so
        int sorted_isa

    def __cinit__(self, *_):
        self.count = 0

    def __init__(
        self, str kernel, list params, list keys, list groups, list states, steps, dict state_names=None
    ):
        cdef Py_ssize_t i
        if self.count:
            raise RuntimeError("a Plan is made once")
        self.kernel, self.params, self.keys, self.states, self.steps = kernel, params, keys, states, steps
        self.state_names = state_names or {}
        self.labels = [label_of(key) for key in keys]
        self.place = {key: i for i, key in enumerate(keys)}
        self.step_view = steps
        self.group_view = np.array(groups, dtype=np.int64)
        self.scratch = {}
        self.names = ["p", "g", *TABLE[kernel]["state"], *TABLE[kernel]["optional"]]
        self.scalar_count = len(TABLE[kernel]["scalars"])
        self.row = list(TABLE).index(kernel)
        n = len(params)
        self.tensors = <Tensor *>calloc(n + 1, sizeof(Tensor))
        self.owned = <Py_buffer *>calloc(n + 1, sizeof(Py_buffer))
        self.views = <Py_buffer *>calloc(n + 1, sizeof(Py_buffer))
        self.active = <char *>calloc(n + 1, sizeof(char))
        self.shared = <Shared *>calloc(n + 1, sizeof(Shared))
        self.intervals = <Interval *>calloc((n + 1) * FASTOPT_MAX_BUFFERS, sizeof(Interval))
        if not (
            self.tensors and self.owned and self.views and self.active and self.shared and self.intervals
        ):
            raise MemoryError
        self.count = n
        for i in range(n):
            self._own_parameter(i)
            self._own_states(i)
            if i:
                self.tensors[i].first = self.tensors[i - 1].first + self.tensors[i - 1].size
        self._find_intervals()
        self._cut()

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            PyBuffer_Release(&self.owned[i])
            PyBuffer_Release(&self.views[i])
        free(self.tensors)
        free(self.owned)
        free(self.views)
        free(self.active)
        free(self.shared)
        free(self.intervals)
        free(self.chunks)
        free(self.tasks)
        free(self.parts)

    # -- Once: parameters, states, chunks --

    cdef str _name_of(self, Py_ssize_t i, Py_ssize_t k):
        """What a message calls parameter ``i``, or its state ``k``."""
        if k == 0:
            return self.labels[i]
        return f"the state {self.state_names.get(self.names[k], self.names[k])!r} of {self.labels[i]}"

    cdef _plain(self, Py_ssize_t i, Py_ssize_t k, array):
        """A plain view of parameter ``i``, or its state ``k``, whatever class it is of."""
        if type(array) is not NDARRAY:
            if not isinstance(array, np.ndarray):
                raise TypeError(
                    f"{self._name_of(i, k)}: expected a NumPy array, got {type(array).__name__}; make one of it "
                    "with numpy.asarray"
                )
            if isinstance(array, np.ma.MaskedArray):
                raise TypeError(
                    f"{self._name_of(i, k)}: the array is masked, and a step knows no mask; pass its data "
                    "(array.data)"
                )
        return np.ndarray.view(array, np.ndarray)

    cdef int _own_parameter(self, Py_ssize_t i) except -1:
        cdef Tensor *tensor = &self.tensors[i]
        cdef Py_buffer *view = &self.owned[i]
        label = self.labels[i]
        array = self.params[i] = self._plain(i, 0, self.params[i])
        if array.dtype.type not in (np.float32, np.float64) and not is_bfloat16(array):
            raise TypeError(
                f"{label}: dtype {array.dtype} cannot be updated; use float32, float64 or bfloat16 (array.astype)"
            )
        if not array.dtype.isnative:
            raise ValueError(
                f"{label}: the bytes are swapped (dtype {array.dtype.str}); use a native array: "
                "array.astype(array.dtype.newbyteorder('='))"
            )
        if not array.flags.writeable:
            raise ValueError(f"{label}: the array is read-only; pass a writable one (array.copy())")
        PyObject_GetBuffer(buffered(array), view, PyBUF_STRIDES | PyBUF_FORMAT)
        tensor.order = b"C" if array.flags.c_contiguous else b"F"
        if not in_order(view, tensor.order):
            raise ValueError(
                f"{label}: the array must be contiguous and aligned, to be updated in place (its strides are "
                f"{array.strides}); train a copy (array.copy())"
            )
        tensor.storage, tensor.gradient_storage = STORAGE_NAMES.index(array.dtype.name), UNSEEN
        tensor.size = array.size
        tensor.buffers[0] = view.buf
        return 0

    cdef int _own_states(self, Py_ssize_t i) except -1:
        cdef Tensor *tensor = &self.tensors[i]
        cdef Py_ssize_t k
        cdef Py_buffer view
        cdef dict states = self.states[i]
        tensor.state_storage = tensor.storage  # of those that are not there
        first = None
        for k in range(2, len(self.names)):
            state = states.get(self.names[k])
            if state is None:
                continue
            param = self.params[i]
            state = states[self.names[k]] = self._plain(i, k, state)
            possible = state_dtypes(param.dtype.name) if first is None else [first.dtype.name]
            if state.dtype.name not in possible or not state.dtype.isnative:
                raise TypeError(
                    f"{self._name_of(i, k)}: it has dtype {state.dtype}, the parameter {param.dtype}; convert it "
                    f"to {' or '.join(possible)} with astype"
                )
            first = state
            tensor.state_storage = STORAGE_NAMES.index(state.dtype.name)
            if not state.flags.writeable:
                raise ValueError(
                    f"{self._name_of(i, k)}: the array is read-only; pass a writable one (array.copy())"
                )
            PyObject_GetBuffer(buffered(state), &view, PyBUF_STRIDES | PyBUF_FORMAT)
            fits, lies = same_shape(&view, &self.owned[i]), in_order(&view, tensor.order)
            tensor.buffers[k] = view.buf
            PyBuffer_Release(&view)
            if not fits:
                raise ValueError(
                    f"{self._name_of(i, k)}: it has shape {state.shape}, the parameter {param.shape}; they must "
                    "be the same"
                )
            if not lies:
                raise ValueError(
                    f"{self._name_of(i, k)}: the array must be contiguous and aligned, in the parameter's order "
                    f"({chr(tensor.order)}); make it with numpy.zeros_like"
                )
        return 0

    cdef _find_intervals(self):
        """The memory that a step writes, sorted; refuses what stands there twice."""
        cdef Py_ssize_t i, k
        cdef uintptr_t begin
        cdef size_t itemsize
        cdef Tensor *tensor
        cdef Interval *interval
        found = []
        for i in range(self.count):
            tensor = &self.tensors[i]
            for k in range(len(self.names)):
                if tensor.buffers[k] != NULL and tensor.size:
                    begin = <uintptr_t>tensor.buffers[k]
                    itemsize = ITEMSIZES[tensor.state_storage if k else tensor.storage]
                    found.append((begin, i, k, begin + tensor.size * itemsize))
        found.sort()
        self.interval_names = [(i, k) for _, i, k, _ in found]
        self.interval_count = len(found)
        shared = []
        for n, (begin, _, _, end) in enumerate(found):
            interval = &self.intervals[<Py_ssize_t>n]
            interval.begin, interval.end = begin, end
            if n and self.intervals[<Py_ssize_t>n - 1].end > interval.begin:
                shared.append(sorted(self.interval_names[n - 1 : n + 1]))
        if shared:
            # of several, the one that the caller passed first: addresses differ from run to run
            both = [self._name_of(i, k) for i, k in min(shared)]
            raise ValueError(
                f"{' and '.join(both)} share memory; pass every array once, and no two views of the same elements"
            )

    cdef int _cut(self) except -1:
        cdef size_t i, position, take, rest, end, beyond, itemsize, fill = 0, chunk = 0, most
        most = 2 * self.count + 2
        for i in range(<size_t>self.count):
            most += self.tensors[i].size // (TASK // 2) + 1
        self.chunks = <Chunk *>calloc(most, sizeof(Chunk))
        self.tasks = <size_t *>calloc(most + 1, sizeof(size_t))
        if not (self.chunks and self.tasks):
            raise MemoryError
        self.task_count = 0
        for i in range(<size_t>self.count):
            position = 0
            itemsize = self.owned[i].itemsize
            while position < self.tensors[i].size:
                rest = self.tensors[i].size - position
                take = rest
                if take > TASK - fill:
                    take = TASK - fill
                    end = <size_t>self.tensors[i].buffers[0] + (position + take) * itemsize
                    beyond = end % LINE // itemsize
                    take = take - beyond if take > beyond else 0
                if take:
                    self.chunks[chunk].tensor = i
                    self.chunks[chunk].begin = position
                    self.chunks[chunk].end = position + take
                    chunk += 1
                    position += take
                    fill += take
                if take < rest or fill >= TASK - LINE:
                    self.task_count += 1
                    self.tasks[self.task_count] = chunk
                    fill = 0
        if fill:
            self.task_count += 1
            self.tasks[self.task_count] = chunk
        return 0

    # -- Every step: gradients --

    cdef int _overlaps(self, Py_ssize_t i, Py_buffer *view) except -1:
        """Refuses a gradient that lies in memory which a step writes."""
        cdef uintptr_t begin = <uintptr_t>view.buf, end = begin + view.itemsize
        cdef size_t low = 0, high = self.interval_count, middle
        cdef Py_ssize_t reach
        cdef int k
        if view.len == 0:
            return 0
        for k in range(view.ndim):
            reach = (view.shape[k] - 1) * view.strides[k]
            if reach < 0:
                begin += reach
            else:
                end += reach
        while low < high:  # the first interval that begins at `end` or behind it
            middle = (low + high) // 2
            if self.intervals[middle].begin < end:
                low = middle + 1
            else:
                high = middle
        if low and self.intervals[low - 1].end > begin:
            owner, state = self.interval_names[low - 1]
            raise ValueError(
                f"{self.labels[i]}: its gradient shares memory with {self._name_of(owner, state)}; pass a copy "
                "of the gradient"
            )
        return 0

    cdef _refuse_gradient(self, Py_ssize_t i, object grad, error=None):
        """Says what is wrong with the type or dtype of a gradient."""
        if not isinstance(grad, np.ndarray):
            raise TypeError(
                f"{self.labels[i]}: its gradient must be a NumPy array of {self.params[i].dtype}, got "
                f"{type(grad).__name__}; make one of it with numpy.asarray"
            ) from error
        if isinstance(grad, np.ma.MaskedArray):
            raise TypeError(
                f"{self.labels[i]}: its gradient is masked, and a step knows no mask; pass grad.filled(0)"
            )
        raise TypeError(
            f"{self.labels[i]}: its gradient has dtype {np.asarray(grad).dtype}, the parameter "
            f"{self.params[i].dtype}; convert it with astype"
        ) from error

    cdef int _take_storage(self, Py_ssize_t i, object grad, int storage) except -1:
        """Takes note of how gradients are stored from now on."""
        cdef Tensor *tensor = &self.tensors[i]
        cdef int format = -1 if storage < 0 else format_of[tensor.storage][storage][tensor.state_storage]
        if format < 0:
            self._refuse_gradient(i, grad)
        tensor.gradient_storage, tensor.format, tensor.checked = storage, format, NULL
        return 0

    cdef int _fetch_one(self, Py_ssize_t i, object grad) except -1:
        cdef Tensor *tensor = &self.tensors[i]
        cdef Py_buffer *view = &self.views[i]
        cdef int storage = BFLOAT16
        if type(grad) is not NDARRAY and isinstance(grad, np.ma.MaskedArray):
            self._refuse_gradient(i, grad)
        # only who has passed a bfloat16 array pays for the question
        if tensor.gradient_storage == BFLOAT16 and is_bfloat16(grad):
            PyObject_GetBuffer(buffered(grad), view, PyBUF_STRIDES | PyBUF_FORMAT)
        else:
            try:
                PyObject_GetBuffer(grad, view, PyBUF_STRIDES | PyBUF_FORMAT)
                storage = storage_of(view)
            except Exception as error:
                if not is_bfloat16(grad):
                    self._refuse_gradient(i, grad, error)
                PyObject_GetBuffer(buffered(grad), view, PyBUF_STRIDES | PyBUF_FORMAT)
        if storage != tensor.gradient_storage:
            self._take_storage(i, grad, storage)
        if not same_shape(view, &self.owned[i]):
            raise ValueError(
                f"{self.labels[i]}: its gradient has shape {shape_of(view)}, the parameter "
                f"{self.params[i].shape}; they must be the same"
            )
        if in_order(view, tensor.order):
            if view.buf != tensor.checked:
                self._overlaps(i, view)
                tensor.checked = view.buf
            tensor.buffers[1] = view.buf
            return 0
        # another layout: gather it in the parameter's order, in memory that is kept for the next step
        self._overlaps(i, view)
        if i not in self.scratch or tensor.scratch_storage != storage:
            self.scratch[i] = np.empty_like(self.params[i], dtype=self._gradient(i).dtype)
            tensor.scratch = <void *><uintptr_t>self.scratch[i].ctypes.data
            tensor.scratch_storage = storage
        np.copyto(self.scratch[i], grad if type(grad) is NDARRAY and storage != BFLOAT16 else self._gradient(i))
        tensor.buffers[1] = tensor.scratch
        return 0

    cdef _gradient(self, Py_ssize_t i):
        """A fetched gradient as a plain array of its own, which nobody can change while a step runs."""
        return np.asarray(PyMemoryView_FromBuffer(&self.views[i]))

    cdef list _listed(self, object grads):
        """Gradients in the parameters' order, from any form in which a user may pass them."""
        if isinstance(grads, Mapping):
            missing = [label for key, label in zip(self.keys, self.labels) if key not in grads]
            if missing:
                raise ValueError(
                    f"no gradient for {listing(missing)}; pass one for every parameter's name (None leaves a "
                    "parameter alone)"
                )
            unknown = [repr(key) for key in grads if key not in self.place]
            if unknown:
                raise ValueError(
                    f"gradients for unknown names {listing(unknown)}; leave them out: the parameters are "
                    f"{listing(self.labels)}"
                )
            return [grads[key] for key in self.keys]
        if isinstance(grads, (np.ndarray, np.generic, str, bytes)) or not hasattr(grads, "__iter__"):
            raise TypeError(
                "gradients: expected a list in the parameters' order or a dict by their names, got "
                f"{type(grads).__name__}; put a single array into a list"
            )
        listed = list(grads)
        if not listed and hasattr(grads, "__next__"):
            raise ValueError("gradients: the iterator has no more to give; make one for every step, or pass a list")
        return listed

    cdef int _fetch(self, object grads) except -1:
        cdef list listed = grads if type(grads) is list else self._listed(grads)
        cdef Py_ssize_t i
        if len(listed) != self.count:
            raise ValueError(
                f"gradients: got {len(listed)} for {self.count} parameters; pass one for each, None to "
                "leave a parameter alone"
            )
        for i in range(self.count):
            if i >= len(listed):  # it is the user's own
                raise ValueError("gradients: the list became shorter while it was read; leave it alone in a step")
            grad = listed[i]
            self.active[i] = grad is not None
            if grad is not None:
                self._fetch_one(i, grad)
        return 0

    cdef void _release(self) noexcept:
        cdef Py_ssize_t i
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])

    def bind(self, grads):
        """Fetches gradients for every step to come; None lets go of them. On an error, what was bound stays."""
        cdef list before
        self._enter()
        try:
            before = self.bound
            self._release()
            self.bound = None
            if grads is not None:
                try:
                    self._bind(self._listed(grads))
                except BaseException:
                    self._release()
                    if before is not None:
                        self._bind(before)
                    raise
        finally:
            self.busy = 0

    cdef int _bind(self, list grads) except -1:
        cdef Py_ssize_t i
        self.sorted_groups = None
        self._fetch(grads)
        for i in range(self.count):
            if self.active[i] and not in_order(&self.views[i], self.tensors[i].order):
                raise ValueError(
                    f"{self.labels[i]}: a bound gradient must lie in memory as its parameter does "
                    f"({chr(self.tensors[i].order)} order); make it with numpy.empty_like"
                )
        # views: nobody can give them another shape before they are fetched again
        self.bound = [np.ndarray.view(g, np.ndarray) if isinstance(g, np.ndarray) else g for g in grads]
        return 0

    # -- Every step: coefficients, then all tensors at once --

    cdef int _enter(self) except -1:
        if self.busy == 1 + forks:
            raise RuntimeError(
                "this optimizer is inside another call: in another thread, or in a callable of its own; give each "
                "thread its own optimizer, or a lock"
            )
        if self.busy:
            raise RuntimeError(
                "this optimizer was inside a call in another thread when the process was forked: its "
                "parameters and state may be half updated; restore them and make a new optimizer"
            )
        self.busy = 1 + forks
        return 0

    def enter(self):
        """Refuses all other calls, from anywhere, until `leave`."""
        self._enter()

    def leave(self):
        self.busy = 0

    cdef int _sort(self, list groups, int isa) except -1:
        """Finds out which tensors share a group and a number of steps, and the kernel of each."""
        cdef Py_ssize_t i, place
        cdef size_t subset = 0
        cdef int format
        cdef const fastopt_kernel *const *kernels = NULL  # stays so for the NumPy twin
        cdef Tensor *tensor
        cdef Shared *shared = NULL
        cdef dict places = None
        if ISAS[isa].name != NULL:
            kernels = ISAS[isa].optimizers[self.row].kernels
        self.shared_count = 0
        self.elements = 0
        for i in range(self.count):
            tensor = &self.tensors[i]
            tensor.kernel = NULL
            if not self.active[i]:
                continue
            self.elements += tensor.size
            if shared == NULL or shared.group != self.group_view[i] or shared.made != self.step_view[i]:
                place = self.shared_count
                if place:  # seldom: nobody else pays for a dict
                    if places is None:
                        places = {(shared.group, shared.made): 0}
                    place = places.setdefault((self.group_view[i], self.step_view[i]), place)
                shared = &self.shared[place]
                if place == self.shared_count:
                    self.shared_count += 1
                    shared.group, shared.made = self.group_view[i], self.step_view[i]
                subset = (<Group>groups[shared.group]).subset
            tensor.shared = shared
            if kernels != NULL:
                tensor.kernel = kernels[tensor.format][subset]
                if tensor.kernel == NULL:  # its states are not in use: their storage does not matter
                    format = format_of[tensor.storage][tensor.gradient_storage][tensor.storage]
                    tensor.kernel = kernels[format][subset]
        return 0

    cdef int _coefficients(self, list groups, double grad_scale) except -1:
        """Works out the scalars of all tensors."""
        cdef Py_ssize_t k, i, n = self.scalar_count - len(COMMON_SCALARS)
        cdef Shared *shared
        cdef Group group
        cdef tuple own
        cdef dict rates = None  # of groups whose schedule was asked
        for k in range(self.shared_count):
            shared = &self.shared[k]
            group = groups[shared.group]
            lr = group.lr
            if type(lr) is not float:
                if rates is None:
                    rates = {}
                if shared.group not in rates:
                    # a schedule's clock is the furthest parameter's: it needs no counter of its own
                    rates[shared.group] = group.rate(int(self.steps.max()))
                lr = rates[shared.group]
            own = group.coefficients(group.h, lr, shared.made + 1)
            if len(own) != n:
                raise ValueError(f"{self.kernel}: it takes {n} scalars of its own, got {len(own)}")
            for i in range(n):
                shared.scalars[i] = own[i]
            group.common(shared.scalars + n, lr, grad_scale)
            shared.key = key_of(group.seed, shared.made + 1)
        return 0

    def step(self, object grads, double grad_scale, list groups, object choices, object commit):
        """One update of every parameter that has a gradient.

        grads: a list or dict, or None for the bound ones. groups: a `Group` for each. choices: of the number of
        threads. commit: called with whether each parameter has a gradient, when nothing but itself can refuse the
        step any more; returns what is to be raised when the step is made. Or None.
        """
        cdef Py_ssize_t i
        cdef list bound = None  # what a refused step binds again
        cdef int team = 1, isa = active_isa
        cdef bint timed, twin = ISAS[isa].name == NULL
        self._enter()
        try:
            if grads is not None:
                bound = self.bound
                if bound is not None:
                    self._release()
                    self.bound = None
                self._fetch(grads)
            elif self.bound is None:
                raise TypeError("step() needs gradients: pass a list or a dict, or name buffers with bind()")
            if self.bound is None or self.sorted_groups is not groups or self.sorted_isa != isa:
                self._sort(groups, isa)
                self.sorted_groups, self.sorted_isa = groups, isa
            self._coefficients(groups, grad_scale)
            timed = False
            # libgomp hangs in a child of a process that has had a team: a child works alone.
            if FASTOPT_OPENMP and self.elements >= PARALLEL_ELEMENTS and not forks and not twin:
                timed = True
                team = self._divide(choices.begin(self.elements))
            late = None if commit is None else commit([self.active[i] != 0 for i in range(self.count)])
            # Nothing above has written; nothing below can be refused.
            bound = None
            for i in range(self.count):
                self.step_view[i] += self.active[i]
            for i in range(self.shared_count):
                self.shared[i].made += 1
            if twin:
                self._run_twins(groups)
            else:
                self._run(team)
            if timed:
                choices.end()
            if late is not None:
                raise late
        except BaseException:
            if bound is not None:
                self._release()
                self._bind(bound)
            raise
        finally:
            if self.bound is None:
                self._release()
            self.busy = 0

    cdef int _divide(self, int team) except -1:
        """Gives each thread its part of the tasks; returns how many threads there is work for."""
        cdef int k
        team = min(team, <int>self.task_count)
        if team > self.most_parts:
            free(self.parts)
            self.most_parts = 0
            self.parts = <Part *>calloc(team, sizeof(Part))
            if not self.parts:
                raise MemoryError
            self.most_parts = team
        for k in range(team):
            self.parts[k].next = k * self.task_count // team
            self.parts[k].end = (k + 1) * self.task_count // team
        return team

    cdef void _run(self, int team) noexcept:
        cdef const Tensor *tensors = self.tensors
        cdef const Chunk *chunks = self.chunks
        cdef const size_t *tasks = self.tasks
        cdef Part *parts = self.parts
        cdef int own
        cdef bint flush = flush_denormal
        if self.elements + self.count * TENSOR_ELEMENTS < HELD_ELEMENTS:
            run_task(tensors, chunks, chunks + tasks[self.task_count], flush)
            return
        with nogil:
            if team > 1:
                for own in prange(team, num_threads=team, schedule="static"):
                    run_parts(parts, team, own, tensors, chunks, tasks, flush)
            else:
                run_task(tensors, chunks, chunks + tasks[self.task_count], flush)

    cdef int _run_twins(self, list groups) except -1:
        """The same update by the NumPy twin, tensor by tensor."""
        cdef Py_ssize_t i, required = len(TABLE[self.kernel]["state"])
        cdef size_t subset
        cdef const Tensor *tensor
        cdef bint flush = flush_denormal
        cdef uint64_t mode = fastopt_flush_subnormals() if flush else 0
        try:
            for i in range(self.count):
                if not self.active[i]:
                    continue
                tensor = &self.tensors[i]
                subset = (<Group>groups[tensor.shared.group]).subset
                states = [
                    self.states[i][name] if k < required or subset >> (k - required) & 1 else None
                    for k, name in enumerate(self.names[2:])
                ]
                scalars = [tensor.shared.scalars[k] for k in range(self.scalar_count)]
                storage.update(
                    self.kernel, self.params[i], self._gradient(i), states, scalars, tensor.shared.key, tensor.first
                )
        finally:
            if flush:
                fastopt_set_mode(mode)
        return 0
