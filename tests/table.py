"""What the tests run over, worked out from the package: no list of optimizers here.

The tests grow with the number of kernels, not with kernels x sizes x threads x layouts: a product is walked for
the few optimizers that differ in kind (`KINDS`), by `cases`, and for all others in the nightly run. What every
kernel must pass by default are its stored digest and one hard input for each instruction set against the twin.

This file alone knows how the package is built inside; the other tests ask it.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import fractions
import inspect
import math
import textwrap
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastopt
from fastopt import _kernels, file_formats, optimizers, storage
from fastopt.options import options_of as declared

Array: TypeAlias = npt.NDArray[Any]
Class: TypeAlias = type[fastopt.Optimizer]

# -- The package inside ----------------------------------------------------------------------------

ALL: list[Class] = [getattr(optimizers, n) for n in optimizers.__all__]
OPTIMIZERS = [cls for cls in ALL if cls.algorithm.check_shape((3,)) is None]
"""Those that take parameters of any shape."""
MATRIX_OPTIMIZERS = [cls for cls in ALL if cls not in OPTIMIZERS]
"""The others."""
TABLE = _kernels.TABLE
"""By their names, the rows of src_c/formulas.def."""
ROWS = {row: TABLE[row] for row in TABLE if any(cls.algorithm.formula == row for cls in OPTIMIZERS)}
"""Those of optimizers that take parameters of any shape."""
FORMATS = _kernels.FORMATS
"""By its name, how a format stores parameter, gradient and states."""
DTYPES = [name for name in FORMATS if FORMATS[name] == (name, name, name)]
NATIVE_ISAS = [name for name in fastopt.available_isas() if name != "numpy"]
OPENMP = _kernels.OPENMP
EXTENSION = _kernels.__file__
"""The file that has the kernels."""

state_dtypes = _kernels.state_dtypes
bias_correction = _kernels.bias_correction
random_bits = storage.random_bits


def formula_of(cls: Class) -> str:
    """The row that a class runs."""
    return cls.algorithm.formula


def subset_of(cls: Class, h: dict[str, Any], shape: tuple[int, ...] = (3,)) -> int:
    """The subset of the row's optional states that hyper-parameters and a parameter's shape need, as bits."""
    return cls.algorithm.subset(h) | cls.algorithm.bits_of(cls.algorithm.optional_by_shape(shape))


def states_of(cls: Class) -> dict[str, str]:
    """What users call the state buffers, by the formula's letters."""
    return cls.algorithm.states


def states_in_use(cls: Class, h: dict[str, Any], shape: tuple[int, ...] = (3,)) -> list[str]:
    """What users call the state buffers that hyper-parameters need; shape: the parameter's."""
    return [states_of(cls)[letter] for letter in cls.algorithm.letters(h, shape)]


