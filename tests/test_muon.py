"""Muon: the only optimizer of whole matrices, by its definition, torch's numbers and the bits of its kernel."""

from __future__ import annotations

import copy
from math import sqrt
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array, Variant, named

import fastopt
from fastopt import functional

SHAPES = [(4, 6), (6, 4), (5, 5), (1, 7), (7, 1)]
OPTIONS: dict[str, Any] = {
    "weight_decay": 0.3,
    "momentum": 0.5,
    "nesterov": False,
    "ns_coefficients": (2.0, -1.5, 0.5),
    "eps": 10.0,
    "ns_steps": 2,
    "adjust_lr_fn": "match_rms_adamw",
    "maximize": True,
    "lr": 0.3,
    "state_dtype": "bfloat16",
}


def matrices(seed: int, dtype: Any = "float64") -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(table.dtype_of(dtype)) for shape in SHAPES]


def by_definition(p: Array, m: Array, g: Array, h: dict[str, Any]) -> tuple[Array, Array]:
    """torch's equations, as one writes them in NumPy."""
    g = -g if h["maximize"] else g
    m = h["momentum"] * m + (1 - h["momentum"]) * g
    u = (1 - h["momentum"]) * g + h["momentum"] * m if h["nesterov"] else m
    a, b, c = h["ns_coefficients"]
    x = u / max(np.linalg.norm(u), h["eps"])
    x = x.T if len(p) > p.shape[1] else x
    for _ in range(h["ns_steps"]):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if len(p) > p.shape[1] else x
    rows, columns = p.shape
    matches = h["adjust_lr_fn"] == "match_rms_adamw"
    ratio = 0.2 * sqrt(max(rows, columns)) if matches else sqrt(max(1, rows / columns))
    return p * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * ratio * x, m


@pytest.mark.parametrize("option", [None, *(name for name in OPTIONS if name != "state_dtype")])
def test_the_definition(option: str | None) -> None:
    changed = {} if option is None else {option: OPTIONS[option]}
    params = matrices(0)
    optimizer = fastopt.Muon(params, **{"lr": 0.1} | changed)
    expected = [(p.copy(), np.zeros_like(p)) for p in params]
    for step in range(10):
        optimizer.step(matrices(1 + step))
        h = optimizer.param_groups[0]
        expected = [by_definition(*one, g, h) for one, g in zip(expected, matrices(1 + step), strict=True)]
        for param, state, (p, m) in zip(params, optimizer.state.values(), expected, strict=True):
            assert np.abs(param - p).max() <= 1e-12 * np.abs(p).max()
            assert np.abs(state["momentum_buffer"] - m).max() <= 1e-12 * np.abs(m).max()


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_result(option: str) -> None:
    found = []
    for options in {}, {option: OPTIONS[option]}:
        params = matrices(0, "float32")
        optimizer = fastopt.Muon(params, **{"lr": 0.1} | options)
        for step in range(3):
            optimizer.step(matrices(1 + step, "float32"))
        found.append(b"".join(p.tobytes() for p in params))
    assert found[0] != found[1]


@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_as_torch_which_computes_in_bfloat16(adjust: str | None, nesterov: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(np.float32) for shape in ((64, 32), (32, 64))]
    params, tensors = [p.copy() for p in start], [torch.from_numpy(p.copy()).requires_grad_() for p in start]
    options = {"lr": 0.05, "adjust_lr_fn": adjust, "nesterov": nesterov}
    ours, theirs = fastopt.Muon(params, **options), torch.optim.Muon(tensors, **options)
    for _ in range(5):
        grads = [rng.standard_normal(p.shape).astype(np.float32) for p in params]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
        ours.step(grads)
        theirs.step()
    for param, tensor, first in zip(params, tensors, start, strict=True):
        moved = tensor.detach().numpy() - first
        assert np.linalg.norm(param - first - moved) <= 2e-2 * np.linalg.norm(moved)
    saved = fastopt.torch_state.from_torch(theirs.state_dict())
    ours.load_state_dict(saved)
    assert np.array_equal(ours.state[0]["momentum_buffer"], theirs.state[tensors[0]]["momentum_buffer"].numpy())


def test_the_adaptor_for_torch() -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch as adaptor

    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.standard_normal((48, 32)).astype(np.float32))
    tensors = [start.clone().requires_grad_() for _ in range(2)]
    theirs, ours = torch.optim.Muon(tensors[:1], lr=0.05), adaptor.Muon(tensors[1:], lr=0.05)
    for step in range(6):
        grad = torch.from_numpy(rng.standard_normal((48, 32)).astype(np.float32))
        for tensor in tensors:
            tensor.grad = grad.clone()
        if step == 3:  # the states change places
            saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in (theirs, ours)]
            assert saved[0]["state"][0].keys() == saved[1]["state"][0].keys()
            theirs.load_state_dict(saved[1])
            ours.load_state_dict(saved[0])
        theirs.step()
        ours.step()
    moved = [tensor.detach() - start for tensor in tensors]
    assert torch.linalg.norm(moved[0] - moved[1]) <= 2e-2 * torch.linalg.norm(moved[0])


