# The tensors of one step, cut into tasks, and the threads that run them. Included by _plan.pyx.

cdef extern from "tasks.h" nogil:
    enum: FASTOPT_TASK
    ctypedef struct fastopt_source:
        pass
    ctypedef struct fastopt_pass:
        fastopt_kernel kernel
        fastopt_converter converter
        fastopt_call call
        uint8_t itemsizes[3]
    ctypedef struct fastopt_rows:
        const int64_t *numbers
        size_t elements
        const double *factors
        int factor_count
        size_t matrix_rows
        fastopt_kernel column_kernel
        double *columns
        size_t strip_rows
        const size_t *first_missed
        const fastopt_coefficients *missed
        size_t missed_count
        const void *zeros
    ctypedef struct fastopt_tensor:
        fastopt_kernel kernel
        fastopt_call call
        size_t count
        const fastopt_source *source
        fastopt_converter stage
        double stage_scale, stage_limit
        const fastopt_pass *before
        fastopt_converter write_back
        const fastopt_pass *passes
        int pass_count
        uint8_t zero_gradient
        uint8_t itemsizes[3]
        uint8_t first_work
        uint16_t sum_count
        const fastopt_rows *rows
    ctypedef struct fastopt_chunk:
        pass
    ctypedef struct fastopt_part:
        pass
    ctypedef struct fastopt_work:
        fastopt_tensor *const *tensors
        size_t tensor_count, task_count, scratch_size
        fastopt_chunk *chunks
        size_t *tasks
        size_t *order
        fastopt_part *parts
        char *scratch
        int flush_subnormals
    void fastopt_source_of(
        fastopt_source *, const void *data, size_t itemsize, int ndim, const Py_ssize_t *shape,
        const Py_ssize_t *strides, int fortran)
    size_t fastopt_blocks_of(const fastopt_tensor *)
    size_t fastopt_strip_size(const fastopt_rows *)
    size_t fastopt_most_chunks(const fastopt_work *)
    void fastopt_cut(fastopt_work *, int for_sums)
    size_t fastopt_scratch_size(const fastopt_work *)
    int fastopt_divide(fastopt_work *, int team)
    void fastopt_run_part(fastopt_work *, int own)
    void fastopt_run_tensor(const fastopt_tensor *)
    void fastopt_run_all(fastopt_work *)
    uint64_t fastopt_flush_subnormals()
    void fastopt_set_floating_mode(uint64_t)
    int fastopt_threads_can_start(int n, const int *places)

cdef extern from *:
    """
    /* The size of the last team of this thread: libgomp keeps a team's threads until another size is asked for. */
    static _Thread_local int fastopt_last_team = 1;
    """
    int fastopt_last_team

cdef int *PLACES = NULL  # as fastopt_threads_can_start takes them; never freed
cdef bint places_are_known = False


cdef int *places_in_c() except? NULL:
    """The places to which OpenMP binds threads, which it determined when it was loaded; NULL where it binds none."""
    global PLACES, places_are_known
    if not places_are_known:
        numbers = [number for place in openmp_places() for number in (len(place), *place)]
        if numbers:
            PLACES = <int *>calloc(len(numbers) + 1, sizeof(int))
            if PLACES == NULL:
                raise MemoryError
            for k, number in enumerate(numbers):
                PLACES[k] = number
        places_are_known = True
    return PLACES


cdef bint has_openmp = OPENMP != 0
cdef enum:
    PARALLEL_ELEMENTS = 65536  # fewer run on the calling thread, whatever was asked for
    PARALLEL_BLOCKS = 16  # as many blocks of sums, FASTOPT_SUM_BLOCK elements each
cdef size_t TIMES_IN_MEMORY = 4  # an element of a row, which is in no cache, takes as long as so many others
cdef size_t ELEMENTS_UNDER_THE_GIL = 4096  # fewer take some microseconds, for which the GIL is not given away
cdef size_t ELEMENTS_A_TENSOR = 64  # as long as so many elements takes what a tensor costs besides