def states_of_shape(cls: Class, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """What users call the states of a parameter of a shape that have another shape, and which."""
    return {states_of(cls)[letter]: own for letter, own in cls.algorithm.vectors(shape).items()}


def takes_fortran_order(cls: Class) -> bool:
    """Whether matrices may lie in Fortran order: not where rows of numbers must lie side by side."""
    return not cls.algorithm.vector_letters()


def numbers_of(cls: Class) -> list[str]:
    """What users call the numbers of a tensor that are state: float64 arrays without a dimension."""
    return [states_of(cls)[letter] for letter in TABLE[cls.algorithm.formula]["numbers"]]


def first_numbers(cls: Class) -> dict[str, float]:
    """What these numbers begin with."""
    first = cls.algorithm.initial_states(defaults_of(cls))
    return {states_of(cls)[x]: float(first.get(x, 0.0)) for x in TABLE[cls.algorithm.formula]["numbers"]}


def needs_sums(cls: Class, h: dict[str, Any]) -> bool:
    """Whether an element's update depends on its whole tensor."""
    return bool(TABLE[cls.algorithm.formula]["sums"]) and cls.algorithm.needs_factors(h)


def adds_up_all(cls: Class) -> bool:
    """Whether the update of a parameter depends on all others."""
    return cls.algorithm.sums_of_all


def adds_l1(cls: Class) -> bool:
    """Whether the option l1 changes the gradient before the kernel takes it."""
    return "l1" in declared(cls) and cls.algorithm.adds_l1


def flags_of(cls: Class) -> dict[str, Any]:
    """What a parameter group has besides options, with its first values."""
    return cls.algorithm.flags


def defaults_of(cls: Class) -> dict[str, Any]:
    """All options and flags with their defaults."""
    return {name: option.default for name, option in declared(cls).items()} | flags_of(cls)


def check_together(cls: Class, h: dict[str, Any]) -> None:
    """Raises ValueError for options that are right by themselves but not together."""
    cls.algorithm.check(h)


def is_bound(optimizer: fastopt.Optimizer) -> bool:
    return optimizer._plan.bound is not None


def bound_gradients(optimizer: fastopt.Optimizer) -> list[Any] | None:
    return optimizer._plan.bound


def params_of(optimizer: fastopt.Optimizer) -> list[Array]:
    """All parameters that an optimizer keeps."""
    return [tensor.param for tensor in optimizer._plan.tensors]


def take_edits(optimizer: fastopt.Optimizer) -> None:
    """What a step does first with the edits of the groups, and what holds though the step is refused."""
    optimizer._take_edits()


def tuner_of(optimizer: fastopt.Optimizer, elements: int) -> Any:
    """What chooses the number of threads for steps of so many elements."""
    return optimizer._plan.work.tuners.tuner(elements)


def that_replace_a_file() -> list[CodeType]:
    """The functions that make a new file and put it in the place of the old one."""
    return [inspect.unwrap(function).__code__ for function in (file_formats.replaced, file_formats._new_file)]


def of_a_torch_step() -> list[CodeType]:
    """The functions in Python that a step of fastopt.torch runs."""
    from fastopt import torch

    functions = [torch._step, fastopt.Optimizer.step, *vars(torch._Engine).values()]
    return [function.__code__ for function in functions if inspect.isfunction(function)]


ARENA = "fastopt.arrays.arena"
"""The function that makes the arrays of states."""


def twin_of(row: str) -> Callable[..., Any]:
    """The formula as NumPy writes it."""
    return next(cls.algorithm.twin for cls in ALL if formula_of(cls) == row)


@contextmanager
def another_twin(update: Callable[..., None], sums: Callable[..., Array] = storage.sums) -> Iterator[None]:
    """Two functions take the places of `storage.update` and `storage.sums`, by which the twin computes."""
    before, isa = (storage.update, storage.sums), fastopt.get_isa()
    fastopt.set_isa("numpy")
    storage.update, storage.sums = update, sums
    try:
        yield
    finally:
        storage.update, storage.sums = before
        fastopt.set_isa(isa)


def kinds(cls: Class, name: str) -> list[Any]:
    """What an option may be; for a tuple, what each of its elements may be."""
    kind = declared(cls)[name].kind
    return list(getattr(kind, "kinds", [kind]))


def choices_of(cls: Class, name: str) -> Sequence[str | None]:
    """The strings that an option may be, if it is one of some strings."""
    return getattr(declared(cls)[name].kind, "choices", ())


def lies_within(kind: Any, number: Any) -> bool:
    """Whether a number of any type lies in the range of an option."""
    try:
        return bool(kind.interval.least <= float(number) <= kind.interval.most)
    except OverflowError:
        return False


def kind_of_option(cls: Class, name: str) -> Hashable:
    """Equal for options of two classes that are checked in the same way."""
    return name, type(defaults_of(cls)[name]), str(declared(cls)[name].kind) if name in declared(cls) else ""


def takes_callables(cls: Class) -> list[str]:
    """The options that may be a callable, or may have callables as elements."""
    return [
        name
        for name, option in declared(cls).items()
        if any(getattr(kind, "callable", False) for kind in getattr(option.kind, "kinds", [option.kind]))
    ]


def plain_value(cls: Class, name: str, value: Any) -> Any:
    """An option as the package stores it."""
    return declared(cls)[name].check(value)


# -- Variants --------------------------------------------------------------------------------------

EFFECTIVE = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
"""Values, for the classes that have these options, under which the other options have an effect."""

NEEDED: dict[str, dict[str, Any]] = {
    "seed": {"state_dtype": "bfloat16"},
    "always_adapt": {"weight_decay": 0.0},
    "d_coef": {"d0": 0.01, "lr": 1.0, "weight_decay": 5.0, "maximize": True},
    "growth_rate": {"d0": 1.0, "lr": 1.0, "weight_decay": 5.0},
}
"""What one option needs to have an effect, where it is none of those."""


@dataclass(frozen=True, eq=False)
class Variant:
    """An optimizer and the options that it is made with."""

    cls: Class
    options: dict[str, Any]
    changed: str | None = None
    """The one option in which it differs from `base`, if it does."""

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.cls.__name__}({options})"

    @property
    def kernel(self) -> tuple[str, int]:
        """The row and the subset of optional states."""
        return formula_of(self.cls), subset_of(self.cls, self.hyper)

    @property
    def dtypes(self) -> list[str]:
        """Those that its parameters may have."""
        wanted = self.hyper["state_dtype"]
        return [name for name in DTYPES if wanted is None or wanted in state_dtypes(name)]

    def stored_as(self, format: str) -> Variant:
        """The same with states as in a format."""
        parameter, _, states = FORMATS[format]
        return self if states == parameter else Variant(self.cls, self.options | {"state_dtype": states})

    def make(self, params: Any) -> fastopt.Optimizer:
        return self.cls(params, **self.options)  # type: ignore[call-arg]

    @property
    def hyper(self) -> dict[str, Any]:
        """All hyper-parameters, those with default values too."""
        return defaults_of(self.cls) | self.options


