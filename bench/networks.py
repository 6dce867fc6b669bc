"""What the benchmarks of whole iterations in other people's frameworks share: networks, data, and lines of a table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import cycle
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from fastopt.benchmark.internals import Step
from fastopt.benchmark.timing import in_microseconds, measure

Inputs: TypeAlias = Callable[[np.random.Generator], Any]
"""Makes a batch of inputs."""

HIDDEN = [(64,), (256, 256), (512, 512)]
BATCH, PIXELS, CLASSES = 128, 784, 10
RUNS = 5


def seconds_of(description: str | None, argv: list[str] | None) -> float:
    """The one argument of these programs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each of five runs of a pair; default 4")
    return float(parser.parse_args(argv).seconds)


def name_of(hidden: tuple[int, ...]) -> str:
    return "-".join(map(str, (PIXELS, *hidden, CLASSES)))


def images(rng: np.random.Generator, pixels: int = PIXELS) -> Any:
    """A batch of inputs in float32."""
    return rng.random((BATCH, pixels)).astype(np.float32)


def batches(inputs: Inputs) -> Iterator[tuple[Any, Any]]:
    """Endless batches of inputs and labels: 16 batches of inputs in turn, and 15 of labels.

    So an input has other labels each time, and there is nothing to learn. A network that knows its data by heart has
    gradients of zero and first moments below the smallest normal number, as no training has.
    """
    rng = np.random.default_rng(0)
    all_inputs = [inputs(rng) for _ in range(16)]
    all_labels = [rng.integers(CLASSES, size=len(all_inputs[0])) for _ in range(15)]
    return zip(cycle(all_inputs), cycle(all_labels), strict=False)


def compared(steps: dict[str, Step], seconds: float) -> str:
    """Their time and ours, the medians of five interleaved runs, and how many times as long theirs is."""
    runs = [measure(steps, lambda _: None, seconds, turn=0.1) for _ in range(RUNS)]
    theirs, ours = (median(run[name].median for run in runs) for name in steps)
    return f"{in_microseconds(theirs)} | {in_microseconds(ours)} | {theirs / ours:.2f}"
