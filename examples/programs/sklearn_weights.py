"""scikit-learn's MLPClassifier, whose weights are replaced during the training.

After a bad epoch the best weights so far are put back: ``classifier.coefs_ = best``. An optimizer that holds the old
arrays would go on training those. `update` is handed the present ones at each step, as scikit-learn hands them to its
own optimizer.

    python examples/programs/sklearn_weights.py
"""

from typing import Any

import numpy as np
from comparison import Array, Training, batches, compare, digits
from sklearn.neural_network import MLPClassifier

import fastopt

LR = 5e-3  # large enough for bad epochs


class SklearnOptimizer:
    """One of fastopt's optimizers, with the methods that scikit-learn's networks call."""

    def __init__(self, optimizer: fastopt.Optimizer) -> None:
        self.optimizer = optimizer

    def update_params(self, params: list[Array], grads: list[Array]) -> None:
        self.optimizer.update(params, grads)

    def iteration_ends(self, time_step: int) -> None:
        """Nothing: schedules of fastopt count their steps themselves."""

    def trigger_stopping(self, message: str, verbose: bool) -> bool:
        """Whether a training that no longer gets better ends, as with scikit-learn's Adam."""
        return True


def copies(classifier: Any) -> tuple[list[Array], list[Array]]:
    """Copies of the weights and biases."""
    return [array.copy() for array in classifier.coefs_], [array.copy() for array in classifier.intercepts_]


def train(name: str, hidden: int = 64, batch: int = 32) -> Training:
    images, labels = digits()
    rng = np.random.default_rng(0)
    classifier: Any = MLPClassifier((hidden,), solver="adam", alpha=0, random_state=0)
    classifier.partial_fit(images[:batch], labels[:batch], classes=np.unique(labels))  # makes the weights
    if name == "fastopt":
        # scikit-learn's Adam adds eps before the bias correction, which is the option eps_hat here
        adam = fastopt.Adam(lr=LR, eps=0.0, eps_hat=1e-8)
        classifier._optimizer = SklearnOptimizer(adam)
    else:
        params = classifier.coefs_ + classifier.intercepts_
        classifier._optimizer = type(classifier._optimizer)(params, learning_rate_init=LR)
    best, lowest = copies(classifier), np.inf
    while True:
        loss = 0.0
        for chosen in batches(len(images), batch, rng):
            classifier.partial_fit(images[chosen], labels[chosen])
            loss += classifier.loss_ * len(chosen)
        loss /= len(images)
        if loss < lowest:
            lowest, best = loss, copies(classifier)
        elif loss > 1.05 * lowest:  # a bad epoch: the best weights take the places of these
            classifier.coefs_, classifier.intercepts_ = best
            best = copies(classifier)
        yield loss


if __name__ == "__main__":
    compare(train, epochs=20)
