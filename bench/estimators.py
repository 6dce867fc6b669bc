"""Whole training iterations of scikit-learn's MLPClassifier, with its own Adam and with fastopt's.

    python bench/estimators.py

Both compute the same losses, which is checked first. They run in turn, round after round in one process; each figure is
the median of five such runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from networks import CLASSES, HIDDEN, batches, compared, images, name_of, seconds_of
from sklearn.neural_network import MLPClassifier

import fastopt
import fastopt.sklearn
from fastopt.benchmark.internals import Step

SAME = {"optimizer": fastopt.Adam, "optimizer_options": {"lr": 1e-3, "eps": 0.0, "eps_hat": 1e-8}}
"""scikit-learn's Adam, which adds eps before the bias correction."""


def iterations(hidden: tuple[int, ...], dtype: str) -> dict[str, Step]:
    """One step of each on the same batches, after five steps of each were found to have the same losses."""

    def iteration(estimator: Any) -> Step:
        data = batches(lambda rng: images(rng).astype(dtype))
        estimator.partial_fit(*next(data), classes=np.arange(CLASSES))
        return lambda: estimator.partial_fit(*next(data))

    estimators: dict[str, Any] = {
        "scikit-learn": MLPClassifier(hidden, random_state=0),
        "fastopt": fastopt.sklearn.MLPClassifier(hidden, random_state=0, **SAME),
    }
    found = {name: iteration(estimator) for name, estimator in estimators.items()}
    for step in found.values():
        for _ in range(4):
            step()
    theirs, ours = (estimator.loss_curve_ for estimator in estimators.values())
    np.testing.assert_allclose(theirs, ours, rtol=1e-12 if dtype == "float64" else 1e-5)
    return found


def main(argv: list[str] | None = None) -> None:
    seconds = seconds_of(__doc__, argv)
    print("| network | dtype | scikit-learn, µs | fastopt, µs | times |\n|---|---|---|---|---|")
    for dtype in ("float64", "float32"):
        for hidden in HIDDEN:
            steps = iterations(hidden, dtype)
            print(f"| {name_of(hidden)} | {dtype} | {compared(steps, seconds)} |", flush=True)


if __name__ == "__main__":
    main()
