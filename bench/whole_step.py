"""The whole step of a training: a global norm, Adam, an average of the weights, zeros in the gradients.

torch does it by four calls: clip_grad_norm_, the fused Adam, _foreach_lerp_ and zero_grad.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from cases import adam, case

import fastopt
from fastopt.benchmark.candidates import ONE_OR_ALL, library, use_threads
from fastopt.benchmark.cases import Case, fill
from fastopt.benchmark.internals import Array, Step
from fastopt.benchmark.timing import Column, measure

BETAS = (0.9999, 0.9999)
"""The steps that are timed have gradients of zero, and no moment must fade to subnormal numbers in the meantime."""

MAX_NORM, DECAY = 1.0, 0.999

PLAIN, NORM, WHOLE, TORCH = "Adam alone", "with a norm", "whole step", "torch"

SIZES = ("1,000 x 64", "1 x 2^24", "ResNet-50")

MOST = 1e-5
"""How far parameters and averages may be from torch's after three steps."""


def plain(params: list[Array], grads: list[Array]) -> tuple[Step, list[Array]]:
    return partial(fastopt.Adam(params, betas=BETAS).step, grads), []


def with_norm(params: list[Array], grads: list[Array]) -> tuple[Step, list[Array]]:
    return partial(fastopt.Adam(params, betas=BETAS).step, grads, max_norm=MAX_NORM), []


def whole(params: list[Array], grads: list[Array]) -> tuple[Step, list[Array]]:
    optimizer = fastopt.Adam(params, betas=BETAS)
    average = fastopt.ExponentialMovingAverage(optimizer, DECAY)
    return partial(optimizer.step, grads, max_norm=MAX_NORM, zero_grads=True), average.arrays


def torch_whole(params: list[Array], grads: list[Array]) -> tuple[Step, list[Array]]:
    torch = library("torch")
    tensors = [torch.from_numpy(p).requires_grad_() for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    optimizer = torch.optim.Adam(tensors, betas=BETAS, fused=True)
    averages = [np.zeros_like(p) for p in params]
    targets, values = [torch.from_numpy(a) for a in averages], [tensor.detach() for tensor in tensors]
    is_first = True

    def step() -> None:
        nonlocal is_first
        torch.nn.utils.clip_grad_norm_(tensors, MAX_NORM)
        optimizer.step()
        torch._foreach_lerp_(targets, values, 1.0 if is_first else 1 - DECAY)
        optimizer.zero_grad(set_to_none=False)
        is_first = False

    return step, averages


MAKERS = {PLAIN: plain, NORM: with_norm, WHOLE: whole, TORCH: torch_whole}


def filled(one: Case, seed: int) -> list[Array]:
    arrays = one.arrays()
    fill(arrays, seed)
    return arrays


def checked_steps(one: Case) -> tuple[dict[str, Step], dict[str, list[Array]]]:
    """The steps, after three of them were found to agree with torch's, and the arrays that they change."""
    steps: dict[str, Step] = {}
    results: dict[str, list[Array]] = {}
    for name, make in MAKERS.items():
        params, grads = filled(one, 0), filled(one, 1)
        steps[name], averages = make(params, grads)
        for seed in 1, 2, 3:
            fill(grads, seed)
            steps[name]()
        results[name] = [*params, *averages]
        assert name in (PLAIN, NORM) or not any(g.any() for g in grads), f"{name}: zeros were not written"
    for ours, theirs in ((WHOLE, TORCH), (NORM, WHOLE)):
        for a, b in zip(results[ours], results[theirs], strict=ours == WHOLE):
            np.testing.assert_allclose(a, b, rtol=MOST, atol=MOST)
    return steps, results


def measured_whole(workload: str, seconds: float) -> dict[str, Any]:
    one = case(adam(), workload)
    columns: dict[Column, Step] = {}
    steps, _arrays = checked_steps(one)  # which a program has as well
    for name, step in steps.items():
        columns |= dict.fromkeys(((name, count) for count in ONE_OR_ALL), step)
    timings = measure(columns, lambda column: use_threads(column[1]), seconds)
    return {
        "workload": workload,
        "times": [[name, count, t.median, t.spread] for (name, count), t in timings.items()],
    }
