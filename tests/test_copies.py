"""Optimizers that are copied and pickled, alone and with the model."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import table
from table import Array

import fastopt

Copy = Callable[[Any], Any]


def pickled(protocol: int) -> Copy:
    return lambda thing: pickle.loads(pickle.dumps(thing, protocol))


def joblib_copy(thing: Any) -> Any:
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(thing, file)
    file.seek(0)
    return joblib.load(file)


TOGETHER: dict[str, Copy] = {
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": pickled(n) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}
"""Copies in which what was one array is one array."""

WAYS: dict[str, Copy] = TOGETHER | {"joblib": joblib_copy}


class Model:
    """A model and its optimizer, as users keep them."""

    def __init__(self, variant: table.Variant, named: bool = False, order: str = "C") -> None:
        rng = np.random.default_rng(0)
        order = order if table.takes_fortran_order(variant.cls) else "C"
        self.w = np.asarray(rng.standard_normal((3, 4)), np.float32, order=order)  # type: ignore[call-overload]
        self.b = rng.standard_normal(4).astype(np.float32)
        params: Any = {"w": self.w, "b": self.b} if named else [self.w, self.b]
        self.optimizer = variant.make(params)

    def train(self, steps: range) -> None:
        for step in steps:
            rng = np.random.default_rng(step)
            grads = [rng.standard_normal(p.shape).astype(np.float32) for p in (self.w, self.b)]
            named = "w" in self.optimizer.state
            self.optimizer.step(dict(zip("wb", grads, strict=True)) if named else grads)

    def bits(self) -> Any:
        return table.bits(self.optimizer, [self.w, self.b]), repr(self.optimizer.param_groups)


@pytest.mark.parametrize("way", TOGETHER)
@pytest.mark.parametrize("variant", table.BASES, ids=str)
def test_a_copy_of_the_model_trains_on(variant: table.Variant, way: str) -> None:
    for named, order in ((False, "C"), (True, "F")):
        model = Model(variant, named, order)
        model.train(range(3))
        other = WAYS[way](model)
        before = model.bits()
        assert other.bits() == before
        other.train(range(3, 6))
        assert model.bits() == before
        model.train(range(3, 6))
        assert other.bits() == model.bits()
        assert all(
            a is b for a, b in zip(other.optimizer.param_groups[0]["params"], (other.w, other.b), strict=True)
        )


@pytest.mark.parametrize("way", [*WAYS, "copy"])
def test_a_copy_of_the_optimizer_alone(way: str) -> None:
    model = Model(table.Variant(fastopt.Adam, {"amsgrad": True, "state_dtype": "bfloat16"}))
    model.train(range(2))
    model.optimizer.param_groups[0]["lr"] = 0.25
    model.optimizer.bind([np.ones((3, 4), np.float32), np.ones(4, np.float32)])
    other = {**WAYS, "copy": copy.copy}[way](model.optimizer)
    assert repr(other.state_dict()) == repr(model.optimizer.state_dict())
    with pytest.raises(TypeError, match="needs gradients"):
        other.step()  # a copy is not bound
    before = [p.tobytes() for p in (model.w, model.b)]
    state = repr(model.optimizer.state_dict())
    other.step([np.ones((3, 4), np.float32), np.ones(4, np.float32)])
    assert ([p.tobytes() for p in (model.w, model.b)] == before) == (way != "copy")
    assert repr(model.optimizer.state_dict()) == state
    model.optimizer.step()


def warm_up(step: int) -> float:
    return 0.1 * (step + 1)


@pytest.mark.parametrize("way", TOGETHER)
def test_callables_and_groups(way: str) -> None:
    rng = np.random.default_rng(0)
    w, b, c = (rng.standard_normal(3) for _ in range(3))
    optimizer = fastopt.Adam([{"params": [w], "lr": warm_up}, {"params": [b], "lr_factor": 0.5}])
    optimizer.step([w * 1, b * 1])
    optimizer.add_param_group({"params": [c], "lr": 0.5})
    optimizer.step([w * 1, None, c * 1])
    other, theirs = WAYS[way]((optimizer, (w, b, c)))
    for step in range(2):
        grads = [rng.standard_normal(3) for _ in range(3)]
        optimizer.step(grads)
        other.step(grads)
        assert table.bits(optimizer, [w, b, c]) == table.bits(other, list(theirs)), step


@pytest.mark.parametrize("way", [*WAYS, "copy"])
def test_an_optimizer_of_names(way: str) -> None:
    optimizer = fastopt.AdamW([{"names": ["b"], "weight_decay": 0.0}, {}], lr=warm_up)
    params = {"w": np.ones(3), "b": np.ones(2)}
    optimizer.update(params, {"w": np.ones(3), "b": np.ones(2)})
    other = {**WAYS, "copy": copy.copy}[way](optimizer)
    theirs = copy.deepcopy(params)
    again = WAYS["deepcopy"](other)  # of what waits
    last = copy.deepcopy(params)
    for _ in range(2):
        optimizer.update(params, {"w": np.ones(3), "b": np.ones(2)})
        other.update(theirs, {"w": np.ones(3), "b": np.ones(2)})
        again.update(last, {"w": np.ones(3), "b": np.ones(2)})
    assert all(params[n].tobytes() == theirs[n].tobytes() == last[n].tobytes() for n in params)
    assert repr(optimizer.state_dict()) == repr(other.state_dict()) == repr(again.state_dict())


@pytest.mark.parametrize("way", TOGETHER)
def test_nag_is_copied_while_it_is_ahead(way: str) -> None:
    model = Model(table.base(fastopt.NAG))
    model.train(range(2))
    model.optimizer.lookahead()  # type: ignore[attr-defined]
    other = WAYS[way](model)
    for each in model, other:
        each.train(range(2, 4))
    assert other.bits() == model.bits()


@pytest.mark.parametrize("way", WAYS)
def test_views_of_one_array_are_refused(way: str) -> None:
    flat: Array = np.zeros(7)
    optimizer = fastopt.Adam([flat[:3], flat[3:]])
    with pytest.raises(ValueError, match="parameter 0 and parameter 1 are views of one array"):
        WAYS[way]((flat, optimizer))
    optimizer.step([np.ones(3), np.ones(4)])
    shallow = copy.copy(optimizer)  # of the same arrays
    shallow.step([np.ones(3), np.ones(4)])
    other = flat.copy()
    advised = fastopt.Adam([other[:3], other[3:]])
    advised.load_state_dict(optimizer.state_dict())


def test_what_cannot_be_pickled_says_so() -> None:
    optimizer = fastopt.Adam([np.ones(3)], lr=lambda t: 0.1)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(optimizer)
    optimizer.step([np.ones(3)])


def test_joblib_makes_two_arrays_of_one_and_that_is_noticed() -> None:
    """joblib does not know an array again that it has written before."""
    model = Model(table.base(fastopt.Adam))
    model.train(range(2))
    other = joblib_copy(model)
    with pytest.warns(fastopt.OrphanedParameterWarning, match="parameter 0, parameter 1"):
        other.train(range(2, 3))
    model.train(range(2, 3))
    assert table.bits(other.optimizer, list(other.optimizer.param_groups[0]["params"])) == table.bits(
        model.optimizer, [model.w, model.b]
    )