def options_of(cls: Class) -> dict[str, Any]:
    """The options of a class with their defaults, from its signature."""
    return {k: v for k, v in defaults_of(cls).items() if k not in flags_of(cls)}


def base(cls: Class) -> Variant:
    """The class where everything has an effect."""
    return Variant(cls, {k: v for k, v in EFFECTIVE.items() if k in options_of(cls)})


def another_value(cls: Class, name: str) -> Any:
    """A value of an option that is not its default, and valid."""
    default = options_of(cls)[name]
    if isinstance(default, bool):
        return not default
    if name == "state_dtype":
        return "bfloat16"
    of_element = kinds(cls, name)
    if choices := choices_of(cls, name):
        return next(x for x in choices if x != default)
    if isinstance(default, int):
        return default + (1 if name == "seed" else 3)
    if isinstance(default, tuple):
        tried = [(0.5 + 0.2 * i, 1.5 * (x or 1.0)) for i, x in enumerate(default)]
        return tuple(
            next(x for x in some if lies_within(kind, x)) for kind, some in zip(of_element, tried, strict=True)
        )
    if not hasattr(of_element[0], "boolean"):  # a whole number, or none
        return 5
    return next(x for x in (0.3, 0.6, 1.5, -0.5) if x != default and lies_within(of_element[0], x))


def one_option_changed(start: Variant) -> Iterator[Variant]:
    """`start`, and for each option of its class one that differs in that option alone."""
    yield start
    for name in options_of(start.cls):
        other = {name: another_value(start.cls, name)}
        yield Variant(start.cls, start.options | NEEDED.get(name, {}) | other, name)


def accepted(variant: Variant) -> bool:
    """Whether the class takes the options together: without momentum there is no Nesterov."""
    try:
        for name, value in variant.options.items():
            declared(variant.cls)[name].check(value)
        check_together(variant.cls, variant.hyper)
    except ValueError:
        return False
    return True


def variants(cls: Class) -> list[Variant]:
    """The base, each of its options changed, the same without momentum, and the plain defaults."""
    start = base(cls)
    found = list(one_option_changed(start))
    if "momentum" in start.options:
        found += one_option_changed(Variant(cls, start.options | {"momentum": 0.0}))
    # all options together that choose another kernel
    choosing = [v for v in one_option_changed(start) if accepted(v) and v.kernel != start.kernel]
    if len(choosing) > 1:
        found.append(Variant(cls, start.options | {str(v.changed): v.options[str(v.changed)] for v in choosing}))
    distinct = {str(variant): variant for variant in [*found, Variant(cls, {})]}
    return [variant for variant in distinct.values() if accepted(variant)]


