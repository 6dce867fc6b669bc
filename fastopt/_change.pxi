# Parameter groups as they were checked, and what a call is about to change. Included by _plan.pyx.

# -- Random bits ---------------------------------------------------------------------------------


cdef uint64_t mixed(uint64_t x) noexcept:
    """Every bit of the result depends on every bit of x (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL
    return x ^ (x >> 31)


cdef uint64_t random_key_of(uint64_t seed, int64_t step) noexcept:
    """The number from which a step's random bits are made, together with the elements' numbers."""
    return mixed(mixed(seed + 1) + <uint64_t>step * 0x9E3779B97F4A7C15ULL)


# -- Groups ------------------------------------------------------------------------------------


cdef class Group:
    """A parameter group as it was checked: the coefficients of its steps.

    algorithm: what the optimizer's class says of its formula. h: the checked options; callables: the names of those
    that are a callable of the step, and `resolve(h, names, steps_taken)` returns a copy with their numbers. lost: see
    there.
    """

    cdef readonly object algorithm
    cdef readonly dict h
    cdef readonly object lost  # the name of an option that is 0 in float32 and must not be, or None
    cdef tuple callables
    cdef object resolve, coefficients, needed
    cdef readonly size_t subset  # the optional states in use and the choice, as the bits that number the row's kernels
    cdef readonly bint needs_factors  # whether a step takes numbers of each whole tensor
    cdef uint64_t seed
    cdef double sign, weight_decay, decay
    cdef bint has_check  # whether options that are right by themselves may not go together
    cdef tuple items  # the user's dict from which `with_numbers` made it, as `items_of` gives it
    cdef bint adds_l1
    cdef double l1  # if so, l1 * sign(p) is added to the gradient
    cdef dict resolved  # the options as plain numbers, for the call of that number
    cdef int64_t resolved_for
    cdef Py_ssize_t scalar_count, required  # the row's own scalars; its states that are not optional

    def __init__(self, algorithm, dict h, tuple callables, resolve, lost=None):
        self.algorithm, self.h, self.callables, self.resolve, self.lost = algorithm, h, callables, resolve, lost
        self.coefficients = algorithm.coefficients
        self.needed = algorithm.optional_states(h)
        self.subset = algorithm.subset(h)
        self.needs_factors = algorithm.needs_factors(h)
        self.seed = h["seed"]
        self.sign = -1.0 if h["maximize"] else 1.0
        self.scalar_count = len(TABLE[algorithm.formula]["scalars"]) - len(COMMON_SCALARS)
        self.required = len(TABLE[algorithm.formula]["state"])
        self.resolved_for = -1
        self.adds_l1 = algorithm.adds_l1 and "l1" in h
        self.has_check = algorithm.check is not Algorithm.check
        if not callables:
            self.take_numbers(h)

    cdef Group with_options(self, dict h):
        """The same with other numbers."""
        cdef Group other = Group.__new__(Group)
        other.algorithm, other.callables, other.resolve = self.algorithm, self.callables, self.resolve
        other.coefficients, other.subset, other.seed, other.sign = (
            self.coefficients, self.subset, self.seed, self.sign
        )
        other.needed, other.needs_factors, other.lost = self.needed, self.needs_factors, self.lost
        other.adds_l1, other.has_check = self.adds_l1, self.has_check
        other.scalar_count, other.required, other.resolved_for = self.scalar_count, self.required, -1
        other.h = h
        if not self.callables:
            other.take_numbers(h)
        return other

    def with_flags(self, dict h):
        """The same with other flags: all else is as it was checked."""
        return self.with_options(h)

    cdef int take_numbers(self, dict numbers) except -1:
        """Takes the options as plain numbers, for the steps to come."""
        self.resolved = with_lr_factor(numbers)
        self.weight_decay, self.decay = self.algorithm.decay(self.resolved)
        if self.adds_l1:
            self.l1 = numbers["l1"]
        return 0

    cdef Group with_lr(self, double lr):
        cdef dict h = self.h.copy()
        h["lr"] = lr
        return self.with_options(h)

    cdef Group with_numbers(self, object mine, tuple items, dict bounds):
        """The group for the user's dict, if nothing but numbers has changed there; else None.

        Most edits are a learning rate before every step: this path is for them, and costs less than the step.
        """
        cdef Py_ssize_t place = 0, n = 0
        cdef PyObject *key = NULL
        cdef PyObject *value = NULL
        cdef PyObject *bound
        cdef dict h = None
        cdef tuple mine_items
        cdef Group found
        cdef bint is_lr = True  # what was edited
        if not PyDict_CheckExact(mine) or 2 * len(<dict>mine) != len(items):
            return None
        mine_items = items_of(<dict>mine)  # before any Python code runs
        while PyDict_Next(mine, &place, &key, &value):
            if key != <PyObject *>PyTuple_GET_ITEM(items, n):
                return None
            if value != <PyObject *>PyTuple_GET_ITEM(items, n + 1):
                bound = PyDict_GetItem(bounds, <object>key)
                if bound == NULL or not are_numbers(
                    <object>value, <object>PyTuple_GET_ITEM(items, n + 1), <tuple>bound
                ):
                    return None
                is_lr = is_lr and <object>key == "lr"
                if h is None:
                    h = self.h.copy()
                h[<object>key] = <object>value
            n += 2
        if h is None:
            return None
        if self.has_check:
            self.algorithm.check(h)
        if not is_lr and self.algorithm.optional_states(h) != self.needed:
            return None
        found = self.with_options(h)
        found.items = mine_items
        return found

    cdef bint has_no_decay(self) noexcept:
        """Whether nothing is added to the gradients in any step."""
        return not self.callables and self.weight_decay == 0.0

    def numbers_after(self, steps_taken):
        """The options as plain numbers after so many steps."""
        return self.resolve(self.h, self.callables, steps_taken) if self.callables else self.h

    def in_step_after(self, steps_taken):
        """The same as the step uses them: with the learning rate multiplied."""
        return with_lr_factor(self.numbers_after(steps_taken))

    cdef int ask(self, int64_t call, int64_t steps_taken) except -1:
        """Asks each callable once in a call: for its number after so many steps."""
        if self.callables and self.resolved_for != call:
            self.take_numbers(self.numbers_after(steps_taken))
            self.resolved_for = call
        return 0

    cdef int fill(self, fastopt_coefficients *to, int64_t t, double grad_scale) except -1:
        """Works out the coefficients of step ``t`` (1 first) from the options as plain numbers."""
        cdef tuple own = self.coefficients(self.resolved, t)
        cdef Py_ssize_t k, n = self.scalar_count
        if len(own) != n:
            raise ValueError(f"{self.algorithm.formula}: it takes {n} scalars of its own, got {len(own)}")
        for k in range(n):
            to.scalars[k] = own[k]
        to.scalars[n] = self.sign * grad_scale
        to.scalars[n + 1] = self.weight_decay
        to.scalars[n + 2] = self.decay
        to.random_key = random_key_of(self.seed, t)
        return 0

    def scalars(self, t):
        """All scalars of step ``t``, in the kernel's order."""
        cdef fastopt_coefficients filled
        self.resolved_for = -1
        self.ask(-2, t - 1)
        self.fill(&filled, t, 1.0)
        return tuple([filled.scalars[k] for k in range(self.scalar_count + len(COMMON_SCALARS))])


