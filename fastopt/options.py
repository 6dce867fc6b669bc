"""The values that an option may have. An optimizer says them in the annotation of its signature, and nowhere else.

``lr: NonNegative = 1e-3`` is a number from 0 on, or a callable that returns one for each step. Where an optimizer
needs more than the names below, it writes that itself: ``Annotated[Number, Interval(-1, 1)]``, ``NonNegative | None``,
``Literal["original", "match_rms_adamw"] | None``, ``tuple[Beta, Beta, Beta]``, ``Annotated[int, Interval(1)]``.
"""

from __future__ import annotations

import inspect
import math
import numbers
import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, SupportsFloat, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from fastopt._plan import Group, Tensor

# -- Annotations -----------------------------------------------------------------------------------


class Interval:
    """The range of a number. ``ends`` as in mathematics: ``[`` and ``]`` belong to it, ``(`` and ``)`` do not."""

    def __init__(self, low: float, high: float = math.inf, ends: str = "[)") -> None:
        if ends not in {"[]", "[)", "(]", "()"} or not low < high:
            raise ValueError(f"an interval from {low} to {high} with the ends {ends!r}; use low < high and '[)'")
        self.low, self.high, self.ends = low, high, ends
        self.least = low if ends[0] == "[" else math.nextafter(low, math.inf)
        self.most = high if ends[1] == "]" else math.nextafter(high, -math.inf)

    def __contains__(self, number: float) -> bool:
        if isinstance(number, int):  # which may be larger than any float
            above_low = number >= self.low if self.ends[0] == "[" else number > self.low
            return above_low and (number <= self.high if self.ends[1] == "]" else number < self.high)
        return self.least <= number <= self.most

    def __str__(self) -> str:
        parts = []
        if (self.high, self.ends[1]) == (math.inf, ")") or (self.low, self.ends[0]) == (-math.inf, "("):
            parts.append("finite")
        if self.high < math.inf:
            parts.append(f"{'at most' if self.ends[1] == ']' else 'below'} {_short(self.high)}")
        if (self.low, self.ends[0]) == (0, "["):
            parts.append("not negative")
        elif self.low > -math.inf:
            parts.append(f"{'at least' if self.ends[0] == '[' else 'above'} {_short(self.low)}")
        return " and ".join(parts) or "not NaN"


def _short(number: float) -> str:
    power = math.log2(number) if number >= 2**16 else 0.5
    return f"2**{power:.0f}" if power.is_integer() else f"{number:g}"


class _StateDtypes:
    """Marks an option that is the name of a dtype in which states may be stored."""


class _Held:
    """Marks a number that must not become 0 in the dtype of the arithmetic."""


Number: TypeAlias = SupportsFloat | Callable[[int], SupportsFloat]
"""A number, or a callable that returns it; it is given the number of steps taken so far, 0 in the first step."""

NonNegative: TypeAlias = Annotated[Number, Interval(0)]
Positive: TypeAlias = Annotated[Number, Interval(0, ends="()")]
UnitInterval: TypeAlias = Annotated[Number, Interval(0, 1, "[]")]
Beta: TypeAlias = Annotated[Number, Interval(0, 1)]
"""The weight of the old in a moving average that is corrected for its start."""
InitialValue: TypeAlias = Annotated[SupportsFloat, Interval(0)]
"""The first value of a state. It is read once, when the state is made, so it cannot be a callable."""
Epsilon: TypeAlias = Annotated[Number, Interval(0), _Held()]
"""A number against a division by 0: it must not become 0 in the dtype of the arithmetic."""
Finite: TypeAlias = Annotated[Number, Interval(-math.inf, ends="()")]
EpsHat: TypeAlias = Annotated[bool | Number, Interval(0), _Held()]
"""A number; or True, where another option has it."""
Seed: TypeAlias = Annotated[int, Interval(0, 2**32)]
StateDtype: TypeAlias = Annotated[str | None, _StateDtypes()]


# -- Plain numbers ---------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value in a message: short, however long it is."""
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def _plain(value: Any) -> float | int | None:
    """The int or float that a value stands for; None if it is no real number."""
    if type(value) is int:
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, np.generic | np.ndarray):
        if value.ndim != 0 or value.dtype.kind not in "iufV":
            return None
        item = value.item()  # of another library's dtype, such as bfloat16, a float too
        return float(item) if isinstance(item, np.floating) else item if type(item) in (int, float) else None
    if isinstance(value, numbers.Real):
        if isinstance(value, numbers.Integral):
            return int(value)
        return float(value)
    shape = getattr(value, "shape", None)
    if not isinstance(shape, tuple) or shape or isinstance(value, type):
        return None
    try:
        item = value.item()  # of a tensor
    except Exception:  # one without a value: its own error would not name the option
        return None
    return item if type(item) in (int, float) else None


