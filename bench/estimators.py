"""Whole training iterations of scikit-learn's MLPClassifier, with its own Adam and with fastopt's.

    python bench/estimators.py

Both compute the same losses, which is checked first. They run in turn, round after round in one process; each figure is
the median of five such runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from networks import BATCH, CLASSES, HIDDEN, PIXELS, compared, name_of, seconds_of
from sklearn.neural_network import MLPClassifier

import fastopt
import fastopt.sklearn
from fastopt.benchmark.internals import Step

SAME = {"optimizer": fastopt.Adam, "optimizer_options": {"lr": 1e-3, "eps": 0.0, "eps_hat": 1e-8}}
"""scikit-learn's Adam, which adds eps before the bias correction."""


def iterations(hidden: tuple[int, ...], dtype: str) -> dict[str, Step]:
    """One step of each on the same images, after five steps of each were found to have the same losses."""
    rng = np.random.default_rng(0)
    x, y = rng.random((BATCH, PIXELS)).astype(dtype), rng.integers(CLASSES, size=BATCH)
    found: dict[str, Any] = {
        "scikit-learn": MLPClassifier(hidden, random_state=0),
        "fastopt": fastopt.sklearn.MLPClassifier(hidden, random_state=0, **SAME),
    }
    for estimator in found.values():
        for _ in range(5):
            estimator.partial_fit(x, y, classes=np.arange(CLASSES))
    theirs, ours = (estimator.loss_curve_ for estimator in found.values())
    np.testing.assert_allclose(theirs, ours, rtol=1e-12 if dtype == "float64" else 1e-5)
    return {name: lambda e=estimator: e.partial_fit(x, y) for name, estimator in found.items()}  # type: ignore[misc]


def main(argv: list[str] | None = None) -> None:
    seconds = seconds_of(__doc__, argv)
    print("| network | dtype | scikit-learn, µs | fastopt, µs | times |\n|---|---|---|---|---|")
    for dtype in ("float64", "float32"):
        for hidden in HIDDEN:
            steps = iterations(hidden, dtype)
            print(f"| {name_of(hidden)} | {dtype} | {compared(steps, seconds)} |", flush=True)


if __name__ == "__main__":
    main()
