# The sums that kernels in sum mode add up over each of many tensors. Included by _plan.pyx.


cdef struct Summed:  # a tensor that is summed up, and what it has in the meantime no more
    fastopt_tensor *tensor
    size_t count, blocks
    fastopt_kernel kernel
    const fastopt_coefficients *coefficients
    const fastopt_rows *rows


cdef class Sums:
    """Sums over tensors, in the order that src_c/loops.h fixes: `begin`, `add` each tensor, `run`, read the totals.

    From `add` to the end of `run` a tensor has the kernel of its sums in place of its own. It is not copied: the cache
    would have to hold both.
    """

    cdef:
        Work work
        Summed *summed
        double *blocks
        double *totals  # of tensor i and sum k: totals[i * each + k]
        size_t capacity, total_capacity, block_capacity, count, cut_count
        int each
        bint is_cut  # whether the tasks of the last sums are right for the tensors that were added since

    def __init__(self):
        self.work = Work(None)

    def __dealloc__(self):
        free(self.summed)
        free(self.blocks)
        free(self.totals)

    cdef int begin(self, size_t most, int each) except -1:
        """Begins a list of at most so many tensors, with `each` sums."""
        grow(<void **>&self.summed, &self.capacity, most, sizeof(Summed))
        grow(<void **>&self.totals, &self.total_capacity, most * each, sizeof(double))
        self.count, self.each = 0, each
        return self.work.begin(most)

    cdef void add(
        self, fastopt_tensor *tensor, fastopt_kernel kernel, const fastopt_coefficients *coefficients,
        bint by_rows=False,
    ) noexcept:
        """by_rows: of a tensor that is updated row by row the sums are those of each row, not of all its elements."""
        cdef Summed *added = &self.summed[self.count]
        added.rows = tensor.rows
        if not by_rows:
            tensor.rows = NULL
        if tensor.rows != NULL or tensor != added.tensor or tensor.count != added.count:
            self.is_cut = False
        added.tensor, added.count, added.blocks = tensor, tensor.count, fastopt_blocks_of(tensor)
        added.kernel, added.coefficients = tensor.kernel, tensor.call.coefficients
        tensor.kernel, tensor.call.coefficients, tensor.sum_count = kernel, coefficients, self.each
        self.work.add(tensor)
        self.count += 1

    cdef int run(self, int team, bint takes_largest=False) except -1:
        """takes_largest: blocks are not added up, but the largest is taken, and a NaN is kept."""
        cdef size_t i, k, block
        cdef double total, value
        cdef const double *sums
        self.run_blocks(team)
        sums = self.blocks
        for i in range(self.count):
            for k in range(<size_t>self.each):
                total = 0.0
                for block in range(self.summed[i].blocks):
                    value = sums[block * self.each + k]
                    if not takes_largest:
                        total += value
                    elif value > total or value != value:
                        total = value
                self.totals[i * self.each + k] = total
            sums += self.summed[i].blocks * self.each
        return 0

    cdef int run_blocks(self, int team) except -1:
        """Runs the kernels, and does not add up what each block has given."""
        cdef size_t i, blocks = 0
        cdef Summed *one
        try:
            for i in range(self.count):
                blocks += self.summed[i].blocks
            grow(<void **>&self.blocks, &self.block_capacity, blocks * self.each, sizeof(double))
            blocks = 0
            for i in range(self.count):
                self.summed[i].tensor.call.sums = &self.blocks[blocks * self.each]
                blocks += self.summed[i].blocks
            if not self.is_cut or self.count != self.cut_count:
                self.work.cut(for_sums=True)
                self.is_cut, self.cut_count = True, self.count
            self.work.run(self.work.make_ready(team))
        finally:
            for i in range(self.count):
                one = &self.summed[i]
                one.tensor.kernel, one.tensor.call.coefficients = one.kernel, one.coefficients
                one.tensor.rows, one.tensor.sum_count = one.rows, 0
        return 0

    cdef cnp.ndarray run_rows(self, int team, size_t rows):
        """The sums over each row of the one tensor, an array (rows, sums)."""
        cdef cnp.ndarray found = np.zeros((rows, self.each))
        cdef double *totals = <double *>cnp.PyArray_DATA(found)
        cdef size_t row, block, k, at = 0, blocks
        self.run_blocks(team)
        blocks = self.summed[0].blocks // max(rows, <size_t>1)
        for row in range(rows):
            for block in range(blocks):
                for k in range(<size_t>self.each):
                    totals[row * self.each + k] += self.blocks[at]
                    at += 1
        return found


