# Parameter arrays to which only the optimizer refers. Included by _plan.pyx.

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *)


cdef PyObject *base_of(PyObject *array):
    """The object whose memory an array views, or NULL."""
    return cnp.PyArray_BASE(<cnp.ndarray>array) if type(<object>array) is NDARRAY else NULL


cdef bint is_own_memory(PyObject *owner):
    """Whether what a chain of views ends at is memory that is read through arrays alone.

    Behind an array that a framework's tensor has made there is another object, which the program holds instead.
    """
    return type(<object>owner) in (NDARRAY, bytes, bytearray)


cdef void count_reference(dict counts, PyObject *to):
    key = <uintptr_t>to
    counts[key] = counts.get(key, 0) + 1


cdef list orphans_of(list tensors):
    """The tensors whose arrays, and all that these are views of, are referred to by the optimizer alone.

    The optimizer's own references to an array are `Tensor.given`, the group's tuple (which the user's dict of the group
    shares) and, as a base, `Tensor.param` and the views among the parameters.
    """
    cdef dict own = {}
    cdef set seen = set()
    cdef Tensor tensor
    cdef PyObject *array
    cdef PyObject *base
    cdef list found = []
    for tensor in tensors:
        if type(tensor.given) is not NDARRAY:
            continue
        array = <PyObject *>tensor.given
        count_reference(own, array)  # Tensor.given
        count_reference(own, array)  # the tuple
        count_reference(own, base_of(<PyObject *>tensor.param))
        while True:
            base = base_of(array)
            if base == NULL or <uintptr_t>array in seen:
                break
            seen.add(<uintptr_t>array)
            count_reference(own, base)
            array = base
    for tensor in tensors:
        if tensor.is_known_orphan or type(tensor.given) is not NDARRAY:
            continue
        array = <PyObject *>tensor.given
        while Py_REFCNT(array) == own[<uintptr_t>array]:
            base = base_of(array)
            if base == NULL:
                if is_own_memory(array):
                    found.append(tensor)
                break
            array = base
    return found
