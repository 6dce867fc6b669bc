"""A multi-layer perceptron in plain NumPy: layers of ReLU, softmax cross-entropy, and its gradient."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


class Network:
    """Fully connected layers; `sizes` has the numbers of units, from the inputs to the classes.

    `params` has the weights ``w1`` of shape (sizes[0], sizes[1]), the biases ``b1``, and so on. The
    weights start normal with variance 2 / inputs (He et al., arXiv:1502.01852), the biases at zero.
    Everything is computed in `dtype`.
    """

    def __init__(self, sizes: Sequence[int], rng: np.random.Generator, dtype: type = np.float32) -> None:
        self.layers = len(sizes) - 1
        self.params: dict[str, NDArray[np.floating]] = {}
        for layer, (rows, columns) in enumerate(pairwise(sizes), 1):
            self.params[f"w{layer}"] = rng.normal(0, np.sqrt(2 / rows), (rows, columns)).astype(dtype)
            self.params[f"b{layer}"] = np.zeros(columns, dtype)

    def forward(self, images: NDArray[np.floating]) -> list[NDArray[np.floating]]:
        """The input of each layer, beginning with the images (images, inputs), and at the end the logits."""
        values = [images]
        for layer in range(1, self.layers + 1):
            values.append(values[-1] @ self.params[f"w{layer}"] + self.params[f"b{layer}"])
            if layer < self.layers:
                np.maximum(values[-1], 0, out=values[-1])
        return values

    def backward(
        self, images: NDArray[np.floating], labels: NDArray[np.intp]
    ) -> tuple[float, dict[str, NDArray[np.floating]]]:
        """The mean softmax cross-entropy of a batch, and its gradient with respect to every parameter."""
        *values, logits = self.forward(images)
        rows = np.arange(len(labels))
        # Softmax does not change when all logits shift; with the largest at 0, exp cannot overflow.
        logits -= logits.max(axis=1, keepdims=True)
        log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -float(log_softmax[rows, labels].mean())

        d = np.exp(log_softmax)  # the gradient with respect to a layer's output before its ReLU
        d[rows, labels] -= 1
        d /= len(labels)
        grads = {}
        for layer in range(self.layers, 0, -1):
            given = values[layer - 1]
            grads[f"w{layer}"] = given.T @ d
            grads[f"b{layer}"] = d.sum(axis=0)
            if layer > 1:
                d = d @ self.params[f"w{layer}"].T
                d[given == 0] = 0
        return loss, grads

    def accuracy(self, images: NDArray[np.floating], labels: NDArray[np.intp]) -> float:
        """The fraction of images whose largest logit is that of their label."""
        return float((self.forward(images)[-1].argmax(axis=1) == labels).mean())