def as_number(label: str, value: Any, expected: str = "a number") -> float:
    """A real number as a float: also a 0-d array or tensor, but no bool, no string, no larger array."""
    if type(value) is float:
        return value
    try:
        number = _plain(value)
        if number is not None:
            return float(number)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    raise TypeError(f"{label}: expected {expected}, got {shown(value)}")


def check_in(label: str, number: float, interval: Interval) -> float:
    if number not in interval:
        text = shown(number) if isinstance(number, int) else number
        raise ValueError(f"{label}: {text} is out of range; it must be {interval}")
    return number


def checked_number(label: str, value: Any, interval: Interval) -> float:
    """A real number in an interval as a float."""
    return check_in(label, as_number(label, value), interval)


def whole_number(label: str, value: Any, least: int) -> int:
    """A whole number that is not less than ``least``, also as a float, as an int."""
    number = as_number(label, value, "a whole number")
    if not number >= least or number != math.floor(number) or math.isinf(number):
        raise ValueError(f"{label}: {value!r} is out of range; it must be a whole number, at least {least}")
    return int(number)


_FINITE = Interval(-math.inf, ends="()")


def check_grad_scale(value: Any) -> float:
    """The factor of all gradients as a float."""
    return check_in("grad_scale", as_number("grad_scale", value), _FINITE)


def check_limit(name: str, value: Any) -> float:
    """A limit that gradients are clipped to."""
    return check_in(name, as_number(name, value), Interval(0, math.inf, "[]"))


def check_flag(label: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{label}: expected True or False, got {shown(value)}")
    return bool(value)


def is_infinity(norm_type: Any) -> bool:
    """Whether a norm is the largest magnitude, not the root of the sum of squares."""
    number = as_number("norm_type", norm_type, "2 or infinity")
    if number not in (2.0, math.inf):
        raise ValueError(f"norm_type: {shown(norm_type)} is no norm that can be used here; use 2 or math.inf")
    return number == math.inf


# -- Kinds of options ------------------------------------------------------------------------------


class _Kind:
    """One kind of values that an option may have."""

    least, most = math.inf, -math.inf
    """The floats between them need no other check; where an option is no number, none are."""

    def check(self, value: Any, label: str) -> Any:
        """The value as optimizers store it; raises TypeError or ValueError, which begin with ``label``."""
        raise NotImplementedError

    def number(self, value: Any, label: str) -> float:
        """The same for a number and nothing else."""
        raise TypeError(f"{label}: it takes no callable; pass a value")

    def returned(self, value: Any, label: str) -> float:
        """The same for the number that a callable returned."""
        return self.number(value, label)

    def __str__(self) -> str:
        raise NotImplementedError


SMALLEST_FLOAT32 = 2.0**-149


class _Number(_Kind):
    def __init__(self, interval: Interval, members: Sequence[Any], is_held: bool = False) -> None:
        self.interval, self.least, self.most = interval, interval.least, interval.most
        self.is_held = is_held
        if is_held:  # which of the numbers below may be used depends on the parameters
            self.least = SMALLEST_FLOAT32
        self.none, self.boolean = NoneType in members, bool in members
        self.callable = any(typing.get_origin(member) is Callable for member in members)
        others = ["True"] * self.boolean + ["False"] * self.boolean + ["None"] * self.none
        self.expected = " or ".join(["a number", *others])

    def check(self, value: Any, label: str) -> Any:
        if self.callable and callable(value):
            return value
        if value is None and self.none:
            return None
        if self.boolean and isinstance(value, bool | np.bool_):
            return bool(value)
        return self.number(value, label)

    def number(self, value: Any, label: str) -> float:
        return check_in(label, as_number(label, value, self.expected), self.interval)

    def returned(self, value: Any, label: str) -> float:
        number = self.number(value, label)
        if self.is_held and is_lost_in_float32(number):
            raise ValueError(f"{label}: {number} is 0 in float32; return 0, or at least {SMALLEST_FLOAT32:.2g}")
        return number

    def __str__(self) -> str:
        others = ", or True or False" * self.boolean + ", or None" * self.none
        return f"{self.interval}{others}"


class _WholeNumber(_Kind):
    def __init__(self, interval: Interval, none: bool) -> None:
        self.interval, self.none = interval, none

    def check(self, value: Any, label: str) -> int | None:
        if value is None and self.none:
            return None
        number = _plain(value)
        if not isinstance(number, int):
            raise TypeError(f"{label}: expected a whole number, got {shown(value)}")
        check_in(label, number, self.interval)
        return number

    def __str__(self) -> str:
        return f"a whole number, {self.interval}" + ", or None" * self.none


class _Flag(_Kind):
    def check(self, value: Any, label: str) -> bool:
        return check_flag(label, value)

    def __str__(self) -> str:
        return "True or False"


class _Choice(_Kind):
    """One of some strings, and None where it is among them."""

    def __init__(self, choices: Sequence[str | None], what: str = "one of the names", wrong: str = "") -> None:
        self.choices, self.what, self.wrong = choices, what, wrong
        self.names = ", ".join(name for name in choices if name is not None)

    def check(self, value: Any, label: str) -> str | None:
        if not isinstance(value, str) and not (value is None and None in self.choices):
            others = " or None" * (None in self.choices)
            raise TypeError(f"{label}: expected {self.what}{others}, got {shown(value)}")
        if value not in self.choices:
            raise ValueError(f"{label}: {self.wrong or 'it cannot be'} {shown(value)}; use {self.names}")
        return None if value is None else str(value)

    def __str__(self) -> str:
        return f"one of {self.names}" + ", or None" * (None in self.choices)


class _Tuple(_Kind):
    def __init__(self, kinds: Sequence[_Kind]) -> None:
        self.kinds = kinds

    def check(self, value: Any, label: str) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list) or len(value) != len(self.kinds):
            raise TypeError(f"{label}: expected a tuple of {len(self.kinds)} numbers, got {shown(value)}")
        checked = []
        unchanged = type(value) is tuple
        for i, kind in enumerate(self.kinds):
            element = value[i]
            if not (type(element) is float and kind.least <= element <= kind.most):
                element = kind.check(element, f"{label}[{i}]")
                unchanged = unchanged and element is value[i]
            checked.append(element)
        return value if unchanged else tuple(checked)  # type: ignore[return-value]

    def __str__(self) -> str:
        ranges = [str(kind) for kind in self.kinds]
        if len(set(ranges)) == 1:
            return f"{len(ranges)} numbers, each {ranges[0]}"
        return f"{len(ranges)} numbers: " + "; ".join(ranges)