cdef class Factors:
    """The numbers of each tensor that `Algorithm.prepare` makes of its sums: its FACTORS, and its NUMBERS from now on."""

    cdef:
        readonly tuple sum_names, factor_names, number_names
        Sums sums
        double *factors  # of tensor i and factor k: factors[i * n_factors + k]
        double *numbers
        size_t factor_capacity, number_capacity
        int n_sums, n_factors, n_numbers

    def __init__(self, row):
        self.sum_names, self.factor_names, self.number_names = row["sums"], row["factors"], row["numbers"]
        self.n_sums, self.n_factors, self.n_numbers = (
            len(self.sum_names), len(self.factor_names), len(self.number_names)
        )
        self.sums = Sums()

    def __dealloc__(self):
        free(self.factors)
        free(self.numbers)

    cdef int reserve(self, size_t count) except -1:
        grow(<void **>&self.factors, &self.factor_capacity, count * self.n_factors, sizeof(double))
        return grow(<void **>&self.numbers, &self.number_capacity, count * self.n_numbers, sizeof(double))

    cdef int fill_first(self, Group group, list members, list places) except -1:
        """Fills in the factors that sum mode sees, for a group's tensors."""
        cdef Py_ssize_t i, k
        if has_first_factors(group):
            t, numbers = self.steps_and_numbers(members)
            for k, values in enumerate(self.first(group, t, numbers)):
                spread(values, places, self.factors, self.n_factors, k)
            return 0
        for i in range(len(places)):
            for k in range(self.n_factors):
                self.factors[<Py_ssize_t>places[i] * self.n_factors + k] = 1.0
        return 0

    cdef tuple steps_and_numbers(self, list members):
        """The step of each tensor, 1 first, and its numbers."""
        cdef Py_ssize_t i, k, n = len(members)
        cdef cnp.ndarray t = np.empty(n, np.int64), numbers = np.empty((self.n_numbers, n))
        cdef int64_t *to_t = <int64_t *>cnp.PyArray_DATA(t)
        cdef double *to = <double *>cnp.PyArray_DATA(numbers)
        for i in range(n):
            to_t[i] = (<Tensor>members[i]).steps + 1
            for k in range(self.n_numbers):
                to[k * n + i] = (<Tensor>members[i]).numbers[k]
        return t, dict(zip(self.number_names, numbers))

    cdef void add_up_all(self, Py_ssize_t count) noexcept:
        """Puts the sums over all of so many tensors in the place of each one's."""
        cdef Py_ssize_t i, k
        cdef double total
        for k in range(self.n_sums):
            total = 0.0
            for i in range(count):
                total += self.sums.totals[i * self.n_sums + k]
            for i in range(count):
                self.sums.totals[i * self.n_sums + k] = total

    cdef int ask(self, Group group, list members, list places) except -1:
        """Asks the algorithm for the factors of a group's tensors; places: their numbers among those of the step."""
        cdef Py_ssize_t i, k
        t, numbers = self.steps_and_numbers(members)
        sums = self.sums_of(members, places) if self.n_sums else {}
        found = self.prepared(group, t, sums, numbers)
        for k in range(self.n_factors):
            spread(found[k], places, self.factors, self.n_factors, k)
        for k in range(self.n_numbers):
            spread(found[self.n_factors + k], places, self.numbers, self.n_numbers, k)
        return 0

    cdef dict sums_of(self, list members, list places):
        """The sums of tensors by name, and how many elements each of them has."""
        cdef Py_ssize_t i, k, n = len(members)
        cdef cnp.ndarray found = np.empty((self.n_sums + 1, n))
        cdef double *to = <double *>cnp.PyArray_DATA(found)
        for i in range(n):
            for k in range(self.n_sums):
                to[k * n + i] = self.sums.totals[<Py_ssize_t>places[i] * self.n_sums + k]
            to[self.n_sums * n + i] = <double>(<Tensor>members[i]).c.count
        return dict(zip((*self.sum_names, "elements"), found))

    cdef list prepared(self, Group group, object t, dict sums, dict numbers):
        """What `Algorithm.prepare` returns, and then the numbers: for each an array with an entry for every tensor."""
        found = arrays.quietly(group.algorithm.prepare, group.resolved, t, sums, numbers)
        return self.arrays_of(group, "prepare", t, found, [numbers[name] for name in self.number_names])

    cdef list first(self, Group group, object t, dict numbers):
        """What `Algorithm.first_factors` returns, likewise."""
        found = arrays.quietly(group.algorithm.first_factors, group.resolved, t, numbers)
        return self.arrays_of(group, "first_factors", t, found, [])

    cdef list arrays_of(self, Group group, str hook, object t, object found, list more):
        """For each factor that a hook has returned, and each of more arrays, an array with an entry for every tensor."""
        cdef list taken = []
        if len(found) != self.n_factors:
            raise ValueError(f"{group.algorithm.formula}: {hook} must return {self.n_factors} factors, got {len(found)}")
        for values in (*found, *more):
            array = np.ascontiguousarray(values, np.float64)
            taken.append(array if array.shape == t.shape else np.full(t.shape, array))
        return taken

    cdef list of(self, Tensor tensor):
        """The factors of a tensor, for its twin."""
        return [tensor.c.call.factors[k] for k in range(self.n_factors)] if tensor.c.call.factors != NULL else []


cdef int spread(cnp.ndarray values, list places, double *to, Py_ssize_t step, Py_ssize_t offset) except -1:
    """Puts the value of each tensor in its place."""
    cdef const double *value = <const double *>cnp.PyArray_DATA(values)
    cdef Py_ssize_t i
    for i in range(len(places)):
        to[<Py_ssize_t>places[i] * step + offset] = value[i]
    return 0


cdef bint has_first_factors(Group group):
    """Whether sum mode sees other factors than 1."""
    return group.algorithm.first_factors is not Algorithm.first_factors
