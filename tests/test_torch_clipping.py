"""Clipping and the scale of losses, against torch in float64."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from table import Array

import fastopt

torch = pytest.importorskip("torch")

SHAPES = [(300, 50), (7,), (), (5000,), (3, 4, 5), (65_537,)]


def arrays(seed: int, scale: float) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(scale * rng.standard_normal(shape)) for shape in SHAPES]


def tensors(grads: list[Array]) -> list[Any]:
    """Parameters of torch that have copies of the gradients."""
    found = []
    for grad in grads:
        parameter = torch.nn.Parameter(torch.zeros(grad.shape, dtype=torch.float64))
        parameter.grad = torch.from_numpy(grad.copy())
        found.append(parameter)
    return found


def close(ours: Array, theirs: Array) -> None:
    assert np.abs(ours - theirs).max(initial=0) <= 1e-12 * np.abs(theirs).max(initial=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e-160, 1e150])
@pytest.mark.parametrize("norm_type", [2.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e4])
def test_norms(scale: float, norm_type: float, max_norm: float) -> None:
    grads = arrays(0, scale)
    theirs = tensors(grads)
    total = float(torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type))
    params = [np.zeros(grad.shape) for grad in grads]
    stepped = fastopt.SGD(params, lr=1.0).step(grads, max_norm=max_norm, norm_type=norm_type)
    assert fastopt.global_norm(grads, norm_type) == stepped
    assert fastopt.clip_grad_norm(grads, max_norm, norm_type) == stepped
    if math.isfinite(total) and total > 0:  # torch's own sum of squares overflows where ours does not
        assert stepped == pytest.approx(total, rel=1e-12)
        for param, grad, other in zip(params, grads, theirs, strict=True):
            close(grad, other.grad.numpy())
            close(-param, other.grad.numpy())


@pytest.mark.parametrize("limit", [0.0, 0.3, 1e3])
def test_values(limit: float) -> None:
    grads = arrays(1, 1.0)
    theirs = tensors(grads)
    torch.nn.utils.clip_grad_value_(theirs, limit)
    params = [np.zeros(grad.shape) for grad in grads]
    fastopt.SGD(params, lr=1.0).step(grads, max_value=limit)
    fastopt.clip_grad_value(grads, limit)
    for param, grad, other in zip(params, grads, theirs, strict=True):
        close(grad, other.grad.numpy())
        close(-param, other.grad.numpy())


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_the_scale_of_losses(wrong: float) -> None:
    """Fifty steps with infinities on the way: the same scales, the same steps skipped, the same parameters."""
    bad_steps = {3, 4, 5, 17, 30, 41, 42}
    options = {"init_scale": 2.0**10, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 4}
    start = np.linspace(-1, 1, 1000)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.amp.GradScaler("cpu", **options)
    param = start.copy()
    opt, ours = fastopt.Adam([param], lr=0.01), fastopt.GradScaler(**options)  # type: ignore[arg-type]
    for step in range(50):
        grad = np.random.default_rng(step).standard_normal(1000)
        if step in bad_steps:
            grad[-1] = wrong
        theirs.scale(torch.zeros(1))  # torch makes its scale when it is first asked for it
        parameter.grad = torch.from_numpy(grad * theirs.get_scale())
        theirs.step(optimizer)
        theirs.update()
        norm = opt.step([grad * ours.scale], grad_scale=1 / ours.scale, skip_nonfinite=True)
        ours.update(norm)
        assert ours.scale == theirs.get_scale()
        assert math.isfinite(norm or 0.0) == (step not in bad_steps)
        close(param, parameter.detach().numpy())
    assert ours.state_dict() == theirs.state_dict()
