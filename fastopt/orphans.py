"""The warning about parameter arrays that the program has let go of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from fastopt.arrays import listing


class OrphanedParameterWarning(UserWarning):
    """The optimizer updates arrays to which nothing else refers: the program trains others, or none."""


def warn_of_orphans(labels: Sequence[str]) -> None:
    arrays = "these arrays" if len(labels) > 1 else "this array"
    warnings.warn(
        f"{listing(labels)}: nothing but the optimizer refers to {arrays} any more, so these steps change nothing "
        "that the program could read: the parameter has probably been replaced by another array (w = w - ..., "
        "model.w = best). Write into the array that the optimizer has (w[...] = best), or pass the arrays at each "
        "step: opt.update(params, grads). If the program reads param_groups alone, ignore "
        "fastopt.OrphanedParameterWarning",
        OrphanedParameterWarning,
        stacklevel=3,
    )
