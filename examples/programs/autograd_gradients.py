"""A network whose gradients are worked out by autograd (HIPS), beside its own Adam.

autograd makes new gradient arrays in every iteration, in the shape of what it was given: here a dict.

    pip install autograd
    python examples/programs/autograd_gradients.py
"""

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from comparison import Array, HandWrittenAdam, Training, batches, compare, digits
from numpy.typing import NDArray

import fastopt


def loss(params: dict[str, Array], images: Array, labels: NDArray[np.intp]) -> Array:
    """The mean softmax cross-entropy of a network with one hidden layer."""
    hidden = anp.tanh(anp.dot(images, params["w1"]) + params["b1"])
    logits = anp.dot(hidden, params["w2"]) + params["b2"]
    largest = anp.max(logits, axis=1, keepdims=True)
    log_sums = anp.log(anp.sum(anp.exp(logits - largest), axis=1)) + largest[:, 0]
    return anp.mean(log_sums - logits[np.arange(len(labels)), labels])


def train(name: str, hidden: int = 256, batch: int = 64) -> Training:
    images, labels = digits()
    rng = np.random.default_rng(0)
    params = {
        "w1": rng.normal(0, np.sqrt(1 / images.shape[1]), (images.shape[1], hidden)),
        "b1": np.zeros(hidden),
        "w2": rng.normal(0, np.sqrt(1 / hidden), (hidden, 10)),
        "b2": np.zeros(10),
    }
    loss_and_gradients = value_and_grad(loss)
    adam, own = fastopt.Adam(params, lr=1e-3), HandWrittenAdam(lr=1e-3)
    while True:
        total = 0.0
        for chosen in batches(len(images), batch, rng):
            of_batch, grads = loss_and_gradients(params, images[chosen], labels[chosen])
            if name == "fastopt":
                adam.step(grads)
            else:
                for key, param in params.items():
                    own(key, param, grads[key])
            total += float(of_batch) * len(chosen)
        yield total / len(images)


if __name__ == "__main__":
    compare(train, epochs=20)