def _kind_of(annotation: Any) -> _Kind:
    """The kind of values that an annotation allows."""
    members: list[Any] = []
    metadata: list[Any] = []

    def flatten(part: Any) -> None:
        if typing.get_origin(part) is Annotated:
            metadata.extend(part.__metadata__)
            flatten(part.__origin__)
        elif typing.get_origin(part) in (typing.Union, UnionType):
            for each in typing.get_args(part):
                flatten(each)
        else:
            members.append(part)

    flatten(annotation)
    interval = next((x for x in metadata if isinstance(x, Interval)), None)
    if any(isinstance(x, _StateDtypes) for x in metadata):
        from fastopt._kernels import FORMATS

        names = sorted({states for *_, states in FORMATS.values()})
        return _Choice([*names, None], "the name of a dtype", "states cannot be of")
    if interval and (float in members or SupportsFloat in members):
        return _Number(interval, members, any(isinstance(x, _Held) for x in metadata))
    if interval and int in members:
        return _WholeNumber(interval, NoneType in members)
    if members == [bool]:
        return _Flag()
    if len(members) == 1 and typing.get_origin(members[0]) is tuple:
        return _Tuple([_kind_of(each) for each in typing.get_args(members[0])])
    literals = [x for member in members if typing.get_origin(member) is Literal for x in typing.get_args(member)]
    if literals and set(members) <= {NoneType, Literal[tuple(literals)]}:
        return _Choice([*literals, *([None] if NoneType in members else [])])
    raise TypeError(f"no kind of option has the annotation {annotation}; fastopt/options.py says which there are")


# -- The options of a class ------------------------------------------------------------------------


RETURNED = ", as its callable returned it"
"""Put behind the name of an option in messages about such a number."""