BASES = [base(cls) for cls in OPTIMIZERS]
VARIANTS = [variant for cls in OPTIMIZERS for variant in variants(cls)]
RUNS = {v.kernel: v for v in reversed(VARIANTS)}
"""For each row and subset a variant that runs its kernels."""
KERNELS = [
    (row, subset, format)
    for row, buffers in ROWS.items()
    for subset in range(1 << len(buffers["optional"]) + len(buffers["choice"]))
    for format, (parameter, _, states) in FORMATS.items()
    # one without any state has no storage of it
    if (row, subset) in RUNS
    and (subset % (1 << len(buffers["optional"])) or buffers["state"] or states == parameter)
]
"""All that are compiled, for each instruction set: row, subset and format."""

BY_ROWS = [cls for cls in ALL if cls.algorithm.vectors((3, 3))]
"""Those that update matrices row by row."""
MATRIX_RUNS = {
    (formula_of(cls), subset_of(cls, v.hyper, (3, 3))): v
    for cls in [*MATRIX_OPTIMIZERS, *(cls for cls in BY_ROWS if cls not in MATRIX_OPTIMIZERS)]
    for v in reversed(variants(cls))
}
"""For each row and subset that matrices alone run a variant that runs its kernels."""
MATRIX_KERNELS = [
    (row, subset, format)
    for row, subset in MATRIX_RUNS
    for format, (parameter, _, states) in FORMATS.items()
    if TABLE[row]["state"] or states == parameter
]


@contextmanager
def plain_work() -> Iterator[None]:
    """What optimizers work out of whole matrices gives way to half the gradient, which needs no BLAS."""

    def transform(h: Any, t: int, g: Array, states: dict[str, Array], work: dict[str, Array]) -> None:
        for letter in work:
            work[letter][...] = 0.5 * g

    before = [cls.algorithm.transform for cls in MATRIX_OPTIMIZERS]
    for cls in MATRIX_OPTIMIZERS:
        cls.algorithm.transform = staticmethod(transform)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for cls, own in zip(MATRIX_OPTIMIZERS, before, strict=True):
            cls.algorithm.transform = staticmethod(own)  # type: ignore[method-assign]


# -- Values of options -----------------------------------------------------------------------------


class Tensor:
    """Like torch's: an array to those who ask, but none."""

    shape, dtype, ndim = (3,), np.dtype("float32"), 1

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return np.ones(3, np.float32)

    def __repr__(self) -> str:
        return "Tensor" * 1000

    def __len__(self) -> int:
        return 3


NO_NUMBERS = [
    *("0.1", b"0.1", None, 1j, np.complex64(1), decimal.Decimal("0.1"), Tensor(), datetime.timedelta(1)),
    *([0.1], (0.1,), {}, {0.1}, range(3), np.ones(2), np.array([0.1])),
]
OUT_OF_RANGE = [
    *(-1.0, -1, -1e-300, np.nan, np.inf, -np.inf, 10**400, -(10**400), fractions.Fraction(-1, 3)),
    *(np.float32("nan"), np.float16("inf"), np.longdouble("-1"), np.int64(-1)),
]


def wrong_numbers(kind: Any) -> list[Any]:
    found = [*NO_NUMBERS, *(x for x in OUT_OF_RANGE if not lies_within(kind, x))]
    if kind.interval.least > -math.inf:
        found.append(math.nextafter(kind.interval.least, -math.inf))
    if kind.interval.most <= 1:
        found += [np.nextafter(kind.interval.most, 2), 1.5]
    if not kind.boolean:
        found += [True, np.False_]
    return [x for x in found if not (x is None and kind.none)]


