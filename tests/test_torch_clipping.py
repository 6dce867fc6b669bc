"""Norms, clipping and the scale of a loss, against torch in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from table import Array

import fastopt

torch: Any = pytest.importorskip("torch")

SHAPES = [(3, 5), (7,), (), (40, 130), (5000,)]
NORMS = pytest.mark.parametrize("norm_type", [2.0, math.inf])


def gradients(scale: float, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape) * scale) for shape in SHAPES]


def parameters(grads: list[Array]) -> list[Any]:
    """Tensors that have these gradients."""
    found = [torch.zeros(grad.shape, dtype=torch.float64, requires_grad=True) for grad in grads]
    for tensor, grad in zip(found, grads, strict=True):
        tensor.grad = torch.from_numpy(grad.copy())
    return found


def close(found: Array, expected: Any) -> None:
    expected = expected.detach().numpy()
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


@NORMS
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("max_norm", [0.1, 10.0, 1e9])
def test_clip_grad_norm(norm_type: float, scale: float, max_norm: float) -> None:
    grads = gradients(scale)
    tensors = parameters(grads)
    expected = torch.nn.utils.clip_grad_norm_(tensors, max_norm, norm_type)
    assert fastopt.global_norm(grads, norm_type) == pytest.approx(float(expected), rel=1e-12)
    assert fastopt.clip_grad_norm(grads, max_norm, norm_type) == pytest.approx(float(expected), rel=1e-12)
    for grad, tensor in zip(grads, tensors, strict=True):
        close(grad, tensor.grad)


@pytest.mark.parametrize("value", [1e-3, 0.5, 1e9])
def test_clip_grad_value(value: float) -> None:
    grads = gradients(1.0)
    tensors = parameters(grads)
    torch.nn.utils.clip_grad_value_(tensors, value)
    fastopt.clip_grad_value(grads, value)
    for grad, tensor in zip(grads, tensors, strict=True):
        close(grad, tensor.grad)


@NORMS
def test_steps_that_clip(norm_type: float) -> None:
    """By value first, then by the norm of all, as a torch program that calls both."""
    params = [np.ones(shape) for shape in SHAPES]
    optimizer = fastopt.Adam(params, lr=0.1, weight_decay=0.1)
    tensors = [torch.ones(shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES]
    other = torch.optim.Adam(tensors, lr=0.1, weight_decay=0.1)
    for step in range(10):
        grads = gradients(10.0 ** (step % 3 - 1), seed=step)
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad) / 8
        torch.nn.utils.clip_grad_value_(tensors, 0.1)
        torch.nn.utils.clip_grad_norm_(tensors, 2.0, norm_type)
        other.step()
        optimizer.step(grads, grad_scale=1 / 8, max_value=0.1, max_norm=2.0, norm_type=norm_type)
    for param, tensor in zip(params, tensors, strict=True):
        close(param, tensor)


def test_the_scale_of_a_loss_over_50_steps() -> None:
    options = {"init_scale": 2.0**10, "growth_factor": 1.5, "backoff_factor": 0.25, "growth_interval": 4}
    params, tensors = [np.ones(3)], [torch.ones(3, dtype=torch.float64, requires_grad=True)]
    optimizer, other = fastopt.SGD(params, lr=0.01), torch.optim.SGD(tensors, lr=0.01)
    scaler = fastopt.GradScaler(**options)  # type: ignore[arg-type]
    torchs = torch.amp.GradScaler("cpu", **options)
    rng = np.random.default_rng(0)
    for step in range(50):
        assert scaler.scale == pytest.approx(torchs.get_scale(), rel=1e-12)
        grad = rng.standard_normal(3)
        if step in {3, 11, 12, 30}:
            grad[1] = np.inf if step % 2 else np.nan
        torchs.scale(torch.zeros(()))  # torch makes its scale when it is first asked for it
        tensors[0].grad = torch.from_numpy(grad * scaler.scale)
        torchs.step(other)
        torchs.update()
        norm = optimizer.step([grad * scaler.scale], grad_scale=1 / scaler.scale, skip_nonfinite=True)
        scaler.update(norm)
        np.testing.assert_allclose(
            params[0], tensors[0].detach().numpy(), rtol=1e-8
        )  # torch's 1 / scale is a float32
