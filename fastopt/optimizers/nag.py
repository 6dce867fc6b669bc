from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from fastopt import arrays
from fastopt._plan import Change, Group, Move, Tensor
from fastopt._turns import exclusive
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Handed, Optimizer, Params
from fastopt.optimizers.sgd import SGD
from fastopt.options import NonNegative, Seed, StateDtype, options_of
from fastopt.parameters import refuse_params, refuse_without_params

LOOKING_AHEAD, RETURNING = 1 << 32, 2 << 32
"""Added to the seed, beyond all that users may give: the moves are rounded by random bits of their own."""


class NAG(Optimizer):
    """Nesterov's accelerated gradient, with the gradient taken at the point looked ahead to.

    ::

        v = momentum * v - lr * gradient(p + momentum * v);  p = p + v

    `lookahead` moves the parameters to p + momentum * v, where the gradient is to be taken; the next step
    returns them to the new p. Without it the gradient is that of p itself, and the step is classical
    momentum. A parameter whose gradient is None goes back to where it was, up to rounding.

    Sources: Nesterov 1983; Sutskever, Martens, Dahl, Hinton 2013 (ICML), equations 3 and 4.
    State: ``velocity``.

    Options:
    momentum: the weight of the old in v (torch's SGD's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        momentum: NonNegative = 0.9,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "nag"
        states = {"v": "velocity"}
        flags = {"ahead": False}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return h["momentum"], h["lr"], h["ahead"]

        @staticmethod
        def check_edit(h: Hyper, before: Hyper) -> None:
            for name in "momentum", "state_dtype":
                if before["ahead"] and h[name] != before[name]:
                    raise ValueError(
                        f"{name}: the parameters are ahead by momentum * v as it was; put {before[name]!r} back, "
                        "and change it after step()"
                    )

        @staticmethod
        def twin(p: Array, g: Array, v: Array, momentum: Any, lr: Any, ahead: Any) -> None:
            d = lr * g
            v *= momentum
            v -= d
            if ahead != 0:
                p -= d
            else:
                p += v

    @exclusive
    def lookahead(self, params: Handed | None = None) -> None:
        """Moves every parameter to p + momentum * v; the next step takes gradients from there.

        params: for an optimizer that was made without them, the arrays, as for `update`: of each group all or none. The
        next `update` must be handed all of these. Until that step, ``momentum`` and ``state_dtype`` stay what they are.
        An optimizer that was made with parameters makes it by ``step``; `update` raises RuntimeError.
        """
        self._take_edits()
        plan = self._plan
        if self._groups_ahead():
            next_call = "step()" if plan.keeps_params else "update()"
            raise RuntimeError(f"the parameters are ahead already; call {next_call} before lookahead() again")
        if plan.keeps_params:
            if params is not None:
                refuse_params("lookahead()")
            plan.move(self, None)
        elif params is None:
            refuse_without_params("lookahead")
        else:
            plan.move(self, arrays.to_write("params", params))

    def _check_update(self) -> None:
        if self._plan.keeps_params and self._groups_ahead():
            raise RuntimeError("the parameters are ahead by lookahead(); call step(grads) before update()")

    def _change_of_move(self, tensors: Sequence[Tensor], change: Change) -> Change:
        """The parameters of a call move ahead."""
        groups = {tensor.group for tensor in tensors}
        lacking = self._lacking(groups, tensors, change)
        if lacking:
            raise ValueError(
                f"lookahead: it lacks {arrays.listing(lacking)}; pass all parameters of a group, or none"
            )
        # what is rounded at random has no way back
        change.notes = {tensor: tensor.now.copy() for tensor in tensors if tensor.now.itemsize == 2}
        self._add_moves(change, groups, tensors, tensors, ahead=True)
        return change

    def _change_in_step(
        self, tensors: Sequence[Tensor], has_gradient: Sequence[bool], change: Change | None
    ) -> Change | None:
        """Parameters that are ahead and have no gradient go back."""
        groups = self._groups_ahead()
        if not groups:
            return change
        change = change or Change()
        lacking = self._lacking(groups, tensors, change)
        if lacking:
            raise ValueError(f"update: it lacks {arrays.listing(lacking)}, which lookahead() has moved; pass all")
        found = self._plan.last_move.notes if self._plan.last_move is not None else {}
        back = [
            tensor
            for tensor, stepping in zip(tensors, has_gradient, strict=True)
            if tensor.group in groups and not stepping
        ]
        change.copies += [(tensor.now, found[tensor]) for tensor in back if tensor in found]
        self._add_moves(change, groups, tensors, [tensor for tensor in back if tensor not in found], ahead=False)
        return change

    def _groups_ahead(self) -> set[int]:
        return {index for index, group in enumerate(self._plan.groups) if group.h["ahead"]}

    def _lacking(self, groups: set[int], tensors: Sequence[Tensor], change: Change) -> list[str]:
        """The known parameters of groups that are not among the tensors of a call."""
        given, unseen = set(tensors), self._plan.unseen if change.unseen is None else change.unseen
        seen = [tensor.label for tensor in self._plan.tensors if tensor.group in groups and tensor not in given]
        return seen + [arrays.label_of(key) for key, (group, _) in unseen.items() if group in groups]

    def _add_moves(
        self, change: Change, groups: set[int], tensors: Sequence[Tensor], moving: Sequence[Tensor], ahead: bool
    ) -> None:
        """p = p ± momentum * v: a step of plain SGD along the velocity. Then all of the groups are ahead, or none is.

        tensors: those of the call, among them all of the groups. moving: those that move.
        """
        most = max((tensor.steps for tensor in tensors if tensor.group in groups), default=0)
        along = {}
        for index in sorted(groups):
            group = self._plan.groups[index]
            h = {**group.h, "ahead": ahead}
            change.groups.append((index, group.h, h, group.with_flags(h)))
            momentum, seed = group.numbers_after(most)["momentum"], group.h["seed"]
            along[index] = _sgd(-momentum, seed + LOOKING_AHEAD) if ahead else _sgd(momentum, seed + RETURNING)
        change.moves = [Move(tensor, "v", along[tensor.group], tensor.steps + 1) for tensor in moving]


@lru_cache
def _sgd(lr: float, seed: int) -> Group:
    """Plain SGD, for moves along the velocity."""
    plain = {name: option.default for name, option in options_of(SGD).items()}
    return SGD._group_of("", {**plain, "lr": lr, "seed": seed})
