# cython: language_level=3, boundscheck=False, wraparound=False
"""The compiled table of kernels, as Python and other Cython modules see it, and the settings of the process."""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

cdef extern from "fastopt.h" nogil:
    double fastopt_bias_correction(double beta, int64_t t)

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define FASTOPT_OPENMP _OPENMP
    #else
    #define FASTOPT_OPENMP 0
    #define omp_get_max_threads() 1
    #define omp_get_proc_bind() 0
    #define omp_get_num_places() 0
    #define omp_get_place_num_procs(place) ((void)(place), 0)
    #define omp_get_place_proc_ids(place, cpus) ((void)(place), (void)(cpus))
    #endif
    #ifdef __VERSION__
    #define FASTOPT_COMPILER __VERSION__
    #else
    #define FASTOPT_COMPILER "unknown"
    #endif
    #include <pthread.h>
    static int fastopt_forks = 0;
    static void fastopt_count_fork(void) { fastopt_forks++; }
    static void fastopt_count_forks_from(int before)
    {
        fastopt_forks = before;
        pthread_atfork(NULL, NULL, fastopt_count_fork);
    }
    """
    int FASTOPT_OPENMP
    const char *FASTOPT_COMPILER
    int omp_get_max_threads()
    int omp_get_proc_bind()
    int omp_get_num_places()
    int omp_get_place_num_procs(int place)
    void omp_get_place_proc_ids(int place, int *cpus)
    int fastopt_forks  # between the last program that was started and this process
    void fastopt_count_forks_from(int before)

COMMON_SCALARS = ("grad_scale", "weight_decay", "decay")
"""The scalars that every row has, after its own."""

cdef const fastopt_table *TABLE_IN_C = fastopt_get_table(FASTOPT_ABI_VERSION, sizeof(fastopt_call))
if TABLE_IN_C == NULL:
    raise ImportError("fastopt: its parts were built from different sources; build it again")


def _names_in(bytes text):
    """The names in a list of formulas.def."""
    return tuple(name.strip() for name in text.decode().split(",") if name.strip())


def _read_table():
    rows = {}
    cdef const fastopt_optimizer *row = TABLE_IN_C.isas[0].optimizers
    while row.name != NULL:
        rows[row.name.decode()] = {
            "state": _names_in(row.state),
            "optional": _names_in(row.optional),
            "choice": _names_in(row.choice),
            "work": _names_in(row.work),
            "columns": _names_in(row.columns),
            "scalars": _names_in(row.scalars) + COMMON_SCALARS,
            "sums": _names_in(row.sums),
            "factors": _names_in(row.factors),
            "numbers": _names_in(row.numbers),
        }
        row += 1
    return rows


def _read_isas():
    found = []
    cdef const fastopt_isa *isa = TABLE_IN_C.isas
    while isa.name != NULL:
        found.append(isa.name.decode())
        isa += 1
    return (*found, "numpy")


def _read_formats():
    found = {}
    cdef const fastopt_format *format = TABLE_IN_C.formats
    while format.name != NULL:
        found[format.name.decode()] = (format.parameter.decode(), format.gradient.decode(), format.states.decode())
        format += 1
    return found


TABLE = _read_table()
"""By the name of a formula its row: the names of its buffers, choice, work arrays, columns, scalars, sums, factors and
numbers."""
FORMATS = _read_formats()
"""By its name, how a format stores parameter, gradient and states."""
ISA_NAMES = _read_isas()
"""The instruction sets that this machine can run, best first; the NumPy twin last."""
OPENMP = FASTOPT_OPENMP
COMPILER = FASTOPT_COMPILER.decode()

cdef int selected_index = 0
cdef bint is_flushing = False


cdef const fastopt_table *table() noexcept:
    return TABLE_IN_C


cdef int selected() noexcept:
    """The instruction set in use, as an index of ISA_NAMES; the table has none under the index of the twin."""
    return selected_index


cdef bint flushes_denormal() noexcept:
    """Whether subnormal numbers are flushed to zero while a kernel or a twin runs."""
    return is_flushing


cdef int forks() noexcept:
    """Forks between the last program that was started and this process; a child of a process with OpenMP's threads
    must not use OpenMP."""
    return fastopt_forks


def count_forks_from(int before):
    """Counts the forks from now on; ``before``: those that have been."""
    fastopt_count_forks_from(before)


def fork_count():
    return fastopt_forks


def select_isa(int index):
    global selected_index
    selected_index = index


def selected_isa():
    return selected_index


def set_flush_denormal(bint mode):
    global is_flushing
    is_flushing = mode


def max_threads():
    """The most threads that OpenMP's own settings allow: 1 without OpenMP."""
    return omp_get_max_threads()


def openmp_places():
    """The CPUs of each place to which OpenMP binds threads, in order; none where it does not bind threads."""
    cdef int place, size, k
    cdef int *cpus
    places = []
    if omp_get_proc_bind():  # omp_proc_bind_false is 0
        for place in range(omp_get_num_places()):
            size = omp_get_place_num_procs(place)
            cpus = <int *>calloc(size + 1, sizeof(int))
            if not cpus:
                raise MemoryError
            try:
                omp_get_place_proc_ids(place, cpus)
                places.append(frozenset([cpus[k] for k in range(size)]))
            finally:
                free(cpus)
    return tuple(places)


def bias_correction(double beta, int64_t t, /):
    """``1 - beta**t`` for ``0 <= beta < 1``, ``t >= 1``; no cancellation, relative error below 1e-14."""
    return fastopt_bias_correction(beta, t)


def state_dtypes(parameter):
    """The names of the dtypes that the states of a parameter may have, by the name of its own."""
    return list(dict.fromkeys(states for p, _, states in FORMATS.values() if p == parameter))
