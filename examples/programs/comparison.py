"""Shared by the programs: the digits, an Adam as such programs write it, and the comparison of two trainings."""

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Training = Iterator[float]
"""Yields the loss after each epoch."""


def digits(dtype: type = np.float64) -> tuple[Array, NDArray[np.intp]]:
    """scikit-learn's 1,797 images of digits, 64 pixels each from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(dtype), labels


def batches(count: int, size: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """The numbers of the samples of each batch of an epoch, in random order."""
    order = rng.permutation(count)
    return [order[k : k + size] for k in range(0, count, size)]


class HandWrittenAdam:
    """Adam as a program writes it for itself: one call for an array, whose state is kept by name."""

    def __init__(self, lr: float = 1e-3) -> None:
        self.lr, self.states = lr, dict[str, list]()

    def __call__(self, name: str, param: Array, grad: Array) -> None:
        if name not in self.states:
            self.states[name] = [0, np.zeros_like(param), np.zeros_like(param)]
        state = self.states[name]
        state[0] += 1
        t, m, v = state
        m += 0.1 * (grad - m)
        v += 0.001 * (grad * grad - v)
        param -= self.lr / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def compare(make: Callable[[str], Training], epochs: int) -> dict[str, list[float]]:
    """Trains with the program's own optimizer and with fastopt, an epoch of each in turn.

    make: begins a training with the optimizer of that name, "own" or "fastopt". Prints the losses and how long an
    epoch takes; returns the losses.
    """
    names = ["own", "fastopt"]
    trainings = {name: make(name) for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for epoch in range(epochs):
        for name in names if epoch % 2 else names[::-1]:
            begin = time.perf_counter()
            losses[name].append(next(trainings[name]))
            seconds[name].append(time.perf_counter() - begin)
    print("epoch    loss, own optimizer    loss, fastopt")
    for epoch in range(0, epochs, max(1, epochs // 5)):
        print(f"{epoch + 1:5}    {losses['own'][epoch]:19.6f}    {losses['fastopt'][epoch]:13.6f}")
    own, fast = (statistics.median(seconds[name]) for name in names)
    print(f"an epoch takes {own * 1e3:.1f} ms with the program's own optimizer, {fast * 1e3:.1f} ms with fastopt:")
    print(f"its own takes {own / fast:.2f} times as long")
    return losses
