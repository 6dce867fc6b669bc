"""Whole training iterations of Keras on its torch backend, with its own Adam and with fastopt's.

    KERAS_BACKEND=torch python bench/keras_models.py

Both compute the same losses but for rounding in float32, which is checked first. They run in turn, round after round in
one process; each figure is the median of five such runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from networks import CLASSES, HIDDEN, PIXELS, batches, compared, images, name_of, seconds_of

import fastopt.keras
from fastopt.benchmark.internals import Step


def iterations(hidden: tuple[int, ...]) -> dict[str, Step]:
    """One step of each on the same batches, after five steps of each were found to have the same losses."""

    def iteration(optimizer: Any) -> Callable[[], float]:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(width, activation="relu") for width in hidden]
        model = keras.Sequential([keras.layers.Input((PIXELS,)), *layers, keras.layers.Dense(CLASSES)])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        data = batches(images)
        return lambda: float(model.train_on_batch(*next(data)))

    found = {"Keras": iteration(keras.optimizers.Adam()), "fastopt": iteration(fastopt.keras.Adam())}
    losses = {name: [step() for _ in range(5)] for name, step in found.items()}
    np.testing.assert_allclose(losses["Keras"], losses["fastopt"], rtol=2e-3)
    return found


def main(argv: list[str] | None = None) -> None:
    seconds = seconds_of(__doc__, argv)
    print("| network | Keras, µs | fastopt, µs | times |\n|---|---|---|---|")
    for hidden in HIDDEN:
        steps = iterations(hidden)
        print(f"| {name_of(hidden)} | {compared(steps, seconds)} |", flush=True)


if __name__ == "__main__":
    main()
