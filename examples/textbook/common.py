"""Shared by the textbook's experiments: data, a network in plain NumPy, the training loop, options and axes."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import fastopt

Array = NDArray[np.float32]
Params = dict[str, Array]

# The colours of Okabe and Ito, which colour-blind readers can tell apart.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    *("#000000", "#e69f00", "#56b4e9", "#009e73"),
    *("#0072b2", "#d55e00", "#cc79a7"),
)
GREY = "#999999"


class Data(NamedTuple):
    """Images (n, 64) from 0 to 1, and labels (n,) from 0 to 9."""

    images: Array
    labels: NDArray[np.intp]

    def take(self, indices: NDArray[np.intp] | slice) -> "Data":
        return Data(self.images[indices], self.labels[indices])

    def __len__(self) -> int:  # of samples, not of the tuple
        return len(self.labels)


def digits(train: int, rng: np.random.Generator) -> tuple[Data, Data]:
    """So many of scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, and all others, at random."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = Data((pixels / 16).astype(np.float32), labels.astype(np.intp))
    order = rng.permutation(len(data))
    return data.take(order[:train]), data.take(order[train:])


def repeated(data: Data, times: int, noise: float, rng: np.random.Generator) -> Data:
    """So many copies of every image, each with normal noise of its own."""
    images = np.tile(data.images, (times, 1))
    images += noise * rng.standard_normal(images.shape, np.float32)
    return Data(images, np.tile(data.labels, times))


# Each activation and its derivative, which is written in terms of what the activation returned.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda a: a * (1 - a)),
    "relu": (lambda z: np.maximum(z, 0), lambda a: (a > 0).astype(np.float32)),
    "leaky relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda a: np.where(a > 0, 1, 0.01).astype(np.float32)),
}


class Network:
    """A multi-layer perceptron: layers of `sizes` units, and the softmax cross-entropy of the last.

    `params` has the weights ``w1``, ``w2``, ... of shape (inputs, outputs) and the biases ``b1``, ... The weights
    start normal with a standard deviation of gain / sqrt(inputs), the biases at 0.
    """

    def __init__(
        self, sizes: Sequence[int], rng: np.random.Generator, activation: str = "relu", gain: float = 2**0.5
    ) -> None:
        self.layers = len(sizes) - 1
        self.function, self.derivative = ACTIVATIONS[activation]
        self.params: Params = {}
        for layer, (rows, columns) in enumerate(pairwise(sizes), 1):
            self.params[f"w{layer}"] = rng.normal(0, gain / rows**0.5, (rows, columns)).astype(np.float32)
            self.params[f"b{layer}"] = np.zeros(columns, np.float32)

    def forward(self, images: Array, masks: Sequence[Array] = ()) -> list[Array]:
        """The input of each layer, from the images on, and at last the logits; masks are those of dropout."""
        values = [images]
        for layer in range(1, self.layers + 1):
            z = values[-1] @ self.params[f"w{layer}"] + self.params[f"b{layer}"]
            if layer < self.layers:
                z = self.function(z)
                if masks:
                    z *= masks[layer - 1]
            values.append(z)
        return values

    def gradients(
        self, data: Data, dropout: float = 0.0, rng: np.random.Generator | None = None
    ) -> tuple[float, Params]:
        """The mean loss of a batch and its gradients; dropout: the part of the hidden units that is left out."""
        masks: list[Array] = []
        if dropout:
            assert rng is not None
            widths = [self.params[f"b{layer}"].size for layer in range(1, self.layers)]
            masks = [
                (rng.random((len(data), width), np.float32) >= dropout) / np.float32(1 - dropout)
                for width in widths
            ]
        *values, logits = self.forward(data.images, masks)
        log_softmax = _log_softmax(logits)
        rows = np.arange(len(data))
        d = np.exp(log_softmax)
        d[rows, data.labels] -= 1
        d /= len(data)
        grads = {}
        for layer in range(self.layers, 0, -1):
            given = values[layer - 1]
            grads[f"w{layer}"] = given.T @ d
            grads[f"b{layer}"] = d.sum(axis=0)
            if layer > 1:
                d = d @ self.params[f"w{layer}"].T
                if masks:
                    mask = masks[layer - 2]
                    d *= self.derivative(given / np.where(mask, mask, 1)) * mask
                else:
                    d *= self.derivative(given)
        return -float(log_softmax[rows, data.labels].mean()), grads

    def loss(self, data: Data) -> float:
        log_softmax = _log_softmax(self.forward(data.images)[-1])
        return -float(log_softmax[np.arange(len(data)), data.labels].mean())

    def accuracy(self, data: Data) -> float:
        return float((self.forward(data.images)[-1].argmax(axis=1) == data.labels).mean())


def _log_softmax(logits: Array) -> Array:
    # Softmax does not change when all logits shift; with the largest at 0, exp cannot overflow.
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class Progress(NamedTuple):
    """Where a training is, after a step."""

    epochs: float
    seconds: float
    """Spent on training; what is done between the steps does not count."""
    loss: float
    """Of the step's batch."""


def training(
    network: Network,
    optimizer: fastopt.Optimizer,
    data: Data,
    batch: int,
    rng: np.random.Generator,
    dropout: float = 0.0,
    max_norm: float | None = None,
) -> Iterator[Progress]:
    """Trains for as long as somebody asks for the next step: ``for now in training(...)``, until a break.

    dropout: see `Network.gradients`. max_norm: the global norm to which the gradients are clipped.
    """
    seconds, epochs = 0.0, 0
    start = time.perf_counter()
    while True:
        order = rng.permutation(len(data))
        for begin in range(0, len(data), batch):
            chosen = order[begin : begin + batch]
            loss, grads = network.gradients(data.take(chosen), dropout, rng)
            optimizer.step(grads, max_norm=max_norm)
            seconds += time.perf_counter() - start
            yield Progress(epochs + (begin + len(chosen)) / len(data), seconds, loss)
            start = time.perf_counter()
        epochs += 1


def each_epoch(steps: Iterator[Progress], epochs: int) -> Iterator[Progress]:
    """Of a training only the ends of so many epochs, each with the mean loss of its steps."""
    losses = []
    for now in steps:
        losses.append(now.loss)
        if now.epochs == int(now.epochs):
            yield now._replace(loss=float(np.mean(losses)))
            losses = []
            if now.epochs >= epochs:
                return


def tidy(ax: Axes, title: str, **labels: object) -> None:
    """A panel's title, its labels, and no lines that say nothing."""
    ax.set_title(title, loc="left", fontsize=11)
    ax.set(**labels)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)


def run(name: str, description: str, experiment: Callable[[bool], Figure], argv: list[str] | None) -> None:
    """The main function of every experiment: options, the experiment itself, its picture in a file."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="a run of seconds, only to see that it works")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path(), help="where to put the picture")
    options = parser.parse_args(argv)
    picture = options.output / f"textbook-{name}.png"
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        experiment(options.short).savefig(picture, dpi=110)
    except OSError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"\nThe picture is {picture}.")
