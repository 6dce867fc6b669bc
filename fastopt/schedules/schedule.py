"""class Schedule: the base of all, which checks, prints, compares and pickles."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, TypeAlias

from fastopt.schedules.arguments import Kind, whole

Curve: TypeAlias = Callable[[int], float]
P = ParamSpec("P")

KINDS: dict[Callable[..., "Schedule"], dict[str, Kind]] = {}
"""For each function that makes schedules, the kinds of its arguments."""

_check_step = whole(0)


class Schedule:
    """A number that depends on the step: called with the step, 0 for the first one, it returns a float.

    The functions of `fastopt.schedules` make schedules. A schedule has no state, so that the same step always
    gives the same bits. It prints as the call that makes it, and is equal to what an equal call makes.
    """

    __slots__ = ("_arguments", "_curve", "_maker")

    def __init__(self, maker: Callable[..., "Schedule"], arguments: Mapping[str, Any], curve: Curve) -> None:
        self._maker = maker
        self._arguments = dict(arguments)
        self._curve = curve

    def __call__(self, step: int) -> float:
        if type(step) is not int or step < 0:
            step = _check_step("step", step)
        return self._curve(step)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the call that made the schedule, defaults included, by their names."""
        return MappingProxyType(self._arguments)

    @property
    def name(self) -> str:
        """The name of the function that made the schedule."""
        return self._maker.__name__

    def __repr__(self) -> str:
        texts = []
        for parameter in inspect.signature(self._maker).parameters.values():
            value = self._arguments[parameter.name]
            if parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
                texts.append(_code(value))
            elif value != parameter.default:
                texts.append(f"{parameter.name}={_code(value)}")
        return f"{self.name}({', '.join(texts)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self._maker is other._maker and self._arguments == other._arguments

    def __hash__(self) -> int:
        return hash((self.name, *self._arguments.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (self._maker, self._arguments)


def schedule(make: Callable[P, Curve]) -> Callable[P, Schedule]:
    """Turns a function from checked arguments to a curve into one that checks them and makes a Schedule.

    Each parameter is annotated with its kind (see `arguments`), which checks what was passed.
    """

    @wraps(make)
    def maker(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        arguments = _checked(maker, args, kwargs)
        try:
            curve = make(**arguments)  # type: ignore[call-arg]
        except ValueError as error:
            raise ValueError(f"{maker.__name__}: {error}") from None
        return Schedule(maker, arguments, curve)

    signature = inspect.signature(make)
    declared = signature.parameters.values()
    KINDS[maker] = {parameter.name: parameter.annotation.__metadata__[0] for parameter in declared}
    # what help() shows: types in place of kinds
    plain = [parameter.replace(annotation=parameter.annotation.__origin__) for parameter in declared]
    maker.__signature__ = signature.replace(parameters=plain, return_annotation=Schedule)  # type: ignore[attr-defined]
    # where users find it, and a name that pickles keep when files are moved
    maker.__module__ = "fastopt.schedules"
    return maker


def _checked(maker: Callable[..., Schedule], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names, defaults included, each in its plain form."""
    name, signature = maker.__name__, inspect.signature(maker)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise TypeError(f"{name}: {error}; its arguments are {names}") from None
    bound.apply_defaults()
    arguments = {}
    for argument, kind in KINDS[maker].items():
        try:
            arguments[argument] = kind(argument, bound.arguments[argument])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    return arguments


def _made_again(maker: Callable[..., Schedule], arguments: dict[str, Any]) -> Schedule:
    return maker(**arguments)


def _code(value: Any) -> str:
    """A value as code; a function by its name, if it has one."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_code, value))}]"
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) and "<" not in name else repr(value)
