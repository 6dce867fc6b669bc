# Arrays that a step writes after the parameters: averages, Lookahead, mirrors. Included by _plan.pyx.


@cython.final
cdef class Trail:
    """The array of one parameter that a follower writes.

    steps: how many the parameter has been in. share: the part of the average that does not come from its first value,
    1 - the product of the decays.
    """

    cdef:
        readonly cnp.ndarray array
        readonly int64_t steps
        readonly double share
        double next_share
        int storage
        bint is_due, is_copy  # in the step that is prepared
        const fastopt_coefficients *coefficients  # likewise

    def __init__(self, cnp.ndarray array, int64_t steps=0, double share=0.0):
        self.array, self.storage, self.steps, self.share = array, storage_of(array), steps, share


@cython.final
cdef class Follower:
    """What is written after the update of each parameter, task by task, while its elements lie in the core's cache.

    rule: the Python object that knows what. rule.row: a row of src_c/auxiliary.def, or None for a copy of the
    parameter. rule.writes_param: whether the row does. rule.weight(steps, share): of the step after so many, None
    where it changes nothing, and the next share. rule.twin(p, array, weight): the row in NumPy. rule.trail(tensor): the
    `Trail` of a parameter, or None.
    """

    cdef:
        readonly object rule
        bytes row
        const fastopt_optimizer *found  # the row, in the instruction set of the step
        bint writes_param, is_due, is_copy
        int64_t steps  # and share: those that the rule was asked about last
        double share, next_share
        uint64_t seed
        size_t asked  # how often in this step
        fastopt_coefficients *coefficients  # of each time; trails that have been in equally many steps share them
        size_t capacity

    def __init__(self, rule, uint64_t seed):
        self.rule, self.writes_param, self.seed = rule, rule.writes_param, seed
        self.row = None if rule.row is None else rule.row.encode()

    def __dealloc__(self):
        free(self.coefficients)

    cdef int begin(self, int isa, size_t count) except -1:
        """Begins a step of so many parameters."""
        self.asked = 0
        grow(<void **>&self.coefficients, &self.capacity, count, sizeof(fastopt_coefficients))
        if self.row is not None and table().isas[isa].name != NULL:
            self.found = auxiliary_row(isa, self.row)
        return 0

    cdef inline int ask(self, Trail trail) except -1:
        """Asks the rule once for all parameters that have been in equally many steps."""
        cdef fastopt_coefficients *coefficients
        if self.asked and self.steps == trail.steps and self.share == trail.share:
            return 0
        weight, next_share = self.rule.weight(trail.steps, trail.share)
        coefficients = &self.coefficients[self.asked]
        coefficients.scalars[0] = 0.0 if weight is None else weight
        coefficients.random_key = random_key_of(self.seed, trail.steps + 1)
        self.is_due, self.next_share = weight is not None, next_share
        # a copy is exact also where there are infinities
        self.is_copy = self.row is None or (coefficients.scalars[0] == 1.0 and not self.writes_param)
        self.steps, self.share = trail.steps, trail.share
        self.asked += 1
        return 0

    cdef int prepare(self, Tensor tensor, Trail trail, int isa) except -1:
        """Adds what the next step writes to the passes of a tensor."""
        cdef fastopt_pass *added = &tensor.passes[tensor.c.pass_count]
        self.ask(trail)
        trail.next_share, trail.is_due, trail.is_copy = self.next_share, self.is_due, self.is_copy
        trail.coefficients = &self.coefficients[self.asked - 1]
        if self.writes_param:
            if not tensor.is_writeable():
                arrays.refuse_read_only(tensor.label)
            if trail.steps == 0:  # it starts from the parameters before the first step
                np.copyto(trail.array, storage.widened(tensor.now))
        if not trail.is_due:
            return 0
        added.call.size = sizeof(fastopt_call)
        added.call.buffers[0] = tensor.c.call.buffers[0]
        added.call.buffers[2] = cnp.PyArray_DATA(trail.array)
        added.call.coefficients = trail.coefficients
        added.call.first_element = tensor.c.call.first_element
        added.itemsizes[0], added.itemsizes[2] = tensor.c.itemsizes[0], cnp.PyArray_ITEMSIZE(trail.array)
        if table().isas[isa].name != NULL:
            added.kernel = NULL
            if trail.is_copy:
                added.converter = table().isas[isa].converters[tensor.storage * FASTOPT_STORAGES + trail.storage]
            else:
                added.kernel = self.found.kernels[format_of[tensor.storage][tensor.storage][trail.storage]][0]
        tensor.c.pass_count += 1
        return 0

    cdef int run_twin(self, Tensor tensor, Trail trail) except -1:
        storage.follow(
            None if trail.is_copy else self.rule.twin, tensor.now, trail.array, trail.coefficients.scalars[0],
            self.writes_param, trail.coefficients.random_key, tensor.c.call.first_element,
        )
        return 0

    cdef int copy(self, Tensor tensor, Trail trail, int isa) except -1:
        """Copies a parameter at once."""
        if table().isas[isa].name == NULL:
            storage.follow(None, tensor.now, trail.array, 0.0, False, 0, 0)
            return 0
        table().isas[isa].converters[tensor.storage * FASTOPT_STORAGES + trail.storage](
            cnp.PyArray_DATA(trail.array), cnp.PyArray_DATA(<cnp.ndarray>tensor.param), tensor.c.count, 1.0, INFINITY
        )
        return 0


