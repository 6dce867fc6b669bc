"""The numbers of the optimizers that torch does not have: those of their authors' code, of Keras and others.

They are stored in tests/referees/<library>.json, which tests/referees/make.py writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from referees.cases import LR_FACTOR, RUNS, gradients, parameters

import fastopt

FOLDER = Path(__file__).with_name("referees")
TOLERANCE = 1e-12
"""Times the largest number of a tensor."""

LINES = [(path.stem, line) for path in sorted(FOLDER.glob("*.json")) for line in json.loads(path.read_text())]


@pytest.mark.parametrize(("library", "line"), LINES, ids=[f"{one}-{line['ours']}" for one, line in LINES])
def test_as_the_referee(library: str, line: dict[str, Any]) -> None:
    params = parameters()
    name, _, options = line["ours"].partition("(")
    optimizer = eval(f"{name}(params, {options}", {**vars(fastopt), "params": params})
    steps, kept = RUNS[line["run"]]
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] *= LR_FACTOR.get(number, 1.0)
        optimizer.step(gradients(number))
        if number + 1 in kept:
            for param, right in zip(params, line["after"][str(number + 1)], strict=True):
                theirs = np.array(right).reshape(param.shape)
                error = np.abs(param - theirs).max() / np.abs(theirs).max()
                assert error <= TOLERANCE, f"{library}: {line['call']}: {error:.1e} after {number + 1} steps"
