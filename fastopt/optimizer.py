"""class Optimizer: the parameter groups, state, step and edits that all optimizers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from fastopt import arrays, checkpoint, docstrings, option_names, options, unseen
from fastopt._kernels import TABLE
from fastopt._plan import Change, Group, Plan, Tensor, row_steps_of
from fastopt._turns import Turns, exclusive, reading
from fastopt.accumulation import Accumulating
from fastopt.algorithm import Algorithm, Hyper
from fastopt.arrays import Array, Key, within
from fastopt.averages import Mirroring
from fastopt.copying import Copying
from fastopt.options import shown
from fastopt.parameters import as_groups, as_params
from fastopt.rows import UpdatingRows
from fastopt.settings import Settings, with_advice
from fastopt.step_options import StepOptions, takes_step_options
from fastopt.thread_tuner import ThreadTuners

if TYPE_CHECKING:
    from typing_extensions import Unpack

Params: TypeAlias = Iterable[Array] | Mapping[str, Array] | Iterable[Mapping[str, Any]]
Grads: TypeAlias = Sequence[Array | None] | Mapping[str, Array | None]
Handed: TypeAlias = Sequence[Array] | Mapping[str, Array]


class Optimizer(Settings, Accumulating, UpdatingRows, Mirroring, Copying):
    """Updates parameters in place; each subclass is one algorithm.

    params: arrays, float32, float64 or bfloat16 (ml_dtypes), native, writable, C- or Fortran-contiguous: a
    list, a dict by names, or a list of groups, dicts with ``"params"`` and hyper-parameters that differ from
    the defaults. Raises TypeError or ValueError, naming the parameter or the option, for all that cannot be
    updated.

    One call at a time: calls from other threads wait for their turn. Inside a call, a callable or a signal handler
    of the same thread may read (``state``, ``state_dict()``, ``repr``); a call that would change the optimizer
    raises RuntimeError there.
    """

    algorithm: ClassVar[type[Algorithm]]
    """The part that the author of an optimizer writes."""

    param_groups: list[Hyper]
    """Dicts with ``"params"`` and the hyper-parameters, which may be edited between steps."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__doc__ = docstrings.OptionsDocstring(vars(cls).get("__doc__") or "")  # type: ignore[assignment]
        if "__init__" in vars(cls):
            cls.__init__ = with_advice(vars(cls)["__init__"])  # type: ignore[method-assign]

    def __init__(self, params: Params | None, hyper: Mapping[str, Any]) -> None:
        # `hyper` is locals() of the subclass's __init__, so that its signature is the one list of options
        given = {name: value for name, value in hyper.items() if name not in {"self", "params", "__class__"}}
        self.defaults = {**option_names.check_all(type(self), given), **self.algorithm.flags}
        self.algorithm.check(self.defaults)
        self.param_groups = []
        self._turns = Turns()
        groups = [{}] if params is None else as_groups(params)
        keeps_params = params is not None and not any("names" in group for group in groups)
        self._plan = Plan(self.algorithm, self._turns, ThreadTuners(), keeps_params, options.bounds_of(type(self)))
        self._plan.commit(self.param_groups, self._with_groups(groups))

    # -- The methods that a user calls --

    @takes_step_options
    def step(self, grads: Grads | None = None, **options: Unpack[StepOptions]) -> float | None:
        """Updates every parameter that has a gradient, in place; all of them or, on an error, none.

        grads: for each parameter an array of its shape and dtype (or of 16 bits) in any layout, or None to
        leave the parameter, its state and its step alone: a list in the parameters' order or a dict by their
        names; omitted after `bind`. The other arguments act on the gradients in this order:

        grad_scale: every gradient is multiplied by it.
        max_value: elements are clipped to ±max_value (torch's clip_grad_value_).
        max_norm_each: each gradient is scaled down to this norm of its own, by torch's rule g * min(1, max / (norm +
        1e-6)) (Keras' clipnorm).
        max_norm: all gradients are scaled down to this norm of them all, by the same rule (torch's clip_grad_norm_).
        norm_type: 2 or infinity.
        skip_nonfinite: a step with an infinity or a NaN in any gradient changes nothing.
        zero_grads: zeros are written into the gradients after the step, also after one that is skipped.

        Returns the norm of all gradients after ``grad_scale`` and before any clipping if max_norm, max_norm_each or
        skip_nonfinite was asked for, else None. Not finite: with skip_nonfinite the step was skipped.
        """
        return self._plan.step(self, grads, options)

    @takes_step_options
    def update(self, params: Handed, grads: Grads, **options: Unpack[StepOptions]) -> float | None:
        """Updates parameters that are handed over at each call, in place; all of them or, on an error, none.

        params, grads: two lists in one order, or two dicts by the same names, never mixed. A dict may hold any of the
        names. The state belongs to the position or the name: it is made when that is first seen, and from then on
        the array must have the same shape and dtype, but may lie elsewhere. An optimizer that was made without
        parameters, ``Adam(lr=1e-3)``, keeps no reference to them; one that was made with parameters holds the new
        ones from then on. A new name joins the group that lists it, ``Adam([{"names": ["b"], "weight_decay": 0.0},
        {}])``, else the last. The other arguments, and what is returned, are those of `step`.
        """
        return self._plan.update(self, params, grads, options)

    @exclusive
    def bind(self, grads: Grads | None) -> None:
        """Registers gradient arrays that are overwritten in each iteration: from now on ``step()`` takes none.

        grads: as for `step`, each contiguous in its parameter's order; None ends it. So does a step that is given
        others, and `add_param_group`.
        """
        self._plan.bind(grads)

    @exclusive
    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters, with their own hyper-parameters: a dict as in ``params``."""
        self._take_edits()
        self._plan.commit(self.param_groups, self._with_groups([group]))

    @exclusive
    def reset(self) -> None:
        """Starts anew: states and step counters (and so schedules) as in a new optimizer; on an error nothing.

        Options and parameters stay; gradients that were accumulated, and states that wait for `update` to see
        their names, are dropped.
        """
        self._take_edits()
        plan, change = self._plan, Change()
        for index, group in enumerate(plan.groups):
            if any(group.h[name] != first for name, first in self.algorithm.flags.items()):
                raise RuntimeError(f"group {index}: the parameters are ahead; call step() before reset()")
        self._start_from(
            change, [group.h for group in plan.groups], [{}] * len(plan.tensors), [0] * len(plan.tensors)
        )
        change.unseen = {}
        self._commit(change)
        plan.accumulated = None

    @property
    @reading
    def state(self) -> checkpoint.States:
        """For each parameter (by number or name) its ``"step"`` and its state arrays, which are views."""
        return checkpoint.States(self._plan.tensors, self._plan.place, self.algorithm.states)

    @reading
    def state_dict(self) -> dict[str, Any]:
        """A copy of all but the parameters, shaped as in torch: plain dicts, numbers and arrays."""
        saved = checkpoint.state_dict(self._plan, self._edits(), self.algorithm.states)
        return unseen.with_unseen(saved, self._plan.unseen)

    @exclusive
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts in place what `state_dict` returned, or torch's does (as arrays); on an error nothing.

        Options that the dict does not have stay, callables stay, each callable in ``betas`` too, and so does
        ``state_dtype`` if it is None there. Other keys of the dict's groups are kept, but for those by which torch
        chooses an implementation. States of names, or positions, that `update` has not seen yet wait until it does.
        """
        before = self._groups_now()
        change = self._change_to(state_dict, before)
        checkpoint.warn_of_new_state_dtypes(self._plan.tensors, before, [h for _, _, h, _ in change.groups])
        self._commit(change)

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

    @reading
    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"  group {index}: {len(group['params'])} parameters")
            lines += [f"    {k}: {arrays.shown_as(v)}" for k, v in group.items() if k != "params"]
        return "\n".join([*lines, ")"])

    # -- Changes: each is prepared where it may still be refused, then made at once by `Plan.commit` --

    def _commit(self, change: Change) -> None:
        arrays.quietly(self._plan.commit, self.param_groups, change)

    def _start_from(
        self, change: Change, groups: Sequence[Hyper], states: Sequence[Mapping[str, Any]], steps: Sequence[int]
    ) -> None:
        """Adds to a change that the parameters have these states, by letter, and have made so many steps."""
        tensors = self._plan.tensors
        change.steps = list(zip(tensors, steps, strict=True))
        for tensor, taken, values in zip(tensors, steps, states, strict=True):
            first = self._first_numbers(groups[tensor.group])
            change.numbers.append((tensor, {x: float(values.get(x, first[x])) for x in first}))
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
            needed = self.algorithm.letters(h)
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

    def _change_in_step(self, has_gradient: Sequence[bool]) -> Change | None:
        """The changes of a step besides the parameters that have a gradient; for optimizers with flags."""
        return None