cdef class Following(Handover):
    """A `Handover` with followers, in the order of their making. Each tensor has a trail for each of them."""

    cdef:
        readonly list followers
        readonly object applied  # the average that the parameters are at the moment, or None
        readonly list training_values  # meanwhile, tuples of a parameter and a copy of its own values
        Intervals followed  # the memory of all trails; None until the next step needs it

    def __init__(self, algorithm, bint keeps_params, dict bounds, bint is_function):
        Handover.__init__(self, algorithm, keeps_params, bounds, is_function)
        self.followers, self.applied, self.training_values = [], None, []

    def follow(self, rule, uint64_t seed):
        """Adds a follower, and returns it."""
        cdef Follower follower = Follower(rule, seed)
        cdef Tensor tensor
        cdef list trails = [rule.trail(tensor) for tensor in self.tensors]
        followed = self.memory_of_trails([
            (tensor, -1, (<Trail>trail).array) for tensor, trail in zip(self.tensors, trails) if trail is not None
        ])
        for tensor in self.tensors:
            make_room_for_passes(tensor, len(self.followers) + 1)
        for tensor, trail in zip(self.tensors, trails):  # from here on nothing fails
            tensor.trails.append(trail)
        self.followers.append(follower)
        self.take_memory_of_trails(followed)
        self.is_assigned = False
        return follower

    cdef Intervals memory_of_trails(self, list added):
        """The memory of all trails and of others; refuses those that share any."""
        cdef Tensor tensor
        cdef Trail trail
        return Intervals(self.tensors, self.algorithm.states, None, added + [
            (tensor, -1, trail.array) for tensor in self.tensors for trail in tensor.trails if trail is not None
        ])

    cdef void take_memory_of_trails(self, Intervals followed) noexcept:
        cdef Tensor tensor
        self.followed = followed
        for tensor in self.tensors:
            tensor.param_apart = tensor.gradient_apart = NULL

    def unfollow(self, follower):
        """Takes a follower away."""
        cdef Tensor tensor
        cdef Py_ssize_t place = self.followers.index(follower)
        for tensor in self.tensors:
            tensor.trails.pop(place)
            tensor.c.pass_count = 0
        self.followers.pop(place)
        self.followed = None
        self.is_assigned = False

    def trails_of(self, follower):
        """By the parameters' keys, the trails of a follower."""
        cdef Tensor tensor
        cdef Py_ssize_t place = self.followers.index(follower)
        return {tensor.key: tensor.trails[place] for tensor in self.tensors}

    def load_trails(self, list entries):
        """entries: tuples of a trail and the values, steps and share that it is to have. No Python code runs in here."""
        cdef Trail trail
        cdef cnp.ndarray values
        for trail, values, steps, share in entries:
            cnp.PyArray_CopyInto(trail.array, values)
            trail.steps, trail.share = steps, share

    def copy_to(self, Follower follower):
        """Copies the parameters to the arrays of a follower at once."""
        cdef Tensor tensor
        cdef Py_ssize_t place = self.followers.index(follower)
        for tensor in self.tensors:
            if tensor.trails[place] is not None:
                follower.copy(tensor, tensor.trails[place], selected())

    cdef int make_ready(self, object param_groups, Change change) except -1:
        cdef Tensor tensor
        if change.copies:
            self.refuse_while_applied()
        for tensor in change.added_tensors:
            make_room_for_passes(tensor, len(self.followers))
            while len(tensor.trails) < len(self.followers):
                tensor.trails.append((<Follower>self.followers[len(tensor.trails)]).rule.trail(tensor))
        return Handover.make_ready(self, param_groups, change)

    cdef int _commit(self, object param_groups, Change change) except -1:
        cdef Follower follower
        Handover._commit(self, param_groups, change)
        if change.added_tensors:
            self.followed = None
        if change.copies:  # of parameters
            for follower in self.followers:
                if follower.row is None:
                    self.copy_to(follower)
        return 0

    cdef int refuse_while_applied(self) except -1:
        if self.applied is not None:
            raise RuntimeError(
                f"the parameters are those of {self.applied!r} at the moment; {self.applied.leave}"
            )
        return 0

    cdef int prepare_followers(self, int isa) except -1:
        """Finds out what the followers write in the next step."""
        cdef Tensor tensor
        cdef Follower follower
        cdef Py_ssize_t i, k, n = len(self.followers)
        cdef PyObject **items = (<PyListObject *>self.selected).ob_item  # no references are counted: it is every step
        cdef PyObject **trails
        if self.followed is None:
            self.take_memory_of_trails(self.memory_of_trails([]))
        for follower in self.followers:
            follower.begin(isa, len(self.selected))
        for i in range(len(self.selected)):
            tensor = <Tensor>items[i]
            trails = (<PyListObject *>tensor.trails).ob_item
            self.refuse_shared_with_trails(tensor, self.has_gradient[i])
            tensor.c.passes, tensor.c.pass_count = tensor.passes, 0
            for k in range(n):
                if <object>trails[k] is not None:
                    (<Follower>self.followers[k]).prepare(tensor, <Trail>trails[k], isa)
        return 0

    cdef int refuse_shared_with_trails(self, Tensor tensor, bint has_gradient) except -1:
        """Refuses a parameter or a gradient that lies in memory which a follower writes."""
        cdef Interval *other
        if tensor.param_apart != tensor.c.call.buffers[0]:
            other = self.followed.shared_with(tensor.now)
            if other != NULL:
                arrays.refuse_shared([(
                    (tensor.index, 0, tensor.label),
                    ((<Tensor>other.tensor).index, 1, (<Tensor>other.tensor).name_of(-1, None)),
                )])
            tensor.param_apart = tensor.c.call.buffers[0]
        if has_gradient and (tensor.c.source != NULL or tensor.gradient_apart != cnp.PyArray_DATA(tensor.gradient)):
            self.followed.refuse_gradient(tensor, tensor.gradient)
            tensor.gradient_apart = cnp.PyArray_DATA(tensor.gradient) if tensor.c.source == NULL else NULL
        return 0

    cdef void count_followed(self) noexcept:
        """Counts the step that is being made."""
        cdef Py_ssize_t i, k
        cdef PyObject **items = (<PyListObject *>self.selected).ob_item
        cdef PyObject **trails
        for i in range(len(self.selected)):
            trails = (<PyListObject *>(<Tensor>items[i]).trails).ob_item
            for k in range(len(self.followers)):
                if <object>trails[k] is not None:
                    (<Trail>trails[k]).steps += 1
                    (<Trail>trails[k]).share = (<Trail>trails[k]).next_share

    cdef void write_nothing(self) noexcept:
        """In a step that is skipped."""
        cdef Tensor tensor
        for tensor in self.selected:
            tensor.c.pass_count = 0

    cdef int run_twins_of_followers(self, Tensor tensor) except -1:
        cdef Py_ssize_t k
        for k in range(len(self.followers)):
            if tensor.trails[k] is not None and (<Trail>tensor.trails[k]).is_due:
                (<Follower>self.followers[k]).run_twin(tensor, <Trail>tensor.trails[k])
        return 0


