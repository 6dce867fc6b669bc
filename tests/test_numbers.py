"""NaN and infinity stay in their own element, wherever it stands."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
import table
from table import Array, Variant

import fastopt

STEPS = 3
PLACES = [(size, at) for size in range(1, 71) for at in range(size)]
PLACES += [(size, at) for size in (1023, 1024, 1025) for at in (0, 1, size - 2, size - 1)]
"""Sizes, and the element that is soiled: every one that a kernel's body and tail tell apart."""

every_dtype = pytest.mark.parametrize("dtype", table.DTYPES)
every_isa = pytest.mark.parametrize("isa", table.NATIVE_ISAS)


@lru_cache(maxsize=2)
def values_by_size(format: str) -> list[dict[int, Array]]:
    """Parameters, and their gradients in each step."""
    parameter, gradient, _ = table.FORMATS[format]
    sizes = {size for size, _ in PLACES}
    return [
        {size: table.plain_values(size, dtype, k) for size in sizes}
        for k, dtype in enumerate([parameter, *[gradient] * STEPS])
    ]


def trained(variant: Variant, params: list[Array], grads: Sequence[list[Array]]) -> list[list[Array]]:
    """For each parameter itself and its states, as integers of the same bits, after some steps."""
    optimizer = variant.make(params)
    for step in grads:
        optimizer.step(step)
    return [
        [x.view(f"u{x.itemsize}") for x in (param, *state.values()) if isinstance(x, np.ndarray)]
        for param, state in zip(params, optimizer.state.values(), strict=True)
    ]


@every_isa
@table.every_kernel_and_option
def test_no_element_changes_another(variant: Variant, format: str, isa: str) -> None:
    fastopt.set_isa(isa)
    variant = variant.stored_as(format)

    def train(soil: bool) -> list[list[Array]]:
        params, *grads = ([values[size].copy() for size, _ in PLACES] for values in values_by_size(format))
        values = itertools.cycle([np.nan, np.inf, -np.inf])
        for k, (_, at) in enumerate(PLACES):
            if soil:
                (grads[0] if k % 5 else params)[k][at] = next(values)
        return trained(variant, params, grads)

    for (size, at), arrays, clean in zip(PLACES, train(soil=True), train(soil=False), strict=True):
        for array, pure in zip(arrays, clean, strict=True):
            differ = np.flatnonzero(array != pure).tolist()
            assert differ in ([], [at]), f"size {size}: element {at} changed others, {differ}"


# -- Subnormal numbers -----------------------------------------------------------------------------

STEADY = 0.85
"""What averages keep of themselves in a step: then 5,000 zero gradients make float64 subnormal too."""


def idle(cls: type[fastopt.Optimizer]) -> Variant:
    """The class with all its averages, and nothing but gradients to move them."""
    options = {name: STEADY for name in ("momentum", "alpha", "rho") if name in table.options_of(cls)}
    pairs = {"betas": (STEADY, STEADY)} if "betas" in table.options_of(cls) else {}
    return Variant(cls, options | pairs | {"weight_decay": 0.0})


@every_dtype
@pytest.mark.parametrize("variant", [idle(cls) for cls in table.OPTIMIZERS], ids=str)
def test_zero_gradients_keep_the_bits(variant: Variant, dtype: str) -> None:
    """States fade into subnormal numbers, which stay as they are: the twin's."""
    size = 37
    grads = [[table.plain_values(size, dtype, k)] for k in range(5)] + [[np.zeros(size, dtype)]] * 5000
    results = []
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        results.append(trained(variant, [table.plain_values(size, dtype, 9)], grads)[0])
    for result in results:
        assert all(map(np.array_equal, result, results[-1]))
    states = [x.view(dtype) for x in results[-1][1:]]
    subnormal = [bool((x != 0).all() and (abs(x) < np.finfo(dtype).tiny).all()) for x in states]
    sums = {"sum"} & set(variant.cls.state_names.values())
    assert subnormal == [True] * len(states) or sums, f"{variant} does not reach subnormal numbers"


def is_subnormal(array: table.Array) -> table.Array:
    return (array != 0) & (abs(array) < np.finfo(array.dtype).tiny)


@every_dtype
@pytest.mark.parametrize("variant", [idle(cls) for cls in table.OPTIMIZERS], ids=str)
def test_flushed_subnormal_numbers_are_zero_for_every_instruction_set(variant: Variant, dtype: str) -> None:
    size = 70_001  # two threads
    grads = [[table.plain_values(size, dtype, k) * table.EFFECTIVE["lr"]] for k in range(3)]
    grads += [[np.full(size, np.finfo(dtype).tiny / 3, dtype)]]
    fastopt.set_num_threads(2)
    results = []
    for isa, flush in [*((isa, True) for isa in fastopt.available_isas()), ("numpy", False)]:
        fastopt.set_isa(isa)
        fastopt.set_flush_denormal(flush)
        params = [np.full(size, np.finfo(dtype).tiny, dtype)]
        optimizer = variant.make(params)
        for step in grads:
            optimizer.step(step)
        states = [array for array in optimizer.state[0].values() if isinstance(array, np.ndarray)]
        for array in states:
            array *= np.finfo(dtype).tiny / 2
        optimizer.step(grads[-1])
        found = [bool(is_subnormal(array).any()) for array in [*params, *states]]
        results.append((table.bits(optimizer, params), found))
    *flushed, kept = results
    assert all(result == flushed[0] for result in flushed)
    assert not any(flushed[0][1])
    assert any(kept[1])


@every_dtype
@pytest.mark.parametrize("isa", table.NATIVE_ISAS)
@pytest.mark.parametrize("variant", [v for v in table.BASES if v.cls.letters(v.hyper)], ids=str)
def test_flushed_zero_gradients_cost_no_more(variant: Variant, dtype: str, isa: str) -> None:
    """The last of 5,000 steps against the first; the middle of a hundred, so that other work does not count."""
    fastopt.set_isa(isa)
    fastopt.set_flush_denormal(True)
    size = 10_000
    zeros = [np.zeros(size, dtype)]
    for _ in range(5):
        optimizer = variant.make([table.plain_values(size, dtype, 9)])
        for k in range(5):
            optimizer.step([table.plain_values(size, dtype, k)])
        times = []
        for _ in range(5000):
            start = time.perf_counter()
            optimizer.step(zeros)
            times.append(time.perf_counter() - start)
        ratio = np.median(times[-100:]) / np.median(times[:100])
        if ratio <= 1.5:
            return
    pytest.fail(f"the last steps take {ratio:.1f} times as long as the first")
