"""What is measured: the package's own table says which optimizers there are, and which kernels.

The cases' parts, the small workloads and the first candidates are those of `python -m fastopt bench`
(fastopt/benchmark.py). Here are the shapes of real networks and every variant of an optimizer; the other
candidates are in peers.py and limits.py.
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
from fastopt import _kernels, benchmark
from fastopt.__main__ import facts as fastopt_facts
from fastopt.benchmark import Case, Shapes, Step, fill
from fastopt.choice import Choices
from fastopt.optimizer import Array, Optimizer

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

_WORKLOADS = {**benchmark.WORKLOADS, FLAT: [(64_000,)], "ResNet-50": resnet50(), "GPT-2 small": gpt2()}
WORKLOADS: dict[str, Shapes] = dict(sorted(_WORKLOADS.items(), key=lambda item: sum(map(prod, item[1]))))
"""By the number of elements."""

# -- Optimizers ------------------------------------------------------------------------------------


def kernels_of(cls: type[Optimizer]) -> Iterator[Variant]:
    """For each kernel of a class the fewest changed options that choose it; the defaults first."""
    options = {name: EFFECTIVE.get(name, another_value(v)) for name, v in options_of(cls).items()}
    seen = set()
    for count in range(len(options) + 1):
        for names in itertools.combinations(options, count):
            variant = Variant(cls, {name: options[name] for name in names})
            if accepted(variant) and cls.subset(variant.hyper) not in seen:
                seen.add(cls.subset(variant.hyper))
                yield variant
        if len(seen) == 2 ** len(_kernels.TABLE[cls.kernel]["optional"]):
            return


def all_variants() -> list[Variant]:
    """Every class with its defaults, and its other kernels if they are not its base's."""
    return [
        variant
        for cls in OPTIMIZERS
        for variant in kernels_of(cls)
        if not variant.options or not any(c in OPTIMIZERS for c in cls.__mro__[1:])
    ]


def all_kernels() -> list[Variant]:
    """Each kernel once, by the first class that runs it."""
    found = {(v.cls.kernel, v.cls.subset(v.hyper)): v for v in reversed(all_variants())}
    return list(reversed(found.values()))


def adam() -> Variant:
    """Adam with its defaults."""
    return next(v for v in all_variants() if v.cls is fastopt.Adam)


def case(variant: Variant, workload: str, dtype: str = "float32") -> Case:
    return Case(variant.cls, variant.options, workload, WORKLOADS[workload], dtype)


def kernel_step(one: Case, placed: Callable[[Array], Array] = np.copy) -> Step:
    """A kernel alone, with next to nothing of Python around it, on arrays that `placed` copies."""
    row = _kernels.TABLE[one.cls.kernel]
    letters = (*row["state"], *row["optional"])
    plain = one.arrays(), one.arrays()
    for seed, arrays in enumerate(plain):
        fill(arrays, seed)
    params, grads = ([placed(a) for a in arrays] for arrays in plain)
    states = [
        {
            letter: placed(a)
            for letter, a in zip(letters, one.states(p.shape, one.dtype), strict=True)
            if a is not None
        }
        for p in params
    ]
    count = len(params)
    plan = _kernels.Plan(
        one.cls.kernel, params, list(range(count)), [0] * count, states, np.zeros(count, np.int64)
    )
    lr = one.hyper["lr"]
    own = one.cls.coefficients(one.hyper, lr, 1)
    groups = [_kernels.Group(lambda *_: own, one.hyper, lr, one.cls.subset(one.hyper), 0, 1.0, 0.0, 0.0)]
    plan.bind(grads)
    return lambda: plan.step(None, 1.0, groups, Choices(), None)


# -- Facts -----------------------------------------------------------------------------------------


PACKAGES = ("numba", "numexpr", "jax", "optax", "torch", "deepspeed", "thinc")


def facts() -> dict[str, str]:
    """What a result depends on."""
    found = {name: value for name, value in fastopt_facts().items() if name != "kernels"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
