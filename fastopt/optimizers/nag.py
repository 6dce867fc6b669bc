from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastopt._plan import Change, Move, Tensor
from fastopt._turns import exclusive
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.optimizers.sgd import SGD
from fastopt.options import NonNegative, Seed, StateDtype, options_of

LOOKING_AHEAD, RETURNING = 1 << 32, 2 << 32
"""Added to the seed, beyond all that users may give: the moves are rounded by random bits of their own."""


class NAG(Optimizer):
    """Nesterov's accelerated gradient, with the gradient taken at the point looked ahead to.

    ::

        v = momentum * v - lr * gradient(p + momentum * v);  p = p + v

    `lookahead` moves the parameters to p + momentum * v, where the gradient is to be taken; ``step``
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
    def lookahead(self) -> None:
        """Moves every parameter to p + momentum * v; the next ``step`` takes gradients from there.

        Until then ``momentum`` and ``state_dtype`` stay what they are, and ``update`` raises RuntimeError. An optimizer
        that was made without parameters cannot look ahead: TypeError.
        """
        self._take_edits()
        plan = self._plan
        if not plan.keeps_params:
            raise TypeError(
                "lookahead: this optimizer was made without parameters; make it with them: NAG([w, b])"
            )
        if any(group.h["ahead"] for group in plan.groups):
            raise RuntimeError("the parameters are ahead already; call step() before lookahead() again")
        change = self._moving(plan.tensors, 1.0, LOOKING_AHEAD)
        # what is rounded at random has no way back
        change.notes = {tensor: tensor.param.copy() for tensor in plan.tensors if tensor.param.itemsize == 2}
        plan.move(self, change)

    def _check_update(self) -> None:
        if any(group.h["ahead"] for group in self._plan.groups):
            raise RuntimeError("the parameters are ahead by lookahead(); call step(grads) before update()")

    def _change_in_step(self, has_gradient: Sequence[bool]) -> Change | None:
        """Parameters that are ahead and have no gradient go back."""
        plan = self._plan
        if not any(group.h["ahead"] for group in plan.groups):
            return None
        found = plan.last_move.notes if plan.last_move is not None else {}
        back = [
            tensor
            for tensor, stepping in zip(plan.tensors, has_gradient, strict=True)
            if plan.groups[tensor.group].h["ahead"] and not stepping
        ]
        change = self._moving([tensor for tensor in back if tensor not in found], -1.0, RETURNING)
        change.copies = [(tensor.param, found[tensor]) for tensor in back if tensor in found]
        return change

    def _moving(self, tensors: Sequence[Tensor], sign: float, stream: int) -> Change:
        """p = p + sign * momentum * v: a step of plain SGD along the velocity. Then all are ahead, or none is."""
        change, plan = Change(), self._plan
        most = max(tensor.steps for tensor in plan.tensors)
        plain = {name: option.default for name, option in options_of(SGD).items()}
        along = []
        for index, group in enumerate(plan.groups):
            h = {**group.h, "ahead": sign > 0}
            change.groups.append((index, group.h, h, self._group_of(f"group {index}: ", h)))
            lr = -sign * group.numbers_after(most)["momentum"]
            along.append(SGD._group_of("", {**plain, "lr": lr, "seed": group.h["seed"] + stream}))
        change.moves = [Move(tensor, "v", along[tensor.group], tensor.steps + 1) for tensor in tensors]
        return change
