# The parameters and groups of one optimizer, and every change of them. Included by _plan.pyx.


cdef class Model:
    """The data of one optimizer: its parameter groups as they were last checked, and a `Tensor` for each parameter.

    A change is put together in a `Change` first, by code that may fail, and takes effect in `commit`, which cannot.
    The lists are changed in place, in the caller's turn, so that to add a parameter costs nothing for the others.

    algorithm: what the optimizer's class says of its formula. bounds: the least and the largest value of each option
    that is a number.
    """

    cdef:
        readonly object algorithm
        readonly list groups, tensors
        readonly dict place  # of each key among the tensors
        readonly dict unseen  # states for keys that `update` has not seen yet, see `fastopt.unseen`
        readonly Intervals intervals
        readonly bint keeps_params  # else they are handed over at each call of `update`
        readonly Change last_move  # what `move` made, until a step or a state that is loaded takes its place
        dict bounds
        list items  # the groups' dicts as they were last checked, for `is_unchanged`
        bint has_flags

    def __init__(self, algorithm, bint keeps_params, dict bounds):
        self.algorithm, self.keeps_params, self.bounds = algorithm, keeps_params, bounds
        self.groups, self.tensors, self.items, self.place, self.unseen = [], [], [], {}, {}
        self.intervals = Intervals([], algorithm.states)
        self.has_flags = bool(algorithm.flags)

    def is_unedited(self, param_groups):
        """Whether the groups are as they were last checked."""
        return is_unchanged(param_groups, self.items)

    def edited(self, list param_groups):
        """The numbers of the groups that were edited since they were last checked."""
        return [
            index for index, items in enumerate(self.items) if not is_group_unchanged(param_groups[index], items)
        ]

    cdef int take_edits(self, optimizer, object param_groups) except -1:
        """Checks groups that were edited since the last call."""
        cdef Py_ssize_t i
        cdef list changed
        if is_unchanged(param_groups, self.items):
            return 0
        if type(param_groups) is list and len(<list>param_groups) == len(self.items) and not self.has_flags:
            changed = []
            for i in range(len(self.items)):
                mine = (<list>param_groups)[i]
                if len(self.items) == 1 or not is_group_unchanged(mine, <tuple>self.items[i]):
                    group = (<Group>self.groups[i]).with_numbers(mine, <tuple>self.items[i], self.bounds)
                    if group is None:  # more than a number has changed
                        optimizer._take_edits()
                        return 0
                    changed.append((i, group))
            for i, group in changed:
                self.replace_group(i, group)
                self.items[i] = (<Group>group).items
            return 0
        optimizer._take_edits()
        return 0

    def commit(self, object param_groups, Change change):
        """Makes a change: no Python code runs in here, and nothing is refused.

        param_groups: the user's list of dicts. An option whose plain form is another object is replaced there,
        unless the user has edited it since it was read.
        """
        self.make_ready(param_groups, change)
        self._commit(param_groups, change)

    cdef int make_ready(self, object param_groups, Change change) except -1:
        """Makes what `_commit` would have to make, and keeps alive what it replaces: what dies may run Python code."""
        change.items = [items_of(checked) for _, _, checked, _ in change.groups]
        change.added_items = [items_of(checked) for checked, _ in change.added_groups]
        change.added_dicts = [dict(checked) for checked, _ in change.added_groups]
        change.replaced = [self.intervals, [tensor.states for tensor, _ in change.states]]
        change.replaced += [(<Tensor>tensor).row_steps for tensor, _ in change.row_steps]
        for index, _, _, _ in change.groups:
            change.replaced.append((self.groups[index], self.items[index]))
            if type(param_groups) is list and index < len(<list>param_groups):
                mine = (<list>param_groups)[index]
                if type(mine) is dict:
                    change.replaced.append((<dict>mine).copy())
        return 0

    cdef int _commit(self, object param_groups, Change change) except -1:
        cdef Tensor tensor
        cdef dict known, seen, checked
        cdef Py_ssize_t index, k
        cdef cnp.ndarray array, values
        for array, values in change.copies:
            cnp.PyArray_CopyInto(array, values)
        for k, (index, seen, checked, group) in enumerate(change.groups):
            self.groups[index] = group
            self.items[index] = change.items[k]
            if type(param_groups) is list and index < len(<list>param_groups):
                mine = (<list>param_groups)[index]
                if type(mine) is dict:
                    for name, value in checked.items():
                        if seen is None or value is not seen.get(name) and (<dict>mine).get(name) is seen.get(name):
                            (<dict>mine)[name] = value
        for k, (checked, group) in enumerate(change.added_groups):
            (<list>param_groups).append(change.added_dicts[k])
            self.groups.append(group)
            self.items.append(change.added_items[k])
        for tensor in change.added_tensors:
            self.place[tensor.key] = len(self.tensors)
            self.tensors.append(tensor)
        for tensor, states in change.states:
            tensor.take_states(states)
        for tensor, steps in change.steps:
            tensor.steps = steps
        for tensor, numbers in change.numbers:
            tensor.take_numbers(numbers)
        for tensor, row_steps in change.row_steps:
            tensor.row_steps = row_steps
        if change.steps or change.moves:
            self.last_move = change if change.moves and not change.steps else None
        if change.unseen is not None:
            self.unseen = change.unseen
        if change.intervals is not None:
            self.intervals = change.intervals
            for tensor in self.tensors:
                tensor.gap.end = 0
        return 0

    cdef void replace_group(self, Py_ssize_t index, Group group) noexcept:
        """Puts a group with other numbers in the place of one."""
        self.groups[index] = group
