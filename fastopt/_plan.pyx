# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One step: fetch the gradients, prepare what the kernels need, run them.

A `Plan` belongs to one optimizer. It holds the parameter groups as they were last checked and a `Tensor` for each
parameter. `Plan.step` checks all that it needs before the first write; from then on no Python code runs, so that an
exception, an interrupt or a signal handler finds a step that was made or was not made. All other changes are put
together in a `Change` first, by code that may fail, and take effect in `Plan.commit`, which cannot.
"""

from cpython.dict cimport PyDict_CheckExact, PyDict_GetItem, PyDict_Next
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM
from cpython.unicode cimport PyUnicode_Check
from cython.parallel cimport prange
from libc.math cimport INFINITY, isfinite, ldexp, sqrt
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, qsort
from libc.string cimport memcpy, memset, strcmp

cimport numpy as cnp

import sys

import numpy as np

from fastopt import arrays, orphans, reference, storage
from fastopt._kernels import COMMON_SCALARS, FORMATS, OPENMP, TABLE, openmp_places

from fastopt._kernels cimport (
    FASTOPT_FLOAT32, FASTOPT_MAX_BUFFERS, FASTOPT_STORAGES, FASTOPT_SUM_BLOCK, fastopt_call, fastopt_coefficients,
    fastopt_converter, fastopt_format, fastopt_isa, fastopt_kernel, fastopt_optimizer, flushes_denormal, forks, selected, table,
)
from fastopt._turns cimport Turns

cnp.import_array()

include "_work.pxi"
include "_tensor.pxi"
include "_change.pxi"
include "_orphans.pxi"
include "_sums.pxi"
include "_norms.pxi"
include "_function.pxi"


cdef struct Shared:  # by the tensors of one group that have made equally many steps
    fastopt_coefficients coefficients
    int64_t group, steps


cdef class Plan:
    """The steps of one optimizer. algorithm: what its class says of its formula. bounds: the least and the largest
    value of each option that is a number."""

    cdef:
        readonly object algorithm
        readonly list groups, tensors
        readonly dict place  # of each key among the tensors
        readonly dict unseen  # states for keys that `update` has not seen yet, see `fastopt.unseen`
        readonly list bound  # the gradients that `bind` was given, or None
        object bound_in  # the list or dict that they were in
        tuple bound_members  # what it had
        public object accumulated  # see `fastopt.accumulation`, or None
        public bint is_function  # it makes one call of a function, for arrays that the caller owns
        bint has_rounded  # whether the warning about gradients of float64 has been given
        readonly Intervals intervals
        readonly bint keeps_params  # else they are handed over at each call of `update`
        readonly Change last_move  # what `move` made, until a step or a state that is loaded takes its place
        readonly Work work
        Factors factors
        Norms norms
        fastopt_coefficients *own_coefficients  # of each tensor, where each gradient has a factor of its own
        size_t own_capacity
        dict bounds  # of the options that are numbers, by name
        list items  # the groups' dicts as they were last checked, for `is_unchanged`
        Turns turns
        bint has_flags
        int64_t calls
        size_t row  # of the formula, in every instruction set's table
        # what the last step left for the next one
        list selected  # the tensors of the step
        char *has_gradient  # of the selected ones
        bint is_assigned  # whether coefficients, kernels and tasks are those for the selected gradients
        int assigned_isa
        Shared *shared
        Py_ssize_t shared_count, capacity
        Intervals call_intervals  # the parameters that the last call of `update` was handed, else None
        Intervals handed_over  # for `call_intervals`

    def __init__(self, algorithm, Turns turns, tuners, bint keeps_params=True, dict bounds={}):
        self.bounds = bounds
        self.algorithm, self.turns, self.work, self.keeps_params = algorithm, turns, Work(tuners), keeps_params
        self.groups, self.tensors, self.items, self.place, self.unseen = [], [], [], {}, {}
        self.bound = None
        self.selected = self.tensors
        self.has_flags = bool(algorithm.flags)
        self.intervals = Intervals([], algorithm.states)
        self.handed_over = Intervals([], algorithm.states)
        self.row = list(TABLE).index(algorithm.formula)
        self.factors = Factors(TABLE[algorithm.formula])
        self.norms = Norms()

    def __dealloc__(self):
        free(self.has_gradient)
        free(self.shared)
        free(self.own_coefficients)

    # -- Changes: prepared in Python, made here --

    def is_unedited(self, param_groups):
        """Whether the groups are as they were last checked."""
        return is_unchanged(param_groups, self.items)

    def edited(self, list param_groups):
        """The numbers of the groups that were edited since they were last checked."""
        return [
            index for index, items in enumerate(self.items) if not is_group_unchanged(param_groups[index], items)
        ]

    def commit(self, object param_groups, Change change):
        """Makes a change: no Python code runs in here, and nothing is refused.

        param_groups: the user's list of dicts. An option whose plain form is another object is replaced there,
        unless the user has edited it since it was read.
        """
        self.make_ready(param_groups, change)
        self._commit(param_groups, change)
        if change.added_tensors:
            self.release()

    cdef int make_ready(self, object param_groups, Change change) except -1:
        """Makes what `_commit` would have to make, and keeps alive what it replaces: what dies may run Python code."""
        self.reserve(len(self.tensors) + len(change.added_tensors))
        change.items = [items_of(checked) for _, _, checked, _ in change.groups]
        change.added_items = [items_of(checked) for checked, _ in change.added_groups]
        change.added_dicts = [dict(checked) for checked, _ in change.added_groups]
        change.replaced = [self.bound, self.intervals, [tensor.states for tensor, _ in change.states]]
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
        if change.steps or change.moves:
            self.last_move = change if change.moves and not change.steps else None
        if change.unseen is not None:
            self.unseen = change.unseen
        if change.intervals is not None:
            self.intervals = change.intervals
            for tensor in self.tensors:
                tensor.disjoint = NULL
        if change.added_tensors:
            self.unbind()
        elif change.states and self.bound is not None:
            self.take_bound()  # the formats may be others
        self.is_assigned = False
        return 0

    cdef int reserve(self, Py_ssize_t count) except -1:
        """Makes room for so many tensors."""
        cdef char *has_gradient
        cdef Shared *shared
        if count <= self.capacity:
            return 0
        count = max(count, 2 * self.capacity)
        has_gradient = <char *>calloc(count, sizeof(char))
        shared = <Shared *>calloc(count, sizeof(Shared))
        if has_gradient == NULL or shared == NULL:
            free(has_gradient)
            free(shared)
            raise MemoryError
        if self.capacity:  # C leaves undefined what memcpy does with NULL, even for 0 bytes
            memcpy(has_gradient, self.has_gradient, self.capacity)
        free(self.has_gradient)
        free(self.shared)
        self.has_gradient, self.shared, self.capacity = has_gradient, shared, count
        self.is_assigned = False
        return 0

    # -- Gradients --

    cdef list listed(self, object grads):
        """Gradients in the parameters' order."""
        cdef list found
        cdef Tensor tensor
        if type(grads) is list:
            return grads
        if PyDict_CheckExact(grads) and len(<dict>grads) == len(self.tensors):
            found = []
            for tensor in self.tensors:
                if tensor.key not in <dict>grads:
                    break
                found.append((<dict>grads)[tensor.key])
            else:
                return found
        return arrays.listed(grads, [t.key for t in self.tensors], [t.label for t in self.tensors])

    cdef int select(self, list tensors) except -1:
        """Records whose gradients come next."""
        cdef Py_ssize_t i, n = len(tensors)
        if self.selected is tensors:
            return 0
        if len(self.selected) == n:
            for i in range(n):
                if <PyObject *>self.selected[i] != <PyObject *>tensors[i]:
                    break
            else:
                return 0
        self.reserve(n)
        self.selected = tensors
        self.is_assigned = False
        return 0

    cdef int take_gradients(self, list grads, bint is_bound=False) except -1:
        """Checks the gradients of the selected tensors and takes their pointers."""
        cdef Py_ssize_t i
        cdef Tensor tensor
        cdef bint has_gradient
        if len(grads) != len(self.selected):
            arrays.refuse_count(len(grads), len(self.selected))
        for i in range(len(self.selected)):
            if i >= len(grads):  # it is the user's own
                raise ValueError("gradients: the list became shorter while it was read; leave it alone in a step")
            grad = grads[i]
            tensor = <Tensor>self.selected[i]
            has_gradient = grad is not None
            if has_gradient != self.has_gradient[i]:
                self.has_gradient[i] = has_gradient
                self.is_assigned = False
            if has_gradient:
                if tensor.take_gradient(grad, is_bound, self.intervals, self.call_intervals) and not self.has_rounded:
                    if self.is_function:
                        arrays.refuse_gradient_dtype(tensor.label, tensor.dtype, np.asarray(grad), grad)
                    arrays.warn_of_rounding(tensor.label)
                    self.has_rounded = True
                if tensor.c.kernel == NULL:
                    self.is_assigned = False
        return 0

    cdef int take_bound(self) except -1:
        """Takes the bound gradients again, which were checked when they were bound."""
        self.select(self.tensors)
        return self.take_gradients(self.bound)

    cdef void release(self) noexcept:
        """Drops the references to the gradients."""
        cdef Tensor tensor
        for tensor in self.selected:
            tensor.gradient = None

    cdef void unbind(self) noexcept:
        self.bound = self.bound_in = self.bound_members = None

    cdef int check_bound(self) except -1:
        """Refuses a step where the user has put another array into the list or dict that was bound."""
        cdef bint is_same = True
        cdef Py_ssize_t i
        if PyDict_CheckExact(self.bound_in):
            is_same = is_group_unchanged(self.bound_in, self.bound_members)
        elif type(self.bound_in) is list:
            is_same = len(<list>self.bound_in) == len(self.bound_members)
            for i in range(len(self.bound_members)):
                is_same = is_same and (
                    <PyObject *>(<list>self.bound_in)[i] == <PyObject *>PyTuple_GET_ITEM(self.bound_members, i)
                )
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
        grads = self.listed(grads)
        self.select(self.tensors)
        try:
            self.take_gradients(grads)
            for i in range(len(self.tensors)):
                tensor = <Tensor>self.tensors[i]
                found.append(tensor.gradient if self.has_gradient[i] else None)
            return found
        finally:
            self.release()

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
        bound_in = grads
        try:
            members = items_of(grads) if PyDict_CheckExact(grads) else tuple(grads) if type(grads) is list else None
            grads = self.listed(grads)
            self.select(self.tensors)
            self.take_gradients(grads, is_bound=True)
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

    # -- Preparing a step --

    cdef int assign(self, int isa, list moves=None) except -1:
        """Finds out which tensors share coefficients and the kernel of each, and cuts the work into tasks."""
        cdef Py_ssize_t i, place
        cdef size_t subset = 0
        cdef int format
        cdef const fastopt_kernel *const *kernels = NULL  # stays so for the NumPy twin
        cdef Tensor tensor
        cdef Move move
        cdef Shared *shared = NULL
        cdef dict places = None
        self.is_assigned = False
        self.work.begin(len(self.selected) + (len(moves) if moves is not None else 0))
        if table().isas[isa].name != NULL:
            kernels = table().isas[isa].optimizers[self.row].kernels
        self.shared_count = 0
        for i in range(len(self.selected)):
            if not self.has_gradient[i]:
                continue
            tensor = <Tensor>self.selected[i]
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
                subset = (<Group>self.groups[tensor.group]).subset
            tensor.c.call.coefficients = &shared.coefficients
            tensor.c.kernel = NULL
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
        self.work.cut()
        self.is_assigned, self.assigned_isa = moves is None, isa
        return 0

    cdef int fill_coefficients(self, double grad_scale) except -1:
        cdef Py_ssize_t k, i
        cdef Shared *shared
        cdef Group group
        cdef int64_t clock = -1
        self.calls += 1
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
        return 0

    # -- A step --

    cdef int take_edits(self, optimizer) except -1:
        """Checks groups that were edited since the last call."""
        cdef Py_ssize_t i
        cdef list changed
        param_groups = optimizer.param_groups
        if is_unchanged(param_groups, self.items):
            return 0
        if type(param_groups) is list and len(<list>param_groups) == len(self.items) and not self.has_flags:
            changed = []
            for i in range(len(self.items)):
                mine = (<list>param_groups)[i]
                if not is_group_unchanged(mine, <tuple>self.items[i]):
                    items = items_of(<dict>mine) if type(mine) is dict else ()  # before any Python code runs
                    group = (<Group>self.groups[i]).with_numbers(mine, <tuple>self.items[i], self.bounds)
                    if group is None:  # more than a number has changed
                        optimizer._take_edits()
                        return 0
                    changed.append((i, group, items))
            for i, group, items in changed:
                if (<Group>group).has_no_decay() != (<Group>self.groups[i]).has_no_decay():
                    self.is_assigned = False  # another kernel
                self.groups[i], self.items[i] = group, items
            return 0
        optimizer._take_edits()
        return 0

    def step(self, optimizer, object grads, double grad_scale, Clipping clipping=None):
        """One update of every parameter that has a gradient; grads: a list or dict, or None for the bound ones."""
        self.turns.enter()
        try:
            self.take_edits(optimizer)
            self.look_for_orphans()
            self.make_step(optimizer, grads, grad_scale, clipping)
            return self.norms.total if clipping is not None and clipping.needs_norm else None
        finally:
            self.turns.leave()

    cdef int look_for_orphans(self) except -1:
        """In steps 1, 2, 4, 8, … : what is looked at ever more seldom costs nothing."""
        cdef Tensor tensor
        if self.calls & (self.calls + 1) or not self.keeps_params or self.is_function:
            return 0
        found = orphans_of(self.tensors)
        if found:
            orphans.warn_of_orphans([tensor.label for tensor in found])
            for tensor in found:
                tensor.is_known_orphan = True
        return 0

    cdef int make_step(self, optimizer, object grads, double grad_scale, Clipping clipping) except -1:
        cdef Change change = None
        cdef int team, isa = selected()
        cdef bint is_made = False, is_mean = grads is None and self.bound is None and self.accumulated is not None
        try:
            if is_mean:
                grads = self.accumulated.mean(len(self.tensors))
            if grads is not None:
                grads = self.listed(grads)
                self.select(self.tensors)
                self.take_gradients(grads)
            elif self.bound is None:
                raise TypeError("step() needs gradients: pass a list or a dict, or name buffers with bind()")
            else:
                self.check_bound()
            if not self.keeps_params:
                arrays.refuse_step_without_params()
            if self.has_flags:
                change = optimizer._change_in_step(
                    [self.has_gradient[i] != 0 for i in range(len(self.tensors))]
                )
            param_groups = optimizer.param_groups
            team = self.prepare(param_groups, isa, grad_scale, change, clipping)
            is_made = True
            self.write(param_groups, change, isa, team, clipping)
            if grads is not None:
                self.unbind()
            if is_mean:
                self.accumulated = None
            self.work.end()
        except BaseException:
            if not is_made and grads is not None and self.bound is not None:
                self.take_bound()
            raise
        finally:
            if clipping is not None:
                self.forget(clipping)  # also after an exception
            if self.bound is None:
                self.release()
        return 0

    cdef int prepare(
        self, object param_groups, int isa, double grad_scale, Change change, Clipping clipping
    ) except -1:
        """Everything that may still be refused; returns the number of threads."""
        cdef Tensor tensor
        cdef Py_ssize_t i
        cdef int team = 1
        cdef bint is_native = table().isas[isa].name != NULL
        for i in range(len(self.selected)):
            if self.has_gradient[i]:
                (<Tensor>self.selected[i]).refuse_read_only()
        if change is not None:
            for tensor in self.tensors:  # it may move parameters that have no gradient
                tensor.refuse_read_only()
            self.make_ready(param_groups, change)
        if change is not None or not self.is_assigned or self.assigned_isa != isa:
            self.assign(isa, None if change is None else change.moves)
        if is_native:
            team = self.work.choose_team()
        if clipping is not None:
            grad_scale = self.prepare_gradients(isa, team, grad_scale, clipping)
        self.fill_coefficients(grad_scale)
        if clipping is not None and clipping.needs_norm and not self.norms.are_factors_equal:
            self.give_own_coefficients()
        if self.factors.is_needed:
            self.prepare_factors(isa, team)
        return self.work.make_ready(team) if is_native else 1

    cdef list stepping(self):
        """The tensors that have a gradient."""
        cdef Py_ssize_t i
        return [self.selected[i] for i in range(len(self.selected)) if self.has_gradient[i]]

    cdef double prepare_gradients(self, int isa, int team, double grad_scale, Clipping clipping) except? -1:
        """Norms and clipping; returns what the kernels still have to multiply all gradients by."""
        cdef list tensors = self.stepping()
        cdef Tensor tensor
        if clipping.needs_norm:
            self.norms.measure(tensors, isa, team, clipping, grad_scale)
        if clipping.zero_grads:
            arrays.refuse_zeroing([(tensor.label, tensor.gradient) for tensor in tensors])
        self.is_assigned = False  # what follows holds for this call alone
        for tensor in tensors:
            tensor.c.zero_gradient = clipping.zero_grads
            if clipping.max_value is not None:
                clip_on_its_way(&tensor.c, isa, tensor.storage, tensor.gradient_storage, grad_scale, clipping.max_value)
        if clipping.max_value is not None:
            grad_scale = 1.0
        if clipping.needs_norm and self.norms.are_factors_equal and tensors:
            grad_scale *= self.norms.factors[0]
        return grad_scale

    cdef int give_own_coefficients(self) except -1:
        """Gives each tensor coefficients of its own, because each gradient has a factor of its own."""
        cdef list tensors = self.stepping()
        cdef Tensor tensor
        cdef size_t i, n = len(tensors)
        cdef Py_ssize_t grad_scale = len(TABLE[self.algorithm.formula]["scalars"]) - len(COMMON_SCALARS)
        if n > self.own_capacity:
            free(self.own_coefficients)
            self.own_capacity = 0
            self.own_coefficients = <fastopt_coefficients *>calloc(2 * n, sizeof(fastopt_coefficients))
            if self.own_coefficients == NULL:
                raise MemoryError
            self.own_capacity = 2 * n
        for i in range(n):
            tensor = <Tensor>tensors[i]
            self.own_coefficients[i] = tensor.c.call.coefficients[0]
            self.own_coefficients[i].scalars[grad_scale] *= self.norms.factors[i]
            tensor.c.call.coefficients = &self.own_coefficients[i]
        return 0

    cdef int prepare_factors(self, int isa, int team) except -1:
        """The formula's own sums, and what `Algorithm.prepare` makes of them."""
        cdef Factors factors = self.factors
        cdef Tensor tensor
        cdef Py_ssize_t i, count = 0
        cdef dict members = {}, places = {}
        factors.reserve(len(self.selected))
        if factors.n_sums:
            factors.sums.begin(len(self.selected), factors.n_sums)
        for i in range(len(self.selected)):
            if not self.has_gradient[i]:
                continue
            tensor = <Tensor>self.selected[i]
            members.setdefault(tensor.group, []).append(tensor)
            places.setdefault(tensor.group, []).append(count)
            if factors.n_sums:
                self.add_sums(isa, tensor, count)
            tensor.c.call.factors = &factors.factors[count * factors.n_factors] if factors.n_factors else NULL
            count += 1
        if factors.n_sums and table().isas[isa].name != NULL:
            factors.sums.run(team)
        for group in members:
            factors.ask(<Group>self.groups[group], members[group], places[group])
        return 0

    cdef int add_sums(self, int isa, Tensor tensor, Py_ssize_t place) except -1:
        """Adds a tensor to those that are summed up; the twin sums it up at once."""
        cdef Group group = <Group>self.groups[tensor.group]
        cdef Py_ssize_t k
        if table().isas[isa].name != NULL:
            self.factors.sums.add(
                &tensor.c,
                table().isas[isa].optimizers[self.row].sum_kernels[tensor.format][group.subset],
            )
            return 0
        scalars, states, grad = self.twin_arguments(tensor)
        sums = reference.total(
            storage.sums(self.algorithm, tensor.now, grad, states, scalars, self.factors.n_factors)
        )
        for k in range(self.factors.n_sums):
            self.factors.sums.totals[place * self.factors.n_sums + k] = sums[k]
        return 0

    cdef int write(self, object param_groups, Change change, int isa, int team, Clipping clipping) except -1:
        """Makes the prepared step. No Python code runs in here, but for the twins'."""
        cdef Py_ssize_t i, place = 0
        cdef Tensor tensor
        if clipping is not None and clipping.skip_nonfinite and not self.norms.is_finite:
            self.skip(isa, team, clipping)
            return 0
        if change is not None:
            self._commit(param_groups, change)
        for i in range(len(self.selected)):
            if self.has_gradient[i]:
                tensor = <Tensor>self.selected[i]
                tensor.steps += 1
                if self.factors.n_numbers:
                    memcpy(
                        tensor.numbers, &self.factors.numbers[place * self.factors.n_numbers],
                        self.factors.n_numbers * sizeof(double),
                    )
                place += 1
        for i in range(self.shared_count):
            self.shared[i].steps += 1
        if table().isas[isa].name == NULL:
            self.run_twins(None if change is None else change.moves, clipping)
        else:
            self.work.run(team)
        return 0

    cdef int skip(self, int isa, int team, Clipping clipping) except -1:
        """What is left of a step that is skipped: zeros in the gradients, if they were asked for."""
        cdef Tensor tensor
        for tensor in self.stepping():
            tensor.c.kernel = NULL
            if table().isas[isa].name == NULL and clipping.zero_grads:
                tensor.gradient[...] = 0
        if table().isas[isa].name != NULL and clipping.zero_grads:
            self.work.run(team)
        return 0

    cdef void forget(self, Clipping clipping) noexcept:
        """Ends what held for one call alone."""
        cdef Tensor tensor
        for tensor in self.selected:
            tensor.c.zero_gradient = False
        self.is_assigned = False

    cdef tuple twin_arguments(self, Tensor tensor):
        """What a twin takes: scalars, states and the gradient."""
        used = self.algorithm.letters((<Group>self.groups[tensor.group]).h)
        states = [tensor.states[x] if x in used else None for x in tensor.letters]
        # a callable may have given the gradient another shape since it was checked
        grad = tensor.gradient.reshape(tensor.shape)
        if tensor.c.stage_limit != INFINITY and tensor.c.stage_limit:
            grad = storage.clipped(grad, tensor.c.stage_scale, tensor.c.stage_limit)
        return scalars_of(tensor.c.call.coefficients, self.algorithm), states, grad

    cdef int run_twins(self, list moves, Clipping clipping) except -1:
        """The same as the kernels do, by the NumPy twins, tensor by tensor."""
        cdef Tensor tensor
        cdef Move move
        cdef Py_ssize_t i, place = 0
        cdef bint flushes = flushes_denormal()
        cdef uint64_t mode = fastopt_flush_subnormals() if flushes else 0
        try:
            for i in range(len(self.selected)):
                if self.has_gradient[i]:
                    tensor = <Tensor>self.selected[i]
                    scalars, states, grad = self.twin_arguments(tensor)
                    if clipping is not None and clipping.zero_grads:
                        grad = grad.copy()
                        tensor.gradient[...] = 0
                    storage.update(
                        self.algorithm, tensor.now, grad, states, scalars,
                        tensor.c.call.coefficients.random_key, tensor.c.call.first_element, self.factors.of(place),
                    )
                    place += 1
            for move in moves or ():
                tensor = move.tensor
                storage.update(
                    move.algorithm, tensor.now, tensor.states[move.letter], [None],
                    scalars_of(&move.coefficients, move.algorithm), move.coefficients.random_key,
                    tensor.c.call.first_element,
                )
        finally:
            if flushes:
                fastopt_set_floating_mode(mode)
        return 0

    def move(self, optimizer, Change change):
        """Makes the moves of a change, and the change, as a step that no parameter has a gradient in."""
        cdef int team, isa = selected()
        self.select(self.tensors)
        if self.capacity:
            memset(self.has_gradient, 0, self.capacity)
        try:
            param_groups = optimizer.param_groups
            team = self.prepare(param_groups, isa, 1.0, change, None)
            self.write(param_groups, change, isa, team, None)
            self.work.end()
        finally:
            self.is_assigned = False
            if self.bound is not None:
                self.take_bound()

    # -- A step on arrays that are handed over --

    def update(self, optimizer, object params, object grads, double grad_scale, Clipping clipping=None):
        """One update of the parameters of this call; see `fastopt.Optimizer.update`."""
        self.turns.enter()
        try:
            self.take_edits(optimizer)
            self.make_update(optimizer, params, grads, grad_scale, clipping)
            return self.norms.total if clipping is not None and clipping.needs_norm else None
        finally:
            self.turns.leave()

    cdef int make_update(
        self, optimizer, object params, object grads, double grad_scale, Clipping clipping
    ) except -1:
        cdef Change change = None
        cdef Tensor tensor
        cdef int team, isa = selected()
        cdef bint is_made = False, is_by_name = PyDict_CheckExact(params) and PyDict_CheckExact(grads)
        cdef Py_ssize_t i
        try:
            if not is_by_name and not (type(params) is list and type(grads) is list):
                params, grads = arrays.handed_over(params, grads)
                is_by_name = type(params) is dict
            arrays_in_order = self.take_params(params, is_by_name, None)
            if arrays_in_order is None:  # there are new names
                change = optimizer._joining(params)
                arrays_in_order = self.take_params(params, is_by_name, change.added_tensors)
            if is_by_name:
                grads = self.gradients_by_name(grads)
            self.take_gradients(grads)
            param_groups = optimizer.param_groups
            team = self.prepare(param_groups, isa, grad_scale, change, clipping)
            is_made = True
            self.write(param_groups, change, isa, team, clipping)
            if self.keeps_params:
                self.keep_params(param_groups, arrays_in_order, change is not None)
            self.unbind()
            self.work.end()
        finally:
            if clipping is not None:
                self.forget(clipping)  # also after an exception
            for tensor in self.selected:
                tensor.gradient = None
                tensor.release_param(self.keeps_params)
            self.call_intervals = None
            if not is_made and change is not None:
                self.select([])  # names that have not joined
            if not is_made and self.bound is not None:
                self.take_bound()
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
        if len(self.tensors) + (len(joining) if joining is not None else 0) > self.capacity:
            self.reserve(len(self.tensors) + len(joining))
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

    cdef int keep_params(self, object param_groups, list given, bint have_joined) except -1:
        """Keeps the arrays that were handed over in the place of those that were kept."""
        cdef Tensor tensor
        cdef Py_ssize_t i
        cdef set changed = set()
        for i in range(len(self.selected)):
            tensor = <Tensor>self.selected[i]
            if have_joined or tensor.given is not given[i]:
                changed.add(tensor.group)
            tensor.keep_param(given[i])
        for group in changed:
            self.replace_params(param_groups, group, tuple([t.given for t in self.tensors if t.group == group]))
        if changed:
            self.intervals = self.intervals.with_params_of(self.tensors)
        return 0

    cdef int replace_params(self, object param_groups, Py_ssize_t index, tuple params) except -1:
        """Puts the arrays of a group into the group and into the user's dict."""
        cdef Group group = <Group>self.groups[index]
        cdef tuple items = <tuple>self.items[index]
        before = group.h["params"]
        group.h["params"] = params
        self.items[index] = tuple([params if item is before else item for item in items])
        if type(param_groups) is list and index < len(<list>param_groups):
            mine = (<list>param_groups)[index]
            if type(mine) is dict and (<dict>mine).get("params") is before:
                (<dict>mine)["params"] = params
        return 0


cdef list scalars_of(const fastopt_coefficients *coefficients, algorithm):
    return [coefficients.scalars[k] for k in range(len(TABLE[algorithm.formula]["scalars"]))]
