"""What an option may be follows from its annotation: what is taken, what is refused, and how that is said."""

from __future__ import annotations

import decimal
import fractions
import inspect
import math
import pickle
import re
import sys
import timeit
from collections.abc import Callable
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt import optimizers, option_names, options
from fastopt.options import (
    Beta,
    EpsHat,
    Finite,
    Interval,
    NonNegative,
    Number,
    Positive,
    Seed,
    StateDtype,
    UnitInterval,
    options_of,
)


class Example:
    """Not an optimizer: only its signature counts here."""

    def __init__(
        self,
        params: Any = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps_hat: EpsHat = 0.0,
        positive: Positive = 1.0,
        weight: UnitInterval = 1.0,
        any_sign: Finite = -1.0,
        power: Annotated[Number, Interval(-1, 0, "[)")] = -0.8,
        limit: Annotated[Number | None, Interval(0, math.inf, "(]")] = None,
        other: NonNegative | None = None,
        plain: Annotated[float, Interval(0)] = 0.0,
        pair: tuple[NonNegative | None, Positive] = (None, 1e-3),
        rounds: Annotated[int, Interval(1)] = 5,
        *,
        flag: bool = False,
        how: Literal["original", "match_rms_adamw"] | None = None,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None: ...


OPTIONS = options_of(Example)


def taken(name: str, value: Any) -> Any:
    return OPTIONS[name].check(value, "group 1: ")


def refused(name: str, value: Any, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        taken(name, value)
    message = str(caught.value)
    assert message.startswith(f"group 1: {name}"), message
    assert len(message) < 200
    return message


class Tensor:
    """A number as torch's and JAX' tensors are: not NumPy's, but with a shape and an item."""

    def __init__(self, value: Any, shape: tuple[int, ...] = ()) -> None:
        self.value, self.shape = value, shape

    def item(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


NUMBERS = [
    *(0.25, np.float64(0.25), np.float32(0.25), np.float16(0.25), np.longdouble(0.25), ml_dtypes.bfloat16(0.25)),
    *(np.array(0.25), np.array(0.25, np.float32), np.array(0.25, ml_dtypes.bfloat16), np.where(True, 0.25, 1.0)),
    *(fractions.Fraction(1, 4), Tensor(0.25)),
]
WHOLE_NUMBERS = [1, np.int64(1), np.uint8(1), np.array(1), np.array(1, np.int8), Tensor(1), ml_dtypes.int4(1)]
NO_NUMBERS = [
    *("0.1", b"0.1", None, 1j, np.complex64(1), np.array(1j), decimal.Decimal("0.1"), [0.1], (0.1,), {}, {0.1}),
    *(np.ones(1), np.ones(2), np.array([[0.1]]), np.array("0.1"), np.array(None), np.array(True), np.bool_(True)),
    *(
        np.timedelta64(1, "s"),
        np.datetime64(1, "ns"),
        np.array((0.1, 0.1), "f4,f4"),
        np.void(b"abcd"),
        True,
        False,
    ),
    *(Tensor(True), Tensor(1j), Tensor("1"), Tensor(0.1, (1,)), Tensor(RuntimeError("no value"))),
]


def ids(value: Any) -> str:
    return f"{type(value).__name__}-{value!r:.20}"


@pytest.mark.parametrize("value", [*NUMBERS, *WHOLE_NUMBERS], ids=ids)
def test_what_is_a_number(value: Any) -> None:
    for name in ("lr", "positive", "weight", "any_sign", "limit", "other", "plain", "eps_hat"):
        number = taken(name, value)
        assert type(number) is float
        assert number in (0.25, 1.0)
    assert taken("lr", value) == OPTIONS["lr"].number(value)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=ids)
def test_what_is_no_number(value: Any) -> None:
    for name in ("lr", "positive", "weight", "any_sign", "limit", "other", "plain", "eps_hat"):
        if not (value is None and name in ("limit", "other")) and not (name == "eps_hat" and bool_like(value)):
            assert "expected a number" in refused(name, value, TypeError)
    with pytest.raises(TypeError, match=r"^lr: expected a number"):
        OPTIONS["lr"].number(value)
    if not isinstance(value, list):
        refused("betas", (0.5, value), TypeError)


def bool_like(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


RANGES: dict[str, tuple[list[float], list[float], str]] = {
    "lr": (
        [0.0, -0.0, 5e-324, sys.float_info.max],
        [-5e-324, -1.0, math.inf, math.nan],
        "finite and not negative",
    ),
    "positive": ([5e-324, sys.float_info.max], [0.0, -1.0, math.inf, math.nan], "finite and above 0"),
    "weight": ([0.0, 1.0], [-0.1, math.nextafter(1, 2), math.inf, math.nan], "at most 1 and not negative"),
    "any_sign": ([-sys.float_info.max, 0.0, 1e300], [math.inf, -math.inf, math.nan], "finite"),
    "power": ([-1.0, -5e-324], [0.0, -1.0000001, -math.inf, math.nan], "below 0 and at least -1"),
    "limit": ([5e-324, math.inf], [0.0, -1.0, math.nan], "above 0"),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges(name: str) -> None:
    right, wrong, said = RANGES[name]
    for value in right:
        assert taken(name, value) is value
        assert taken(name, np.float64(value)) == value
    for value in wrong:
        message = refused(name, value, ValueError)
        assert message == f"group 1: {name}: {value} is out of range; it must be {said}"
        assert refused(name, np.array(value), ValueError) == message


@pytest.mark.parametrize("value", [10**400, -(10**400), fractions.Fraction(10**400)], ids=ids)
def test_numbers_beyond_every_float(value: Any) -> None:
    refused("lr", value, ValueError)
    refused("any_sign", value, ValueError)


def test_a_pair_of_numbers() -> None:
    pair = (0.5, 0.25)
    assert taken("betas", pair) is pair
    assert taken("betas", [0, np.float32(0.25)]) == (0.0, 0.25)
    assert type(taken("betas", [0, 0.5])) is tuple
    assert taken("pair", (None, 1)) == (None, 1.0)
    said = "group 1: betas[1]: 1.0 is out of range; it must be below 1 and not negative"
    assert refused("betas", (0.5, 1.0), ValueError) == said
    for wrong in None, 0.9, (), (0.5,), (0.5, 0.5, 0.5), "ab", np.ones(2), {0.5, 0.6}, iter(pair), {}, len:
        assert "expected a tuple of 2 numbers, got" in refused("betas", wrong, TypeError)


def test_none_where_it_is_declared() -> None:
    for name in "limit", "other", "how", "state_dtype":
        assert taken(name, None) is None
    assert "expected a number or None, got" in refused("other", "x", TypeError)


def test_whole_numbers() -> None:
    for value in WHOLE_NUMBERS:
        assert type(taken("rounds", value)) is int
        assert taken("seed", value) == 1
    assert taken("seed", 2**32 - 1) == 2**32 - 1
    for value in [-1, 2**32, 10**400]:
        message = refused("seed", value, ValueError)
        assert message.endswith("(int) is out of range; it must be below 2**32 and not negative")
    assert (
        refused("rounds", 0, ValueError)
        == "group 1: rounds: 0 (int) is out of range; it must be finite and at least 1"
    )
    for wrong in [0.5, 1.0, np.float32(1), *NO_NUMBERS, len]:
        assert "expected a whole number, got" in refused("seed", wrong, TypeError)


def test_flags() -> None:
    assert taken("flag", True) is True
    assert taken("flag", np.False_) is False
    for wrong in 1, 0, 0.5, "yes", None, [], [True], np.ones(2, bool), np.array(True), Tensor(True), len:
        assert "expected True or False, got" in refused("flag", wrong, TypeError)


def test_eps_hat_is_a_flag_or_a_number() -> None:
    assert taken("eps_hat", np.True_) is True
    assert taken("eps_hat", False) is False
    assert taken("eps_hat", 1) == 1.0 and type(taken("eps_hat", 1)) is float
    assert "expected a number or True or False, got" in refused("eps_hat", "x", TypeError)
    with pytest.raises(TypeError):
        OPTIONS["eps_hat"].at(lambda step: "x", 0)


def test_names() -> None:
    assert taken("state_dtype", "bfloat16") == "bfloat16"
    said = refused("state_dtype", "int8", ValueError)
    assert said == "group 1: state_dtype: states cannot be of 'int8' (str); use bfloat16, float32, float64"
    assert "expected the name of a dtype or None" in refused("state_dtype", np.float32, TypeError)
    assert taken("how", "original") == "original"
    assert "use original, match_rms_adamw" in refused("how", "other", ValueError)
    assert "expected one of the names or None" in refused("how", 1, TypeError)


# -- Callables -------------------------------------------------------------------------------------


def test_callables_take_the_place_of_numbers() -> None:
    def schedule(step: int) -> Any:
        return 1.0 / (1 + step)

    for name in ("lr", "positive", "weight", "limit", "other", "eps_hat"):
        assert taken(name, schedule) is schedule
        assert OPTIONS[name].is_callable(schedule)
        assert OPTIONS[name].at(schedule, 3) == 0.25
    assert taken("betas", [schedule, 0.5]) == (schedule, 0.5)
    assert OPTIONS["betas"].at((schedule, 0.5), 1) == (0.5, 0.5)
    assert "expected a number" in refused("plain", schedule, TypeError)
    h = {name: option.default for name, option in OPTIONS.items()}
    assert options.callable_options(Example, h) == ()
    h |= {"betas": (0.5, schedule), "lr": schedule}
    assert options.callable_options(Example, h) == ("lr", "betas")
    assert OPTIONS["lr"].at(0.5, 7) == 0.5
    assert OPTIONS["flag"].at(True, 7) is True


def test_what_a_callable_returns_is_checked() -> None:
    lr, betas = OPTIONS["lr"], OPTIONS["betas"]
    assert type(lr.at(lambda step: np.float32(step), 3)) is float
    for wrong in [*NO_NUMBERS, len]:
        with pytest.raises(TypeError, match=r"^group 1: lr, as its callable returned it: expected a number"):
            lr.at(lambda step, wrong=wrong: wrong, 0, "group 1: ")
    with pytest.raises(ValueError, match=r"^betas\[1\], as its callable returned it: 1.0 is out of range"):
        betas.at((0.5, lambda step: 1.0), 0)

    def fails(step: int) -> float:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        lr.at(fails, 0)


def test_asking_for_one_step_asks_each_callable_once() -> None:
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.5

    assert OPTIONS["betas"].at((schedule, schedule), 4) == (0.5, 0.5)
    assert asked == [4, 4]


# -- Classes ---------------------------------------------------------------------------------------


def test_all_options_of_a_group_at_once() -> None:
    h = {name: option.default for name, option in OPTIONS.items()}
    checked = option_names.check_all(Example, h | {"betas": [0, 0.5], "params": ()}, ["params"])
    assert checked == h | {"betas": (0.0, 0.5), "params": ()}
    with pytest.raises(ValueError, match=r"^group 0: depth: no option of Example; it has lr, betas, "):
        option_names.check_all(Example, h | {"depth": 1}, ["params"], "group 0: ")
    own = option_names.check_all(Example, h | {"depth": 1}, ["params"], own_keys=True)
    assert own["depth"] == 1
    for name, meant in {"betass": "betas", "learning_rate": "lr", "Lr": "lr", "parms": "params"}.items():
        with pytest.raises(ValueError, match=rf"^{name}: no option of Example.* use {meant}"):
            option_names.check_all(Example, h | {name: 1}, ["params"], own_keys=True)
    with pytest.raises(ValueError, match=r"^3: no option of Example"):
        option_names.check_all(Example, h | {3: 1})  # type: ignore[dict-item]
    del h["betas"]
    with pytest.raises(ValueError, match=r"^group 0: betas: missing from the parameter group; put it back"):
        option_names.check_all(Example, h, (), "group 0: ")


def signature(annotation: Any, default: Any) -> type:
    """A class with one option ``x`` of that annotation, and that default."""

    class Wrong:
        def __init__(self, params: Any = None) -> None: ...

    parameter = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, default=default)
    Wrong.__init__.__annotations__["x"] = annotation
    Wrong.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    return Wrong


@pytest.mark.parametrize("annotation", [float, int, str, list[float], dict, Callable[[int], float], Number])
def test_annotations_that_say_too_little(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r"^Wrong: x: no kind of option has the annotation"):
        options_of(signature(annotation, 0.0))


def test_options_without_default() -> None:
    with pytest.raises(TypeError, match=r"^Wrong: x: an option needs an annotation and a default"):
        options_of(signature(NonNegative, inspect.Parameter.empty))


@pytest.mark.parametrize("arguments", [(1, 0), (0, 0), (0, math.nan), (0, 1, "[["), (0, 1, "")])
def test_wrong_intervals(arguments: Any) -> None:
    with pytest.raises(ValueError, match="use low < high"):
        Interval(*arguments)


def test_a_signature_stays_readable() -> None:
    text = str(inspect.signature(fastopt.Adam))
    assert "lr: 'NonNegative' = 0.001, betas: 'tuple[Beta, Beta]' = (0.9, 0.999), eps: 'Epsilon' = 1e-08" in text
    assert len(text) < 600


@pytest.mark.parametrize("cls", optimizers.CLASSES, ids=lambda cls: cls.__name__)
def test_help_has_a_line_for_every_option(cls: type[fastopt.Optimizer]) -> None:
    text = inspect.getdoc(cls)
    assert text is not None
    assert text.count("\nOptions:\n") == 1
    for name, option in options_of(cls).items():
        lines = re.findall(rf"^{name}: (.+(?:\n    .+)*)", text, flags=re.MULTILINE)
        assert len(lines) == 1, f"{name}: {len(lines)} lines"
        line = " ".join(lines[0].split())
        assert line.endswith(f"Default {option.default!r}; {option.kind}."), line
        assert re.search(r"\(.+\)\. Default", line), f"{name}: whose option is it?"
    assert max(map(len, text.splitlines())) <= 115
    instance_sees = cls.__dict__["__doc__"].__get__(None, cls)
    assert instance_sees == text


def test_state_dicts_hold_plain_values() -> None:
    """So that they can be pickled, whatever a user passed."""
    for name, value in {"lr": np.array(0.5), "betas": [np.float32(0.5), 0], "seed": np.uint8(3)}.items():
        plain = taken(name, value)
        assert pickle.loads(pickle.dumps(plain)) == plain
        assert "numpy" not in repr(type(plain))


def test_checking_an_edited_number_takes_no_time() -> None:
    """A learning rate is edited before every step: a few hundred nanoseconds, here with much room."""
    check = OPTIONS["lr"].check
    best = min(timeit.repeat(lambda: check(0.1, "group 0: "), number=10_000, repeat=5)) / 10_000
    assert best < 3e-6
