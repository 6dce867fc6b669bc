"""Whole training iterations of Keras on its torch backend, with its own Adam and with fastopt's.

    KERAS_BACKEND=torch python bench/keras_models.py

Both compute the same losses but for rounding in float32, which is checked first. They run in turn, round after round in
one process; each figure is the median of five such runs.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from networks import BATCH, CLASSES, HIDDEN, PIXELS, compared, name_of, seconds_of

import fastopt.keras
from fastopt.benchmark.internals import Step


def iterations(hidden: tuple[int, ...]) -> dict[str, Step]:
    """One step of each on the same images, after five steps of each were found to have the same losses."""
    rng = np.random.default_rng(0)
    x, y = rng.random((BATCH, PIXELS)).astype(np.float32), rng.integers(CLASSES, size=BATCH)
    found: dict[str, Any] = {}
    losses: dict[str, list[float]] = {}
    for name, optimizer in ("Keras", keras.optimizers.Adam()), ("fastopt", fastopt.keras.Adam()):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(width, activation="relu") for width in hidden]
        model = keras.Sequential([keras.layers.Input((PIXELS,)), *layers, keras.layers.Dense(CLASSES)])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        losses[name] = [float(model.train_on_batch(x, y)) for _ in range(5)]
        found[name] = model
    np.testing.assert_allclose(losses["Keras"], losses["fastopt"], rtol=2e-3)
    return {name: lambda m=model: m.train_on_batch(x, y) for name, model in found.items()}  # type: ignore[misc]


def main(argv: list[str] | None = None) -> None:
    seconds = seconds_of(__doc__, argv)
    print("| network | Keras, µs | fastopt, µs | times |\n|---|---|---|---|")
    for hidden in HIDDEN:
        steps = iterations(hidden)
        print(f"| {name_of(hidden)} | {compared(steps, seconds)} |", flush=True)


if __name__ == "__main__":
    main()
