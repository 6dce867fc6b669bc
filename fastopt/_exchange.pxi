# What an adaptor asks about another library's arrays in each step, in a call of C for each question. The arrays are read
# through DLPack's C exchange interface (DLPack 1.3, https://dmlc.github.io/dlpack/latest/). Included by _plan.pyx.

cdef struct DLTensor:
    void *data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t dtype_code
    uint8_t dtype_bits
    uint16_t dtype_lanes
    int64_t *shape
    int64_t *strides  # in elements; NULL: C order
    uint64_t byte_offset


cdef struct DLPackExchangeAPI:
    uint32_t major_version
    uint32_t minor_version
    void *prev_api
    void *managed_tensor_allocator
    void *managed_tensor_from_py_object_no_sync
    void *managed_tensor_to_py_object_no_sync
    int (*dltensor_from_py_object_no_sync)(void *py_object, DLTensor *out) except -1
    void *current_work_stream


cdef enum:
    DLPACK_MAJOR_VERSION = 1
    DLPACK_CPU = 1
    DLPACK_FLOAT = 2


cdef class Exchange:
    """Tells where the arrays of a class lie, and makes NumPy arrays on their memory.

    It knows nothing of what DLPack does not say; torch's negative bit is such a thing.
    """

    cdef:
        object cls
        DLPackExchangeAPI *api
        int64_t *numbers
        size_t capacity

    def __init__(self, cls):
        """cls: raises AttributeError if it does not have the interface."""
        self.cls = cls
        self.api = <DLPackExchangeAPI *>PyCapsule_GetPointer(cls.__dlpack_c_exchange_api__, "dlpack_exchange_api")
        if self.api.major_version != DLPACK_MAJOR_VERSION or self.api.dltensor_from_py_object_no_sync == NULL:
            raise AttributeError(f"{cls.__name__}: its DLPack interface is of another version")

    def __dealloc__(self):
        free(self.numbers)

    cdef bint read(self, PyObject *array, DLTensor *found) except -1:
        """Reads where an array lies; False if DLPack cannot say it, or it is not in memory that NumPy can read."""
        try:
            self.api.dltensor_from_py_object_no_sync(<void *>array, found)
        except Exception:
            return False
        return (
            found.device_type == DLPACK_CPU and found.strides != NULL and 0 <= found.ndim <= cnp.NPY_MAXDIMS
        )

    def places(self, list arrays):
        """Address, dtype, shape and strides of each array, as bytes that can be compared; None if one cannot be read.

        The arrays may be of subclasses that keep their memory as the class does."""
        cdef DLTensor found
        cdef size_t used = 0
        cdef int k
        for array in arrays:
            if not isinstance(array, self.cls) or not self.read(<PyObject *>array, &found):
                return None
            grow(<void **>&self.numbers, &self.capacity, used + 2 + 2 * found.ndim, sizeof(int64_t))
            self.numbers[used] = <int64_t>found.data + <int64_t>found.byte_offset
            self.numbers[used + 1] = found.ndim | found.dtype_code << 8 | found.dtype_bits << 16
            used += 2
            for k in range(found.ndim):
                self.numbers[used], self.numbers[used + 1] = found.shape[k], found.strides[k]
                used += 2
        return PyBytes_FromStringAndSize(<char *>self.numbers, used * sizeof(int64_t))

    def arrays(self, list given):
        """NumPy arrays on the memory of these; None if one is not exactly of the class, or not float32 or float64."""
        cdef list found = []
        for array in given:
            if type(array) is not self.cls:
                return None
            made = self.array(array)
            if made is None:
                return None
            found.append(made)
        return found

    cdef object array(self, object given):
        cdef DLTensor read
        cdef cnp.npy_intp shape[cnp.NPY_MAXDIMS]
        cdef cnp.npy_intp strides[cnp.NPY_MAXDIMS]
        cdef cnp.ndarray made
        cdef int k, itemsize
        cdef bint is_empty = False
        if not self.read(<PyObject *>given, &read) or read.dtype_code != DLPACK_FLOAT or read.dtype_lanes != 1:
            return None
        if read.dtype_bits != 32 and read.dtype_bits != 64:
            return None
        itemsize = read.dtype_bits // 8
        for k in range(read.ndim):
            shape[k], strides[k] = read.shape[k], read.strides[k] * itemsize
            is_empty = is_empty or read.shape[k] == 0
        if read.data == NULL and not is_empty:  # it has no memory
            return None
        made = cnp.PyArray_New(
            np.ndarray, read.ndim, shape, cnp.NPY_FLOAT32 if itemsize == 4 else cnp.NPY_FLOAT64, strides,
            <char *>read.data + read.byte_offset, itemsize, cnp.NPY_ARRAY_WRITEABLE, None,
        )
        cnp.set_array_base(made, given)
        return made


cdef class Counts:
    """How many steps each parameter has had, in a vector of float32 or float64 that the user sees and may write to."""

    cdef:
        readonly cnp.ndarray vector
        cnp.ndarray last  # a copy of what the vector should hold

    def __init__(self, vector):
        self.vector, self.last = vector, vector.copy()

    def note(self):
        """Records the vector's contents, for `are_unchanged`."""
        memcpy(cnp.PyArray_DATA(self.last), cnp.PyArray_DATA(self.vector), cnp.PyArray_NBYTES(self.vector))

    def are_unchanged(self):
        """Whether the vector holds what it held after the last `note` or `add_step`."""
        return not memcmp(
            cnp.PyArray_DATA(self.last), cnp.PyArray_DATA(self.vector), cnp.PyArray_NBYTES(self.vector)
        )

    def add_step(self, list indices=None):
        """Counts a step of these parameters; None: of all."""
        cdef Py_ssize_t k
        if indices is None:
            for k in range(cnp.PyArray_SIZE(self.vector)):
                self.add_one(k)
        else:
            for k in indices:
                self.add_one(k)
        self.note()

    cdef void add_one(self, Py_ssize_t index) noexcept:
        if cnp.PyArray_TYPE(self.vector) == cnp.NPY_FLOAT32:
            (<float *>cnp.PyArray_DATA(self.vector))[index] += 1
        else:
            (<double *>cnp.PyArray_DATA(self.vector))[index] += 1