@pytest.mark.parametrize("format", table.FORMATS)
def test_the_kernel_has_the_bits_of_the_twin(format: str) -> None:
    variant = Variant(fastopt.Muon, {"lr": 0.1, "weight_decay": 0.1}).stored_as(format)
    start, grads = table.inputs(format)
    found = []
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        params = [p.reshape(-1, 1).copy() for p in start]
        with table.plain_work():
            optimizer = table.train(variant, params, [[g.reshape(-1, 1) for g in step] for step in grads])
        found.append(table.bits(optimizer, params))
    for isa, bits in zip(fastopt.available_isas(), found, strict=True):
        with named(isa):
            assert bits == found[-1]


@pytest.mark.parametrize("options", [{"max_norm": 0.5}, {"max_value": 0.1}, {"grad_scale": 0.25}])
def test_the_direction_is_that_of_clipped_gradients(options: dict[str, float]) -> None:
    clipped, other = matrices(0), matrices(0)
    ours, plain = fastopt.Muon(clipped, lr=0.1), fastopt.Muon(other, lr=0.1)
    for step in range(3):
        grads = matrices(1 + step)
        ours.step(grads, **options)
        if "max_norm" in options:
            fastopt.clip_grad_norm(grads, 0.5)
        elif "max_value" in options:
            fastopt.clip_grad_value(grads, 0.1)
        else:
            grads = [0.25 * g for g in grads]
        plain.step(grads)
    for p, q in zip(clipped, other, strict=True):
        assert np.abs(p - q).max() <= 1e-13 * np.abs(q).max()


def test_layouts() -> None:
    plain, fortran = matrices(0), [np.asfortranarray(p) for p in matrices(0)]
    for params in plain, fortran:
        optimizer = fastopt.Muon(params, lr=0.1)
        for step in range(3):
            optimizer.step(matrices(1 + step))
    for p, q in zip(plain, fortran, strict=True):
        assert np.allclose(p, q, rtol=1e-13, atol=0)


def test_bfloat16_and_empty_parameters() -> None:
    params = [p.astype(ml_dtypes.bfloat16) for p in matrices(0)] + [np.zeros((0, 3)), np.zeros((3, 0))]
    before = [p.copy() for p in params]
    optimizer = fastopt.Muon(params, lr=0.1)
    optimizer.step([np.ones_like(p) for p in params])
    assert all((p != q).any() for p, q in zip(params[:5], before[:5], strict=True))
    optimizer.step([np.zeros_like(p) for p in params])


def test_work_arrays_are_made_once() -> None:
    params = [np.ones((30, 20), np.float32)]
    optimizer = fastopt.Muon(params, lr=0.1)
    optimizer.step([np.ones((30, 20), np.float32)])
    work = dict(optimizer._plan.tensors[0].work)
    optimizer.step([np.ones((30, 20), np.float32)])
    assert {name: id(array) for name, array in work.items()} == {
        name: id(array) for name, array in optimizer._plan.tensors[0].work.items()
    }


def test_the_function() -> None:
    params, others = matrices(0), matrices(0)
    optimizer = fastopt.Muon(params, lr=0.1)
    buffers = [np.zeros_like(p) for p in others]
    for step in range(3):
        grads = matrices(1 + step)
        optimizer.step(grads)
        for p, g, buffer in zip(others, grads, buffers, strict=True):
            functional.muon(p, g, buffer, step=step + 1, lr=0.1)
    assert all(map(np.array_equal, params, others))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_other_shapes_are_refused_with_advice(shape: tuple[int, ...]) -> None:
    wrong = np.ones(shape)
    for call in (
        lambda: fastopt.Muon([np.ones((2, 2)), wrong]),
        lambda: fastopt.Muon(lr=0.1).update([np.ones((2, 2)), wrong], [np.ones((2, 2)), wrong]),
    ):
        with pytest.raises(
            ValueError, match=r"^parameter 1: Muon takes parameters with two axes.* give it to AdamW"
        ):
            call()
    with pytest.raises(ValueError, match="Muon takes parameters with two axes"):
        functional.muon(wrong, np.ones(shape), np.zeros(shape), step=1)
    fastopt.AdamW([wrong])  # the advice


def test_an_exception_in_the_iteration_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    params = matrices(0)
    optimizer = fastopt.Muon(params, lr=0.1)
    optimizer.step(matrices(1))
    before, transform, calls = table.bits(optimizer, params), fastopt.Muon.algorithm.transform, []

    def failing(*arguments: Any) -> None:
        transform(*arguments)
        calls.append(1)
        if len(calls) == len(SHAPES):
            raise KeyboardInterrupt

    monkeypatch.setattr(fastopt.Muon.algorithm, "transform", staticmethod(failing))
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(matrices(2))
    assert table.bits(optimizer, params) == before
    monkeypatch.undo()
    optimizer.step(matrices(2))


def test_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="use update"):
        fastopt.Muon(lr=0.1).update_rows([np.ones((4, 2))], [[1]], [np.ones((1, 2))])
