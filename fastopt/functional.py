"""The same kernels on arrays that the caller owns: one function for each optimizer.

``adam(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq=None, *, step, lr=1e-3, …)`` makes one update in
place. ``step`` counts from 1; the options and their defaults are those of the class, and a state that only
an option needs may be left out without it. ``grad_scale`` multiplies the gradient. Raises as the classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import _kernels, optimizers, threads
from fastopt.optimizer import Array, Optimizer, _check_grad_scale, check_number

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., None]: ...


def _make(cls: type[Optimizer]) -> Callable[..., None]:
    row = _kernels.TABLE[cls.kernel]
    letters = [*row["state"], *row["optional"]]
    defaults = cls.defaults_of()
    kinds = inspect.Parameter
    signature = inspect.Signature(
        [
            kinds("param", kinds.POSITIONAL_OR_KEYWORD),
            kinds("grad", kinds.POSITIONAL_OR_KEYWORD),
            *(kinds(cls.state_names[x], kinds.POSITIONAL_OR_KEYWORD) for x in row["state"]),
            *(kinds(cls.state_names[x], kinds.POSITIONAL_OR_KEYWORD, default=None) for x in row["optional"]),
            kinds("step", kinds.KEYWORD_ONLY),
            *(kinds(k, kinds.KEYWORD_ONLY, default=v) for k, v in defaults.items()),
            kinds("grad_scale", kinds.KEYWORD_ONLY, default=1.0),
        ]
    )

    def function(*args: Any, **options: Any) -> None:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        given = bound.arguments
        t, grad_scale = given["step"], _check_grad_scale(given["grad_scale"])
        if isinstance(t, bool) or not isinstance(t, int | np.integer):
            raise TypeError(f"step: expected a whole number, 1 for the first step, got {t!r}")
        if t < 1:
            raise ValueError(f"step: {t} is out of range; it is 1 for the first step")
        h = {name: given[name] for name in defaults}
        cls._check(h, defaults)
        lr = h["lr"]
        if callable(lr):
            lr = check_number("lr, as its callable returned it", lr(int(t) - 1))
        states: dict[str, Array] = {}
        for letter in cls.letters(h):
            name = cls.state_names[letter]
            if given[name] is None:
                raise ValueError(f"{name}: these options need it; pass an array of param's shape")
            states[letter] = given[name]
        plan = _kernels.Plan(cls.kernel, [given["param"]], ["param"], [0], [states], np.array([t - 1]))
        scalars = cls.scalars(h, lr, int(t), grad_scale)
        plan.step([given["grad"]], grad_scale, lambda *_: (cls.subset(h), scalars), threads.count)

    function.__name__ = function.__qualname__ = cls.__name__.lower()
    function.__module__ = __name__
    function.__doc__ = f"One update of one array as by `fastopt.{cls.__name__}`.\n\n{inspect.getdoc(cls)}"
    function.__signature__ = signature  # type: ignore[attr-defined]
    assert all(letter in cls.state_names for letter in letters)
    return function


__all__ = [name.lower() for name in optimizers.__all__]  # pyright: ignore
for _name in optimizers.__all__:
    globals()[_name.lower()] = _make(getattr(optimizers, _name))
