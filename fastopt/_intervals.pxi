# The memory that steps write. Included by _plan.pyx.


cdef struct Interval:
    uintptr_t begin, end
    PyObject *tensor
    Py_ssize_t buffer


cdef struct Gap:  # memory that no step writes
    uintptr_t begin, end


cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef uintptr_t first = (<const Interval *>a).begin, second = (<const Interval *>b).begin
    return (first > second) - (first < second)


cdef class Intervals:
    """The memory that steps write, sorted by address: no two parameters or states share any, nor a gradient.

    tensors: all of a plan. names: what the user calls their states. before: what held until now. added: tuples of a
    tensor, the number of a buffer and its array. without: tensors whose states `before` are replaced.
    """

    cdef Interval *intervals
    cdef Py_ssize_t count, capacity
    cdef readonly list tensors
    cdef readonly object names

    def __init__(self, list tensors, names, Intervals before=None, list added=[], set without=None):
        cdef Py_ssize_t i = 0, most = before_count(before) + len(added)
        cdef list pairs = []
        self.tensors, self.names = tensors, names
        self.reserve(most)
        new = sorted(
            [(address_of(array), tensor.index, buffer, tensor, array.nbytes)
             for tensor, buffer, array in added if array.size],
            key=lambda entry: entry[:3],
        )
        for address, _, buffer, tensor, nbytes in new:
            while i < before_count(before) and before.intervals[i].begin < <uintptr_t>address:
                self.append(&before.intervals[i], without, pairs)
                i += 1
            self.append_new(<uintptr_t>address, nbytes, tensor, buffer, pairs)
        while i < before_count(before):
            self.append(&before.intervals[i], without, pairs)
            i += 1
        if pairs:
            arrays.refuse_shared(pairs)

    def __dealloc__(self):
        free(self.intervals)

    cdef int reserve(self, Py_ssize_t most) except -1:
        if most >= self.capacity:
            free(self.intervals)
            self.count = self.capacity = 0
            self.intervals = <Interval *>calloc(most + 1, sizeof(Interval))
            if self.intervals == NULL:
                raise MemoryError
            self.capacity = most + 1
        return 0

    cdef int hold_params(self, list tensors) except -1:
        """Holds the parameters of one call in place of what was held."""
        cdef Py_ssize_t i = self.hold(tensors, 0)
        if i:
            arrays.refuse_shared([tuple([
                ((<Tensor>t).index, 0, (<Tensor>t).label)
                for t in (<object>self.intervals[i - 1].tensor, <object>self.intervals[i].tensor)
            ])])
        return 0

    cdef Py_ssize_t hold(self, list tensors, int buffer) except -1:
        """Holds a buffer of each tensor in place of what was held, so that nothing is made in a steady step.

        Returns the place of the first that shares memory with the one before it, or 0."""
        cdef Py_ssize_t i
        cdef Tensor tensor
        cdef Interval *interval
        self.reserve(len(tensors))
        self.tensors, self.count = tensors, 0
        for tensor in tensors:
            if tensor.c.count:
                interval = &self.intervals[self.count]
                interval.begin = <uintptr_t>tensor.c.call.buffers[buffer]
                interval.end = interval.begin + tensor.c.count * tensor.c.itemsizes[buffer]
                interval.tensor, interval.buffer = <PyObject *>tensor, buffer
                self.count += 1
        if self.count > 1:
            qsort(self.intervals, self.count, sizeof(Interval), &by_address)
        for i in range(1, self.count):
            if self.intervals[i - 1].end > self.intervals[i].begin:
                return i
        return 0

    cdef bint hold_gradients(self, list tensors) except -1:
        """Holds gradients that are to be written into, if each is writable and in one piece, and apart from the others.

        False: NumPy has to be asked about them."""
        cdef Tensor tensor
        for tensor in tensors:
            if tensor.c.source != NULL or tensor.original is not None or not cnp.PyArray_ISWRITEABLE(tensor.gradient):
                return False
        return self.hold(tensors, 1) == 0

    cdef int append(self, Interval *interval, without, list pairs) except -1:
        if interval.buffer == 0 or not without or <object>interval.tensor not in without:
            self.append_new(
                interval.begin, interval.end - interval.begin, <Tensor>interval.tensor, interval.buffer, pairs
            )
        return 0

    cdef int append_new(self, uintptr_t begin, size_t nbytes, Tensor tensor, Py_ssize_t buffer, list pairs) except -1:
        cdef Interval *last = &self.intervals[self.count - 1] if self.count else NULL
        self.intervals[self.count] = Interval(begin, begin + nbytes, <PyObject *>tensor, buffer)
        if last != NULL and last.end > begin:
            pairs.append(tuple([
                (t.index, b, t.name_of(b, self.names))
                for t, b in ((<Tensor>last.tensor, last.buffer), (tensor, buffer))
            ]))
            if last.end > begin + nbytes:  # the longer one may share memory with the next as well
                self.intervals[self.count] = last[0]
        self.count += 1
        return 0

    cdef Interval *shared_with(self, cnp.ndarray array, Gap *gap=NULL) noexcept:
        """The interval that shares memory with an array, or NULL; then it also narrows a gap to that between its
        neighbours."""
        cdef uintptr_t begin = address_of(array), end = begin + cnp.PyArray_ITEMSIZE(array)
        cdef Py_ssize_t low = 0, high = self.count, middle, reach
        cdef int k
        for k in range(cnp.PyArray_NDIM(array)):
            if cnp.PyArray_DIMS(array)[k] == 0:
                return NULL
            reach = (cnp.PyArray_DIMS(array)[k] - 1) * cnp.PyArray_STRIDES(array)[k]
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
            return &self.intervals[low - 1]
        if gap != NULL:
            gap.begin = max(gap.begin, self.intervals[low - 1].end if low else 0)
            gap.end = min(gap.end, self.intervals[low].begin if low < self.count else <uintptr_t>-1)
        return NULL

    def with_arrays(self, list tensors, list added, set without=None):
        """These and others; `added` and `without` as above."""
        return Intervals(tensors, self.names, self, added, without)

    def holds(self, array):
        """Whether an array shares memory with what steps write."""
        return self.shared_with(array) != NULL

    cdef int refuse_gradient(self, Tensor tensor, cnp.ndarray grad) except -1:
        """Refuses a gradient that lies in memory which a step writes; narrows the tensor's gap around it."""
        cdef Interval *other = self.shared_with(grad, &tensor.gap)
        if other != NULL:
            tensor.gap.end = 0
            arrays.refuse_shared_gradient(tensor.label, (<Tensor>other.tensor).name_of(other.buffer, self.names))
        return 0


cdef inline Py_ssize_t before_count(Intervals before) noexcept:
    return before.count if before is not None else 0


cdef inline uintptr_t address_of(cnp.ndarray array) noexcept:
    return <uintptr_t>cnp.PyArray_DATA(array)