cdef bint are_numbers(object value, object before, tuple bounds):
    """Whether an option is a number in its bounds, or a tuple of such, and was one before."""
    cdef double number
    cdef Py_ssize_t k
    if type(value) is float and type(before) is float:
        number = value
        return <double>bounds[0] <= number <= <double>bounds[1]
    if type(value) is not tuple or type(before) is not tuple or type(bounds[0]) is not tuple:
        return False
    if len(<tuple>value) != len(bounds):
        return False
    for k in range(len(bounds)):
        if not are_numbers((<tuple>value)[k], (<tuple>before)[k], <tuple>bounds[k]):
            return False
    return True


cdef dict with_lr_factor(dict h):
    """Options as plain numbers, with the learning rate multiplied by the group's factor."""
    cdef PyObject *factor = PyDict_GetItem(h, "lr_factor")
    if factor == NULL:
        return h
    h = h.copy()
    h["lr"] = h["lr"] * <object>factor
    return h


cdef bint is_group_unchanged(object mapping, tuple items) noexcept:
    """Whether it is still a dict of the very keys and values that ``items`` has, key, value, key, value: much faster
    than to compare them."""
    cdef Py_ssize_t place = 0, n = 0
    cdef PyObject *key = NULL
    cdef PyObject *value = NULL
    if not PyDict_CheckExact(mapping) or 2 * len(<dict>mapping) != len(items):
        return False
    while PyDict_Next(mapping, &place, &key, &value):
        if key != <PyObject *>PyTuple_GET_ITEM(items, n) or value != <PyObject *>PyTuple_GET_ITEM(items, n + 1):
            return False
        n += 2
    return True


cpdef bint is_unchanged(object mappings, list items) noexcept:
    """The same of a list of dicts."""
    cdef Py_ssize_t k
    if type(mappings) is not list or len(<list>mappings) != len(items):
        return False
    for k in range(len(items)):
        if not is_group_unchanged((<list>mappings)[k], <tuple>items[k]):
            return False
    return True


cpdef bint are_same(list mine, list theirs) noexcept:
    """Whether two lists have the very same members in the same order: much faster than to compare these."""
    cdef size_t n = len(mine)
    return n == <size_t>len(theirs) and not (
        n and memcmp((<PyListObject *>mine).ob_item, (<PyListObject *>theirs).ob_item, n * sizeof(void *))
    )


