"""State: what a user reads of it, and state dicts in and out."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastopt._kernels import TABLE
from fastopt.algorithm import Hyper
from fastopt.arrays import Array, Key, within
from fastopt.options import shown

if TYPE_CHECKING:
    from fastopt._plan import Change, Plan, Tensor
    from fastopt.optimizer import Optimizer

IMPLEMENTATION_OPTIONS = {"foreach", "fused", "capturable", "differentiable", "initial_lr"}
"""What torch's param_groups have besides hyper-parameters."""

MOST_STEPS = 2**62
"""More than anybody makes; so no counter runs over."""


def _refuse_write(*_: Any, **__: Any) -> NoReturn:
    raise TypeError(
        "opt.state: it shows what there is, and nothing can be put into it or taken out; write into an array, "
        "opt.state[0]['exp_avg'][...] = x, start anew with opt.reset(), or change a state_dict() and load it"
    )


class State(dict[str, Any]):
    """The state of one parameter: its arrays are views, which may be written into; all else is what it was when read."""

    __setitem__ = __delitem__ = __ior__ = _refuse_write  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse_write  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class States(Mapping[Key, "dict[str, Any]"]):
    """The states of all parameters, by number or name; each is looked at when it is asked for.

    names: what the user calls the state arrays, by the formula's letters.
    """

    def __init__(self, tensors: list[Tensor], place: Mapping[Key, int], names: Mapping[str, str]) -> None:
        self._tensors, self._place, self._names = tensors, place, names

    def __getitem__(self, key: Key) -> dict[str, Any]:
        place = self._place.get(key, key)
        if not isinstance(place, int) or not -len(self) <= place < len(self):
            raise KeyError(key)
        tensor = self._tensors[place]
        views = {self._names[letter]: array.view() for letter, array in tensor.states.items()}
        numbers = {self._names[x]: np.array(value) for x, value in tensor.numbers_by_letter().items()}
        return State({"step": int(tensor.steps), **views, **numbers})

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = _refuse_write

    def __iter__(self) -> Iterator[Key]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def __repr__(self) -> str:
        return repr(dict(self))


# -- Out ---------------------------------------------------------------------------------------------


def state_dict(plan: Plan, edits: Change, names: Mapping[str, str]) -> dict[str, Any]:
    """A copy of all but the parameters; edits: of the groups, not yet taken by a step."""
    tensors: list[Tensor] = plan.tensors
    groups = list(plan.groups)
    for index, _, _, group in edits.groups:
        groups[index] = group
    new_states = dict(edits.states)
    sources = {id(array): values for array, values in edits.copies}
    most = max((tensor.steps for tensor in tensors), default=0)
    members: list[list[Tensor]] = [[] for _ in groups]
    for tensor in tensors:
        members[tensor.group].append(tensor)
    saved_groups = []
    for group, own in zip(groups, members, strict=True):
        saved = {
            name: value for name, value in group.numbers_after(most).items() if name not in {"params", "names"}
        }
        saved["params"] = [tensor.index for tensor in own]
        if any(isinstance(tensor.key, str) for tensor in own):
            saved["param_names"] = [tensor.key for tensor in own]
        saved_groups.append(saved)
    state = {}
    for i, tensor in enumerate(tensors):
        entry: dict[str, Any] = {"step": int(tensor.steps)}
        for letter, array in new_states.get(tensor, tensor.states).items():
            entry[names[letter]] = np.copy(array)
            if id(array) in sources:
                with np.errstate(all="ignore"):
                    entry[names[letter]][...] = sources[id(array)]
        entry.update({names[letter]: np.array(value) for letter, value in tensor.numbers_by_letter().items()})
        state[i] = entry
    return {"state": state, "param_groups": saved_groups}


# -- In ----------------------------------------------------------------------------------------------


def _expect(name: str, value: Any, kind: type, called: str) -> None:
    if not isinstance(value, kind) or isinstance(value, str):
        raise TypeError(f"{name}: expected {called}, got {shown(value)}")


