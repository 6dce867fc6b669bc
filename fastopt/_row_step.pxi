# The step on a few rows of parameters. Included by _plan.pyx.


@cython.final
cdef class Plan(Stepping):
    """The plan of an optimizer: it also makes steps on a few rows of parameters."""

    def update_rows(self, optimizer, params, rows, grads, catch_up):
        """See `fastopt.Optimizer.update_rows`."""
        params, rows, grads = rows_checks.handed_over(params, rows, grads, catch_up)
        self.turns.enter()
        try:
            self.refuse_while_applied()
            param_groups = optimizer.param_groups
            self.take_edits(optimizer, param_groups)
            self.make_row_step(optimizer, param_groups, params, rows, grads, catch_up)
        finally:
            self.turns.leave()

    cdef int make_row_step(
        self, optimizer, object param_groups, object params, object rows, object grads, bint catch_up
    ) except -1:
        cdef Change change = None
        cdef tuple to_keep = None
        cdef int team, isa = selected()
        cdef bint is_made = False
        try:
            given, change = self.take_params_or_join(optimizer, params, type(params) is dict)
            if self.keeps_params:
                to_keep = self.prepare_to_keep(given, change)
            self.take_rows(rows, self.listed(grads), catch_up)
            team = self.prepare_rows(param_groups, isa, change)
            is_made = True
            self.write_rows(param_groups, change, isa, team)
            if to_keep is not None:
                self.keep_params(param_groups, to_keep)
            self.unbind()
            self.work.end()
        finally:
            self.is_assigned = False
            for tensor in self.selected:
                if (<Tensor>tensor).row_call is not None:
                    (<RowCall>(<Tensor>tensor).row_call).gradient = None
            self.let_go(change is not None and not is_made)
            if not is_made and self.bound is not None:
                self.take_bound()
        return 0

    cdef int take_rows(self, object rows, list grads, bint catch_up) except -1:
        """Checks the rows and gradients of the selected tensors."""
        cdef Tensor tensor
        cdef RowCall call
        cdef Py_ssize_t i
        cdef size_t n
        if self.followers:
            rows_checks.refuse_optimizer("the optimizer", "an average, Lookahead or mirror follows all of a parameter")
        if self.has_flags:
            rows_checks.refuse_optimizer("the optimizer", "it moves whole parameters between its steps")
        if len(grads) != len(self.selected):
            arrays.refuse_count(len(grads), len(self.selected))
        for i, tensor in enumerate(self.selected):
            self.has_gradient[i] = grads[i] is not None
            if not self.has_gradient[i]:
                continue
            group = <Group>self.groups[tensor.group]
            if self.has_work or self.has_columns or (<Group>group).needs_factors and tensor.by_rows is None:
                rows_checks.refuse_optimizer(tensor.label, "its step needs numbers of the whole parameter")
            if tensor.by_rows is not None and catch_up:
                rows_checks.refuse_catch_up(tensor.label)
            if (<Group>group).adds_l1 and group.h["l1"] != 0:
                rows_checks.refuse_optimizer(tensor.label, "its option l1 is not 0")
            if tensor.rank == 0 or tensor.contiguity != cnp.NPY_ARRAY_C_CONTIGUOUS and tensor.rank > 1:
                rows_checks.refuse_order(tensor)
            if tensor.row_steps is not None and not catch_up:
                rows_checks.refuse_without_catch_up(tensor)
            if tensor.row_call is None:
                tensor.row_call = RowCall()
            call = tensor.row_call
            call.rows.elements = tensor.c.count // tensor.dims[0] if tensor.dims[0] else 0
            call.rows.first_missed, call.next_steps = NULL, None
            n = call.take_rows(tensor, rows[tensor.key] if type(rows) is dict else rows[i])
            if call.take_gradient(tensor, grads[i], n, self.intervals, self.call_intervals) and not self.has_rounded:
                arrays.warn_of_rounding(tensor.label)
                self.has_rounded = True
            if catch_up:
                call.look_back(tensor, group)
        return 0

    cdef int prepare_rows(self, object param_groups, int isa, Change change) except -1:
        """Everything that may still be refused; returns the number of threads."""
        cdef Py_ssize_t i
        cdef RowCall call
        if change is not None:
            self.make_ready(param_groups, change)
        self.follows = False
        self.assign(isa, None, False)
        self.fill_coefficients(1.0)
        self.work.begin(len(self.selected))
        for i in range(len(self.selected)):
            if self.has_gradient[i]:
                call = (<Tensor>self.selected[i]).row_call
                call.make_ready(<Tensor>self.selected[i])
                if (<Tensor>self.selected[i]).by_rows is not None:
                    self.prepare_row_factors(isa, <Tensor>self.selected[i], call)
                self.work.add(&call.c)
        if table().isas[isa].name == NULL:
            return 1
        self.work.elements *= TIMES_IN_MEMORY
        self.work.cut()
        return self.work.make_ready(self.work.choose_team())

    cdef int prepare_row_factors(self, int isa, Tensor tensor, RowCall call) except -1:
        """The factors of each row of a call, for an optimizer whose rows have their own."""
        cdef Py_ssize_t n = self.factors.n_factors
        cdef cnp.ndarray numbers = np.empty(call.count, np.int64)
        memcpy(cnp.PyArray_DATA(numbers), call.numbers, call.count * sizeof(int64_t))
        vectors = {letter: vector[numbers] for letter, vector in tensor.by_rows.vectors.items()}
        call.factors = np.empty((call.count, n))
        take_row_factors(&call.rows, call.factors, [1.0] * n)
        self.ask_for_row_factors(isa, 1, tensor, &call.c, &call.rows, call.factors, call.gradient, vectors)
        call.pending = vectors
        return 0

    cdef int write_rows(self, object param_groups, Change change, int isa, int team) except -1:
        """Makes the prepared step. No Python code runs in here, but for the twins'."""
        cdef Tensor tensor
        cdef Py_ssize_t i
        if change is not None:
            self._commit(param_groups, change)
        for i in range(len(self.selected)):
            if self.has_gradient[i]:
                tensor = <Tensor>self.selected[i]
                tensor.steps += 1
                (<RowCall>tensor.row_call).count_step(tensor)
        if table().isas[isa].name != NULL:
            self.work.run(team)
            return 0
        for i in range(len(self.selected)):
            if self.has_gradient[i]:
                tensor = <Tensor>self.selected[i]
                used = self.algorithm.letters((<Group>self.groups[tensor.group]).h, tensor.shape)
                (<RowCall>tensor.row_call).run_twin(tensor, self.algorithm, used)
        return 0
