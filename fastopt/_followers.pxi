# Arrays that a step writes after the parameters: averages, Lookahead, mirrors. Included by _plan.pyx.


@cython.final
cdef class Progress:
    """How far the trails of one follower are that are always in the same steps. See `Trail`."""

    cdef:
        int64_t steps
        double share, next_share
        bint is_due, is_copy  # in the step that is prepared
        fastopt_coefficients coefficients  # likewise

    def __init__(self, int64_t steps, double share):
        self.steps, self.share = steps, share


@cython.final
cdef class Trail:
    """The array of one parameter that a follower writes.

    steps: how many the parameter has been in. share: the part of the average that does not come from its first value,
    1 - the product of the decays. is_filled: whether the array has values before the first step.
    """

    cdef:
        readonly cnp.ndarray array
        int storage
        bint is_filled
        bint is_started  # it has the parameter's value from before the first step, where the row starts from that
        Progress progress  # shared with others: a step counts once for all of them

    def __init__(self, cnp.ndarray array, int64_t steps=0, double share=0.0, bint is_filled=True):
        self.array, self.storage, self.progress = array, storage_of(array), Progress(steps, share)
        self.is_filled = is_filled

    @property
    def has_values(self):
        return self.is_filled or self.progress.steps > 0

    @property
    def steps(self):
        return self.progress.steps

    @property
    def share(self):
        return self.progress.share


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
        bint writes_param
        uint64_t seed
        list progresses  # of the trails of the selected tensors

    def __init__(self, rule, uint64_t seed):
        self.rule, self.writes_param, self.seed, self.progresses = rule, rule.writes_param, seed, []
        self.row = None if rule.row is None else rule.row.encode()

    cdef int share_progress(self, Py_ssize_t place, list tensors) except -1:
        """Gives those of the tensors' trails that have been in equally many steps one `Progress`, which no other trail has.

        place: of this follower among all.
        """
        cdef Tensor tensor
        cdef PyObject *trail
        cdef Progress own, progress = None
        cdef dict found = {}
        for tensor in tensors:
            trail = (<PyListObject *>tensor.trails).ob_item[place]
            if <object>trail is None:
                continue
            own = (<Trail>trail).progress
            if progress is None or progress.steps != own.steps or progress.share != own.share:
                progress = Progress(own.steps, own.share)
                progress = found.setdefault((progress.steps, progress.share), progress)
            (<Trail>trail).progress = progress
        self.progresses = list(found.values())
        return 0

    cdef bint ask(self) except -1:
        """Asks the rule about the next step; returns whether it makes other passes than the last one."""
        cdef Progress progress
        cdef bint is_start, is_due, is_copy, are_others = False
        for progress in self.progresses:
            weight, progress.next_share = self.rule.weight(progress.steps, progress.share)
            progress.coefficients.scalars[0] = 0.0 if weight is None else weight
            progress.coefficients.random_key = random_key_of(self.seed, progress.steps + 1)
            is_due = weight is not None
            # a copy is exact also where there are infinities
            is_copy = self.row is None or (progress.coefficients.scalars[0] == 1.0 and not self.writes_param)
            is_start = self.writes_param and progress.steps == 0
            are_others = are_others or is_start or is_due != progress.is_due or is_copy != progress.is_copy
            progress.is_due, progress.is_copy = is_due, is_copy
        return are_others

    cdef int start(self, Tensor tensor, Trail trail) except -1:
        """Has a row that writes parameters start from those before the first step."""
        if self.writes_param and trail.progress.steps == 0:
            np.copyto(trail.array, storage.widened(tensor.now))
        return 0

    cdef int prepare(self, Tensor tensor, Trail trail, int isa) except -1:
        """Adds what the next step writes to the passes of a tensor."""
        cdef fastopt_pass *added = &tensor.passes[tensor.c.pass_count]
        if not trail.is_started:
            self.start(tensor, trail)
        if not trail.progress.is_due:
            return 0
        added.call.size = sizeof(fastopt_call)
        added.call.buffers[0] = tensor.c.call.buffers[0]
        added.call.buffers[2] = cnp.PyArray_DATA(trail.array)
        added.call.coefficients = &trail.progress.coefficients
        added.call.first_element = tensor.c.call.first_element
        added.itemsizes[0], added.itemsizes[2] = tensor.c.itemsizes[0], cnp.PyArray_ITEMSIZE(trail.array)
        if table().isas[isa].name != NULL:
            added.kernel = NULL
            if trail.progress.is_copy:
                added.converter = table().isas[isa].converters[tensor.storage * FASTOPT_STORAGES + trail.storage]
            else:
                added.kernel = self.found.kernels[format_of[tensor.storage][tensor.storage][trail.storage]][0]
        tensor.c.pass_count += 1
        return 0

    cdef int run_twin(self, Tensor tensor, Trail trail) except -1:
        storage.follow(
            None if trail.progress.is_copy else self.rule.twin, tensor.now, trail.array,
            trail.progress.coefficients.scalars[0], self.writes_param, trail.progress.coefficients.random_key,
            tensor.c.call.first_element,
        )
        return 0


