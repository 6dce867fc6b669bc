# Parameters that the caller hands over at each call of `update`. Included by _plan.pyx.


cdef class Handover(Selection):
    """A `Selection` whose parameters may also come with the call: by name or position, and from anywhere in memory."""

    cdef Intervals handed_over  # for `call_intervals`; made once, so that a steady call makes nothing
    cdef list keys, named  # of the last call by names, and their tensors
    cdef bint are_params_checked  # whether the selected ones were found to share no memory, where they lie now

    def __init__(self, algorithm, bint keeps_params, dict bounds, bint is_function):
        Selection.__init__(self, algorithm, keeps_params, bounds, is_function)
        self.handed_over = Intervals([], algorithm.states)

    cdef tuple take_handed_over(self, optimizer, object params, object grads):
        """Takes parameters and their gradients; returns the parameters in order, and what makes new names join."""
        cdef bint is_by_name = PyDict_CheckExact(params) and PyDict_CheckExact(grads)
        if self.has_flags:
            optimizer._check_update()
        if not is_by_name and not (type(params) is list and type(grads) is list):
            params, grads = arrays.handed_over(params, grads)
            is_by_name = type(params) is dict
        given, change = self.take_params_or_join(optimizer, params, is_by_name)
        self.take_gradients(self.listed(grads))
        if self.has_flags:
            change = self.change_in_step(optimizer, change)
        return given, change

    cdef tuple take_params_or_join(self, optimizer, object params, bint is_by_name):
        """Takes parameters, a list or a dict; returns them in order, and what makes new names join."""
        cdef Change change = None
        given = self.take_params(params, is_by_name, None)
        if given is None:  # there are new names
            change = optimizer._joining(params)
            given = self.take_params(params, is_by_name, change.added_tensors)
        return given, change

    cdef int let_go(self, bint forgets) except -1:
        """Ends what held for one call; forgets: the names that were to join have not."""
        cdef Py_ssize_t i
        cdef PyObject **items = (<PyListObject *>self.selected).ob_item
        for i in range(len(self.selected)):
            (<Tensor>items[i]).release_gradient()
            (<Tensor>items[i]).release_param(self.keeps_params)
        self.call_intervals = None
        if forgets:
            self.select([])
        return 0

    cdef object take_params(self, object params, bint is_by_name, list joining):
        """Selects the tensors of the arrays that are handed over, and takes these. Returns the arrays in order, or
        None if there is a name that is not known; joining: the tensors that were made for such names."""
        cdef list chosen, given
        cdef Py_ssize_t i, n = len(params)
        cdef bint has_moved = False
        if is_by_name:
            given = values_by(self.keys, params)
            chosen = self.named
            if given is None:
                given, chosen = list((<dict>params).values()), self.tensors_of(list(params), joining)
            if chosen is None:
                return None
        else:
            given = <list>params
            if self.tensors and type((<Tensor>self.tensors[0]).key) is not int:
                arrays.refuse_mixture(True)
            if n < len(self.tensors):
                arrays.refuse_fewer(n, len(self.tensors))
            if n > len(self.tensors) and joining is None:
                return None
            chosen = self.tensors if joining is None else [*self.tensors, *joining]
        self.reserve(len(self.tensors) + (len(joining) if joining is not None else 0))
        if self.select(chosen) or joining is not None:
            self.are_params_checked = False
        for i in range(n):
            if (<Tensor>chosen[i]).take_param(given[i]):
                has_moved = True
                self.are_params_checked = False
        if not self.keeps_params or has_moved or joining is not None:
            self.call_intervals = self.handed_over
        if not self.are_params_checked:
            self.check_params(chosen)
        return given

    cdef list tensors_of(self, list keys, list joining):
        """The tensors of the keys, in their order; None if one is neither known nor among those that join."""
        cdef list chosen = []
        cdef dict joined = {t.key: t for t in joining} if joining is not None else {}
        cdef PyObject *place
        for key in keys:
            if not PyUnicode_Check(key):
                arrays.refuse_name(key)
            place = PyDict_GetItem(self.place, key)
            if place != NULL:
                chosen.append(self.tensors[<object>place])
            elif key in joined:
                chosen.append(joined[key])
            else:
                return None
        if not joined:  # they are known for good
            self.keys, self.named = keys, chosen
        return chosen

    cdef int check_params(self, list chosen) except -1:
        """Refuses parameters that share memory, with each other or with what the optimizer holds."""
        cdef Tensor tensor
        cdef Interval *other
        self.is_assigned = False  # where tasks are cut depends on the addresses
        for tensor in chosen:
            tensor.gap.end = 0
        if self.call_intervals is not None:
            self.handed_over.hold_params(chosen)
        for tensor in chosen if self.call_intervals is not None else ():
            other = self.intervals.shared_with(tensor.handed)
            if other != NULL and other.buffer == 0 and self.selected.count(<object>other.tensor):
                other = NULL  # the array that it takes the place of, or that another one does
            if other != NULL:
                arrays.refuse_shared([(
                    (tensor.index, 0, tensor.label),
                    ((<Tensor>other.tensor).index, other.buffer,
                     (<Tensor>other.tensor).name_of(other.buffer, self.algorithm.states)),
                )])
        self.are_params_checked = True
        return 0

    cdef tuple prepare_to_keep(self, list given, Change change):
        """Makes what `keep_params` puts in place, so that this cannot fail; None where nothing is replaced.

        given: the arrays of the call, in the order of the selected tensors. change: what makes new names join.
        """
        cdef Py_ssize_t i
        cdef bint is_same = change is None
        cdef list tensors, groups = []
        cdef dict handed
        for i in range(len(self.selected)):
            is_same = is_same and (<Tensor>self.selected[i]).given is given[i]
        if is_same:
            return None
        tensors = self.tensors if change is None else [*self.tensors, *change.added_tensors]
        handed = dict(zip(self.selected, given))
        for index in {tensor.group for tensor in self.selected}:
            h, items = (<Group>self.groups[index]).h, self.items[index]
            params = tuple([handed.get(tensor, tensor.given) for tensor in tensors if tensor.group == index])
            groups.append((index, h, h["params"], params, tuple([params if x is h["params"] else x for x in items])))
        states = [(t, 2 + t.letters.index(letter), array) for t in tensors for letter, array in t.states.items()]
        intervals = Intervals(tensors, self.algorithm.states, None, [*states, *((t, 0, t.now) for t in tensors)])
        replaced = [(tensor.given, tensor.param) for tensor in tensors]  # kept alive: what dies may run Python code
        return given, groups, intervals, replaced

    cdef int keep_params(self, object param_groups, tuple prepared) except -1:
        """Keeps the arrays that were handed over in the place of those that were kept."""
        cdef Tensor tensor
        cdef Py_ssize_t i, index
        given, groups, self.intervals, _ = prepared
        for i in range(len(self.selected)):
            (<Tensor>self.selected[i]).keep_param((<list>given)[i])
        for tensor in self.tensors:
            tensor.gap.end = 0
        for index, h, before, params, items in groups:
            (<dict>h)["params"] = params
            self.items[index] = items
            if type(param_groups) is list and index < len(<list>param_groups):
                mine = (<list>param_groups)[index]
                if type(mine) is dict and (<dict>mine).get("params") is before:
                    (<dict>mine)["params"] = params
        return 0
