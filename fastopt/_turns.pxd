cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock

cdef class Turns:
    cdef bint is_taken, owner_is_known, owner_is_gone
    cdef unsigned long owner
    cdef Py_ssize_t waiting
    cdef int forks_seen
    cdef PyThread_type_lock gate

    cdef bint is_mine(self) noexcept
    cdef void _take(self) noexcept
    cdef void _after_fork(self) noexcept
    cdef int enter(self) except -1
    cdef int _wait(self) except -1
    cdef void leave(self) noexcept
