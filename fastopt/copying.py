"""Optimizers are copied and pickled: alone, or together with the model that has their parameters."""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from fastopt import options
from fastopt._plan import Change, Plan
from fastopt._turns import Turns, reading
from fastopt.arrays import Array, Key
from fastopt.thread_tuner import ThreadTuners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastopt._plan import Group
    from fastopt.algorithm import Algorithm, Hyper

Copy = TypeVar("Copy", bound="Copying")


class Copying:
    """The part of `Optimizer` that makes copies.

    A copy has parameters, options, states and steps, and is not bound. ``copy.deepcopy`` and ``pickle`` of a model
    and its optimizer together keep them together; joblib does not, it makes two arrays of one. ``copy.copy`` makes
    an optimizer of the same parameters with states of its own.
    """

    if TYPE_CHECKING:
        algorithm: ClassVar[type[Algorithm]]
        defaults: Hyper
        param_groups: list[Hyper]
        _plan: Plan
        _turns: Turns

        def _edits(self) -> Change: ...
        def state_dict(self) -> dict[str, Any]: ...
        def _checked_group(self, index: int, h: Hyper) -> Hyper: ...
        def _group_of(self, place: str, h: Hyper) -> Group: ...
        def _add_members(self, change: Change, members: Sequence[tuple[Key, Any, int]]) -> None: ...
        def _commit(self, change: Change) -> None: ...

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self),), self._contents(refuses_views=True)  # type: ignore[attr-defined]

    def __copy__(self: Copy) -> Copy:
        other = object.__new__(type(self))
        other.__setstate__(self._contents(refuses_views=False))
        return other

    @reading
    def _contents(self, refuses_views: bool) -> dict[str, Any]:
        """All that a copy is made of."""
        plan = self._plan
        if refuses_views and plan.keeps_params:
            _refuse_views_of_one_array([(tensor.label, tensor.given) for tensor in plan.tensors])
        groups = [group.h for group in plan.groups]
        for index, _, h, _ in self._edits().groups:
            groups[index] = h
        own = {name: value for name, value in vars(self).items() if name not in _MADE_ANEW}
        saved = self.state_dict()
        number_of = {
            key: number
            for group in saved["param_groups"]
            for key, number in zip(group.get("param_names", group["params"]), group["params"], strict=True)
        }
        states = {
            tensor.key: (tensor.group, saved["state"][number_of[tensor.key]]) for tensor in plan.tensors
        } | plan.unseen
        return {
            "attributes": own,
            "keeps_params": plan.keeps_params,
            "groups": [{name: value for name, value in h.items() if name != "params"} for h in groups],
            "members": [(t.key, t.given, t.group) for t in plan.tensors] if plan.keeps_params else [],
            "states": states,
        }

    def __setstate__(self, contents: dict[str, Any]) -> None:
        for name, value in contents["attributes"].items():
            object.__setattr__(self, name, value)
        self.param_groups = []
        self._turns = Turns()
        keeps_params, members = contents["keeps_params"], contents["members"]
        self._plan = Plan(self.algorithm, self._turns, ThreadTuners(), keeps_params, options.bounds_of(type(self)))
        change = Change()
        change.unseen = dict(contents["states"])
        for index, h in enumerate(contents["groups"]):
            own = {"params": tuple(given for _, given, group in members if group == index)}
            checked = self._checked_group(index, {**h, **own})
            change.added_groups.append((checked, self._group_of(f"group {index}: ", checked)))
        self._commit(change)
        change = Change()
        self._add_members(change, members)
        self._commit(change)


_MADE_ANEW = frozenset({"param_groups", "_plan", "_turns"})


def _refuse_views_of_one_array(params: Sequence[tuple[str, Array]]) -> None:
    """A copy of a view is an array of its own: parameters that lie in one array would come apart."""
    owners: dict[int, str] = {}
    for label, given in params:
        owner: Any = given
        while getattr(owner, "base", None) is not None:
            owner = owner.base
        other = owners.setdefault(id(owner), label)
        if other is not label:
            raise ValueError(
                f"{other} and {label} are views of one array, and NumPy's copies of them would be "
                f"arrays of their own; "
                "make the optimizer of the one array, or copy the model, make a new optimizer for it and "
                "load_state_dict(optimizer.state_dict())"
            )