def wrong_values(cls: Class, name: str) -> list[Any]:
    """Values of every kind that the option must not have."""
    default = options_of(cls)[name]
    if name == "state_dtype":
        return [
            "float16",
            "int8",
            "",
            "x" * 1000,
            b"float32",
            16,
            True,
            1.0,
            np.float32,
            np.dtype("f4"),
            np.ones(2),
            {},
        ]
    if name == "seed":
        return [
            -1,
            2**32,
            10**400,
            0.5,
            1.0,
            np.float32(1),
            "1",
            None,
            True,
            np.True_,
            [1],
            np.ones(1, int),
            Tensor(),
        ]
    if isinstance(default, bool):
        return [1, 0, 0.5, np.nan, "yes", None, [], [True], np.ones(2, bool), np.array(True), Tensor()]
    if isinstance(default, tuple):
        first, *_, last = kinds(cls, name)
        lengths: list[Any] = [None, 0.9, (), default[1:], (*default, 0.5), "ab", {*default}, iter(default), {}]
        wrong = [(*default[:-1], x) for x in wrong_numbers(last)]
        return [*lengths, *wrong, *((x, *default[1:]) for x in wrong_numbers(first)[::7])]
    if isinstance(default, int) or not hasattr(kinds(cls, name)[0], "boolean"):
        return [-1, -(10**400), 0.5, 1.0, np.float32(1), "1", True, np.True_, [1], np.ones(1, int), Tensor()]
    return wrong_numbers(kinds(cls, name)[0])


WRONG_NUMBERS = [-1.0, -1e-300, math.nan, math.inf, -math.inf, 10**400, "0.1", None, 1j, (0.1,), True]
"""No learning rates: some kinds of them."""


def right_values(cls: Class, name: str) -> list[Any]:
    """Values of every kind that the option may have; callables may turn out wrong when they are asked."""
    default = options_of(cls)[name]
    if name == "state_dtype":
        return [None, "float32", "bfloat16"]
    if name == "seed":
        return [0, 1, np.int64(7), 2**32 - 1]
    if isinstance(default, bool):
        return [True, False, np.True_] + ([0.0, 1e-3] if name == "eps_hat" else [])
    if choices := choices_of(cls, name):
        return [*choices]
    if isinstance(default, int) or not hasattr(kinds(cls, name)[0], "boolean"):
        return [1, 2, np.int64(7), 2**40] + [None] * (default is None)

    def good(kind: Any) -> list[Any]:
        smallest = 1e-30 if getattr(kind, "is_held", False) else 1e-300  # an eps must not be 0 in float32
        numbers = (0.0, 0, 1e-3, 0.3, np.float32(0.5), 0.9, 1.0, 3, smallest, 1e40)
        return [x for x in numbers if lies_within(kind, x)]

    if isinstance(default, tuple):
        by_place = [good(kind)[:: (-1) ** i] for i, kind in enumerate(kinds(cls, name))]
        return [form(each) for form in (tuple, list) for each in zip(*by_place, strict=False)]
    kind = kinds(cls, name)[0]
    if name == "lr":
        rates = [*(x for x in (0.0, 0.3, 1) if lies_within(kind, x)), *WRONG_NUMBERS[::4]]
        return [*good(kind), *(lambda t, x=x: x for x in rates)]
    return [*good(kind), *[True, False] * kind.boolean, *[None] * kind.none]


def some_wrong_values(cls: Class, name: str) -> list[Any]:
    """A few values that the option must not have."""
    default = options_of(cls)[name]
    if name == "state_dtype":
        return ["float16", "", 32, np.float32]
    if name == "seed":
        return [-1, 2**32, 1.0, "1", None, True]
    if isinstance(default, bool):
        return [1, None, "yes"]
    *_, kind = kinds(cls, name)
    if not hasattr(kind, "boolean"):
        return [-1, 1.5, "1", True]
    bad = [x for x in WRONG_NUMBERS if type(x) not in (float, int) or not lies_within(kind, x)]
    bad = [x for x in bad if not ((x is True and kind.boolean) or (x is None and kind.none))]
    bad += [1.5] if kind.interval.most <= 1 else []
    if isinstance(default, tuple):
        return [*((*default[:-1], x) for x in bad), 0.5, default[1:], (), None]
    return bad


