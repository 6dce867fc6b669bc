"""What changes an optimizer besides its steps: each change is prepared here, then made at once by `Plan.commit`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastopt import arrays, checkpoint, option_names, options, unseen
from fastopt._kernels import TABLE
from fastopt._plan import Change, Group, Plan, Tensor, row_steps_of
from fastopt.algorithm import Algorithm, Hyper
from fastopt.arrays import Key, within
from fastopt.options import shown
from fastopt.parameters import as_params

if TYPE_CHECKING:
    from fastopt.optimizer import Handed


class Changing:
    """The part of `Optimizer` that prepares its changes, where they may still be refused.

    Parameters and groups that are added, edits of groups, and states that are loaded or needed.
    """

    if TYPE_CHECKING:
        algorithm: ClassVar[type[Algorithm]]
        defaults: Hyper
        param_groups: list[Hyper]
        _plan: Plan

    def _commit(self, change: Change) -> None:
        arrays.quietly(self._plan.commit, self.param_groups, change)

    def _change_to(self, state_dict: Mapping[str, Any], groups_now: Sequence[Hyper]) -> Change:
        """The changes that the load of a state dict makes."""
        change = Change()
        if not self._plan.keeps_params:
            state_dict, change.unseen = unseen.split(state_dict, self._plan, self._group_by_name(), type(self))
        groups, states, steps = checkpoint.read(
            state_dict, self._plan.tensors, groups_now, type(self), self._checked_group
        )
        for index, h in enumerate(groups):
            change.groups.append((index, None, h, self._group_of(f"group {index}: ", h)))
        self._start_from(change, groups, states, steps)
        return change

    def _start_from(
        self, change: Change, groups: Sequence[Hyper], states: Sequence[Mapping[str, Any]], steps: Sequence[int]
    ) -> None:
        """Adds to a change that the parameters have these states, by letter, and have made so many steps."""
        tensors = self._plan.tensors
        change.steps = list(zip(tensors, steps, strict=True))
        for tensor, taken, values in zip(tensors, steps, states, strict=True):
            first = self._first_numbers(groups[tensor.group])
            change.numbers.append((tensor, {x: float(values.get(x, first[x])) for x in first}))
            change.copies += self._vector_values(tensor, values, groups[tensor.group])
            change.row_steps.append((tensor, row_steps_of(values, taken)))
        self._need_states(change, dict(zip(tensors, states, strict=True)))

    def _take_edits(self) -> None:
        """Checks groups that were edited and makes the states that they newly need."""
        self._commit(self._edits())

    def _edits(self) -> Change:
        """The changes that the user's edits of the groups make."""
        change, plan = Change(), self._plan
        if plan.is_unedited(self.param_groups):
            return change
        self._refuse_edits_of_the_list()
        for index in plan.edited(self.param_groups):
            seen = dict(self.param_groups[index])
            before = plan.groups[index]
            self._refuse_edit_of_params(index, seen)
            h = self._checked_group(index, self._with_flags(index, seen))
            with within(f"group {index}"):
                self.algorithm.check_edit(h, before.h)
            change.groups.append((index, seen, h, self._group_of(f"group {index}: ", h)))
        self._need_states(change)
        return change

    def _groups_now(self) -> list[Hyper]:
        """Copies of the groups as the user may have edited them."""
        self._refuse_edits_of_the_list()
        found = []
        for index, group in enumerate(self.param_groups):
            self._refuse_edit_of_params(index, group)
            found.append(self._with_flags(index, group))
        return found

    def _refuse_edits_of_the_list(self) -> None:
        if not isinstance(self.param_groups, list) or len(self.param_groups) != len(self._plan.groups):
            raise ValueError("param_groups: groups cannot be added or removed by hand; use add_param_group")
        for index, group in enumerate(self.param_groups):
            if not isinstance(group, dict):
                raise TypeError(f"group {index}: expected a dict of options, got {shown(group)}; put it back")

    def _refuse_edit_of_params(self, index: int, group: Hyper) -> None:
        for name in "params", "names":
            if group.get(name) is not self._plan.groups[index].h.get(name):
                raise ValueError(
                    f"group {index}: its {name} are fixed; make a new optimizer or use add_param_group"
                )

    def _with_flags(self, index: int, group: Mapping[str, Any]) -> Hyper:
        """A copy of a group with the flags that hold: they are no options that a user edits."""
        return {**group, **{name: self._plan.groups[index].h[name] for name in self.algorithm.flags}}

    def _checked_group(self, index: int, h: Hyper) -> Hyper:
        besides = {"params", "names", *options.GROUP_DEFAULTS, *self.algorithm.flags}
        checked = option_names.check_all(type(self), h, besides, f"group {index}: ", own_keys=True)
        for name, option in options.group_options().items():
            if name in checked:
                checked[name] = option.check(checked[name], f"group {index}: ")
        with within(f"group {index}"):
            self.algorithm.check(checked)
        return checked

    @classmethod
    def _group_of(cls, place: str, h: Hyper) -> Group:
        """The form in which steps take checked options; place: put before an option's name in messages."""
        resolve = partial(cls._numbers, place)
        return Group(cls.algorithm, h, options.callable_options(cls, h), resolve, options.lost_in_float32(cls, h))

    @classmethod
    def _numbers(cls, place: str, h: Hyper, callables: Sequence[str], steps_taken: int) -> Hyper:
        """A copy of options in which callables have given way to their numbers after so many steps."""
        own = options.options_of(cls)
        return {**h, **{name: own[name].at(h[name], steps_taken, place) for name in callables}}

    def _with_groups(self, groups: Sequence[Mapping[str, Any]]) -> Change:
        """Groups that are added."""
        change, plan = Change(), self._plan
        members: list[tuple[Key, Any, int]] = []
        for group in groups:
            if not isinstance(group, Mapping):
                raise TypeError(
                    f"params: a group must be a dict, got {type(group).__name__}; pass arrays or groups, not both"
                )
            index = len(plan.groups) + len(change.added_groups)
            h = {**self.defaults, **group, **self.algorithm.flags}
            names, params = self._members(h, len(plan.tensors) + len(members))
            h = self._checked_group(index, h | {"params": tuple(params)})
            members += zip(names, params, [index] * len(params), strict=True)
            change.added_groups.append((h, self._group_of(f"group {index}: ", h)))
        if plan.keeps_params and not plan.tensors and not members:
            raise ValueError(
                "params: there is nothing to update; pass at least one array (an iterator gives them only once)"
            )
        self._check_new_names(members, change)
        self._add_members(change, members)
        return change

    def _members(self, h: Hyper, count: int) -> tuple[list[Key], list[Any]]:
        """The keys and arrays of a group of parameters; none where these are handed over later."""
        if self._plan.keeps_params:
            if "params" not in h:
                raise ValueError('params: missing from a parameter group; pass {"params": [...], ...}')
            return as_params(h["params"], count)
        if "params" in h:
            raise ValueError(
                "params: this optimizer gets its parameters at each update(params, grads); list "
                "their names instead: "
                '{"names": ["w", "b"], ...}'
            )
        if "names" in h:
            names = h["names"]
            if (
                isinstance(names, str)
                or not isinstance(names, Iterable)
                or not all(isinstance(x, str) for x in names)
            ):
                raise TypeError(f"names: expected a list of strings, got {shown(names)}")
            h["names"] = tuple(names)
        return [], []

    def _check_new_names(self, members: Sequence[tuple[Key, Any, int]], change: Change) -> None:
        plan = self._plan
        known = {} if plan.keeps_params else self._group_by_name()
        new = set()
        listed = [name for h, _ in change.added_groups for name in h.get("names", ())]
        for name in (*(key for key, _, _ in members), *listed):
            if name in plan.place or name in known or name in new:
                raise ValueError(f"{name!r}: the name of two parameters; give each its own")
            new.add(name)

    def _group_by_name(self) -> dict[str, int]:
        """For each name that a group lists, the number of the group."""
        return {name: i for i, group in enumerate(self._plan.groups) for name in group.h.get("names", ())}

    def _joining(self, params: Handed) -> Change:
        """Names, or positions, that `update` sees for the first time."""
        plan = self._plan
        if isinstance(params, Mapping):
            new: list[tuple[Key, Any]] = [
                (str(key) if isinstance(key, str) else key, param)  # no numpy.str_
                for key, param in params.items()
                if key not in plan.place
            ]
        else:
            new = list[tuple[Key, Any]](enumerate(params))[len(plan.tensors) :]
        for key, _ in new:
            if isinstance(params, Mapping) and not isinstance(key, str):
                arrays.refuse_name(key)
            known = plan.tensors[0].key if plan.tensors else next(iter(plan.unseen), key)
            if isinstance(known, str) != isinstance(key, str):
                arrays.refuse_mixture(isinstance(known, str))
        group_of, last = self._group_by_name(), len(plan.groups) - 1
        change = Change()
        self._add_members(change, [(key, param, group_of.get(str(key), last)) for key, param in new])
        change.give_to_added()
        return change

    def _add_members(self, change: Change, members: Sequence[tuple[Key, Any, int]]) -> None:
        """Adds parameters, by key and with the number of their group, and their states to a change."""
        plan = self._plan
        end = plan.tensors[-1].end_element if plan.tensors else 0
        for key, param, index in members:
            place = len(plan.tensors) + len(change.added_tensors)
            tensor = Tensor(self.algorithm, place, key, param, index, end)
            change.added_tensors.append(tensor)
            end = tensor.end_element
        # refused here, before states are made for what cannot be updated
        added = [(tensor, 0, tensor.param) for tensor in change.added_tensors if plan.keeps_params]
        change.intervals = plan.intervals.with_arrays([*plan.tensors, *change.added_tensors], added)
        waiting = {tensor: unseen.taken(plan.unseen, tensor, type(self)) for tensor in change.added_tensors}
        self._need_states(change, added={tensor: states for tensor, (states, _) in waiting.items()})
        groups = [*plan.groups, *(group for _, group in change.added_groups)]
        for tensor, (states, steps) in waiting.items():
            first = self._first_numbers(groups[tensor.group].h)
            change.numbers.append((tensor, {x: float(states.get(x, first[x])) for x in first}))
            for vector, values in self._vector_values(tensor, states, groups[tensor.group].h):
                vector[...] = values  # at once, because no other code refers to the new tensor yet
            if steps:
                change.steps.append((tensor, steps))
                change.row_steps.append((tensor, row_steps_of(states, steps)))
        keys = {tensor.key for tensor in change.added_tensors}
        if keys & plan.unseen.keys():
            change.unseen = {key: entry for key, entry in plan.unseen.items() if key not in keys}

    def _first_numbers(self, h: Hyper) -> dict[str, float]:
        """The first values of a parameter's NUMBERS."""
        first = self.algorithm.initial_states(h)
        return {letter: first.get(letter, 0.0) for letter in TABLE[self.algorithm.formula]["numbers"]}

    def _vector_values(
        self, tensor: Tensor, states: Mapping[str, Any], h: Hyper
    ) -> list[tuple[arrays.Array, arrays.Array]]:
        """The states of a parameter that have a shape of their own, each with what it is to hold."""
        first = self.algorithm.initial_states(h)
        return [
            (vector, np.array(states.get(letter, first.get(letter, 0.0)), np.float64))
            for letter, vector in tensor.vectors.items()
        ]

    def _need_states(
        self,
        change: Change,
        loaded: Mapping[Tensor, Mapping[str, Any]] | None = None,
        added: Mapping[Tensor, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        """Adds to a change the states that its groups need and that are not there, or of another dtype.

        loaded: the values that states are to have, for each parameter by letter; added: for those that are added.
        """
        groups: list[Group] = [*self._plan.groups, *(group for _, group in change.added_groups)]
        tensors: list[Tensor] = list(change.added_tensors)
        for tensor in tensors:
            options.refuse_lost(f"group {tensor.group}: ", groups[tensor.group], [tensor])
        edited = set()
        for index, _, _, group in change.groups:
            before, groups[index] = groups[index], group
            options.refuse_lost(f"group {index}: ", group, (t for t in self._plan.tensors if t.group == index))
            if before.subset != group.subset or before.h["state_dtype"] != group.h["state_dtype"]:
                edited.add(index)
        if loaded is not None:
            tensors = self._plan.tensors
        elif edited:
            tensors = [*(tensor for tensor in self._plan.tensors if tensor.group in edited), *tensors]
        missing_states: list[tuple[Tensor, list[str], np.dtype[Any]]] = []
        for tensor in tensors:
            h = groups[tensor.group].h
            values = added.get(tensor) if loaded is None else loaded[tensor]
            needed = self.algorithm.letters(h, tensor.shape)
            letters = [
                x for x in tensor.letters if x in needed or x in (tensor.states if values is None else values)
            ]
            dtype = arrays.state_dtype_of(tensor, h["state_dtype"])
            stays = all(state.dtype == dtype for state in tensor.states.values())
            missing = [x for x in letters if not stays or x not in tensor.states]
            if missing or len(tensor.states) != len(letters):
                missing_states.append((tensor, letters if not stays else missing, dtype))
                change.states.append((tensor, {x: tensor.states.get(x) for x in letters}))
        new = arrays.arena(
            [tensor for tensor, _, _ in missing_states],
            [dtype for _, _, dtype in missing_states],
            [{x: tensor.letters.index(x) for x in letters} for tensor, letters, _ in missing_states],
        )
        placed = []
        for (tensor, states), arrays_of in zip(change.states, new, strict=True):
            fill = self._initial_states(groups[tensor.group])
            for letter, array in arrays_of.items():
                if letter in added.get(tensor, ()):
                    arrays.quietly(np.copyto, array, added[tensor][letter], "unsafe")
                elif loaded is None and letter in tensor.states:
                    change.copies.append((array, tensor.states[letter]))
                elif fill.get(letter):
                    arrays.quietly(np.copyto, array, fill[letter], "unsafe")
                states[letter] = array
                placed.append((tensor, 2 + tensor.letters.index(letter), array))
        if loaded is not None:
            self._load_values(change, loaded, groups)
        if change.states:
            replaced = {tensor for tensor, _ in change.states if tensor.states}
            intervals = change.intervals or self._plan.intervals
            kept = [
                (tensor, 2 + tensor.letters.index(x), states[x])
                for tensor, states in change.states
                for x in states
                if states[x] is tensor.states.get(x)
            ]
            change.intervals = intervals.with_arrays(intervals.tensors, [*kept, *placed], replaced)

    def _initial_states(self, group: Group) -> dict[str, float]:
        """The first values of a group's states; a callable is asked for its first number only where it counts."""
        first = self.algorithm.initial_states(group.h)
        if any(callable(value) for value in first.values()):
            first = self.algorithm.initial_states(group.numbers_after(0))
        return first

    def _load_values(
        self, change: Change, loaded: Mapping[Tensor, Mapping[str, Any]], groups: Sequence[Group]
    ) -> None:
        """Adds the values of states to a change: they are copied when it is made, into the arrays that stay."""
        new = dict(change.states)
        for tensor, values in loaded.items():
            fill = self._initial_states(groups[tensor.group])
            for letter, array in new.get(tensor, tensor.states).items():
                value = values.get(letter)
                if value is None:
                    value = np.array(fill.get(letter, 0.0))
                elif self._plan.intervals.holds(value):
                    value = value.copy()  # it may be overwritten before its turn to be read comes
                change.copies.append((array, value))

    def _check_update(self) -> None:
        """Refuses `update` where only `step` can be made; for optimizers with flags."""

    def _change_in_step(
        self, tensors: Sequence[Tensor], has_gradient: Sequence[bool], change: Change | None
    ) -> Change | None:
        """The changes of a step besides the parameters that have a gradient; for optimizers with flags.

        tensors: those of the call. change: what the step changes otherwise.
        """
        return change
