"""Whole iterations of a training loop, of which the optimizer's step is one part."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
from cases import torch

import fastopt

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from network import Network

INPUTS, CLASSES, BATCH = 784, 10, 128

Grads = Mapping[str, npt.NDArray[np.float32]]


@dataclass
class Iteration:
    """One batch: `backward` returns the gradients, then the optimizer steps."""

    optimizer: fastopt.Optimizer
    backward: Callable[[], Grads]

    @property
    def params(self) -> list[npt.NDArray[np.float32]]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def run(self) -> None:
        self.optimizer.step(self.backward())

    def timed_step(self) -> float:
        """Runs, and returns the seconds of the step alone."""
        grads = self.backward()
        began = perf_counter()
        self.optimizer.step(grads)
        return perf_counter() - began

    @property
    def threads(self) -> int:
        """What the default uses for its steps."""
        return max((choice.count for choice in self.optimizer._choices.by_size.values()), default=1)


def batch() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    rng = np.random.default_rng(1)
    return rng.random((BATCH, INPUTS), np.float32), rng.integers(0, CLASSES, BATCH)


def numpy_iteration(hidden: int) -> Iteration:
    """A 784-hidden-hidden-10 network in NumPy, Adam."""
    network = Network((INPUTS, hidden, hidden, CLASSES), np.random.default_rng(0))
    images, labels = batch()
    return Iteration(fastopt.Adam(network.params), lambda: network.backward(images, labels)[1])


def torch_iteration(hidden: int) -> Iteration:
    """The same network by torch, whose tensors share their memory with NumPy's arrays."""
    params = Network((INPUTS, hidden, hidden, CLASSES), np.random.default_rng(0)).params
    tensors = {name: torch.from_numpy(p).requires_grad_() for name, p in params.items()}
    images, labels = map(torch.from_numpy, batch())

    def backward() -> Grads:
        values = images
        for layer in (1, 2, 3):
            values = values @ tensors[f"w{layer}"] + tensors[f"b{layer}"]
            values = values.relu() if layer < 3 else values
        loss = torch.nn.functional.cross_entropy(values, labels)
        grads = torch.autograd.grad(loss, list(tensors.values()))
        return {name: grad.numpy() for name, grad in zip(tensors, grads, strict=True)}

    return Iteration(fastopt.Adam(params), backward)


def bare_steps(elements: int) -> Iteration:
    """Nothing but steps, all on the same gradient."""
    params, grads = ({"w": np.random.default_rng(k).standard_normal(elements, np.float32)} for k in (0, 1))
    return Iteration(fastopt.Adam(params), lambda: grads)
