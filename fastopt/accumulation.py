"""Sums of gradients over several calls, of which one step takes the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import arrays
from fastopt._turns import exclusive
from fastopt.arrays import Array, quietly

if TYPE_CHECKING:
    from fastopt._plan import Plan, Tensor


class Accumulated:
    """The sums so far: for each parameter an array, or None.

    Every sum has a spare array beside it, and a call adds into that: so it has been made, or has not been made.
    """

    def __init__(self, calls: int, sums: Sequence[Array | None], spares: Sequence[Array | None]) -> None:
        self.calls, self.sums, self.spares = calls, sums, spares

    def with_added(self, tensors: Sequence[Tensor], grads: Sequence[Array | None]) -> Accumulated:
        """The same with one more gradient for every parameter. This one must not be used after it."""
        return quietly(self._with_added, tensors, grads)

    def _with_added(self, tensors: Sequence[Tensor], grads: Sequence[Array | None]) -> Accumulated:
        sums: list[Array | None] = []
        spares: list[Array | None] = []
        for i, (tensor, grad) in enumerate(zip(tensors, grads, strict=True)):
            before, spare = (self.sums[i], self.spares[i]) if i < len(self.sums) else (None, None)
            if grad is None:
                sums.append(before)
                spares.append(spare)
                continue
            if spare is None:
                dtype = np.float64 if tensor.dtype == np.float64 else np.float32
                spare = np.empty(tensor.shape, dtype, order="F" if tensor.order == "F" else "C")
            if before is None:
                np.copyto(spare, grad, casting="unsafe")
            else:
                np.add(before, grad, out=spare, casting="unsafe")
            sums.append(spare)
            spares.append(before)
        return Accumulated(self.calls + 1, sums, spares)

    def mean(self, count: int) -> list[Array | None]:
        """The means for so many parameters; those that came later have none."""
        return quietly(self._mean, count)

    def _mean(self, count: int) -> list[Array | None]:
        found: list[Array | None] = []
        for i, (total, spare) in enumerate(zip(self.sums, self.spares, strict=True)):
            if total is None or self.calls == 1:
                found.append(total)
                continue
            if spare is None:
                spare = self.spares[i] = np.empty_like(total)  # type: ignore[index]
            found.append(np.divide(total, total.dtype.type(self.calls), out=spare))
        return found + [None] * (count - len(found))


class Accumulating:
    """The part of `Optimizer` that adds up gradients."""

    if TYPE_CHECKING:
        _plan: Plan

    @exclusive
    def accumulate(self, grads: Any) -> None:
        """Adds gradients to buffers of its own; the next ``step()`` without gradients takes their mean.

        grads: as for `step`. The mean is the sum divided by the number of calls since the last such step: a
        gradient of None counts as zeros, but a parameter that has had None in all calls is left alone by the
        step. Sums are of float32, of float64 for parameters of float64. On an error nothing is added. Raises
        RuntimeError while gradients are bound.
        """
        plan = self._plan
        if not plan.keeps_params:
            arrays.refuse_step_without_params()
        if plan.bound is not None:
            raise RuntimeError(
                "accumulate: gradients are bound, and step() would read those; call bind(None) first, or add "
                "them up in the bound arrays"
            )
        checked = plan.checked_gradients(grads)
        before = plan.accumulated or Accumulated(0, [], [])
        plan.accumulated = before.with_added(plan.tensors, checked)
