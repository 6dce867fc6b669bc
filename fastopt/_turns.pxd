from libc.stdint cimport uint64_t

cdef struct Waiter

cdef class Turns:
    cdef bint is_taken, is_handed, owner_is_gone
    cdef uint64_t owner
    cdef Waiter *first
    cdef int forks_seen

    cdef bint is_mine(self) noexcept
    cdef bint _is_waiting(self) noexcept
    cdef void _after_fork(self) noexcept
    cdef int enter(self) except -1
    cdef int enter_to_read(self) except -1
    cdef int _take(self, bint first) except -1
    cdef bint _wait(self, bint first) except -1
    cdef void _stop_waiting(self, Waiter *waiter) noexcept
    cdef void leave(self) noexcept
