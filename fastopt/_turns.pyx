# cython: language_level=3
"""Whose turn it is: one call of an optimizer at a time, whichever threads, signal handlers and forks there are."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint64_t

from functools import wraps

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE, PY_LOCK_ACQUIRED, PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock)
    int PyThread_acquire_lock(PyThread_type_lock, int waitflag)
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock, long long microseconds, int intr_flag)
    void PyThread_release_lock(PyThread_type_lock)

cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <stdint.h>

    /* Numbers of threads, of which none is given twice, in a forked child neither: what pthread_self() returns may
     * also be that of a thread that has ended, or that the parent had. */
    static uint64_t fastopt_last_thread;
    static _Thread_local uint64_t fastopt_own_thread;
    static uint64_t fastopt_survivor; /* the one thread that was in the parent as well */
    static int fastopt_fork_count;

    static uint64_t fastopt_this_thread(void)
    {
        if (!fastopt_own_thread)
            fastopt_own_thread = __atomic_add_fetch(&fastopt_last_thread, 1, __ATOMIC_RELAXED);
        return fastopt_own_thread;
    }

    static void fastopt_note_fork(void)
    {
        fastopt_survivor = fastopt_this_thread();
        fastopt_fork_count++;
    }

    static void fastopt_note_forks(void) { pthread_atfork(NULL, NULL, fastopt_note_fork); }
    """
    uint64_t fastopt_this_thread()
    uint64_t fastopt_survivor
    int fastopt_fork_count
    void fastopt_note_forks()

fastopt_note_forks()


cdef struct Waiter:  # on the stack of a thread that waits
    PyThread_type_lock lock  # closed until the thread gets its turn
    uint64_t thread
    Waiter *next


cdef class Turns:
    """The right to change an optimizer: one thread has it at a time, and the others wait for it in a queue.

    All fields change under the GIL, without Python code in between. A thread that ends its turn hands it to the first
    of those that wait, so that a thread that steps in a loop shuts nobody out. After a fork the thread whose turn it
    was may not exist in the child: there the turn never ends, and waiting for it would be for ever.
    """

    def __cinit__(self):
        self.is_taken = self.owner_is_gone = False
        self.is_handed = False  # to a thread that has not woken up yet
        self.first = NULL
        self.forks_seen = fastopt_fork_count

    cdef bint is_mine(self) noexcept:
        if self.forks_seen != fastopt_fork_count:
            self._after_fork()
        return self.is_taken and self.owner == fastopt_this_thread()

    cdef bint _is_waiting(self) noexcept:
        """Whether the calling thread waits already, and a signal handler has interrupted it there."""
        cdef Waiter *waiter = self.first
        while waiter != NULL and waiter.thread != fastopt_this_thread():
            waiter = waiter.next
        return waiter != NULL

    cdef void _after_fork(self) noexcept:
        self.first = NULL  # those that waited do not exist here; the one that does looks again
        if self.owner != fastopt_survivor:
            if self.is_handed:
                self.is_taken = self.is_handed = False  # it had not begun
            self.owner_is_gone = self.is_taken
        self.forks_seen = fastopt_fork_count

    cdef int enter(self) except -1:
        """Takes the turn, waiting for other threads; refuses a call inside another one of the same thread."""
        if self.is_mine() or self._is_waiting():
            raise RuntimeError(
                "this optimizer is inside another call of this thread, which a callable, a signal handler or an "
                "array of its own has interrupted; make this call after it"
            )
        return self._take(False)

    cdef int enter_to_read(self) except -1:
        """The same for a call that is allowed inside another one of the same thread that is waiting: it goes first."""
        self.is_mine()  # looks whether there was a fork
        return self._take(self._is_waiting())

    cdef int _take(self, bint first) except -1:
        while self.is_taken:
            if self.owner_is_gone:
                raise RuntimeError(
                    "this optimizer was inside a call in another thread when the process was forked: its parameters "
                    "and state may be half updated; restore them and make a new optimizer"
                )
            if self._wait(first):
                return 0
        self.is_taken, self.owner = True, fastopt_this_thread()
        return 0

    cdef bint _wait(self, bint first) except -1:
        """Waits for the turn, in front of all others if `first`; returns False if there was a fork instead."""
        cdef Waiter waiter
        cdef Waiter **end = &self.first
        cdef PyLockStatus status
        cdef int forks_before = fastopt_fork_count
        waiter.thread = fastopt_this_thread()
        waiter.lock = PyThread_allocate_lock()
        if waiter.lock == NULL:
            raise MemoryError
        PyThread_acquire_lock(waiter.lock, 0)
        while not first and end[0] != NULL:
            end = &end[0].next
        waiter.next = end[0]
        end[0] = &waiter
        try:
            while forks_before == fastopt_fork_count:
                with nogil:
                    status = PyThread_acquire_lock_timed(waiter.lock, -1, 1)
                if status == PY_LOCK_ACQUIRED:
                    self.is_handed = False
                    return True
                PyErr_CheckSignals()  # a handler may fork; one of Ctrl-C raises
            if not (self.is_mine() and self.is_handed):
                return False
            self.is_handed = False
            return True
        except BaseException:
            self._stop_waiting(&waiter)
            raise
        finally:
            PyThread_free_lock(waiter.lock)

    cdef void _stop_waiting(self, Waiter *waiter) noexcept:
        cdef Waiter **place = &self.first
        if self.is_mine() and self.is_handed:  # in the meantime
            self.is_handed = False
            self.leave()
            return
        while place[0] != NULL and place[0] != waiter:
            place = &place[0].next
        if place[0] != NULL:
            place[0] = waiter.next

    cdef void leave(self) noexcept:
        cdef Waiter *next
        if self.forks_seen != fastopt_fork_count:
            self._after_fork()
        next = self.first
        if next == NULL:
            self.is_taken = False
            return
        self.first, self.owner, self.is_handed = next.next, next.thread, True
        PyThread_release_lock(next.lock)  # it can go on, and take its lock away, when it has the GIL


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
        turns.enter_to_read()
        try:
            return method(self, *args, **kwargs)
        finally:
            turns.leave()
    return call