cdef class Work:
    """The tensors of one step. tuners: of the number of threads, see `fastopt.thread_tuner`."""

    cdef:
        readonly object tuners
        fastopt_work c
        fastopt_tensor **tensors
        size_t count, elements
        size_t tensor_capacity, chunk_capacity, task_capacity, order_capacity, part_capacity, scratch_capacity
        bint is_measured  # whether the scratch memory that a thread needs is known
        bint is_timed  # whether `run` tells the tuners when it has ended

    def __init__(self, tuners):
        self.tuners = tuners

    def __dealloc__(self):
        free(self.tensors)
        free(self.c.chunks)
        free(self.c.tasks)
        free(self.c.order)
        free(self.c.parts)
        free(self.c.scratch)

    cdef int begin(self, size_t most) except -1:
        """Begins a list of at most so many tensors."""
        grow(<void **>&self.tensors, &self.tensor_capacity, most, sizeof(void *))
        self.is_measured = False
        self.count = self.elements = 0
        return 0

    cdef void add(self, fastopt_tensor *tensor) noexcept:
        self.tensors[self.count] = tensor
        self.count += 1
        self.elements += tensor.count

    cdef int cut(self, bint for_sums=False) except -1:
        """Cuts the tensors into tasks."""
        cdef size_t most
        self.c.tensors, self.c.tensor_count = self.tensors, self.count
        most = fastopt_most_chunks(&self.c)
        grow(<void **>&self.c.chunks, &self.chunk_capacity, most, sizeof(fastopt_chunk))
        grow(<void **>&self.c.tasks, &self.task_capacity, most + 1, sizeof(size_t))
        grow(<void **>&self.c.order, &self.order_capacity, most, sizeof(size_t))
        fastopt_cut(&self.c, for_sums)
        return 0

    cdef int choose_team(self) except -1:
        """How many threads a step of these tensors uses."""
        # libgomp hangs in a child of a process that has had a team: a child works alone
        self.is_timed = has_openmp and self.elements >= PARALLEL_ELEMENTS and not forks()
        return self.tuners.begin(self.elements) if self.is_timed else 1

    def threads(self, size_t elements):
        """How many threads the steps of now use; elements: of all parameters, for where there was no step yet."""
        cdef size_t tasks = self.c.task_count if self.count else elements // FASTOPT_TASK + 1
        if self.count:
            elements = self.elements
        if not has_openmp or elements < PARALLEL_ELEMENTS or forks():
            return 1
        return min(self.tuners.threads(elements), max(tasks, <size_t>1))

    cdef int make_ready(self, int team) except -1:
        """Makes room for what so many threads need; returns how many of them there can be."""
        team = min(team, <int>max(self.c.task_count, <size_t>1))
        if team > fastopt_last_team:
            # libgomp ends the process when it cannot make a thread
            team = min(team, 1 + fastopt_threads_can_start(team - 1, places_in_c()))
        if not self.is_measured:
            self.c.scratch_size = fastopt_scratch_size(&self.c)
            self.is_measured = True
        grow(<void **>&self.c.parts, &self.part_capacity, team, sizeof(fastopt_part))
        grow(<void **>&self.c.scratch, &self.scratch_capacity, self.c.scratch_size * team, 1)
        return team

    cdef void run(self, int team) noexcept:
        global fastopt_last_team
        cdef fastopt_work *work = &self.c
        cdef int own
        work.flush_subnormals = flushes_denormal()
        if self.elements + self.count * ELEMENTS_A_TENSOR < ELEMENTS_UNDER_THE_GIL:
            fastopt_run_all(work)
        elif team == 1:
            with nogil:
                fastopt_run_all(work)
        else:
            team = fastopt_divide(work, team)
            fastopt_last_team = team
            with nogil:
                for own in prange(team, num_threads=team, schedule="static"):
                    fastopt_run_part(work, own)

    cdef int end(self) except -1:
        """Tells the tuners that the step has been made."""
        if self.is_timed:
            self.tuners.end()
        return 0
