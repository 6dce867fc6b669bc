"""States that were loaded for names, or positions, that `update` has not seen yet: they wait until it does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastopt import _kernels, checkpoint
from fastopt.arrays import Array, Key, label_of, listing, within
from fastopt.options import shown

if TYPE_CHECKING:
    from fastopt._plan import Plan, Tensor
    from fastopt.changes import Changing

Unseen: TypeAlias = dict[Key, tuple[int, dict[str, Any]]]
"""For each name or position the number of its group and a copy of its state."""


@within("state_dict")
def split(state_dict: Any, plan: Plan, group_of: Mapping[str, int], cls: type[Changing]) -> tuple[Any, Unseen]:
    """A state dict of the parameters that are known, and the states of those that are not.

    group_of: the number of the group that lists a name.
    """
    try:
        groups = [(dict(saved), list(saved["params"])) for saved in state_dict["param_groups"]]
        states = dict(state_dict["state"])
        keys = [list(saved.get("param_names") or numbers) for saved, numbers in groups]
    except (TypeError, KeyError, ValueError, AttributeError):
        return state_dict, {}  # nothing of the kind: it is refused where all are read
    if len(groups) != len(plan.groups):
        return state_dict, {}
    place = {
        key: (index, number)
        for index, (own, (_, numbers)) in enumerate(zip(keys, groups, strict=True))
        for key, number in zip(own, numbers, strict=False)
    }
    _refuse_what_is_other(place, plan, group_of)
    known = {place[tensor.key][1] for tensor in plan.tensors}
    kept: dict[str, Any] = {**state_dict, "state": {n: entry for n, entry in states.items() if n in known}}
    kept["param_groups"] = []
    for index, (saved, _) in enumerate(groups):
        own = [tensor.key for tensor in plan.tensors if tensor.group == index]
        saved |= {"params": [place[key][1] for key in own]} | (
            {"param_names": own} if "param_names" in saved else {}
        )
        kept["param_groups"].append(saved)
    unseen: Unseen = {}
    for key, (index, number) in sorted(place.items(), key=lambda item: item[1][1]):
        if number not in known:
            entry = states.pop(number, {})
            _check(key, entry, cls)
            unseen[key] = index, copy.deepcopy(dict(entry))
    left = states.keys() - known
    kept["state"] |= {number: states[number] for number in left}  # refused where all are read
    return kept, unseen


def _refuse_what_is_other(place: Mapping[Key, tuple[int, int]], plan: Plan, group_of: Mapping[str, int]) -> None:
    missing = [tensor.label for tensor in plan.tensors if tensor.key not in place]
    if missing:
        raise ValueError(
            f"it has no state for {listing(missing)}; load it into an optimizer that has not seen them"
        )
    last = len(plan.groups) - 1
    for key, (index, number) in place.items():
        if not isinstance(number, int) or not isinstance(key, str | int):
            raise TypeError(f"params: expected whole numbers and names, got {shown(key)}")
        mine = group_of.get(str(key), last) if key not in plan.place else plan.tensors[plan.place[key]].group
        if mine != index:
            raise ValueError(
                f"{label_of(key)}: it belongs to group {index} there, to group {mine} here; make the "
                f"optimizer with the "
                'same groups: {"names": [...], ...}'
            )


def _check(key: Key, entry: Any, cls: type[Changing]) -> None:
    """Refuses what no parameter of any shape could take."""
    with within(label_of(key)):
        if not isinstance(entry, Mapping):
            raise TypeError(f"expected a dict of its state, got {shown(entry)}")
        shapes = [np.shape(value) for name, value in entry.items() if name in _buffers(cls) and value is not None]
        shape = shapes[0] if shapes else None if cls.algorithm.vector_letters() else ()
        checkpoint._saved_state(cls, SimpleNamespace(shape=shape, dtype="float32"), entry)  # type: ignore[arg-type]


def _buffers(cls: type[Changing]) -> set[str]:
    others = {*_kernels.TABLE[cls.algorithm.formula]["numbers"], *cls.algorithm.vector_letters()}
    return {name for letter, name in cls.algorithm.states.items() if letter not in others}


def with_unseen(saved: dict[str, Any], unseen: Unseen) -> dict[str, Any]:
    """Adds what waits to a state dict."""
    number = len(saved["state"])
    for key, (index, entry) in unseen.items():
        group = saved["param_groups"][index]
        if isinstance(key, str):
            group.setdefault("param_names", []).append(key)
        else:
            number = key
        group["params"].append(number)
        saved["state"][number] = copy.deepcopy(entry)
        number += 1
    return saved


def taken(unseen: Unseen, tensor: Tensor, cls: type[Changing]) -> tuple[dict[str, Array], int]:
    """The state arrays, by letter, and the steps that wait for a parameter; none if nothing does."""
    if tensor.key not in unseen:
        return {}, 0
    with within(f"{tensor.label}, as load_state_dict was given it"):
        return checkpoint._saved_state(cls, tensor, unseen[tensor.key][1])
