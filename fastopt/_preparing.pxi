# What a step does before its first write. Included by _plan.pyx.


cdef struct Shared:  # by the tensors of one group that have made equally many steps
    fastopt_coefficients coefficients
    int64_t group, steps


cdef struct L1:  # of one tensor in one step
    fastopt_pass before
    fastopt_coefficients coefficients
    fastopt_coefficients kernels  # the kernel's: it multiplies the gradient by nothing more


cdef class Preparing(Following):
    """All that a step does before its first write: kernels, coefficients, norms, sums, and what Python makes of them."""

    cdef:
        readonly Work work
        Turns turns
        Factors factors
        Norms norms
        size_t row  # of the formula, in every instruction set's table
        int64_t calls
        # what the last step left for the next one
        int assigned_isa
        Shared *shared
        Py_ssize_t shared_count
        size_t shared_capacity
        fastopt_coefficients *own_coefficients  # of each tensor, where each gradient has a factor of its own
        size_t own_capacity
        bint follows  # whether the step that is prepared is one that the followers see
        bint has_l1, needs_factors, has_work, has_columns
        ColumnSums column_sums
        L1 *l1
        size_t l1_capacity
        list stepping  # the selected tensors that have a gradient, while a call needs the list

    def __init__(self, algorithm, Turns turns, tuners, bint keeps_params=True, dict bounds={}, bint is_function=False):
        Following.__init__(self, algorithm, keeps_params, bounds, is_function)
        self.turns, self.work = turns, Work(tuners)
        self.row = list(TABLE).index(algorithm.formula)
        self.factors = Factors(TABLE[algorithm.formula])
        self.has_work = bool(TABLE[algorithm.formula]["work"])
        self.has_columns = bool(TABLE[algorithm.formula]["columns"])
        self.norms, self.column_sums = Norms(), ColumnSums()

    def __dealloc__(self):
        free(self.shared)
        free(self.own_coefficients)
        free(self.l1)

    cdef int assign(self, int isa, list moves=None, bint cuts=True) except -1:
        """Finds out which tensors share coefficients and the kernel of each, and cuts the work into tasks."""
        cdef Py_ssize_t i, place
        cdef size_t subset = 0
        cdef int format
        cdef const fastopt_kernel *const *kernels = NULL  # stays so for the NumPy twin
        cdef Tensor tensor
        cdef Move move
        cdef Shared *shared = NULL
        cdef dict places = None
        cdef set moved = set() if moves is None else {(<Move>one).tensor for one in moves}  # which the followers follow
        self.is_assigned = self.are_passes_ready = self.needs_factors = False
        grow(<void **>&self.shared, &self.shared_capacity, len(self.selected), sizeof(Shared))
        self.work.begin(len(self.selected) + (len(moves) if moves is not None else 0))
        if table().isas[isa].name != NULL:
            kernels = table().isas[isa].optimizers[self.row].kernels
        self.shared_count = 0
        for i in range(len(self.selected)):
            tensor = <Tensor>self.selected[i]
            if not self.has_gradient[i]:
                if self.follows and tensor not in moved:
                    tensor.c.kernel = NULL
                    self.work.add(&tensor.c)
                continue
            if shared == NULL or shared.group != tensor.group or shared.steps != tensor.steps:
                place = self.shared_count
                if place:  # a model of one group whose parameters all have gradients needs no dict
                    if places is None:
                        places = {(shared.group, shared.steps): 0}
                    place = places.setdefault((tensor.group, tensor.steps), place)
                shared = &self.shared[place]
                if place == self.shared_count:
                    self.shared_count += 1
                    shared.group, shared.steps = tensor.group, tensor.steps
                self.needs_factors |= (<Group>self.groups[tensor.group]).needs_factors
            subset = (<Group>self.groups[tensor.group]).subset | tensor.shape_subset
            tensor.c.call.coefficients = &shared.coefficients
            tensor.c.kernel = NULL
            tensor.c.call.factors = NULL
            if kernels != NULL:
                tensor.c.kernel = kernels[tensor.format][subset]
                if tensor.c.kernel == NULL:  # its states are not in use: their storage does not matter
                    format = format_of[tensor.storage][tensor.gradient_storage][tensor.storage]
                    tensor.c.kernel = kernels[format][subset]
                else:
                    format = tensor.format
                tensor.c.kernel = faster_kernel(
                    &table().isas[isa].optimizers[self.row], format, subset, <Group>self.groups[tensor.group],
                    tensor.c.kernel,
                )
            stage_gradient(&tensor.c, isa, tensor.format, tensor.gradient_storage)
            self.work.add(&tensor.c)
        if moves is not None:
            for move in moves:
                move.find_kernel(isa)
                self.work.add(&move.c)
        if cuts:
            self.work.cut()
        self.is_assigned, self.assigned_isa = moves is None, isa
        return 0

    cdef int fill_coefficients(self, double grad_scale) except -1:
        cdef Py_ssize_t k, i
        cdef Shared *shared
        cdef Group group
        cdef int64_t clock = -1
        self.calls += 1
        self.has_l1 = False
        for k in range(self.shared_count):
            shared = &self.shared[k]
            group = <Group>self.groups[shared.group]
            if group.callables:
                if clock < 0:
                    # the most steps that any of the parameters has made: a schedule needs no counter of its own
                    for i in range(self.shared_count):
                        clock = max(clock, self.shared[i].steps)
                group.ask(self.calls, clock)
            group.fill(&shared.coefficients, shared.steps + 1, grad_scale)
            self.has_l1 |= group.l1 != 0.0
        return 0

    cdef int prepare(
        self, object param_groups, int isa, double grad_scale, Change change, Clipping clipping, bint follows=True
    ) except -1:
        """Everything that may still be refused; returns the number of threads. follows: whether the followers see it."""
        cdef Tensor tensor
        cdef Py_ssize_t i
        cdef int team = 1
        cdef Move move
        cdef bint is_native = table().isas[isa].name != NULL
        self.follows = follows and len(self.followers) > 0
        if change is not None:
            self.make_ready(param_groups, change)
        if change is not None or not self.is_assigned or self.assigned_isa != isa:
            self.assign(isa, None if change is None else change.moves)
        if is_native:
            team = self.work.choose_team()
        if clipping is not None or self.needs_factors:
            self.stepping = self.selected if self.have_all_gradients() else [
                self.selected[i] for i in range(len(self.selected)) if self.has_gradient[i]
            ]
        if self.has_sources:
            self.work.is_measured = False
        if clipping is not None:
            grad_scale = self.prepare_gradients(isa, team, grad_scale, clipping)
        self.fill_coefficients(grad_scale)
        if clipping is not None and clipping.needs_norm and not self.norms.are_factors_equal:
            self.give_own_coefficients()
        if self.has_l1:
            self.add_l1(isa)
        if self.needs_factors:
            self.prepare_factors(isa, team)
        if self.has_work:
            self.transform()
        if self.follows:
            self.prepare_followers(isa)
            for move in change.moves if change is not None else ():
                move.c.passes, move.c.pass_count = move.tensor.c.passes, move.tensor.c.pass_count
        return self.work.make_ready(team) if is_native else 1

    cdef double prepare_gradients(self, int isa, int team, double grad_scale, Clipping clipping) except? -1:
        """Norms and clipping; returns what the kernels still have to multiply all gradients by."""
        cdef Tensor tensor
        cdef size_t i, n = len(self.stepping)
        cdef PyObject **items = (<PyListObject *>self.stepping).ob_item  # no references are counted: it is every step
        if clipping.needs_norm:
            self.norms.measure(self.stepping, isa, team, clipping, grad_scale)
        if clipping.zero_grads:
            self.refuse_zeroing(self.stepping)
            for i in range(n):
                (<Tensor>items[i]).c.zero_gradient = True  # until `forget`
        if clipping.max_value is not None:
            self.is_assigned = self.work.is_measured = False  # what follows holds for this call alone
            for tensor in self.stepping:
                clip_on_its_way(&tensor.c, isa, tensor.storage, tensor.gradient_storage, grad_scale, clipping.max_value)
            grad_scale = 1.0
        if clipping.needs_norm and self.norms.are_factors_equal and self.stepping:
            grad_scale *= self.norms.factors[0]
        return grad_scale

    cdef int give_own_coefficients(self) except -1:
        """Gives each tensor coefficients of its own, because each gradient has a factor of its own."""
        cdef Tensor tensor
        cdef size_t i, n = len(self.stepping)
        cdef Py_ssize_t grad_scale = len(TABLE[self.algorithm.formula]["scalars"]) - len(COMMON_SCALARS)
        grow(<void **>&self.own_coefficients, &self.own_capacity, n, sizeof(fastopt_coefficients))
        self.is_assigned = False  # they hold for this call alone
        for i in range(n):
            tensor = <Tensor>self.stepping[i]
            self.own_coefficients[i] = tensor.c.call.coefficients[0]
            self.own_coefficients[i].scalars[grad_scale] *= self.norms.factors[i]
            tensor.c.call.coefficients = &self.own_coefficients[i]
        return 0

    cdef int add_l1(self, int isa) except -1:
        """Has l1 * sign(p) added to gradients task by task, after all that multiplies them and before weight decay."""
        cdef Tensor tensor
        cdef Group group
        cdef L1 *l1
        cdef Py_ssize_t i, grad_scale = len(TABLE[self.algorithm.formula]["scalars"]) - len(COMMON_SCALARS)
        grow(<void **>&self.l1, &self.l1_capacity, len(self.selected), sizeof(L1))
        self.is_assigned = self.work.is_measured = False  # what follows holds for this call alone
        for i in range(len(self.selected)):
            tensor = <Tensor>self.selected[i]
            group = <Group>self.groups[tensor.group]
            if not self.has_gradient[i] or group.l1 == 0.0:
                continue
            l1 = &self.l1[i]
            l1.kernels = tensor.c.call.coefficients[0]
            l1.coefficients.scalars[0], l1.coefficients.scalars[1] = l1.kernels.scalars[grad_scale], group.l1
            l1.kernels.scalars[grad_scale] = 1.0
            tensor.c.call.coefficients = &l1.kernels
            if tensor.c.stage_limit == INFINITY:  # else it is staged already, and has been multiplied
                clip_on_its_way(&tensor.c, isa, tensor.storage, tensor.gradient_storage, 1.0, INFINITY)
            l1.before.call.size = sizeof(fastopt_call)
            l1.before.call.coefficients = &l1.coefficients
            if table().isas[isa].name != NULL:
                arithmetic = FLOAT64 if tensor.storage == FLOAT64 else FLOAT32
                l1.before.kernel = auxiliary_row(isa, b"l1").kernels[
                    format_of[tensor.storage][tensor.storage][arithmetic]
                ][0]
            tensor.c.before = &l1.before
        return 0

    cdef int prepare_factors(self, int isa, int team) except -1:
        """The formula's own sums, and what `Algorithm.prepare` makes of them."""
        cdef Factors factors = self.factors
        cdef Tensor tensor
        cdef Group group
        cdef Py_ssize_t i, count = 0, place = 0
        cdef list members = [[] for _ in self.groups], places = [[] for _ in self.groups]  # of each group
        factors.reserve(len(self.stepping))
        for tensor in self.stepping:
            if tensor.by_rows is not None:
                self.prepare_by_rows(isa, team, tensor)
            elif (<Group>self.groups[tensor.group]).needs_factors:
                (<list>members[tensor.group]).append(tensor)
                (<list>places[tensor.group]).append(count)
                tensor.c.call.factors = &factors.factors[count * factors.n_factors] if factors.n_factors else NULL
                count += 1
        if factors.n_sums:
            for i, group in enumerate(self.groups):
                if members[i]:
                    factors.fill_first(group, members[i], places[i])
            factors.sums.begin(count, factors.n_sums)
            for tensor in self.stepping:
                if tensor.by_rows is None and (<Group>self.groups[tensor.group]).needs_factors:
                    self.add_sums(isa, tensor, place)
                    place += 1
            if table().isas[isa].name != NULL:
                factors.sums.run(team)
            if self.algorithm.sums_of_all:
                factors.add_up_all(count)
        for i, group in enumerate(self.groups):
            if members[i]:
                factors.ask(group, members[i], places[i])
        return 0

    cdef int prepare_by_rows(self, int isa, int team, Tensor tensor) except -1:
        """The sums over the rows of a tensor, and what `Algorithm.prepare_rows` makes of them."""
        cdef ByRows by = tensor.by_rows
        cdef Group group = <Group>self.groups[tensor.group]
        by.pending = {letter: vector.copy() for letter, vector in by.vectors.items()}
        if self.has_columns:
            rows, columns = self.squares(isa, team, tensor)
            found = arrays.quietly(
                self.algorithm.first_row_factors, group.resolved, tensor.steps + 1, rows, columns, by.pending, by.columns
            )
            take_row_factors(&by.rows, by.factors, found)
        return self.ask_for_row_factors(
            isa, team, tensor, &tensor.c, &by.rows, by.factors, tensor.gradient, by.pending
        )

    cdef int ask_for_row_factors(
        self, int isa, int team, Tensor tensor, fastopt_tensor *c, fastopt_rows *rows, object factors,
        object gradient, dict vectors,
    ) except -1:
        """Asks the algorithm for the factors of rows, of all or of those in a call, and has the kernels take them."""
        cdef Group group = <Group>self.groups[tensor.group]
        sums = self.sums_of_rows(isa, team, tensor, c, len(factors), gradient) if self.factors.n_sums else {}
        found = arrays.quietly(self.algorithm.prepare_rows, group.resolved, tensor.steps + 1, sums, vectors)
        return take_row_factors(rows, factors, found)

    cdef dict sums_of_rows(
        self, int isa, int team, Tensor tensor, fastopt_tensor *c, size_t rows, object gradient
    ):
        """The row's SUMS by name, each an array with an entry for each of so many rows."""
        cdef Sums sums = self.factors.sums
        if table().isas[isa].name != NULL:
            sums.begin(1, self.factors.n_sums)
            sums.add(c, self.sum_kernel_of(isa, tensor), c.call.coefficients, by_rows=True)
            found = sums.run_rows(team, rows)
        else:
            found = np.zeros((rows, self.factors.n_sums))
            for k, arguments in enumerate(self.twins_of_rows(tensor, c, rows, gradient)):
                p, grad, states, scalars, factors, _ = arguments
                found[k] = reference.total(storage.sums(self.algorithm, p, grad, states, scalars, factors))
        return dict(zip(self.factors.sum_names, found.T)) | {"elements": <double>c.rows.elements}

    cdef tuple squares(self, int isa, int team, Tensor tensor):
        """The sums of the squares of a gradient over each row and each column, in the shapes that broadcast to its own."""
        cdef ByRows by = tensor.by_rows
        cdef Sums sums = self.factors.sums
        cdef const fastopt_optimizer *norm
        cdef fastopt_coefficients coefficients
        cdef int format = format_of[tensor.storage][tensor.gradient_storage][tensor.storage]
        cdef size_t scale = len(TABLE[self.algorithm.formula]["scalars"]) - len(COMMON_SCALARS)
        coefficients.scalars[0] = tensor.c.call.coefficients.scalars[scale]
        coefficients.scalars[1], coefficients.scalars[2], coefficients.random_key = 0.0, 1.0, 0
        self.column_sums.begin(&by.rows, by.count)
        if table().isas[isa].name == NULL:
            by.rows.columns = NULL
            scalars, _, grad = self.twin_arguments(tensor, tensor.gradient)
            return reference.squares(storage.widened(grad), coefficients.scalars[0], by.rows.strip_rows)
        norm = auxiliary_row(isa, b"norm")
        by.rows.column_kernel = norm.column_kernels[format][0]
        sums.begin(1, 1)
        sums.add(&tensor.c, norm.sum_kernels[format][0], &coefficients, by_rows=True)
        try:
            rows = sums.run_rows(team, by.count).reshape(by.row_shape)
        finally:
            columns = self.column_sums.end(&by.rows, by.count, by.column_shape)
        return rows, columns

    cdef list twins_of_rows(self, Tensor tensor, const fastopt_tensor *c, size_t rows, object gradient):
        """For each of the rows of a call what its twin takes: parameter, gradient, states, scalars, factors, and the number
        of its first element."""
        cdef ByRows by = tensor.by_rows
        cdef size_t k, row, elements = c.rows.elements
        cdef list found = []
        scalars, states, grad = self.twin_arguments(tensor, gradient)
        columns = [x.reshape(math.prod(by.column_shape[: len(by.column_shape) - 1]), elements) for x in by.columns.values()]
        now, grad = tensor.now.reshape(by.count, elements), grad.reshape(rows, elements)
        states = [None if state is None else state.reshape(by.count, elements) for state in states]
        for k in range(rows):
            row = k if c.rows.numbers == NULL else c.rows.numbers[k]
            factors = [c.rows.factors[k * c.rows.factor_count + i] for i in range(c.rows.factor_count)]
            own = [None if state is None else state[row] for state in states]
            if columns:
                own = own[: len(own) - len(columns)] + [x[k // c.rows.matrix_rows] for x in columns]
            found.append((now[row], grad[k], own, scalars, factors, c.call.first_element + <uint64_t>row * elements))
        return found

    cdef int transform(self) except -1:
        """Has `Algorithm.transform` fill the WORK arrays of every tensor that has a gradient."""
        cdef Tensor tensor
        cdef Py_ssize_t i
        for i in range(len(self.selected)):
            if self.has_gradient[i]:
                tensor = <Tensor>self.selected[i]
                tensor.make_work()
                arrays.quietly(self.transform_one, tensor)
        return 0

    def transform_one(self, Tensor tensor):
        """The same for one tensor."""
        cdef Group group = <Group>self.groups[tensor.group]
        scalars, states, grad = self.twin_arguments(tensor, tensor.gradient)
        wide = storage.widened(grad)
        scale = wide.dtype.type(scalars[len(scalars) - len(COMMON_SCALARS)])
        named = {x: storage.widened(state) for x, state in zip(tensor.letters, states) if state is not None}
        self.algorithm.transform(group.resolved, tensor.steps + 1, wide if scale == 1 else scale * wide, named, tensor.work)

    cdef int add_sums(self, int isa, Tensor tensor, Py_ssize_t place) except -1:
        """Adds a tensor to those that are summed up, in the next place; the twin sums it up at once."""
        cdef Sums sums = self.factors.sums
        cdef Py_ssize_t k
        if table().isas[isa].name != NULL:
            sums.add(&tensor.c, self.sum_kernel_of(isa, tensor), tensor.c.call.coefficients)
            return 0
        scalars, states, grad = self.twin_arguments(tensor, tensor.gradient)
        found = reference.total(
            storage.sums(self.algorithm, tensor.now, grad, states, scalars, self.factors.of(tensor))
        )
        for k in range(self.factors.n_sums):
            sums.totals[place * self.factors.n_sums + k] = found[k]
        return 0

    cdef fastopt_kernel sum_kernel_of(self, int isa, Tensor tensor) noexcept:
        """The formula's own kernel in sum mode."""
        cdef size_t subset = (<Group>self.groups[tensor.group]).subset | tensor.shape_subset
        return table().isas[isa].optimizers[self.row].sum_kernels[tensor.format][subset]

    cdef tuple twin_arguments(self, Tensor tensor, object gradient):
        """The arguments of a twin: scalars, states and the gradient, which may be that of some rows."""
        used = self.algorithm.letters((<Group>self.groups[tensor.group]).h, tensor.shape)
        states = [tensor.states[x] if x in used else None for x in tensor.letters]
        states += [tensor.work[x] for x in tensor.work_letters]
        states += [None] * len(TABLE[self.algorithm.formula]["columns"])
        # a callable may have given the gradient another shape since it was checked
        grad = gradient.reshape(tensor.shape) if gradient.size == <Py_ssize_t>tensor.c.count else gradient
        if tensor.c.stage_limit != INFINITY and tensor.c.stage_limit:
            grad = storage.clipped(grad, tensor.c.stage_scale, tensor.c.stage_limit)
        if tensor.c.before != NULL:
            grad = storage.with_l1(
                tensor.now, grad, tensor.c.before.call.coefficients.scalars[0],
                tensor.c.before.call.coefficients.scalars[1],
            )
        return scalars_of(tensor.c.call.coefficients, self.algorithm), states, grad
