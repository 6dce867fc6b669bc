"""A small framework whose layers make their parameters at the first forward pass, when they see the number of inputs.

The optimizer is made before any parameter is, and takes them by their names as they come.

    python examples/programs/late_parameters.py
"""

import numpy as np
from comparison import Array, HandWrittenAdam, Training, batches, compare, digits
from numpy.typing import NDArray

import fastopt


class Dense:
    """A layer of `units` outputs; its weights are made when it is first called."""

    def __init__(self, name: str, units: int, rng: np.random.Generator) -> None:
        self.name, self.units, self.rng = name, units, rng
        self.params: dict[str, Array] = {}

    def __call__(self, inputs: Array) -> Array:
        if not self.params:
            width = inputs.shape[1]
            self.params[f"{self.name}/weights"] = self.rng.normal(0, np.sqrt(2 / width), (width, self.units))
            self.params[f"{self.name}/bias"] = np.zeros(self.units)
        self.inputs = inputs
        weights, bias = self.params.values()
        return inputs @ weights + bias

    def backward(self, d: Array) -> tuple[Array, dict[str, Array]]:
        """The gradient with respect to the inputs, and those of the parameters."""
        weights, _ = self.params.values()
        return d @ weights.T, dict(zip(self.params, (self.inputs.T @ d, d.sum(axis=0)), strict=True))


def backward(layers: list[Dense], images: Array, labels: NDArray[np.intp]) -> tuple[float, dict[str, Array]]:
    """The mean softmax cross-entropy of a batch, and its gradients by the parameters' names."""
    values = [images]
    for layer in layers:
        values.append(np.maximum(layer(values[-1]), 0) if layer is not layers[-1] else layer(values[-1]))
    rows = np.arange(len(labels))
    logits = values[-1] - values[-1].max(axis=1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    d = np.exp(log_softmax)
    d[rows, labels] -= 1
    d /= len(labels)
    grads: dict[str, Array] = {}
    for layer, given in zip(layers[::-1], values[-2::-1], strict=True):
        d, own = layer.backward(d)
        d = d * (given > 0)
        grads |= own
    return -float(log_softmax[rows, labels].mean()), grads


def train(name: str, hidden: int = 64, batch: int = 32) -> Training:
    images, labels = digits()
    rng = np.random.default_rng(0)
    layers = [Dense("hidden", hidden, rng), Dense("output", 10, rng)]
    adam, own = fastopt.Adam(lr=1e-3), HandWrittenAdam(lr=1e-3)  # there are no parameters yet
    while True:
        loss = 0.0
        for chosen in batches(len(images), batch, rng):
            of_batch, grads = backward(layers, images[chosen], labels[chosen])
            params = {key: param for layer in layers for key, param in layer.params.items()}
            if name == "fastopt":
                adam.update(params, grads)
            else:
                for key, param in params.items():
                    own(key, param, grads[key])
            loss += of_batch * len(chosen)
        yield loss / len(images)


if __name__ == "__main__":
    compare(train, epochs=40)
