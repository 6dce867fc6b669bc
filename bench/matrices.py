"""Steps of the optimizers that need whole matrices, Adafactor and Muon, by fastopt and by torch.

    python bench/matrices.py

All compute the same, which is checked first: Adafactor to three digits, because torch adds up millions of squares in
float32, and Muon to two, because torch computes it in bfloat16. They run in turn, in one process; each figure is the
median of five such runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from networks import compared, seconds_of

import fastopt
from fastopt.benchmark.internals import Array, Step

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "1024 x 1024": [(1024, 1024)],
    "4096 x 4096": [(4096, 4096)],
    "784-512-512-10": [(512, 784), (512,), (512, 512), (512,), (10, 512), (10,)],
    "convolution 512 x 512 x 3 x 3": [(512, 512, 3, 3)],
}
FORMS: dict[str, dict[str, Any]] = {"torch for-loop": {"foreach": False}, "torch foreach": {"foreach": True}}
LR = {"Adafactor": 1e-2, "Muon": 1e-3}
WITHIN = {"Adafactor": 1e-3, "Muon": 2e-2}
"""How far three steps may move a parameter from where torch's move it, as a part of the way."""


def arrays_of(shapes: list[tuple[int, ...]], seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def torch_step(name: str, params: list[Array], grads: list[Array], form: dict[str, Any]) -> Step:
    tensors = [torch.from_numpy(param).requires_grad_() for param in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    optimizer = getattr(torch.optim, name)(tensors, lr=LR[name], **form)
    return lambda: optimizer.step()


def steps_of(name: str, shapes: list[tuple[int, ...]]) -> dict[str, Step]:
    """A step of each, after three of them were found to agree."""
    forms = FORMS if name == "Adafactor" else {"torch": {}}  # torch's Muon has one form
    start, grads = arrays_of(shapes, 0), arrays_of(shapes, 1)
    params = {form: [p.copy() for p in start] for form in (*forms, "fastopt")}
    steps = {form: torch_step(name, params[form], grads, options) for form, options in forms.items()}
    steps["fastopt"] = partial(getattr(fastopt, name)(lr=LR[name]).update, params["fastopt"], grads)
    for step in steps.values():
        for _ in range(3):
            step()
    for form in forms:
        for ours, theirs, first in zip(params["fastopt"], params[form], start, strict=True):
            apart, way = np.linalg.norm(ours - theirs), np.linalg.norm(theirs - first)
            if not apart <= WITHIN[name] * way:
                raise ValueError(
                    f"{name}: {form} moves a parameter by {way:.3g}, fastopt ends {apart:.3g} from there"
                )
    return steps


def main(argv: list[str] | None = None) -> None:
    seconds = seconds_of(__doc__, argv)
    fastopt.set_num_threads(torch.get_num_threads())
    print(f"{torch.get_num_threads()} threads each, {fastopt.get_isa()}\n")
    print("| optimizer | matrices | form | torch, µs | fastopt, µs | times |\n|---|---|---|---|---|---|")
    for name in WITHIN:
        for title, shapes in SHAPES.items():
            if name == "Muon" and any(len(shape) != 2 for shape in shapes):
                continue
            steps = steps_of(name, shapes)
            for form in [*steps][:-1]:
                pair = {form: steps[form], "fastopt": steps["fastopt"]}
                print(f"| {name} | {title} | {form} | {compared(pair, seconds)} |", flush=True)


if __name__ == "__main__":
    main()