cdef int make_room_for_passes(Tensor tensor, size_t count) except -1:
    return grow(<void **>&tensor.passes, &tensor.pass_capacity, count, sizeof(fastopt_pass))


cdef class Applied:
    """The block in which the parameters have the values of an average. Entered and left in C, so that an interrupt finds
    it entered or not, and left or not.

    values: a function that returns tuples of a parameter and its values.
    """

    cdef object optimizer, average, values
    cdef list before

    def __init__(self, optimizer, average, values):
        self.optimizer, self.average, self.values = optimizer, average, values

    def __enter__(self):
        cdef Turns turns = self.optimizer._turns
        cdef Following plan = self.optimizer._plan
        cdef Change change = Change()
        turns.enter()
        try:
            plan.refuse_while_applied()
            change.copies = self.values()
            self.before = [(array, array.copy(order="K")) for array, _ in change.copies]
            plan.commit(self.optimizer.param_groups, change)
            plan.applied, plan.training_values = self.average, self.before
        finally:
            turns.leave()

    def __exit__(self, *error):
        cdef Turns turns = self.optimizer._turns
        cdef Following plan = self.optimizer._plan
        cdef Change change = Change()
        interrupt = None
        while True:
            try:
                turns.enter()
                break
            except RuntimeError:
                raise
            except BaseException as found:  # while another thread has the turn: the parameters come first
                interrupt = found
        try:
            change.copies = self.before
            plan.applied, plan.training_values = None, []
            plan.commit(self.optimizer.param_groups, change)
            self.before = None
        finally:
            turns.leave()
        if interrupt is not None:
            raise interrupt
