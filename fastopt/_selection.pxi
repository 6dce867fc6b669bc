# The tensors of a call and their gradients: given to the call, or bound. Included by _plan.pyx.

cdef class Selection(Model):
    """The tensors that a call updates, with their parameters and gradients as far as they were checked."""

    cdef:
        readonly list bound  # the gradients that `bind` was given, or None
        public object accumulated  # see `fastopt.accumulation`, or None
        object bound_in  # the list or dict that they were in
        object bound_members  # its members when it was bound: a list, or of a dict what `items_of` gives; None where unknown
        readonly bint is_function  # it makes one call of a function, for arrays that the caller owns
        bint has_rounded  # whether the warning about gradients of float64 has been given
        list selected
        char *has_gradient  # of the selected ones
        size_t capacity
        list listed_for, gradient_keys, gradient_order  # the last dict of gradients: for which tensors, and their places
        bint has_sources  # whether a gradient lies in another layout than its parameter
        bint is_assigned  # whether coefficients, kernels and tasks are those for the selected gradients
        Intervals zeroed  # for `refuse_zeroing`; made once, so that a steady step makes nothing
        Intervals call_intervals  # the parameters that this call of `update` was handed, else None

    def __init__(self, algorithm, bint keeps_params, dict bounds, bint is_function):
        Model.__init__(self, algorithm, keeps_params, bounds)
        self.bound, self.is_function = None, is_function
        self.selected, self.zeroed = self.tensors, Intervals([], algorithm.states)

    def __dealloc__(self):
        free(self.has_gradient)

    # -- Changes, and what they mean for the selection --

    cdef int make_ready(self, object param_groups, Change change) except -1:
        Model.make_ready(self, param_groups, change)
        change.replaced.append(self.bound)
        return self.reserve(len(self.tensors) + len(change.added_tensors))

    cdef int _commit(self, object param_groups, Change change) except -1:
        Model._commit(self, param_groups, change)
        if change.added_tensors:
            self.listed_for = None
            self.unbind()
        elif change.states and self.bound is not None:
            self.take_bound()  # the formats may be others
        self.is_assigned = False
        return 0

    cdef void replace_group(self, Py_ssize_t index, Group group) noexcept:
        if group.has_no_decay() != (<Group>self.groups[index]).has_no_decay():
            self.is_assigned = False  # another kernel
        Model.replace_group(self, index, group)

    cdef int reserve(self, Py_ssize_t count) except -1:
        """Makes room for so many tensors."""
        return grow(<void **>&self.has_gradient, &self.capacity, count, sizeof(char))

    # -- Gradients --

    cdef list listed(self, object grads):
        """Gradients in the order of the selected tensors."""
        cdef list found, keys
        if type(grads) is list:
            return grads
        if PyDict_CheckExact(grads) and self.listed_for is self.selected:
            found = values_by(self.gradient_keys, grads)
            if found is not None:
                return found if self.gradient_order is None else [found[place] for place in self.gradient_order]
        found = arrays.listed(grads, [t.key for t in self.selected], [t.label for t in self.selected])
        if PyDict_CheckExact(grads):
            keys = list(grads)
            places = {key: place for place, key in enumerate(keys)}
            order = [places[tensor.key] for tensor in self.selected]
            self.gradient_order = order if order != list(range(len(order))) else None
            self.gradient_keys, self.listed_for = keys, self.selected
        return found

    cdef bint select(self, list tensors) except -1:
        """Records whose gradients come next; returns whether they are others than the last ones."""
        cdef bint are_others
        if self.selected is tensors:
            return False
        are_others = not are_same(self.selected, tensors)
        self.reserve(len(tensors))
        self.selected = tensors
        if are_others:
            self.is_assigned = False
        return are_others

    cdef bint have_all_gradients(self) noexcept:
        """Whether each of the selected tensors has a gradient."""
        cdef size_t n = len(self.selected)
        return n == 0 or memchr(self.has_gradient, False, n) == NULL

    cdef int refuse_read_only(self, bint without_gradient) except -1:
        """Refuses parameters that have become read-only; without_gradient: also those that have no gradient."""
        cdef size_t i, n = len(self.selected)
        cdef PyObject **items = (<PyListObject *>self.selected).ob_item  # no references are counted: it is every step
        for i in range(n):
            if (self.has_gradient[i] or without_gradient) and not (<Tensor>items[i]).is_writeable():
                arrays.refuse_read_only((<Tensor>items[i]).label)
        return 0

    cdef Change take_own(self, optimizer, object grads):
        """Takes the gradients of the parameters that are kept: those that are given, or bound, or accumulated.

        Returns what the step changes besides the parameters that have a gradient."""
        cdef Change change = None
        if not self.keeps_params:
            arrays.refuse_step_without_params()
        if grads is None and self.bound is None and self.accumulated is not None:
            grads = self.accumulated.mean(len(self.tensors))
        if grads is not None:
            self.select(self.tensors)
            self.take_gradients(self.listed(grads))
        elif self.bound is None:
            raise TypeError("step() needs gradients: pass a list or a dict, or name buffers with bind()")
        else:
            self.check_bound()
        if self.has_flags and not self.is_function:
            change = self.change_in_step(optimizer, None)
        self.refuse_read_only(change is not None)
        return change

    cdef Change change_in_step(self, optimizer, Change change):
        """What the step changes besides the parameters that have a gradient; change: what new names make it change."""
        has_gradient = [self.has_gradient[i] != 0 for i in range(len(self.selected))]
        return optimizer._change_in_step(self.selected, has_gradient, change)

    cdef int take_gradients(self, list grads, bint is_bound=False) except -1:
        """Checks the gradients of the selected tensors and takes their pointers."""
        cdef Py_ssize_t i, n = len(self.selected)
        cdef PyObject **items = (<PyListObject *>self.selected).ob_item
        cdef Tensor tensor
        cdef bint has_gradient
        self.has_sources = False
        if len(grads) != n:
            arrays.refuse_count(len(grads), n)
        for i in range(n):
            if i >= len(grads):  # it is the user's own
                raise ValueError("gradients: the list became shorter while it was read; leave it alone in a step")
            grad = grads[i]
            has_gradient = grad is not None
            if has_gradient != self.has_gradient[i]:
                self.has_gradient[i] = has_gradient
                self.is_assigned = False
            if not has_gradient or type(grad) is NDARRAY and (<Tensor>items[i]).take_gradient_again(<cnp.ndarray>grad):
                continue
            tensor = <Tensor>items[i]
            if tensor.take_gradient(grad, is_bound, self.intervals, self.call_intervals) and not self.has_rounded:
                if self.is_function:
                    arrays.refuse_gradient_dtype(tensor.label, tensor.dtype, np.asarray(grad), grad)
                arrays.warn_of_rounding(tensor.label)
                self.has_rounded = True
            if tensor.c.kernel == NULL:
                self.is_assigned = False
            if tensor.c.source != NULL:
                self.has_sources = True
        return 0

    cdef int refuse_zeroing(self, list tensors) except -1:
        """Refuses gradients into which zeros cannot be written, or that share memory with each other."""
        cdef Tensor tensor
        cdef size_t i = 0, n = len(tensors)
        cdef PyObject **items = (<PyListObject *>tensors).ob_item  # no references are counted: it is every step
        while i < n and (<Tensor>items[i]).is_known_to_zero():
            i += 1
        if i == n:
            return 0
        if not self.zeroed.hold_gradients(tensors):
            arrays.refuse_zeroing([
                (tensor.label, tensor.gradient if tensor.original is None else tensor.original) for tensor in tensors
            ])
        for tensor in self.tensors:
            tensor.zeroed = NULL
        for tensor in tensors:
            tensor.zeroed = cnp.PyArray_DATA(tensor.gradient)
        return 0

    cdef void release(self) noexcept:
        """Drops the references to the gradients."""
        cdef Py_ssize_t i
        cdef PyObject **items = (<PyListObject *>self.selected).ob_item
        for i in range(len(self.selected)):
            (<Tensor>items[i]).release_gradient()

    # -- Gradients that are bound --

    def bind(self, grads):
        """Takes gradients for every step to come; None lets go of them. On an error, what was bound stays."""
        cdef list before = self.bound, bound
        cdef Tensor tensor
        cdef Py_ssize_t i
        if not self.keeps_params:
            arrays.refuse_step_without_params()
        if grads is None:
            self.release()
            self.unbind()
            return
        arrays.refuse_file("gradients", grads)
        bound_in = grads
        try:
            members = items_of(grads) if PyDict_CheckExact(grads) else list(grads) if type(grads) is list else None
            self.select(self.tensors)
            self.take_gradients(self.listed(grads), is_bound=True)
            bound = []
            for i in range(len(self.tensors)):
                tensor = <Tensor>self.tensors[i]
                # views: no other code can give them another shape
                bound.append(tensor.gradient.view() if self.has_gradient[i] else None)
            self.bound, self.bound_in, self.bound_members = bound, bound_in, members
            self.take_bound()
        except BaseException:
            self.release()
            self.bound = before
            if before is not None:
                self.take_bound()
            raise

    cdef int take_bound(self) except -1:
        """Takes the bound gradients again, which were checked when they were bound."""
        self.select(self.tensors)
        return self.take_gradients(self.bound)

    cdef void unbind(self) noexcept:
        self.bound = self.bound_in = self.bound_members = None

    cdef int check_bound(self) except -1:
        """Refuses a step where the user has put another array into the list or dict that was bound."""
        cdef bint is_same = True
        if PyDict_CheckExact(self.bound_in):
            is_same = is_group_unchanged(self.bound_in, <tuple>self.bound_members)
        elif type(self.bound_in) is list:
            is_same = are_same(<list>self.bound_in, <list>self.bound_members)
        if not is_same:
            arrays.refuse_replaced_gradients(
                self.bound_in, self.bound_members, [t.key for t in self.tensors], [t.label for t in self.tensors]
            )
        return 0

    def checked_gradients(self, grads):
        """The gradients of all parameters as plain arrays, or None, checked as for a step; nothing may be bound."""
        cdef list found = []
        cdef Tensor tensor
        cdef Py_ssize_t i
        self.select(self.tensors)
        try:
            self.take_gradients(self.listed(grads))
            for i in range(len(self.tensors)):
                tensor = <Tensor>self.tensors[i]
                found.append(tensor.gradient if self.has_gradient[i] else None)
            return found
        finally:
            self.release()


cdef list values_by(list keys, dict mapping):
    """The values of a dict whose keys are these very objects in this order, else None: much faster than look-ups."""
    cdef list values
    cdef Py_ssize_t i = 0, place = 0, n
    cdef PyObject *key = NULL
    cdef PyObject *value = NULL
    if keys is None or len(keys) != len(mapping):
        return None
    n = len(keys)
    values = PyList_New(n)
    while i < n and PyDict_Next(mapping, &place, &key, &value):
        if key != (<PyListObject *>keys).ob_item[i]:
            return None
        Py_INCREF(<object>value)
        PyList_SET_ITEM(values, i, <object>value)
        i += 1
    return values if i == n else None
