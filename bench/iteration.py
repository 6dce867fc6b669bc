"""Whole iterations of training loops: forward pass, backward pass and the optimizer's step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

import fastopt
from fastopt.benchmark import internals
from fastopt.benchmark.candidates import library

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from network import Network

INPUTS, CLASSES, BATCH = 784, 10, 128

VOCABULARY, WORDS, WIDTH = 20_000, 32, 64
"""The model with an embedding: the number of words, the words in a text, the length of a word's vector."""

Grads = Mapping[str, npt.NDArray[np.float32]]


@dataclass
class Iteration:
    """A training loop: `backward` returns the gradients of a batch, then the optimizer steps."""

    optimizer: fastopt.Optimizer
    backward: Callable[[], Grads]

    @property
    def params(self) -> list[npt.NDArray[np.float32]]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def run(self) -> None:
        self.optimizer.step(self.backward())

    def timed_step(self) -> float:
        """Runs an iteration, and returns the seconds of its step alone."""
        grads = self.backward()
        began = perf_counter()
        self.optimizer.step(grads)
        return perf_counter() - began

    @property
    def threads(self) -> int:
        """The number of threads that fastopt has chosen for the steps."""
        return internals.threads_in_use(self.optimizer, sum(p.size for p in self.params))


def batch() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    rng = np.random.default_rng(1)
    return rng.random((BATCH, INPUTS), np.float32), rng.integers(0, CLASSES, BATCH)


def numpy_iteration(hidden: int) -> Iteration:
    """A 784-hidden-hidden-10 network in NumPy, Adam."""
    network = Network((INPUTS, hidden, hidden, CLASSES), np.random.default_rng(0))
    images, labels = batch()
    return Iteration(fastopt.Adam(network.params), lambda: network.backward(images, labels)[1])


def texts() -> npt.NDArray[np.intp]:
    """The words of a batch, by number."""
    return np.random.default_rng(2).integers(0, VOCABULARY, (BATCH, WORDS))


def embedding_gradients(params: Grads, texts: npt.NDArray[np.intp], labels: npt.NDArray[np.intp]) -> Grads:
    """The gradients of a classifier of texts: the mean of the words' vectors, a linear layer, cross-entropy.

    Joulin, Grave, Bojanowski, Mikolov 2016, arXiv:1607.01759.
    """
    vectors = params["words"][texts].mean(axis=1)
    odds = vectors @ params["w1"] + params["b1"]
    odds = np.exp(odds - odds.max(axis=1, keepdims=True))
    d = odds / odds.sum(axis=1, keepdims=True)
    d[np.arange(len(labels)), labels] -= 1
    d /= len(labels)
    words = np.zeros_like(params["words"])
    np.add.at(words, texts, (d @ params["w1"].T / np.float32(WORDS))[:, None])
    return {"words": words, "w1": vectors.T @ d, "b1": d.sum(axis=0)}


def embedding_params() -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {
        "words": rng.standard_normal((VOCABULARY, WIDTH), np.float32),
        **Network((WIDTH, CLASSES), rng).params,
    }


def embedding_iteration() -> Iteration:
    """The classifier of texts, Adam; most of its parameters are the words' vectors."""
    params = embedding_params()
    return Iteration(fastopt.Adam(params), partial(embedding_gradients, params, texts(), batch()[1]))


def torch_iteration(hidden: int) -> Iteration:
    """The same network in torch, whose tensors share their memory with NumPy's arrays."""
    torch = library("torch")
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
    """A loop of steps alone, all with the same gradient."""
    params, grads = ({"w": np.random.default_rng(k).standard_normal(elements, np.float32)} for k in (0, 1))
    return Iteration(fastopt.Adam(params), lambda: grads)


MODELS: dict[str, Callable[[], Iteration]] = {
    **{f"784-{h}-{h}-10": partial(numpy_iteration, h) for h in (64, 256, 512, 1024, 2048, 4096)},
    "embedding 20,000 x 64": embedding_iteration,
}
"""The models in plain NumPy."""

SHORT = ("784-512-512-10", "embedding 20,000 x 64")
"""The models that the short form measures."""
