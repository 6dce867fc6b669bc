# cython: language_level=3
"""Whose turn it is: one call of an optimizer at a time, whichever threads, signal handlers and forks there are."""

from cpython.exc cimport PyErr_CheckSignals

from functools import wraps

from fastopt._kernels cimport forks

cdef extern from "pythread.h" nogil:
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE, PY_LOCK_ACQUIRED, PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock)
    int PyThread_acquire_lock(PyThread_type_lock, int waitflag)
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock, long long microseconds, int intr_flag)
    void PyThread_release_lock(PyThread_type_lock)
    unsigned long PyThread_get_thread_ident()


cdef class Turns:
    """The right to change an optimizer: one thread has it at a time, and others wait for it.

    All fields change under the GIL, without Python code in between. A thread that gives its turn up while others
    wait hands it to one of them, so that a thread that steps in a loop shuts nobody out. After a fork the thread
    whose turn it was may not exist in the child: there the turn never ends, and waiting for it would be for ever.
    """

    def __cinit__(self):
        self.owner_is_known = self.owner_is_gone = self.is_taken = False
        self.waiting = 0
        self.forks_seen = forks()
        self.gate = NULL  # made when a thread has to wait: most optimizers never see a second one

    def __dealloc__(self):
        if self.gate:
            PyThread_free_lock(self.gate)

    cdef bint is_mine(self) noexcept:
        if self.forks_seen != forks():
            self._after_fork()
        return (
            self.is_taken and self.owner_is_known and not self.owner_is_gone
            and self.owner == PyThread_get_thread_ident()
        )

    cdef void _take(self) noexcept:
        self.is_taken = self.owner_is_known = True
        self.owner = PyThread_get_thread_ident()

    cdef void _after_fork(self) noexcept:
        """The threads that waited do not exist here, nor does one to which the turn was being handed."""
        self.waiting = 0
        self.gate = NULL  # not freed: the parent's threads may have left it in any state
        if not self.owner_is_known:
            self.is_taken = False
        self.owner_is_gone = self.is_taken and self.owner != PyThread_get_thread_ident()
        self.forks_seen = forks()

    cdef int enter(self) except -1:
        """Takes the turn, waiting for other threads; refuses a call inside another one of the same thread."""
        if self.is_mine():
            raise RuntimeError(
                "this optimizer is inside another call of this thread, which a callable, a signal handler or an "
                "array of its own has interrupted; make this call after it"
            )
        if not self.is_taken:
            self._take()
            return 0
        if self.owner_is_gone:
            raise RuntimeError(
                "this optimizer was inside a call in another thread when the process was forked: its parameters "
                "and state may be half updated; restore them and make a new optimizer"
            )
        return self._wait()

    cdef int _wait(self) except -1:
        cdef PyLockStatus status
        if self.gate == NULL:
            self.gate = PyThread_allocate_lock()
            if self.gate == NULL:
                raise MemoryError
            PyThread_acquire_lock(self.gate, 0)  # closed: `leave` opens it for one thread
        self.waiting += 1
        while True:
            with nogil:
                status = PyThread_acquire_lock_timed(self.gate, -1, 1)
            if status == PY_LOCK_ACQUIRED:
                self.waiting -= 1
                self._take()
                return 0
            try:
                PyErr_CheckSignals()
            except BaseException:
                self.waiting -= 1
                if self.is_taken and not self.owner_is_known and not self.waiting:
                    # it was handed to this thread in the meantime, which no longer wants it
                    PyThread_acquire_lock(self.gate, 0)
                    self.is_taken = False
                raise

    cdef void leave(self) noexcept:
        self.owner_is_known = False
        if self.waiting and self.forks_seen == forks():
            PyThread_release_lock(self.gate)  # it stays taken: the thread that passes the gate has it
        else:
            self.is_taken = False


def exclusive(method):
    """A method of an optimizer that changes it: the call is made or not made as a whole, in its turn.

    The turn is given up in C, where no signal handler runs: an interrupt cannot keep it.
    """
    @wraps(method)
    def call(self, *args, **kwargs):
        cdef Turns turns = self._turns
        turns.enter()
        try:
            return method(self, *args, **kwargs)
        finally:
            turns.leave()
    return call


def reading(method):
    """A method of an optimizer that only reads it: it waits for other threads, and succeeds inside any call of its
    own thread, because a call writes at once, with no Python code between its first write and its last."""
    @wraps(method)
    def call(self, *args, **kwargs):
        cdef Turns turns = self._turns
        if turns.is_mine():
            return method(self, *args, **kwargs)
        turns.enter()
        try:
            return method(self, *args, **kwargs)
        finally:
            turns.leave()
    return call
