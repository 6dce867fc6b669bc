"""`clip_grad_adaptive`: each unit's gradient is held against the unit's parameters (AGC)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import table
from table import Array

import fastopt


def by_definition(w: Array, g: Array, clipping: float, axes: tuple[int, ...]) -> Array:
    """The paper's equation, with epsilon for parameters of zero."""
    largest = clipping * np.maximum(np.sqrt((w * w).sum(axis=axes, keepdims=True)), 1e-3)
    norm = np.sqrt((g * g).sum(axis=axes, keepdims=True))
    return np.where(norm >= largest, g * (largest / np.maximum(norm, 1e-6)), g)


def pair(shape: tuple[int, ...], dtype: Any = "float64", seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    w, g = rng.standard_normal((2, *shape))
    w[:1] = 0.0
    g *= rng.choice([1e-4, 1.0, 100.0], g.shape)
    g.reshape(-1)[-1:] = 0.0
    return w.astype(table.dtype_of(dtype)), g.astype(table.dtype_of(dtype))


@pytest.mark.parametrize(
    ("shape", "axis", "axes"),
    [
        ((6, 5), 0, (0,)),
        ((6, 5), 1, (1,)),
        ((6, 5), -1, (1,)),
        ((6, 5), None, (0, 1)),
        ((6, 5), (0, 1), (0, 1)),
        ((4, 3, 2, 2), (1, 2, 3), (1, 2, 3)),
        ((4, 3, 2, 2), (0, 1, 2), (0, 1, 2)),
        ((2, 9000), 1, (1,)),
        ((9,), 0, (0,)),
        ((9,), 1, (0,)),
        ((1,), None, (0,)),
    ],
)
def test_the_definition(shape: tuple[int, ...], axis: Any, axes: tuple[int, ...]) -> None:
    w, g = pair(shape)
    expected, weights = by_definition(w, g, 0.1, axes), w.copy()
    fastopt.clip_grad_adaptive([w], [g], 0.1, axis)
    assert np.abs(g - expected).max() <= 1e-12 * np.abs(expected).max()
    assert np.array_equal(w, weights)


def test_gradients_that_are_small_enough_keep_their_bits() -> None:
    w, g = np.full((3, 4), 10.0), np.full((3, 4), 1.0)
    g[1] = 0.5
    before = g.copy()
    fastopt.clip_grad_adaptive([w], [g], 0.11, 1)
    assert np.array_equal(g, before)
    fastopt.clip_grad_adaptive([w], [g], 0.09, 1)
    assert np.array_equal(g[1], before[1])
    assert (g[[0, 2]] < 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_other_dtypes_are_computed_in_float32_and_rounded(dtype: str) -> None:
    w, g = pair((6, 5), dtype)
    wide_w, wide_g = w.astype(np.float32), g.astype(np.float32)
    fastopt.clip_grad_adaptive({"w": w}, {"w": g}, 0.1, 0)
    fastopt.clip_grad_adaptive({"w": wide_w}, {"w": wide_g}, 0.1, 0)
    assert g.dtype == w.dtype
    assert np.array_equal(g, wide_g.astype(g.dtype))


UNITS: list[tuple[tuple[int, ...], Any]] = [
    ((3, 9001), 1), ((3, 130), 0), ((4097, 3), 0), ((50, 300), 0), ((40, 129), 0), ((5, 7, 128), 1), ((2, 4100, 9), 1),
    ((6, 5, 4, 3), (1, 2)), ((6, 5, 4, 3), (0, 2)), ((6, 5, 4, 3), (1, 3)), ((6, 5, 4, 3), (0, 1, 3)), ((5, 1, 3), 1),
    ((7, 3), None), ((9001,), 0), ((), 0),
]  # fmt: skip


@pytest.mark.parametrize("isa", fastopt.available_isas())
@pytest.mark.parametrize(("shape", "axis"), UNITS, ids=str)
def test_the_norms_have_the_bits_of_global_norm(shape: tuple[int, ...], axis: Any, isa: str) -> None:
    """Whatever the instruction set, and where the squares overflow."""
    fastopt.set_isa(isa)
    axes = tuple(range(len(shape))) if axis is None or len(shape) < 2 else np.atleast_1d(axis).tolist()
    kept = [k for k in range(len(shape)) if k not in axes]
    for dtype, scale in ("float32", 1.0), ("float64", 1.0), ("float64", 1e200):
        rng = np.random.default_rng(0)
        g = np.array(np.abs(rng.standard_normal(shape)) * scale + scale, dtype)
        for w in np.full_like(g, scale), np.zeros_like(g):
            clipped, expected = g.copy(), g.copy()
            fastopt.clip_grad_adaptive([w], [clipped], 0.01, axis)
            for unit in np.ndindex(*(shape[k] for k in kept)):
                at: list[Any] = [slice(None)] * len(shape)
                for k, place in zip(kept, unit, strict=True):
                    at[k] = place
                norm, own = (fastopt.global_norm([np.ascontiguousarray(a[tuple(at)])]) for a in (g, w))
                expected[tuple(at)] = g[tuple(at)] * g.dtype.type(0.01 * max(own, 1e-3) / norm)
            assert np.array_equal(clipped, expected)


def test_parameters_of_any_storage() -> None:
    """They are only read."""
    w, g = pair((6, 5))
    expected = g.copy()
    fastopt.clip_grad_adaptive([w], [expected], 0.1, 0)
    unaligned = np.zeros(w.nbytes + 1, np.uint8)[1:].view(np.float64).reshape(w.shape)
    unaligned[...] = w
    for other in w.astype(w.dtype.newbyteorder()), w.astype(np.longdouble), unaligned, w[::-1][::-1]:
        clipped = g.copy()
        fastopt.clip_grad_adaptive([other], [clipped], 0.1, 0)
        assert np.array_equal(clipped, expected)


@pytest.mark.parametrize("isa", fastopt.available_isas())
def test_what_is_not_finite_stays_in_its_unit(isa: str) -> None:
    fastopt.set_isa(isa)
    for wrong in np.nan, np.inf:
        w, g = np.ones((4, 3)), np.full((4, 3), 9.0)
        alone = g.copy()
        g[1, 2] = w[2, 0] = wrong
        fastopt.clip_grad_adaptive([w], [g], 0.1, 1)
        fastopt.clip_grad_adaptive([np.ones((4, 3))], [alone], 0.1, 1)
        assert np.array_equal(g[[0, 3]], alone[[0, 3]])
        assert (g[2] == 9.0).all()


def test_layouts_and_none() -> None:
    w, g = pair((6, 5))
    expected = by_definition(w, g, 0.1, (1,))
    strided = np.zeros((6, 10))[:, ::2]
    strided[...] = g
    params: list[Any] = [np.asfortranarray(w), None, w]
    fastopt.clip_grad_adaptive(params, [strided, None, np.asfortranarray(g)], 0.1, 1)
    assert np.allclose(strided, expected, rtol=1e-14, atol=0)
    empty = np.zeros((0, 3))
    fastopt.clip_grad_adaptive([empty, empty.T], [empty.copy(), empty.T.copy()], 0.1, 0)


def read_only() -> Array:
    g = np.ones((2, 3))
    g.flags.writeable = False
    return g


W, G = np.ones((2, 3)), np.ones((2, 3))


@pytest.mark.parametrize(
    ("params", "grads", "clipping", "axis", "message"),
    [
        ([W], [G], -1.0, 0, "clipping: -1.0 is out of range"),
        ([W], [G], "0.1", 0, "clipping: expected a number"),
        ([W], [G], 0.1, 2, "axis: 2 is out of range: gradient 0 has 2 axes"),
        ([W], [G], 0.1, (0, -2), "names an axis twice"),
        ([W], [G], 0.1, 0.5, "axis: 0.5 is out of range; it must be a whole number"),
        ([W], [G], 0.1, "0", "axis: expected a whole number"),
        ([W, W], [G], 0.1, 0, "params: got 2 for 1 gradients"),
        ({"w": W}, [G], 0.1, 0, "pass two lists in one order, or two dicts"),
        ({"w": W}, {"v": G}, 0.1, 0, "no parameter for the gradient 'v'"),
        ([W.T], [G], 0.1, 0, "pass floats of the same shape"),
        ([W.astype(int)], [G], 0.1, 0, "pass floats of the same shape"),
        ([W], [read_only()], 0.1, 0, "read-only"),
        ([W, W], [G, G], 0.1, 0, "share"),
        ([W], [G.astype(int)], 0.1, 0, "dtype"),
    ],
)
def test_what_is_refused(params: Any, grads: Any, clipping: Any, axis: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        fastopt.clip_grad_adaptive(params, grads, clipping, axis)
    assert (G == 1).all()


def test_as_optax() -> None:
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    w, g = pair((6, 5))
    theirs, _ = optax.adaptive_grad_clip(0.1).update(jax.numpy.asarray(g), (), jax.numpy.asarray(w))
    fastopt.clip_grad_adaptive([w], [g], 0.1, 0)
    assert np.abs(g - np.asarray(theirs)).max() <= 1e-12 * np.abs(g).max()
