"""A framework that calls its optimizer once for each array, as soon as its gradient is known, under a key of its own.

python examples/programs/array_by_array.py
"""

from collections.abc import Callable

import numpy as np
from comparison import Array, HandWrittenAdam, Training, batches, compare, digits
from numpy.typing import NDArray

import fastopt

Optimizer = Callable[[str, Array, Array], object]


def as_function(optimizer: fastopt.Optimizer) -> Optimizer:
    """One of fastopt's optimizers as such a framework calls it."""
    return lambda key, param, grad: optimizer.update({key: param}, {key: grad})


class Model:
    """Two layers, whose backward pass gives each gradient to the optimizer at once."""

    def __init__(self, hidden: int, rng: np.random.Generator) -> None:
        self.w1 = rng.normal(0, np.sqrt(2 / 64), (64, hidden))
        self.b1 = np.zeros(hidden)
        self.w2 = rng.normal(0, np.sqrt(2 / hidden), (hidden, 10))
        self.b2 = np.zeros(10)

    def learn(self, images: Array, labels: NDArray[np.intp], optimizer: Optimizer) -> float:
        """A step on one batch; returns its mean softmax cross-entropy."""
        hidden = np.maximum(images @ self.w1 + self.b1, 0)
        logits = hidden @ self.w2 + self.b2
        logits -= logits.max(axis=1, keepdims=True)
        log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.arange(len(labels))
        d = np.exp(log_softmax)
        d[rows, labels] -= 1
        d /= len(labels)
        d_hidden = d @ self.w2.T * (hidden > 0)
        optimizer("w2", self.w2, hidden.T @ d)
        optimizer("b2", self.b2, d.sum(axis=0))
        optimizer("w1", self.w1, images.T @ d_hidden)
        optimizer("b1", self.b1, d_hidden.sum(axis=0))
        return -float(log_softmax[rows, labels].mean())


def train(name: str, hidden: int = 64, batch: int = 32) -> Training:
    images, labels = digits()
    rng = np.random.default_rng(0)
    model = Model(hidden, rng)
    optimizer = as_function(fastopt.Adam(lr=1e-3)) if name == "fastopt" else HandWrittenAdam(lr=1e-3)
    while True:
        loss = 0.0
        for chosen in batches(len(images), batch, rng):
            loss += model.learn(images[chosen], labels[chosen], optimizer) * len(chosen)
        yield loss / len(images)


if __name__ == "__main__":
    compare(train, epochs=40)