@within("state_dict")
def read(
    state_dict: Mapping[str, Any],
    tensors: Sequence[Tensor],
    now: Sequence[Hyper],
    cls: type[Optimizer],
    checked_group: Callable[[int, Hyper], Hyper],
) -> tuple[list[Hyper], list[dict[str, Array]], list[int]]:
    """For each group its checked options, and for each parameter its states and its steps.

    Refuses what does not fit. now: copies of the groups that the optimizer has.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"expected a dict as state_dict() returns it, got {shown(state_dict)}")
    for name, kind in {"state": Mapping, "param_groups": Sequence}.items():
        if name not in state_dict:
            raise ValueError(f"it has no {name!r}; pass what state_dict() returned")
        _expect(name, state_dict[name], kind, "a list of groups" if kind is Sequence else "a dict by parameters")
    saved_groups, saved_states = state_dict["param_groups"], dict(state_dict["state"])
    if len(saved_groups) != len(now):
        raise ValueError(
            f"it has {len(saved_groups)} parameter groups, the optimizer {len(now)}; make the optimizer with "
            "the same groups"
        )
    groups: list[Hyper] = []
    order: list[int] = []  # the saved numbers of the parameters
    for index, (saved, mine) in enumerate(zip(saved_groups, now, strict=True)):
        order += _saved_numbers(f"group {index}", saved, [t.key for t in tensors if t.group == index])
        skipped = {"params", "param_names"} | IMPLEMENTATION_OPTIONS
        new = {name: value for name, value in saved.items() if name not in skipped}
        loaded = {name: _unless_callable(mine.get(name), value) for name, value in new.items()}
        groups.append(checked_group(index, {**mine, **loaded}))
    if len(set(order)) != len(order):
        raise ValueError("param_groups: two parameters have one number; give each its own")
    by_order = [tensor for index in range(len(now)) for tensor in tensors if tensor.group == index]
    number_of = dict(zip(by_order, order, strict=True))
    states: list[dict[str, Array]] = []
    steps: list[int] = []
    for tensor in tensors:
        entry = saved_states.pop(number_of[tensor], {})
        _expect(tensor.label, entry, Mapping, "a dict of its state")
        with within(tensor.label):
            arrays, made = _saved_state(cls, tensor, entry)
            needed = (
                [*cls.algorithm.letters(groups[tensor.group]), *TABLE[cls.algorithm.formula]["numbers"]]
                if made
                else []
            )
            for letter in needed:
                if letter not in arrays:
                    raise ValueError(f"{cls.algorithm.states[letter]}: missing; its group's options need it")
        states.append(arrays)
        steps.append(made)
    if saved_states:
        raise ValueError(
            f"it has states for unknown parameters {reprlib.repr(list(saved_states))}; the groups' params must "
            "name them all"
        )
    return groups, states, steps


def _unless_callable(mine: Any, saved: Any) -> Any:
    """A saved option, but callables stay: a number saved in the place of one is its number of one step."""
    if callable(mine):
        return mine
    if isinstance(mine, tuple) and isinstance(saved, tuple | list) and len(saved) == len(mine):
        return tuple(own if callable(own) else value for own, value in zip(mine, saved, strict=True))
    return saved


def _saved_numbers(place: str, saved: Any, keys: Sequence[Key]) -> list[int]:
    """The numbers under which a saved group has the states of its parameters, ``keys``."""
    _expect(place, saved, Mapping, "a dict of options")
    for name in "params", "param_names":
        if name in saved:
            _expect(f"{place}: {name}", saved[name], Sequence, "a list")
    found = list(saved.get("params", []))
    if len(found) != len(keys):
        raise ValueError(
            f"{place}: it has {len(found)} parameters, the optimizer's {len(keys)}; pass one that fits"
        )
    if not all(isinstance(number, int) for number in found):
        raise TypeError(f"{place}: params: expected a list of whole numbers, got {shown(found)}")
    names = saved.get("param_names")
    if names is not None and any(isinstance(key, str) for key in keys) and list(names) != list(keys):
        raise ValueError(
            f"{place}: it has the names {reprlib.repr(list(names))}, the optimizer {reprlib.repr(list(keys))}; "
            "they must be the same"
        )
    return found


def _saved_state(cls: type[Optimizer], tensor: Tensor, entry: Mapping[str, Any]) -> tuple[dict[str, Array], int]:
    """State arrays by their letters, and the steps made."""
    letters = {name: letter for letter, name in cls.algorithm.states.items()}
    entry = {name: value for name, value in entry.items() if value is not None}
    steps = entry.pop("step", 1 if entry else 0)  # torch's SGD counts no steps
    array = _as_array("step", steps)
    number = array.item() if array.size == 1 and array.dtype.kind in "iuf" else -1
    if not 0 <= number <= MOST_STEPS or number != int(number):
        raise ValueError(f"step: expected a whole number, from 0 on, got {shown(steps)}")
    arrays = {}
    for name, value in entry.items():
        if name not in letters:
            raise ValueError(f"{name}: no state of {cls.__name__}; it has {', '.join(letters) or 'none'}")
        array = _as_array(name, value)
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(f"{name}: it has dtype {array.dtype}; convert it to {tensor.dtype}")
        if array.shape != (() if letters[name] in TABLE[cls.algorithm.formula]["numbers"] else tensor.shape):
            raise ValueError(
                f"{name}: it has shape {array.shape}, the parameter {tensor.shape}; they must be the same"
            )
        arrays[letters[name]] = array
    return arrays, int(number)


def _as_array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:
        raise TypeError(
            f"{name}: expected what numpy.asarray takes, got {shown(value)}, of which it says: {error}"
        ) from error
