"""State dicts taken to torch and back, in the middle of a training."""

from __future__ import annotations

import copy
import inspect
import math
import sys
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from own_process import run
from table import Array

import fastopt
from fastopt import torch_state

torch = pytest.importorskip("torch")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHARED = [cls for cls in table.OPTIMIZERS if hasattr(torch.optim, cls.__name__)]
every_class = pytest.mark.parametrize("cls", SHARED, ids=lambda cls: cls.__name__)
SHAPES = [(3, 4), (5,), (), (2, 1, 3)]


def parameters(dtype: Any = np.float64) -> list[Array]:
    return [
        table.plain_values(math.prod(shape), "float64", i).reshape(shape).astype(dtype)
        for i, shape in enumerate(SHAPES)
    ]


def gradients(step: int, dtype: Any = np.float64) -> list[Array | None]:
    found: list[Array | None] = [
        table.plain_values(math.prod(shape), "float64", 10 * step + 10 + i).reshape(shape).astype(dtype)
        for i, shape in enumerate(SHAPES)
    ]
    if step < 4:
        found[1] = None  # torch has no state of it for a while
    return found


def shared_options(variant: table.Variant) -> dict[str, Any]:
    theirs = inspect.signature(getattr(torch.optim, variant.cls.__name__)).parameters
    return {name: value for name, value in variant.options.items() if name in theirs}


class Both:
    """The same training with either."""

    def __init__(self, variant: table.Variant) -> None:
        self.params = parameters()
        options = shared_options(variant)
        self.ours = variant.cls(self.groups(self.params), **options)  # type: ignore[call-arg]
        self.tensors = [torch.from_numpy(p.copy()).requires_grad_() for p in self.params]
        self.theirs = getattr(torch.optim, variant.cls.__name__)(self.groups(self.tensors), **options)

    @staticmethod
    def groups(members: list[Any]) -> list[dict[str, Any]]:
        return [{"params": members[:1], "name": "first"}, {"params": members[1:], "lr": 0.03}]

    def step_ours(self, step: int) -> None:
        self.ours.step(gradients(step))

    def step_theirs(self, step: int) -> None:
        for tensor, grad in zip(self.tensors, gradients(step), strict=True):
            tensor.grad = None if grad is None else torch.from_numpy(grad)
        self.theirs.step()

    def check(self) -> None:
        for param, tensor in zip(self.params, self.tensors, strict=True):
            np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12, atol=1e-13)

    def to_ours(self) -> None:
        for param, tensor in zip(self.params, self.tensors, strict=True):
            param[...] = tensor.detach().numpy()
        self.ours.load_state_dict(torch_state.from_torch(self.theirs.state_dict()))

    def to_theirs(self) -> None:
        with torch.no_grad():
            for param, tensor in zip(self.params, self.tensors, strict=True):
                tensor.copy_(torch.from_numpy(param))
        self.theirs.load_state_dict(torch_state.to_torch(self.ours.state_dict()))


def variants_in_torch(cls: table.Class) -> list[table.Variant]:
    theirs = inspect.signature(getattr(torch.optim, cls.__name__)).parameters
    return [v for v in table.variants(cls) if v.changed is None or v.changed in theirs]


@every_class
@pytest.mark.usefixtures("counters_in_float64")
def test_there_and_back_in_the_middle_of_a_training(cls: table.Class) -> None:
    """One goes on where the other stopped, again and again; a third has run in torch all the time."""
    for variant in variants_in_torch(cls):
        with table.named(variant):
            both, torch_alone = Both(variant), Both(variant)
            for step in range(9):
                torch_alone.step_theirs(step)
                if step // 2 % 2 == 0:  # two steps here, then two there
                    if step and step % 2 == 0:
                        both.to_ours()
                    both.step_ours(step)
                else:
                    if step % 2 == 0:
                        both.to_theirs()
                    both.step_theirs(step)
            if step // 2 % 2:
                both.to_ours()
            for param, tensor in zip(both.params, torch_alone.tensors, strict=True):
                np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12, atol=1e-13)
            names = [group["name"] for group in both.ours.param_groups if "name" in group]
            assert names == ["first"]