class Option:
    """One option of an optimizer: its name, its default and what it may be."""

    __slots__ = "_least", "_most", "default", "kind", "name"

    def __init__(self, name: str, default: Any, kind: _Kind) -> None:
        self.name, self.default, self.kind = name, default, kind
        self._least, self._most = kind.least, kind.most

    def check(self, value: Any, place: str = "") -> Any:
        """The value in its plain form: float, int, bool, str, None, a tuple of these; callables as they are.

        It is ``value`` itself if that is plain already. place: put before the name in messages: ``"group 1: "``.
        """
        if type(value) is float and self._least <= value <= self._most:
            return value
        return self.kind.check(value, f"{place}{self.name}")

    def number(self, value: Any, place: str = "") -> float:
        """A number, and nothing else, in its plain form: what a callable may return."""
        if type(value) is float and self._least <= value <= self._most:
            return value
        return self.kind.number(value, f"{place}{self.name}")

    def is_callable(self, checked: Any) -> bool:
        """Whether a checked value is a callable, or has one among its elements."""
        if type(checked) is tuple:
            return any(callable(element) for element in checked)
        return callable(checked)

    def at(self, checked: Any, step: int, place: str = "") -> Any:
        """A checked value with numbers in the place of callables, which are asked for step ``step`` (0 first)."""
        if type(checked) is tuple:
            kinds = typing.cast(_Tuple, self.kind).kinds
            return tuple(
                kind.returned(element(step), f"{place}{self.name}[{i}]{RETURNED}")
                if callable(element)
                else element
                for i, (kind, element) in enumerate(zip(kinds, checked, strict=True))
            )
        if not callable(checked):
            return checked
        value = checked(step)
        if type(value) is float and self._least <= value <= self._most:
            return value
        return self.kind.returned(value, f"{place}{self.name}{RETURNED}")


def _options_of(cls: type) -> dict[str, Option]:
    """The options of an optimizer, in the order of its signature. Worked out when it is first asked for."""
    options = {}
    hints = typing.get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    for name, parameter in inspect.signature(cls).parameters.items():
        if name == "params":
            continue
        if name not in hints or parameter.default is parameter.empty:
            raise TypeError(f"{cls.__name__}: {name}: an option needs an annotation and a default")
        try:
            options[name] = Option(name, parameter.default, _kind_of(hints[name]))
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {name}: {error}") from None
    return options


options_of: Callable[[type], dict[str, Option]] = cache(_options_of)


@cache
def group_options() -> dict[str, Option]:
    """The options that every group may have, and no constructor has."""
    return {"lr_factor": Option("lr_factor", 1.0, _Number(Interval(0), [SupportsFloat]))}


GROUP_DEFAULTS = {"lr_factor": 1.0}
"""Their values for a group that does not have them."""


def _settable(cls: type) -> dict[str, Option]:
    """All options of the groups of a class."""
    return {**options_of(cls), **group_options()}


settable: Callable[[type], dict[str, Option]] = cache(_settable)


Bounds: TypeAlias = tuple[float, float] | tuple[tuple[float, float], ...]
"""The least and the largest value of a number, or of each number of a tuple."""


def _bounds_of(cls: type) -> dict[str, Bounds]:
    """The bounds of each option that is a number or a tuple of numbers."""
    found: dict[str, Bounds] = {}
    for name, option in settable(cls).items():
        if isinstance(option.kind, _Number):
            found[name] = option.kind.least, option.kind.most
        elif isinstance(option.kind, _Tuple):
            found[name] = tuple((kind.least, kind.most) for kind in option.kind.kinds)
    return found


bounds_of: Callable[[type], dict[str, Bounds]] = cache(_bounds_of)


def callable_options(cls: type, checked: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the options that are, or contain, a callable."""
    return tuple(name for name, option in options_of(cls).items() if option.is_callable(checked[name]))


def is_lost_in_float32(value: Any) -> bool:
    """Whether a number above 0 is 0 in float32."""
    return type(value) is float and 0.0 < value <= SMALLEST_FLOAT32 / 2


def lost_in_float32(cls: type, checked: Mapping[str, Any]) -> str | None:
    """The first option that must not be 0 in the dtype of the arithmetic, and is 0 in float32."""
    for name, option in options_of(cls).items():
        if isinstance(option.kind, _Number) and option.kind.is_held and is_lost_in_float32(checked[name]):
            return name
    return None


def refuse_lost(place: str, group: Group, tensors: Iterable[Tensor]) -> None:
    """Refuses an option that is 0 in the dtype in which one of these parameters of its group is updated."""
    if group.lost is None:
        return
    for tensor in tensors:
        if tensor.dtype != np.float64:
            raise ValueError(
                f"{place}{group.lost}: {group.h[group.lost]} is 0 in float32, in which {tensor.label} is updated; use "
                f"0, or at least {SMALLEST_FLOAT32:.2g}"
            )
