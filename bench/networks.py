"""What the benchmarks of whole iterations in other people's frameworks share: networks, data, and lines of a table."""

from __future__ import annotations

import argparse
from statistics import median

from fastopt.benchmark.internals import Step
from fastopt.benchmark.timing import in_microseconds, measure

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


def compared(steps: dict[str, Step], seconds: float) -> str:
    """Their time and ours, the medians of five interleaved runs, and how many times as long theirs is."""
    runs = [measure(steps, lambda _: None, seconds, turn=0.1) for _ in range(RUNS)]
    theirs, ours = (median(run[name].median for run in runs) for name in steps)
    return f"{in_microseconds(theirs)} | {in_microseconds(ours)} | {theirs / ours:.2f}"