# -- Few for many ----------------------------------------------------------------------------------


def traits(row: str) -> set[Hashable]:
    """What tells one kind of row from another: its buffers, and what its formula does with them."""
    buffers = TABLE[row]
    count = len(buffers["state"])
    tree = [*ast.walk(ast.parse(textwrap.dedent(inspect.getsource(twin_of(row)))))]
    functions = {node.attr for node in tree if isinstance(node, ast.Attribute)}
    classes = [cls for cls in OPTIMIZERS if formula_of(cls) == row]
    return {
        ("states", min(count, 2)),
        ("optional states", min(len(buffers["optional"]), 2)),
        (
            "divides, takes a root, chooses",
            any(isinstance(node, ast.Div) for node in tree),
            "sqrt" in functions,
            bool(functions & {"sign", "where", "maximum", "minimum", "abs", "copysign", "clip"}),
        ),
        *((what, bool(buffers.get(what))) for what in ("sums", "factors", "numbers", "choice")),
        *(("flag", flag) for cls in classes for flag in flags_of(cls)),
    }


def differing_in_kind(rows: Iterable[str]) -> list[str]:
    """A few rows that have together all traits that any has."""
    found: list[str] = []
    every = {row: traits(row) for row in rows}
    missing = set().union(*every.values())
    while missing:
        best = max(every, key=lambda row: len(every[row] & missing))
        found.append(best)
        missing -= every[best]
    return found


KINDS = differing_in_kind(ROWS)
"""The rows for which the tests walk whole products by default."""
KIND_RUNS = [v for (row, _), v in RUNS.items() if row in KINDS]
"""For each kernel of these rows a variant that runs it."""
KIND_BASES = [next(v for v in BASES if formula_of(v.cls) == row) for row in KINDS]
"""A class of each of these rows."""
LARGEST = max(
    (v for v in RUNS.values() if not adds_up_all(v.cls)), key=lambda v: len(states_in_use(v.cls, v.hyper))
)
"""One with the most states."""

nightly = pytest.mark.nightly
"""Left out unless asked for: see `make nightly`."""


def cases(names: str, every: Iterable[Any], few: Iterable[Any], ids: Any = str) -> pytest.MarkDecorator:
    """Parametrises a test with a few cases by default, and with every one in the nightly run."""
    every, few = [*every], [*few]
    every += [case for case in few if case not in every]
    several = "," in names
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(*(case if several else [case]), marks=[] if case in few else nightly)
            for case in sorted(every, key=lambda case: case not in few)
        ],
        ids=ids,
    )


