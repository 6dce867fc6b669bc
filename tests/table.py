"""What tests and benchmarks run over, worked out from the package: no list of optimizers here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastopt
from fastopt import _kernels, optimizers

Array: TypeAlias = npt.NDArray[Any]

OPTIMIZERS: list[type[fastopt.Optimizer]] = [getattr(optimizers, n) for n in optimizers.__all__]
FORMATS = _kernels.FORMATS
"""By its name, how a format stores parameter, gradient and states."""
DTYPES = [name for name in FORMATS if FORMATS[name] == (name, name, name)]
NATIVE_ISAS = [name for name in fastopt.available_isas() if name != "numpy"]

EFFECTIVE = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
"""Values, for the classes that have these options, under which the other options have an effect."""

NEEDED = {"seed": {"state_dtype": "bfloat16"}}
"""What one option needs to have an effect, where it is none of those."""


@dataclass(frozen=True, eq=False)
class Variant:
    """An optimizer and the options that it is made with."""

    cls: type[fastopt.Optimizer]
    options: dict[str, Any]
    changed: str | None = None
    """The one option in which it differs from `base`, if it does."""

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.cls.__name__}({options})"

    @property
    def kernel(self) -> tuple[str, int]:
        """The row and the subset of optional states."""
        return self.cls.kernel, self.cls.subset(self.hyper)

    @property
    def dtypes(self) -> list[str]:
        """Those that its parameters may have."""
        wanted = self.hyper["state_dtype"]
        return [name for name in DTYPES if wanted is None or wanted in _kernels.state_dtypes(name)]

    def stored_as(self, format: str) -> Variant:
        """The same with states as in a format."""
        parameter, _, states = FORMATS[format]
        return self if states == parameter else Variant(self.cls, self.options | {"state_dtype": states})

    def make(self, params: Any) -> fastopt.Optimizer:
        return self.cls(params, **self.options)  # type: ignore[call-arg]

    @property
    def hyper(self) -> dict[str, Any]:
        """All hyper-parameters, those with default values too."""
        return self.cls.defaults_of() | self.options


def options_of(cls: type[fastopt.Optimizer]) -> dict[str, Any]:
    """The options of a class with their defaults, from its signature."""
    return {k: v for k, v in cls.defaults_of().items() if k not in cls.flags}


def base(cls: type[fastopt.Optimizer]) -> Variant:
    """The class where everything has an effect."""
    return Variant(cls, {k: v for k, v in EFFECTIVE.items() if k in options_of(cls)})


def another_value(default: Any) -> Any:
    """A value of an option that is not its default, and valid."""
    if isinstance(default, bool):
        return not default
    if default is None:
        return "bfloat16"
    if isinstance(default, int):
        return default + 1
    if isinstance(default, tuple):
        return tuple(0.5 + 0.2 * i for i in range(len(default)))
    return 0.3


def one_option_changed(start: Variant) -> Iterator[Variant]:
    """`start`, and for each option of its class one that differs in that option alone."""
    yield start
    for name, default in options_of(start.cls).items():
        yield Variant(start.cls, start.options | NEEDED.get(name, {}) | {name: another_value(default)}, name)


def accepted(variant: Variant) -> bool:
    """Whether the class takes the options together: without momentum there is no Nesterov."""
    try:
        variant.cls.check(variant.hyper)
    except ValueError:
        return False
    return True


def variants(cls: type[fastopt.Optimizer]) -> list[Variant]:
    """The base, each of its options changed, the same without momentum, and the plain defaults."""
    start = base(cls)
    found = list(one_option_changed(start))
    if "momentum" in start.options:
        found += one_option_changed(Variant(cls, start.options | {"momentum": 0.0}))
    distinct = {str(variant): variant for variant in [*found, Variant(cls, {})]}
    return [variant for variant in distinct.values() if accepted(variant)]


BASES = [base(cls) for cls in OPTIMIZERS]
VARIANTS = [variant for cls in OPTIMIZERS for variant in variants(cls)]
RUNS = {v.kernel: v for v in reversed(VARIANTS)}
"""For each row and subset a variant that runs its kernels."""
KERNELS = [
    (row, subset, format)
    for row, buffers in _kernels.TABLE.items()
    for subset in range(2 ** len(buffers["optional"]))
    for format, (parameter, _, states) in FORMATS.items()
    # one without any state has no storage of it
    if subset or buffers["state"] or states == parameter
]
"""All that are compiled, for each instruction set: row, subset and format."""

every_kernel_and_option = pytest.mark.parametrize(
    ("variant", "format"),
    [
        *((v, dtype) for v in VARIANTS for dtype in v.dtypes),
        *((v, f) for v in RUNS.values() for f in FORMATS if f not in DTYPES),
    ],
    ids=str,
)
"""Every option in formats of one dtype, every kernel in the others."""


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
    return [
        [bits_of(p), *(bits_of(np.asarray(value)) for value in state.values())]
        for p, state in zip(params, optimizer.state.values(), strict=True)
    ]
