"""A warning for parameter arrays to which nothing refers any more but the optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import OrphanedParameterWarning


def warned(call: Any) -> list[str]:
    """What was said of orphans."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if w.category is OrphanedParameterWarning]


def steps(optimizer: fastopt.Optimizer, count: int = 1) -> list[str]:
    grads = [np.ones(p.shape, p.dtype) for g in optimizer.param_groups for p in g["params"]]
    found = []
    for _ in range(count):
        found += warned(lambda: optimizer.step(grads))
    return found


class Model:
    def __init__(self) -> None:
        self.w, self.b = np.ones((2, 3)), np.ones(3)


def test_arrays_that_the_program_has_are_no_orphans() -> None:
    model = Model()
    held = [np.ones(3), np.ones((2, 2)).reshape(4), np.ones((3, 4)).T]
    flat = np.ones(10)
    by_name = {"w": np.ones(3)}
    for params in ([model.w, model.b], held, [flat[:4], flat[4:].reshape(2, 3)], [flat.reshape(2, 5)]):
        assert steps(fastopt.Adam(params), 40) == []
    optimizer = fastopt.Adam(by_name)
    assert warned(lambda: [optimizer.step({"w": np.ones(3)}) for _ in range(9)]) == []


def test_a_replaced_array_is_noticed_once() -> None:
    model = Model()
    optimizer = fastopt.Adam([model.w, model.b])
    assert steps(optimizer, 5) == []
    model.w = model.w - 0.1
    found = steps(optimizer, 60)
    assert len(found) == 1
    assert found[0].startswith("parameter 0: nothing but the optimizer")
    model.b = model.b - 0.1
    assert [text[:12] for text in steps(optimizer, 100)] == ["parameter 1:"]


def test_the_advice_works() -> None:
    model = Model()
    optimizer = fastopt.Adam([model.w, model.b])
    best = model.w - 0.1
    model.w[...] = best
    assert steps(optimizer, 9) == []
    model.w = best
    grads = [np.ones((2, 3)), np.ones(3)]
    assert warned(lambda: [optimizer.update([model.w, model.b], grads) for _ in range(9)]) == []
    assert (model.w < best + 1).all()


def test_all_temporary_arrays_are_named_in_one_warning() -> None:
    optimizer = fastopt.Adam([np.ones(3), np.ones(2)])
    assert [text[:28] for text in steps(optimizer, 9)] == ["parameter 0, parameter 1: no"]


def test_views_of_what_nobody_has() -> None:
    optimizer = fastopt.Adam([np.ones((2, 2)).reshape(4), np.ones((3, 4)).T])
    assert len(steps(optimizer)) == 1
    flat = np.ones(10)
    optimizer = fastopt.Adam([flat[:4], flat[4:]])
    assert steps(optimizer) == []
    del flat
    assert len(steps(optimizer, 3)) == 1


def test_memory_that_is_read_otherwise_is_no_orphan() -> None:
    class Tensor:
        def __init__(self) -> None:
            self.memory = bytearray(24)

        @property
        def __array_interface__(self) -> dict[str, Any]:
            import ctypes

            address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
            return {"shape": (3,), "typestr": "<f8", "data": (address, False), "version": 3}

    optimizer = fastopt.Adam([np.asarray(Tensor())])
    assert steps(optimizer, 3) == []


def test_the_warning_comes_before_the_first_write() -> None:
    optimizer = fastopt.Adam([np.ones(3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", OrphanedParameterWarning)
        for _ in range(2):
            with pytest.raises(OrphanedParameterWarning):
                optimizer.step([np.ones(3)])
    assert optimizer.state[0]["step"] == 0
    assert (optimizer.param_groups[0]["params"][0] == 1).all()


def test_not_under_update() -> None:
    optimizer = fastopt.Adam()
    assert warned(lambda: [optimizer.update([np.ones(3)], [np.ones(3)]) for _ in range(9)]) == []


def test_nothing_is_written_into_an_open_file(tmp_path: Path) -> None:
    """Its arrays are read anew at each access."""
    own, ones = ({"w": np.ones(3), "b": np.ones(2)} for _ in range(2))
    optimizer, other, nag = fastopt.Adam(own), fastopt.Adam(), fastopt.NAG()
    average = fastopt.ExponentialMovingAverage(other)
    other.update(own, ones)
    fastopt.save(tmp_path / "checkpoint.npz", other, own)
    np.savez(tmp_path / "weights.npz", w=np.ones(3), b=np.ones(2))

    def apply(weights: Any) -> None:
        with average.applied(weights):
            pass

    calls: list[Callable[[Any], Any]] = [
        lambda weights: fastopt.Adam(weights),
        lambda weights: fastopt.Adam([weights if type(weights) is not dict else {"params": weights}]),
        lambda weights: fastopt.Adam([{"params": weights}]),
        lambda weights: fastopt.Adam().update(weights, ones),
        lambda weights: fastopt.Adam().update_rows(
            weights, {"w": [0], "b": [1]}, {"w": np.ones(1), "b": np.ones(1)}
        ),
        lambda weights: nag.lookahead(weights),
        apply,
        lambda weights: fastopt.load(tmp_path / "checkpoint.npz", other, weights),
        lambda grads: optimizer.bind(grads),
        lambda grads: optimizer.step(grads, zero_grads=True),
        lambda grads: other.update(own, grads, zero_grads=True),
        lambda grads: fastopt.clip_grad_norm(grads, 1.0),
        lambda grads: fastopt.clip_grad_value(grads, 1.0),
        lambda grads: fastopt.clip_grad_adaptive(own, grads, 0.1, axis=0),
    ]
    for call in calls:
        with np.load(tmp_path / "weights.npz") as file:
            with pytest.raises(TypeError, match=r"open \.npz file.* pass dict\(file\)"):
                call(file)
            call(dict(file))
    with np.load(tmp_path / "weights.npz") as file, pytest.raises(TypeError, match=r"arrays: .*open \.npz file"):
        optimizer.mirror(file)
    with np.load(tmp_path / "weights.npz") as file:  # where it is only read, it may be passed
        optimizer.bind(None)
        optimizer.step(file)
        assert fastopt.global_norm(file) == np.sqrt(5)