cdef int write_mirrors(list pairs) except -1:
    """Copies parameters at once, each to its mirror, which has its order in memory; pairs: of mirror and parameter."""
    cdef cnp.ndarray mirror, param
    cdef int isa = selected()
    for mirror, param in pairs:
        if table().isas[isa].name == NULL:
            storage.follow(None, param, mirror, 0.0, False, 0, 0)
        else:
            table().isas[isa].converters[storage_of(param) * FASTOPT_STORAGES + storage_of(mirror)](
                cnp.PyArray_DATA(mirror), cnp.PyArray_DATA(param), cnp.PyArray_SIZE(param), 1.0, INFINITY
            )
    return 0


cdef class Following(Handover):
    """A `Handover` with followers, in the order of their making. Each tensor has a trail for each of them."""

    cdef:
        readonly list followers
        readonly object applied  # the average that the parameters are at the moment, or None
        readonly list training_values  # meanwhile, tuples of a parameter and a copy of its own values
        Intervals followed  # the memory of all trails; None until the next step needs it
        bint are_passes_ready  # whether the selected tensors' passes are those of the last step, and right for the next

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
            trail.progress, trail.is_filled, trail.is_started = Progress(steps, share), True, False
        self.are_passes_ready = False

    def write_mirrors(self, list pairs):
        """Copies parameters to their mirrors at once; pairs: of a mirror and its parameter."""
        write_mirrors(pairs)

    cdef int make_ready(self, object param_groups, Change change) except -1:
        cdef Tensor tensor
        cdef Follower follower
        if change.copies:
            self.refuse_while_applied()
            written = change.written
            if self.keeps_params:
                written = {tensor.key: tensor.param for tensor in self.tensors}
            change.mirrors = [
                pair for follower in self.followers if follower.row is None for pair in follower.rule.pairs(written)
            ]
        for tensor in change.added_tensors:
            make_room_for_passes(tensor, len(self.followers))
            while len(tensor.trails) < len(self.followers):
                tensor.trails.append((<Follower>self.followers[len(tensor.trails)]).rule.trail(tensor))
        return Handover.make_ready(self, param_groups, change)

    cdef int _commit(self, object param_groups, Change change) except -1:
        Handover._commit(self, param_groups, change)
        if change.added_tensors:
            self.followed = None
        if change.steps:  # the parameters may be others now
            for tensor in self.tensors:
                for trail in (<Tensor>tensor).trails:
                    if trail is not None:
                        (<Trail>trail).is_started = False
        write_mirrors(change.mirrors)
        return 0

    cdef int start_followers(self) except -1:
        """Has those that start from the parameters take these as they are, before they move ahead of a step."""
        cdef Follower follower
        cdef Tensor tensor
        cdef Py_ssize_t k
        for k, follower in enumerate(self.followers):
            for tensor in self.selected:
                if tensor.trails[k] is not None:
                    follower.start(tensor, tensor.trails[k])
                    (<Trail>tensor.trails[k]).is_started = True
        return 0

    cdef int refuse_while_applied(self) except -1:
        if self.applied is not None:
            raise RuntimeError(
                f"the parameters are those of {self.applied!r} at the moment; {self.applied.leave}"
            )
        return 0

    cdef int prepare_followers(self, int isa) except -1:
        """Finds out what the followers write in the next step."""
        cdef Follower follower
        cdef Py_ssize_t i, k
        cdef bint is_ready, are_others = False
        cdef PyObject **items = (<PyListObject *>self.selected).ob_item  # no references are counted: it is every step
        if self.followed is None:
            self.take_memory_of_trails(self.memory_of_trails([]))
        for i in range(len(self.selected)):
            self.refuse_shared_with_trails(<Tensor>items[i], self.has_gradient[i])
        is_ready = self.are_passes_ready
        self.are_passes_ready = False
        for k, follower in enumerate(self.followers):
            if follower.writes_param:
                self.refuse_read_only(without_gradient=True)
            if not is_ready:
                follower.share_progress(k, self.selected)
            are_others = follower.ask() or are_others
        if are_others or not is_ready:
            self.make_passes(isa)
        self.are_passes_ready = True
        return 0

    cdef int make_passes(self, int isa) except -1:
        """Has the kernels write what the followers have asked for."""
        cdef Tensor tensor
        cdef Follower follower
        cdef PyObject **trails
        cdef Py_ssize_t k
        for follower in self.followers:
            if follower.row is not None and table().isas[isa].name != NULL:
                follower.found = auxiliary_row(isa, follower.row)
        for tensor in self.selected:
            tensor.c.passes, tensor.c.pass_count = tensor.passes, 0
            trails = (<PyListObject *>tensor.trails).ob_item
            for k in range(len(self.followers)):
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
            self.are_passes_ready = False
        if has_gradient and (tensor.c.source != NULL or tensor.gradient_apart != tensor.c.call.buffers[1]):
            self.followed.refuse_gradient(tensor, tensor.gradient)
            tensor.gradient_apart = tensor.c.call.buffers[1] if tensor.c.source == NULL else NULL
        return 0

    cdef void count_followed(self) noexcept:
        """Counts the step that is being made."""
        cdef Follower follower
        cdef Progress progress
        for follower in self.followers:
            for progress in follower.progresses:
                progress.steps += 1
                progress.share = progress.next_share

    cdef void write_nothing(self) noexcept:
        """In a step that is skipped."""
        cdef Tensor tensor
        for tensor in self.selected:
            tensor.c.pass_count = 0

    cdef int run_twins_of_followers(self, Tensor tensor) except -1:
        cdef Py_ssize_t k
        for k in range(len(self.followers)):
            if tensor.trails[k] is not None and (<Trail>tensor.trails[k]).progress.is_due:
                (<Follower>self.followers[k]).run_twin(tensor, <Trail>tensor.trails[k])
        return 0


cdef int make_room_for_passes(Tensor tensor, size_t count) except -1:
    return grow(<void **>&tensor.passes, &tensor.pass_capacity, count, sizeof(fastopt_pass))


cdef class Applied:
    """The block in which the parameters have the values of an average. Entered and left in C, so that an interrupt finds
    it entered or not, and left or not.

    values: a function that returns tuples of a parameter's key, the parameter and its values.
    """

    cdef object optimizer, average, values
    cdef list before
    cdef dict written

    def __init__(self, optimizer, average, values):
        self.optimizer, self.average, self.values = optimizer, average, values

    def __enter__(self):
        cdef Turns turns = self.optimizer._turns
        cdef Following plan = self.optimizer._plan
        cdef Change change = Change()
        turns.enter()
        try:
            plan.refuse_while_applied()
            found = self.values()
            change.copies = [(array, values) for _, array, values in found]
            change.written = self.written = {key: array for key, array, _ in found}
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
            change.copies, change.written = self.before, self.written
            plan.applied, plan.training_values = None, []
            plan.commit(self.optimizer.param_groups, change)
            self.before = self.written = None
        finally:
            turns.leave()
        if interrupt is not None:
            raise interrupt
