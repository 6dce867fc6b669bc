"""The kinds of arguments that schedules take: each kind checks a value and returns it in plain form."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeAlias

from fastopt.options import Interval, as_number, check_in, shown

Kind: TypeAlias = Callable[[str, Any], Any]
"""Given an argument's name and value, returns the value in its plain form, or raises."""


def number_in(low: float, high: float = math.inf, ends: str = "[)") -> Kind:
    """The kind of numbers in an interval, which is written as for `fastopt.options.Interval`."""
    interval = Interval(low, high, ends)
    return lambda name, value: check_in(name, as_number(name, value), interval)


def whole(low: int) -> Kind:
    """The kind of whole numbers from low on."""

    def check(name: str, value: Any) -> int:
        try:
            if isinstance(value, bool):
                raise TypeError
            count = operator.index(value)
        except TypeError:
            advice = ""
            if isinstance(value, float) and value.is_integer():
                advice = f"; pass {int(value)}"
            raise TypeError(f"{name}: expected a whole number, got {shown(value)}{advice}") from None
        if count < low:
            raise ValueError(f"{name}: {count} is out of range; it must be at least {low}")
        return count

    return check


def or_none(kind: Kind) -> Kind:
    return lambda name, value: None if value is None else kind(name, value)


def one_of(*choices: str) -> Kind:
    """The kind of a choice among names."""

    def check(name: str, value: Any) -> str:
        expected = " or ".join(map(repr, choices))
        if not isinstance(value, str):
            raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
        if value not in choices:
            raise ValueError(f"{name}: {value!r} is not known; use {expected}")
        return str(value)

    return check


def flag(name: str, value: Any) -> bool:
    plain = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
    if not isinstance(plain, bool):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return plain


def function(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{name}: expected a function of the step, got {shown(value)}")
    return value


def elements(name: str, value: Any, what: str) -> list[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected a list of {what}, got {shown(value)}")
    return list(value)


def increasing(low: int, *, repeated: bool) -> Kind:
    """The kind of lists of steps in order, from low on, each once or repeated."""
    step = whole(low)

    def check(name: str, value: Any) -> tuple[int, ...]:
        steps = [step(f"{name}[{i}]", one) for i, one in enumerate(elements(name, value, "steps"))]
        for i in range(1, len(steps)):
            if steps[i] < steps[i - 1]:
                raise ValueError(f"{name}[{i}]: {steps[i]} comes after {steps[i - 1]}; sort them")
            if steps[i] == steps[i - 1] and not repeated:
                raise ValueError(f"{name}[{i}]: {steps[i]} is there twice; leave one of the two schedules out")
        return tuple(steps)

    return check


# The annotations that schedules declare their arguments with.

Value = Annotated[float, number_in(0)]
Positive = Annotated[float, number_in(0, ends="()")]
UnitInterval = Annotated[float, number_in(0, 1, "[]")]
Bound = Annotated[float | None, or_none(number_in(0))]
Steps = Annotated[int, whole(1)]
StepsOrZero = Annotated[int, whole(0)]
OptionalSteps = Annotated[int | None, or_none(whole(1))]
Flag = Annotated[bool, flag]
Function = Annotated[Callable[[int], float], function]
