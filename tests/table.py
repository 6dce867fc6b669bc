"""What tests and benchmarks run over, worked out from the package: no list of optimizers here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastopt
from fastopt import optimizers

Array: TypeAlias = npt.NDArray[Any]

OPTIMIZERS: list[type[fastopt.Optimizer]] = [getattr(optimizers, n) for n in optimizers.__all__]
DTYPES = ["float32", "float64"]
NATIVE_ISAS = [name for name in fastopt.available_isas() if name != "numpy"]

EFFECTIVE = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
"""Values, for the classes that have these options, under which the other options have an effect."""


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
    if isinstance(default, tuple):
        return tuple(0.5 + 0.2 * i for i in range(len(default)))
    return 0.3


def one_option_changed(start: Variant) -> Iterator[Variant]:
    """`start`, and for each option of its class one that differs in that option alone."""
    yield start
    for name, default in options_of(start.cls).items():
        yield Variant(start.cls, start.options | {name: another_value(default)}, name)


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


def hard_values(size: int, dtype: str, seed: int) -> Array:
    """Normally distributed numbers; scattered among them what arithmetic treats in its own way."""
    rng = np.random.default_rng([seed, size])
    values = rng.standard_normal(size).astype(dtype)
    limits = np.finfo(values.dtype)
    special = np.array(
        [
            *(0.0, -0.0, np.inf, -np.inf, np.nan),
            *(limits.smallest_subnormal, -limits.smallest_subnormal, limits.tiny / 3),
            *(limits.tiny, limits.max, -limits.max),
        ],
        values.dtype,
    )
    chosen = rng.random(size) < 0.1
    values[chosen] = rng.choice(special, int(chosen.sum()))
    # the same elements are zeros in every draw: another gradient would wash out the sign of a zero
    zeros = values[5::13]
    zeros[...] = rng.choice(special[:2], zeros.size)
    return values


def plain_values(size: int, dtype: str, seed: int) -> Array:
    """Normally distributed numbers."""
    return np.random.default_rng([seed, size]).standard_normal(size).astype(dtype)


def bits_of(array: Array) -> bytes:
    """The bytes of an array's elements in C order; every NaN counts as the same."""
    return np.where(np.isnan(array), np.nan, array).astype(array.dtype).tobytes()


def bits(optimizer: fastopt.Optimizer, params: Sequence[Array]) -> list[list[bytes]]:
    """For each parameter its bits, then those of its states and its step."""
    return [
        [bits_of(p), *(bits_of(np.asarray(value)) for value in state.values())]
        for p, state in zip(params, optimizer.state.values(), strict=True)
    ]