@contextmanager
def named(case: object) -> Iterator[None]:
    """Puts the name of a case before what its failure says, in a test of many cases."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        kind = "" if isinstance(error, AssertionError | pytest.fail.Exception) else f"{type(error).__name__}: "
        raise AssertionError(f"{case}: {kind}{error}") from error


BY_KERNEL = [(v, f) for v in RUNS.values() for f in FORMATS]
"""Every kernel, with a variant that runs it."""
BY_OPTION = [(v, dtype) for v in VARIANTS for dtype in v.dtypes]
BY_OPTION += [(v, f) for v, f in BY_KERNEL if f not in DTYPES]
"""Every option in formats of one dtype, every kernel in the others."""
FEW_KERNELS = [(v, f) for v, f in BY_KERNEL if v is LARGEST or (v in KIND_RUNS and f == DTYPES[0])]
"""The kernels of a few rows in one format, and one of them in all formats."""
BY_CLASS = [(v, f) for v in BASES for f in FORMATS]
GATHERED = [*{FORMATS[f][:2]: f for f in reversed(FORMATS)}.values()]
"""A format for each pair of dtypes of a parameter and its gradient."""
FEW_CLASSES = [(LARGEST, f) for f in GATHERED] + [(v, DTYPES[0]) for v in KIND_BASES if v is not LARGEST]
"""A few classes in one format, and one in those that differ in how a gradient is read."""


# -- Numbers ---------------------------------------------------------------------------------------


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def hard_values(size: int, dtype: str, seed: int) -> Array:
    """Numbers of either sign below 4; scattered among them what arithmetic treats in its own way.

    They are made of a generator's raw words by exact operations: the same in every version of NumPy.
    """
    words = np.random.PCG64([seed, size]).random_raw(2 * size)
    word, choice = np.asarray(words[:size]), np.asarray(words[size:])
    limits = ml_dtypes.finfo(dtype_of(dtype))
    special = np.array(
        [
            *(0.0, -0.0, np.inf, -np.inf, np.nan),
            *(limits.smallest_subnormal, -limits.smallest_subnormal, limits.tiny / 3),
            *(limits.tiny, limits.max, -limits.max),
        ],
        limits.dtype,
    )
    # as many random bits as the dtype's significand has
    fraction = np.ldexp((word >> np.uint64(63 - limits.nmant)).astype(np.float64), -limits.nmant - 1)
    values: Array = (8 * fraction - 4).astype(limits.dtype)
    chosen = choice % 10 == 0
    values[chosen] = special[choice[chosen] // 10 % special.size]
    # the same elements are zeros in every draw: another gradient would wash out the sign of a zero
    zeros = values[5::13]
    zeros[...] = special[choice[5::13] % 2]
    return values


SIZES = [*range(131), *range(1023, 1026), *range(2**16 - 1, 2**16 + 2)]
"""All that a kernel's body, its epilogues and the cuts between chunks tell apart; together more
than enough to run in parallel."""
STEPS = 3
SCALES = [1.0, 0.7, -0.3]
"""grad_scale of each step."""


def gradient_dtypes(parameter: str) -> set[str]:
    """The dtypes that gradients of a parameter may have."""
    return {gradient for p, gradient, _ in FORMATS.values() if p == parameter}


@lru_cache(maxsize=2)
def inputs(format: str) -> tuple[list[Array], list[list[Array]]]:
    """Parameters of all sizes, and their gradients in each step."""
    parameter, gradient, _ = FORMATS[format]
    params = [hard_values(size, parameter, 0) for size in SIZES]
    grads = [[hard_values(size, gradient, 1 + k) for size in SIZES] for k in range(STEPS)]
    return params, grads


def train(variant: Variant, params: Sequence[Array], grads: Sequence[Sequence[Array]]) -> fastopt.Optimizer:
    """Updates ``params`` with each step's gradients."""
    optimizer = variant.make(params)
    for step, scale in zip(grads, SCALES, strict=True):
        optimizer.step(step, grad_scale=scale)
    return optimizer


def plain_values(size: int, dtype: str, seed: int) -> Array:
    """Normally distributed numbers."""
    return np.random.default_rng([seed, size]).standard_normal(size).astype(dtype_of(dtype))


def bits_of(array: Array) -> bytes:
    """The bytes of an array's elements in C order; every NaN counts as the same."""
    return np.where(np.isnan(array), np.nan, array).astype(array.dtype).tobytes()


def bits(optimizer: fastopt.Optimizer, params: Sequence[Array]) -> list[list[bytes]]:
    """For each parameter its bits, then those of its states and its step."""
    arrays = [[p, *state.values()] for p, state in zip(params, optimizer.state.values(), strict=True)]
    by_dtype: dict[np.dtype[Any], list[Array]] = {}
    for row in arrays:
        for i, value in enumerate(row):
            row[i] = np.asarray(value)
            by_dtype.setdefault(row[i].dtype, []).append(row[i])
    # all arrays of one dtype at once: there may be thousands of small ones
    found = {dtype: iter(pieces_of_bits(of_dtype)) for dtype, of_dtype in by_dtype.items()}
    return [[next(found[value.dtype]) for value in row] for row in arrays]


def pieces_of_bits(arrays: Sequence[Array]) -> list[bytes]:
    """`bits_of` each; they are of one dtype."""
    whole = bits_of(np.concatenate([array.ravel() for array in arrays]))
    ends = np.cumsum([array.nbytes for array in arrays]).tolist()
    return [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
