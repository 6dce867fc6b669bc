"""The same kernels on arrays that the caller owns: one function for each optimizer.

``adam(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq=None, *, step, lr=1e-3, …)`` makes one update in
place. ``step`` counts from 1; the options and their defaults are those of the class, and a state that only
an option needs may be left out without it. ``grad_scale`` multiplies the gradient. Raises as the classes.

States may be bfloat16 arrays, and so may parameters and gradients, in the combinations that the classes take.
Each call numbers its elements from 0: give every array a ``seed`` of its own, so that they are not rounded by
the same random bits.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import _kernels, optimizers
from fastopt.choice import Choices
from fastopt.optimizer import (
    MOST_STEPS,
    Array,
    Hyper,
    Optimizer,
    check_grad_scale,
    check_number,
    shown,
)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., None]: ...


class _Thread(threading.local):
    """What each Python thread has of its own."""

    def __init__(self) -> None:
        self.choices = Choices()


_thread = _Thread()


def _defaults_of(cls: type[Optimizer]) -> Hyper:
    """The options of the class but one: here the states have the dtype that they have."""
    return {name: value for name, value in cls.defaults_of().items() if name != "state_dtype"}


@lru_cache(maxsize=128, typed=True)
def _checked(name: str, /, **options: Any) -> tuple[Hyper, int, list[str]]:
    """All hyper-parameters but ``lr``, the subset of optional states and the letters of all states."""
    cls: type[Optimizer] = getattr(optimizers, name)
    defaults = _defaults_of(cls)
    h = {**defaults, **options}
    cls._check(h, defaults)
    return h, cls.subset(h), cls.letters(h)


def _make(cls: type[Optimizer]) -> Callable[..., None]:
    row = _kernels.TABLE[cls.kernel]
    letters = [*row["state"], *row["optional"]]
    names = [cls.state_names[letter] for letter in letters]
    defaults = _defaults_of(cls)

    def function(
        param: Array,
        grad: Array,
        *arrays: Array,
        step: int,
        grad_scale: float = 1.0,
        **options: Any,
    ) -> None:
        if len(arrays) > len(names):
            raise TypeError(
                f"{function.__name__}: got {len(arrays)} states, it takes {', '.join(names) or 'none'}"
            )
        given = dict(zip(names, arrays, strict=False))
        for name in names[len(arrays) :]:
            given[name] = options.pop(name, None)
        lr = options.pop("lr", defaults["lr"])
        try:
            h, subset, needed = _checked(cls.__name__, **options)
        except TypeError:  # an option that cannot be hashed, or is wrong
            h, subset, needed = _checked.__wrapped__(cls.__name__, **options)
        if isinstance(step, bool) or not isinstance(step, int | np.integer):
            raise TypeError(f"step: expected a whole number, 1 for the first step, got {shown(step)}")
        if not 1 <= step <= MOST_STEPS:
            raise ValueError(f"step: {shown(step)} is out of range; it must be 1 for the first step, then 2")
        if grad is None:
            raise TypeError("grad: expected an array, got None; without a gradient there is no step to make")
        group = cls.group({**h, "lr": lr if callable(lr) else check_number("lr", lr)}, subset)
        states: dict[str, Array] = {}
        for letter in needed:
            array = given[cls.state_names[letter]]
            if array is None:
                raise TypeError(
                    f"{cls.state_names[letter]}: missing; pass an array of param's shape and dtype, at first zeros"
                )
            states[letter] = array
        steps = np.array([step - 1], np.int64)
        plan = _kernels.Plan(cls.kernel, [param], ["param"], [0], [states], steps, cls.state_names)
        plan.step([grad], check_grad_scale(grad_scale), [group], _thread.choices, None)

    parameter = inspect.Parameter
    either, keyword = parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY
    signature = inspect.Signature(
        [
            *(parameter(name, either) for name in ("param", "grad", *names[: len(row["state"])])),
            *(parameter(name, either, default=None) for name in names[len(row["state"]) :]),
            parameter("step", keyword),
            *(parameter(name, keyword, default=value) for name, value in defaults.items()),
            parameter("grad_scale", keyword, default=1.0),
        ]
    )
    function.__name__ = function.__qualname__ = cls.__name__.lower()
    function.__module__ = __name__
    function.__doc__ = f"One update of one array as by `fastopt.{cls.__name__}`.\n\n{inspect.getdoc(cls)}"
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


__all__ = [name.lower() for name in optimizers.__all__]
for _name in optimizers.__all__:
    _cls = getattr(optimizers, _name)
    if _cls.kernel in _kernels.TABLE:  # else tests/test_table.py says what is missing
        globals()[_name.lower()] = _make(_cls)
