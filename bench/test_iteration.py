"""A whole iteration of a NumPy training loop, with NumPy's step and with fastopt's: `python -m pytest bench`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cases import facts
from iteration import MODELS, SHORT

import fastopt

ARMS: dict[str, tuple[str | None, int | None]] = {
    "numpy": ("numpy", 1),
    "fastopt": (None, None),
    "fastopt-1-thread": (None, 1),
    "fastopt-all-threads": (None, fastopt.get_num_threads()),
}
"""The instruction set and the number of threads of each."""


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    yield
    fastopt.set_isa(None)
    fastopt.set_num_threads(None)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("model", [m if m in SHORT else pytest.param(m, marks=pytest.mark.full) for m in MODELS])
def test_iteration(benchmark: Any, model: str, arm: str) -> None:
    isa, threads = ARMS[arm]
    expected, iteration = MODELS[model](), MODELS[model]()
    fastopt.set_isa("numpy")
    expected.run()
    fastopt.set_isa(isa)
    fastopt.set_num_threads(threads)
    iteration.run()
    for a, b in zip(expected.params, iteration.params, strict=True):
        assert a.tobytes() == b.tobytes()
    benchmark.group = f"{model}, an iteration"
    benchmark.extra_info.update(facts())
    benchmark.pedantic(iteration.run, warmup_rounds=50, rounds=50)
