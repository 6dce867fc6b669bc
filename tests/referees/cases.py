"""What the referees are given: parameters, gradients, and what happens on the way. The same numbers everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SHAPES: list[tuple[int, ...]] = [(3, 4), (5,), ()]
RUNS = {"ten": (10, [1, 2, 3, 10]), "hundred": (100, [1, 10, 100])}
"""How many steps are made, and after which of them the parameters are compared."""
LR_FACTOR = {7: 0.5}
"""What lr is multiplied by before a step, which is 0 first."""


def values(seed: int, shape: tuple[int, ...]) -> Array:
    """Numbers between -2 and 2, made of a generator's raw words by exact operations."""
    words = np.atleast_1d(np.random.PCG64(seed).random_raw(int(np.prod(shape))))
    return (np.ldexp((words >> np.uint64(11)).astype(np.float64), -51) - 2).reshape(shape)


def parameters() -> list[Array]:
    return [values(i, shape) for i, shape in enumerate(SHAPES)]


def gradients(step: int) -> list[Array | None]:
    """One of them is None in some steps: that parameter's counter stands still."""
    found: list[Any] = [values(100 * (step + 1) + i, shape) for i, shape in enumerate(SHAPES)]
    if step % 9 == 4:
        found[step // 9 % len(found)] = None
    return found
