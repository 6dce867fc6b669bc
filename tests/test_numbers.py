"""NaN and infinity stay in their own element, wherever it stands."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
import table
from table import Array, Variant, cases, named

import fastopt

STEPS = 3
PLACES = [(size, at) for size in range(1, 71) for at in range(size)]
PLACES += [(size, at) for size in (1023, 1024, 1025) for at in (0, 1, size - 2, size - 1)]
"""Sizes, and the element that is soiled: every one that a kernel's body and tail tell apart."""


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
    """Of all parameters, and of each of their state buffers, the integers of the same bits, after some steps."""
    optimizer = variant.make(params)
    for step in grads:
        optimizer.step(step)
    states = zip(*(state.values() for state in optimizer.state.values()), strict=True)
    arrays = [params, *(kind for kind in states if isinstance(kind[0], np.ndarray) and kind[0].ndim)]
    return [[x.view(f"u{x.itemsize}") for x in of_kind] for of_kind in arrays]


def elementwise(pairs: list[tuple[Variant, str]]) -> list[tuple[Variant, str]]:
    """Without the optimizers that add up over a tensor."""
    return [(variant, format) for variant, format in pairs if not table.needs_sums(variant.cls, variant.hyper)]


FEW = elementwise([(v, f) for v, f in table.FEW_CLASSES if f in table.DTYPES])


@cases("variant, format", elementwise(table.BY_OPTION), FEW)
def test_no_element_changes_another(variant: Variant, format: str) -> None:
    variant = variant.stored_as(format)
    sizes = [size for size, _ in PLACES]
    here = np.concatenate([np.arange(size) == at for size, at in PLACES])
    which = np.repeat(np.arange(len(PLACES)), sizes)
    plain = [[values[size] for size in sizes] for values in values_by_size(format)]
    params, *grads = ([x.copy() for x in arrays] for arrays in plain)
    for k, ((_, at), value) in enumerate(zip(PLACES, itertools.cycle([np.nan, np.inf, -np.inf]))):
        (grads[0] if k % 5 else params)[k][at] = value
    one_of_each = sorted(set(sizes))
    first = [sizes.index(size) for size in one_of_each]
    for isa in table.NATIVE_ISAS:
        fastopt.set_isa(isa)
        soiled = trained(variant, [p.copy() for p in params], grads)
        if format in table.DTYPES and variant.hyper["state_dtype"] is None:
            clean_params, *clean_grads = ([arrays[k] for k in first] for arrays in plain)
            found = trained(variant, [p.copy() for p in clean_params], clean_grads)
            by_size = [dict(zip(one_of_each, arrays, strict=True)) for arrays in found]
            clean = [[arrays[size] for size in sizes] for arrays in by_size]
        else:  # what is rounded at random depends on an element's number
            clean = trained(variant, [p.copy() for p in plain[0]], plain[1:])
        changed = [np.concatenate(a) != np.concatenate(b) for a, b in zip(soiled, clean, strict=True)]
        for differs in changed:
            wrong = np.flatnonzero(differs & ~here)
            assert not wrong.size, f"{isa}: of (size, element) {PLACES[which[wrong[0]]]} others have changed"
        assert changed[0][here].mean() > 0.5, f"{isa}: hardly any element was soiled"


# -- Subnormal numbers -----------------------------------------------------------------------------

STEADY = 0.85
"""What averages keep of themselves in a step: then 5,000 zero gradients make float64 subnormal too."""


def idle(cls: type[fastopt.Optimizer]) -> Variant:
    """The class with all its averages, and nothing but gradients to move them."""
    own = table.options_of(cls)
    options = {name: STEADY for name in ("momentum", "alpha", "rho", "beta3") if name in own}
    if "betas" in own:
        options["betas"] = (STEADY,) * len(own["betas"])
    decays = [name for name in ("weight_decay", "lambd") if name in own]
    options |= dict.fromkeys(decays, 0.0)
    return Variant(cls, options)


IDLE = [idle(cls) for cls in table.OPTIMIZERS]
IDLE_KINDS = [v for v in IDLE if v.cls in {base.cls for base in table.KIND_BASES}]
every_idle = cases("variant", IDLE, IDLE_KINDS)
# Adafactor's averages keep more of themselves in each step, so that they never come near 0
FADING = [v for v in IDLE if "beta2_decay" not in table.options_of(v.cls)]
every_fading = cases("variant", FADING, [v for v in IDLE_KINDS if v in FADING])


@every_fading
def test_zero_gradients_keep_the_bits(variant: Variant) -> None:
    """States fade into subnormal numbers, which stay as they are: the twin's."""
    size = 37
    for dtype in table.DTYPES:
        grads = [[table.plain_values(size, dtype, k)] for k in range(5)] + [[np.zeros(size, dtype)]] * 5000
        results = []
        for isa in fastopt.available_isas():
            fastopt.set_isa(isa)
            results.append(trained(variant, [table.plain_values(size, dtype, 9)], grads))
        for result in results:
            assert all(map(np.array_equal, result, results[-1])), dtype
        fastopt.set_isa(table.NATIVE_ISAS[-1])
        later = trained(variant, [table.plain_values(size, dtype, 9)], [*grads, grads[-1]])
        for before, after in zip(results[-1][1:], later[1:], strict=True):
            state = np.concatenate(before).view(dtype)
            fades = not np.array_equal(np.concatenate(before), np.concatenate(after))
            reached = bool(is_subnormal(state).all())
            assert reached or not fades, f"{variant} of {dtype} does not reach subnormal numbers"
            assert reached or not is_subnormal(state).any(), f"{variant} of {dtype}: some do, some do not"


def is_subnormal(array: table.Array) -> table.Array:
    return (array != 0) & (abs(array) < np.finfo(array.dtype).tiny)


@every_idle
def test_flushed_subnormal_numbers_are_zero_for_every_instruction_set(variant: Variant) -> None:
    for dtype in table.DTYPES:
        with named(dtype):
            are_flushed(variant, dtype)


def are_flushed(variant: Variant, dtype: str) -> None:
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
        states = [array for array in optimizer.state[0].values() if np.shape(array) == (size,)]
        for array in [*params, *states]:
            array *= np.finfo(dtype).tiny / 2
        optimizer.step(grads[-1])
        found = [bool(is_subnormal(array).any()) for array in [*params, *states]]
        results.append((table.bits(optimizer, params), found))
    *flushed, kept = results
    assert all(result == flushed[0] for result in flushed)
    assert not any(flushed[0][1])
    assert any(kept[1])


@cases(
    "variant",
    [v for v in table.BASES if table.states_in_use(v.cls, v.hyper)],
    [v for v in table.KIND_BASES if table.states_in_use(v.cls, v.hyper)],
)
def test_flushed_zero_gradients_cost_no_more(variant: Variant) -> None:
    """The last of 5,000 steps against the first; the middle of a hundred, so that other work does not count."""
    for dtype, isa in itertools.product(table.DTYPES, table.NATIVE_ISAS):
        with named((dtype, isa)):
            costs_no_more(variant, dtype, isa)


def costs_no_more(variant: Variant, dtype: str, isa: str) -> None:
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