cpdef tuple items_of(dict mapping):
    """The keys and values of a dict, for `is_unchanged`."""
    cdef tuple items = PyTuple_New(2 * len(mapping))
    cdef Py_ssize_t place = 0, n = 0
    cdef PyObject *key = NULL
    cdef PyObject *value = NULL
    while PyDict_Next(mapping, &place, &key, &value):
        Py_INCREF(<object>key)
        PyTuple_SET_ITEM(items, n, <object>key)
        Py_INCREF(<object>value)
        PyTuple_SET_ITEM(items, n + 1, <object>value)
        n += 2
    return items


# -- Changes -----------------------------------------------------------------------------------


cdef class Move:
    """A step of plain SGD along a state of a tensor, beside the step itself: p = p - lr * state.

    letter: the state's. group: of plain SGD, what the coefficients are taken of. t: the step whose random bits it
    rounds by.
    """

    cdef fastopt_tensor c
    cdef fastopt_coefficients coefficients
    cdef readonly Tensor tensor
    cdef readonly str letter
    cdef readonly object algorithm

    def __init__(self, Tensor tensor, str letter, Group group, int64_t t):
        self.tensor, self.letter, self.algorithm = tensor, letter, group.algorithm
        group.fill(&self.coefficients, t, 1.0)
        self.c.count = tensor.c.count
        self.c.call.size = tensor.c.call.size
        self.c.call.first_element = tensor.c.call.first_element
        self.c.call.buffers[0] = tensor.c.call.buffers[0]
        self.c.call.buffers[1] = cnp.PyArray_DATA(<cnp.ndarray>tensor.states[letter])
        self.c.call.coefficients = &self.coefficients
        self.c.itemsizes[0] = self.c.itemsizes[2] = tensor.c.itemsizes[0]
        self.c.itemsizes[1] = tensor.c.itemsizes[2]

    cdef void find_kernel(self, int isa) noexcept:
        cdef const fastopt_optimizer *row = table().isas[isa].optimizers
        cdef Tensor tensor = self.tensor
        cdef int format
        self.c.kernel = NULL
        if table().isas[isa].name != NULL:
            row += <size_t>list(TABLE).index(self.algorithm.formula)
            format = format_of[tensor.storage][tensor.state_storage][tensor.storage]
            self.c.kernel = row.kernels[format][0]
            stage_gradient(&self.c, isa, format, tensor.state_storage)


cdef class Change:
    """The changes that a call is about to make: put together while anything may still be refused.

    groups: tuples of a group's number, its dict as it was read (None: it is overwritten), its checked options and its
    `Group`. added_groups:
    checked options and `Group`s. added_tensors. states: tuples of a tensor and its new states. copies: tuples of an
    array and the values that it is to have. written: by key, the parameters among these, where the optimizer does not
    keep them. steps: tuples of a tensor and its number of steps. moves: `Move`s.
    numbers: tuples of a tensor and its numbers by letter. row_steps: tuples of a tensor and its `RowSteps`, or None.
    intervals: where any memory changes. unseen: what waits for
    keys that `update` has not seen. notes: what the author of the change wants to find again.
    """

    cdef public list groups, added_groups, added_tensors, states, copies, steps, moves, numbers, row_steps
    cdef public Intervals intervals
    cdef public dict notes, unseen, written
    cdef list mirrors  # pairs of a mirror and its parameter, see `Following.make_ready`
    cdef list items, added_items, added_dicts, replaced  # see `Plan.make_ready`

    def __init__(self):
        self.groups, self.added_groups, self.added_tensors = [], [], []
        self.states, self.copies, self.steps, self.moves, self.numbers, self.row_steps = [], [], [], [], [], []
        self.intervals = None
        self.notes, self.unseen, self.written, self.mirrors = {}, None, {}, []

    def give_to_added(self):
        """Gives the tensors that are added their states, numbers and steps: `update` prepares their first step before
        the change is made, and until then no other code refers to them."""
        cdef Tensor tensor
        added = set(self.added_tensors)
        for tensor, states in self.states:
            if tensor in added:
                tensor.take_states(states)
        for tensor, numbers in self.numbers:
            if tensor in added:
                tensor.take_numbers(numbers)
        for tensor, steps in self.steps:
            if tensor in added:
                tensor.steps = steps
        for tensor, row_steps in self.row_steps:
            if tensor in added:
                tensor.row_steps = row_steps
        self.states, self.numbers, self.steps, self.row_steps = [
            [entry for entry in entries if entry[0] not in added]
            for entries in (self.states, self.numbers, self.steps, self.row_steps)
        ]


cdef fastopt_kernel faster_kernel(
    const fastopt_optimizer *row, int format, size_t subset, Group group, fastopt_kernel kernel
) noexcept:
    """The kernel without weight decay, if there is one and it applies: the same bits, sooner."""
    cdef fastopt_kernel plain
    if row.plain_kernels == NULL or row.plain_kernels[format] == NULL or not group.has_no_decay():
        return kernel
    plain = row.plain_kernels[format][subset]
    return kernel if plain == NULL else plain