def same(one: Any, other: Any) -> bool:
    """Equal in values, types, dtypes, shapes, strides and order of keys."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and bool(torch.equal(one, other))
            and (not one.numel() or (one.stride() == other.stride() and one.data_ptr() != other.data_ptr()))
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(x, y) for x, y in zip(one, other, strict=True))
    return bool(one == other)


@every_class
def test_a_dict_of_torch_survives_the_way_there_and_back(cls: table.Class) -> None:
    both = Both(table.base(cls))
    for step in range(3):
        both.step_theirs(step)
    saved = both.theirs.state_dict()
    saved["more"] = {"x": torch.arange(3)}
    saved["param_groups"][0]["mine"] = [1, (2, None), {"deep": torch.ones(2)}]
    found = torch_state.from_torch(saved)
    for entry in found["state"].values():
        if "step" in entry:
            assert isinstance(entry["step"], np.ndarray)
            assert entry["step"].dtype == np.float32 and entry["step"].ndim == 0
    assert isinstance(found["param_groups"][0]["mine"][2]["deep"], np.ndarray)
    assert same(torch_state.to_torch(found), saved)


@every_class
def test_a_dict_of_ours_survives_the_way_there_and_back(cls: table.Class) -> None:
    both = Both(table.base(cls))
    both.ours.param_groups[0]["mine"] = {"a": [1, (2.5, None)], 3: np.arange(2)}
    for step in range(3):
        both.step_ours(step)
    before = copy.deepcopy(both.ours.state_dict())
    there = torch_state.to_torch(both.ours.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both.to_theirs()
    assert both.theirs.state_dict()["param_groups"][0]["seed"] == 0, "torch passes over what it does not know"
    both.ours.load_state_dict(torch_state.from_torch(there))
    assert repr(both.ours.state_dict()) == repr(before)
    both.ours.load_state_dict(torch_state.from_torch(both.theirs.state_dict()))
    assert repr(both.ours.param_groups) == repr(both.ours.param_groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_layouts_stay(dtype: Any) -> None:
    tensors = [
        torch.randn(4, 3).to(dtype),
        torch.randn(3, 4).to(dtype).T,
        torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last),
        torch.zeros(0, 3, dtype=dtype),
        torch.tensor(1.5, dtype=dtype),
    ]
    optimizer = torch.optim.Adam([t.requires_grad_() for t in tensors], amsgrad=True)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    saved = optimizer.state_dict()
    found = torch_state.from_torch(saved)
    for i, tensor in enumerate(tensors):
        array = found["state"][i]["exp_avg"]
        assert array.dtype.name == str(dtype).removeprefix("torch.")
        assert array.shape == tuple(tensor.shape)
    assert same(torch_state.to_torch(found), saved)
    params = [torch_state._array(t).copy(order="C") for t in tensors]
    ours = fastopt.Adam(params, amsgrad=True)
    ours.load_state_dict(found)
    np.testing.assert_array_equal(
        ours.state[2]["exp_avg"].astype(float), saved["state"][2]["exp_avg"].to(torch.float64).numpy()
    )


def test_a_learning_rate_that_is_a_tensor_becomes_a_number() -> None:
    tensor = torch.ones(3, requires_grad=True)
    theirs = torch.optim.Adam([tensor], lr=torch.tensor(0.01))
    torch.optim.lr_scheduler.StepLR(theirs, 2)
    found = torch_state.from_torch(theirs.state_dict())
    assert type(found["param_groups"][0]["lr"]) is float
    assert type(found["param_groups"][0]["initial_lr"]) is float
    assert found["param_groups"][0]["betas"] == (0.9, 0.999)


def test_steps_become_what_torch_has() -> None:
    ours = fastopt.Adam([np.ones(3)])
    ours.step([np.ones(3)])
    saved = ours.state_dict()
    assert type(saved["state"][0]["step"]) is int
    step = torch_state.to_torch(saved)["state"][0]["step"]
    assert step.dtype == torch.float32 and step.ndim == 0 and step == 1
    torch.set_default_dtype(torch.float64)
    try:
        assert torch_state.to_torch(saved)["state"][0]["step"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_momentum_that_has_seen_no_gradient_is_new_to_torch_too() -> None:
    both = Both(table.Variant(fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}))
    saved = torch_state.to_torch(both.ours.state_dict())
    assert saved["state"] == {}
    both.to_theirs()
    for step in range(2):
        both.step_ours(step)
        both.step_theirs(step)
    both.check()


HARMLESS = ["seed", "state_dtype", "initial_accumulator_value"]
"""Options that have no effect on a state that is there."""


@every_class
def test_options_that_torch_does_not_have(cls: table.Class) -> None:
    """What changes the result is refused; what does not stays in the groups."""
    theirs = inspect.signature(getattr(torch.optim, cls.__name__)).parameters
    for variant in table.variants(cls):
        if "weight_decay" not in theirs and variant.options.get("weight_decay"):
            with pytest.raises(ValueError, match=r"^group 0: torch has no "):
                torch_state.to_torch(variant.make([np.ones(3, variant.dtypes[0])]).state_dict())
            continue
        if variant.changed is None or variant.changed in theirs:
            continue
        optimizer = variant.cls([np.ones(3, variant.dtypes[0])], **variant.options)  # type: ignore[call-arg]
        with table.named(variant):
            if variant.changed in HARMLESS or (cls, variant.changed) == (fastopt.AdamW, "decoupled_weight_decay"):
                saved = torch_state.to_torch(optimizer.state_dict())
                assert saved["param_groups"][0][variant.changed] == variant.options[variant.changed]
            else:
                with pytest.raises(ValueError, match=rf"^group 0: torch has no {variant.changed}, .*; make"):
                    torch_state.to_torch(optimizer.state_dict())


def test_bfloat16_of_numpys_files() -> None:
    array = np.arange(4, dtype=BFLOAT16)
    saved = {"state": {0: {"step": 1, "exp_avg": array.view("V2")}}, "param_groups": [{"params": [0]}]}
    found = torch_state.to_torch(saved)["state"][0]["exp_avg"]
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [None, 3, [], {}, {"state": {}}, {"param_groups": []}])
def test_what_is_no_state_dict(wrong: Any) -> None:
    for call in torch_state.from_torch, torch_state.to_torch:
        with pytest.raises(TypeError, match=r"^state_dict: expected what state_dict\(\) of an optimizer returns"):
            call(wrong)


def test_the_dict_that_was_passed_is_not_changed() -> None:
    ours = fastopt.Adam([np.ones(3)])
    ours.step([np.ones(3)])
    saved = ours.state_dict()
    before = repr(saved)
    found = torch_state.to_torch(saved)
    found["state"][0]["exp_avg"].fill_(7)
    assert repr(saved) == before
    back = torch_state.from_torch(found)
    found["state"][0]["exp_avg"].fill_(8)
    assert (back["state"][0]["exp_avg"] == 7).all()


def test_torch_is_not_imported_before_it_is_needed() -> None:
    assert "torch" in sys.modules
    run(
        "import sys, fastopt, numpy; fastopt.torch_state; assert 'torch' not in sys.modules;"
        "fastopt.torch_state.from_torch({'state': {}, 'param_groups': [{'lr': numpy.ones(2), 'params': []}]});"
        "assert 'torch' not in sys.modules"
    )
