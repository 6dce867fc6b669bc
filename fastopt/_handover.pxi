# Parameters that the caller hands over at each call of `update`. Included by _plan.pyx.


cdef class Handover(Selection):
    """A `Selection` whose parameters may also come with the call: by name or position, and from anywhere in memory."""

    cdef Intervals handed_over  # for `call_intervals`; made once, so that a steady call makes nothing

    def __init__(self, algorithm, bint keeps_params, dict bounds, bint is_function):
        Selection.__init__(self, algorithm, keeps_params, bounds, is_function)
        self.handed_over = Intervals([], algorithm.states)

    cdef tuple take_handed_over(self, optimizer, object params, object grads):
        """Takes parameters and their gradients; returns the parameters in order, and what makes new names join."""
        cdef Change change = None
        cdef bint is_by_name = PyDict_CheckExact(params) and PyDict_CheckExact(grads)
        if not is_by_name and not (type(params) is list and type(grads) is list):
            params, grads = arrays.handed_over(params, grads)
            is_by_name = type(params) is dict
        given = self.take_params(params, is_by_name, None)
        if given is None:  # there are new names
            change = optimizer._joining(params)
            given = self.take_params(params, is_by_name, change.added_tensors)
        if is_by_name:
            grads = self.gradients_by_name(grads)
        self.take_gradients(grads)
        return given, change

    cdef int let_go(self, bint forgets) except -1:
        """Ends what held for one call; forgets: the names that were to join have not."""
        cdef Tensor tensor
        for tensor in self.selected:
            tensor.gradient = None
            tensor.release_param(self.keeps_params)
        self.call_intervals = None
        if forgets:
            self.select([])
        return 0

    cdef object take_params(self, object params, bint is_by_name, list joining):
        """Selects the tensors of the arrays that are handed over, and takes these. Returns the arrays in order, or
        None if there is a name that is not known; joining: the tensors that were made for such names."""
        cdef list chosen = self.selected, given
        cdef Tensor tensor
        cdef Py_ssize_t i = 0, place = 0, n = len(params)
        cdef PyObject *key = NULL
        cdef PyObject *value = NULL
        cdef PyObject *found
        cdef bint is_other = len(chosen) != n, has_moved = False
        cdef dict joined = {t.key: t for t in joining} if joining is not None else None
        if is_by_name:
            given = []
            if is_other:
                chosen = []
            while PyDict_Next(params, &place, &key, &value):
                if not PyUnicode_Check(<object>key):
                    arrays.refuse_name(<object>key)
                given.append(<object>value)
                if not is_other and <PyObject *>(<Tensor>chosen[i]).key == key:
                    i += 1
                    continue
                if not is_other:
                    is_other = True
                    chosen = chosen[:i]
                found = PyDict_GetItem(self.place, <object>key)
                if found != NULL:
                    chosen.append(self.tensors[<object>found])
                elif joined is not None:
                    chosen.append(joined[<object>key])
                else:
                    return None
                i += 1
        else:
            given = <list>params
            if self.tensors and type((<Tensor>self.tensors[0]).key) is not int:
                arrays.refuse_mixture(True)
            if n < len(self.tensors):
                arrays.refuse_fewer(n, len(self.tensors))
            if n > len(self.tensors) and joined is None:
                return None
            chosen = self.tensors if joined is None else [*self.tensors, *joining]
        self.reserve(len(self.tensors) + (len(joining) if joining is not None else 0))
        is_other = self.selected is not chosen
        self.select(chosen)
        for i in range(n):
            tensor = <Tensor>chosen[i]
            if tensor.take_param(given[i]):
                has_moved = True
        if not self.keeps_params or has_moved or joined is not None:
            self.call_intervals = self.handed_over
        if is_other or has_moved or joined is not None:
            self.check_params(chosen)
        return given

    cdef int check_params(self, list chosen) except -1:
        """Refuses parameters that share memory, with each other or with what the optimizer holds."""
        cdef Tensor tensor
        cdef Interval *other
        self.is_assigned = False  # where tasks are cut depends on the addresses
        for tensor in chosen:
            tensor.disjoint = NULL
        if self.call_intervals is None:
            return 0
        self.handed_over.hold_params(chosen)
        for tensor in chosen:
            other = self.intervals.shared_with(tensor.handed)
            if other != NULL and other.buffer == 0 and self.selected.count(<object>other.tensor):
                other = NULL  # the array that it takes the place of, or that another one does
            if other != NULL:
                arrays.refuse_shared([(
                    (tensor.index, 0, tensor.label),
                    ((<Tensor>other.tensor).index, other.buffer,
                     (<Tensor>other.tensor).name_of(other.buffer, self.algorithm.states)),
                )])
        return 0

    cdef list gradients_by_name(self, dict grads):
        """The gradients of the selected tensors."""
        cdef list found = []
        cdef Tensor tensor
        cdef PyObject *grad
        for tensor in self.selected:
            grad = PyDict_GetItem(grads, tensor.key)
            if grad == NULL:
                break
            found.append(<object>grad)
        if len(found) != len(self.selected) or len(grads) != len(found):
            return arrays.listed(grads, [t.key for t in self.selected], [t.label for t in self.selected])
        return found

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
            tensor.disjoint = NULL
        for index, h, before, params, items in groups:
            (<dict>h)["params"] = params
            self.items[index] = items
            if type(param_groups) is list and index < len(<list>param_groups):
                mine = (<list>param_groups)[index]
                if type(mine) is dict and (<dict>mine).get("params") is before:
                    (<dict>mine)["params"] = params
        return 0
