"""The cases of the long benchmark: the shapes of real networks, and every variant of every optimizer.

The small workloads and the first candidates are those of `python -m fastopt bench` (fastopt/benchmark/). The
package's own table says which optimizers and kernels there are. The other candidates are in peers.py and
limits.py.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path

import numpy as np

import fastopt
from fastopt.benchmark import internals
from fastopt.benchmark.cases import WORKLOADS as SMALL_WORKLOADS
from fastopt.benchmark.cases import Case, Shapes, fill
from fastopt.benchmark.internals import Array, OptimizerClass, Step

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from table import EFFECTIVE, OPTIMIZERS, Variant, accepted, another_value, options_of

# -- Workloads -------------------------------------------------------------------------------------


def resnet50() -> Shapes:
    """He, Zhang, Ren, Sun 2015, arXiv:1512.03385: each convolution is followed by a scale and a shift."""
    convolutions = [(64, 3, 7, 7)]
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            convolutions += [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [(4 * width, inputs, 1, 1)] if block == 0 else []
            inputs = 4 * width
    normalised = [shape for conv in convolutions for shape in (conv, conv[:1], conv[:1])]
    return [*normalised, (1000, inputs), (1000,)]


def gpt2(width: int = 768, blocks: int = 12, words: int = 50_257, positions: int = 1024) -> Shapes:
    """Radford et al. 2019, the small model; the output layer shares the word embedding."""
    norm = [(width,), (width,)]

    def linear(inputs: int, outputs: int) -> list[tuple[int, ...]]:
        return [(inputs, outputs), (outputs,)]

    attention = [*linear(width, 3 * width), *linear(width, width)]
    perceptron = [*linear(width, 4 * width), *linear(4 * width, width)]
    return [(words, width), (positions, width), *[*norm, *attention, *norm, *perceptron] * blocks, *norm]


FLAT = "1 x 64,000"
"""As many elements as `MANY` has."""
MANY = "1,000 x 64"

_IN_THE_CACHE: dict[str, Shapes] = {f"1 x 2^{k}": [(2**k,)] for k in (14, 18)}
_WORKLOADS = {
    **SMALL_WORKLOADS,
    **_IN_THE_CACHE,
    FLAT: [(64_000,)],
    "ResNet-50": resnet50(),
    "GPT-2 small": gpt2(),
}
WORKLOADS: dict[str, Shapes] = dict(sorted(_WORKLOADS.items(), key=lambda item: sum(map(prod, item[1]))))
"""By the number of elements."""

# -- Optimizers ------------------------------------------------------------------------------------


def kernel_of(variant: Variant) -> tuple[str, int]:
    """The kernel that a variant runs: its formula, and which optional state buffers are in use."""
    return internals.formula_of(variant.cls), internals.subset_of(variant.cls, variant.hyper)


def kernels_of(cls: OptimizerClass) -> Iterator[Variant]:
    """For each kernel of a class a variant that runs it, with as few changed options as possible."""
    options = {name: EFFECTIVE.get(name, another_value(cls, name)) for name in options_of(cls)}
    found = set()
    for count in range(len(options) + 1):
        for names in itertools.combinations(options, count):
            variant = Variant(cls, {name: options[name] for name in names})
            if accepted(variant) and kernel_of(variant) not in found:
                found.add(kernel_of(variant))
                yield variant
        if len(found) == internals.number_of_kernels(cls):
            return


def all_variants() -> list[Variant]:
    """Every class with its defaults, and its other kernels unless its base class has them already."""
    return [
        variant
        for cls in OPTIMIZERS
        for variant in kernels_of(cls)
        if not variant.options or not any(c in OPTIMIZERS for c in cls.__mro__[1:])
    ]


def all_kernels() -> list[Variant]:
    """Each kernel once, by the first class that runs it."""
    found = {kernel_of(variant): variant for variant in reversed(all_variants())}
    return list(reversed(found.values()))


def adam() -> Variant:
    """Adam with its defaults."""
    return next(v for v in all_variants() if v.cls is fastopt.Adam)


def case(variant: Variant, workload: str, dtype: str = "float32") -> Case:
    return Case(variant.cls, variant.options, workload, WORKLOADS[workload], dtype)


def kernel_step(one: Case, placed: Callable[[Array], Array] = np.copy) -> Step:
    """A kernel alone, on copies of the arrays that `placed` makes."""
    plain = one.arrays(), one.arrays()
    for seed, arrays in enumerate(plain):
        fill(arrays, seed)
    params, grads = ([placed(a) for a in arrays] for arrays in plain)
    return internals.kernel_call(one.cls, one.options, params, grads)


# -- Facts -----------------------------------------------------------------------------------------


PACKAGES = ("numba", "numexpr", "jax", "optax", "mlx", "torch", "deepspeed", "thinc")


def facts() -> dict[str, str]:
    """The machine, and the versions of everything that takes part."""
    found = {name: value for name, value in internals.facts().items() if name != "kernels"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
