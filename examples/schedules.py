"""Draw every schedule: how the learning rate or the momentum changes over a run of 1,000 steps.

The page docs/schedules.md shows the picture and says how each schedule is called.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastopt.schedules import (
    ReduceLROnPlateau,
    Schedule,
    chained,
    constant,
    cosine,
    cosine_annealing,
    cosine_warm_restarts,
    cyclic,
    cyclic_momentum,
    exponential,
    inverse_sqrt,
    inverse_time,
    lambda_,
    linear,
    multi_step,
    multiplicative,
    one_cycle,
    one_cycle_momentum,
    polynomial,
    sequential,
    step,
    warmup,
    warmup_stable_decay,
)

if TYPE_CHECKING:  # the list of schedules below, which the tests take too, needs no matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = 1000
COLUMNS = 4


def shrinking_wave(k: int) -> float:
    return 0.5 + 0.5 * math.cos(k / 25) * 0.998**k


def ever_faster(k: int) -> float:
    return 0.9995 if k < 500 else 0.993


# Schedules of a kind have a colour (of Okabe and Ito, which colour-blind readers can tell apart). The first
# schedule of a panel is the one in its title; the others, drawn thin, differ in what their label says.
KINDS: dict[str, tuple[str, list[dict[str, Schedule]]]] = {
    "one way": (
        "#0072b2",
        [
            {"": constant(1.0), "factor=0.3, steps=200": constant(1.0, 0.3, 200)},
            {"": linear(1.0, 800), "end=0.3": linear(1.0, 800, end=0.3)},
            {"power=2": polynomial(1.0, 800, 2.0), "power=0.5": polynomial(1.0, 800, 0.5)},
            {"": cosine(1.0, 800), "end=0.2": cosine(1.0, 800, end=0.2)},
            {"": exponential(1.0, 0.997), "end=0.3": exponential(1.0, 0.997, end=0.3)},
            {"gamma=0.5": step(1.0, 200, 0.5), "gamma=0.8": step(1.0, 200, 0.8)},
            {"": multi_step(1.0, [500, 750], 0.3)},
            {"": inverse_sqrt(1.0, 50)},
            {"": inverse_time(1.0, 0.01), "steps=200, staircase": inverse_time(1.0, 2.0, 200, staircase=True)},
            {"": lambda_(1.0, shrinking_wave)},
            {"": multiplicative(1.0, ever_faster)},
        ],
    ),
    "up and down": (
        "#d55e00",
        [
            {"": cosine_annealing(1.0, 250)},
            {"": cosine_warm_restarts(1.0, 140, 2), "gamma=0.6": cosine_warm_restarts(1.0, 140, 2, gamma=0.6)},
            {"": one_cycle(1.0, 1000), "three_phase": one_cycle(1.0, 1000, three_phase=True)},
            {
                "triangular": cyclic(0.1, 1.0, 125),
                "triangular2": cyclic(0.1, 1.0, 125, mode="triangular2"),
            },
        ],
    ),
    "momentum, the other way": (
        "#8b4a8b",
        [
            {"": one_cycle_momentum(steps=1000)},
            {"": cyclic_momentum(step_size_up=125)},
        ],
    ),
    "made of others": (
        "#007a5a",
        [
            {"": warmup(cosine(1.0, 800), 200)},
            {
                "cosine": warmup_stable_decay(1.0, 1000, 100, 300),
                "linear": warmup_stable_decay(1.0, 1000, 100, 300, decay_type="linear"),
            },
            {"": sequential([linear(0.3, 200, end=1.0), step(1.0, 150, 0.6)], [300])},
            {"": chained([cosine(1.0, 1000), cyclic(0.7, 1.0, 50)])},
        ],
    ),
}

CALLS = {
    "lambda_": "lambda_(1.0, function)",
    "multiplicative": "multiplicative(1.0, function)",
    "sequential": "sequential([linear(…), step(…)], [300])",
    "chained": "chained([cosine(…), cyclic(…)])",
}
"""The titles of panels whose whole call is too long."""


def panels(axes: Iterator[Axes]) -> None:
    """A panel for each schedule."""
    k = np.arange(STEPS)
    for colour, groups in KINDS.values():
        for group in groups:
            ax = next(axes)
            for i, (label, schedule) in enumerate(group.items()):
                thin = i > 0
                ax.plot(
                    k,
                    [schedule(int(step)) for step in k],
                    color=colour,
                    linewidth=1.2 if thin else 2.6,
                    alpha=0.55 if thin else 1.0,
                    label=label or None,
                    zorder=2 if thin else 3,
                )
            schedule = next(iter(group.values()))
            title(ax, CALLS.get(schedule.name, repr(schedule)), colour)
            if any(group):
                ax.legend(fontsize=7.5, frameon=False, loc="best", handlelength=1.2, borderaxespad=0.2)
            low, high = (0.78, 0.97) if "momentum" in schedule.name else (-0.05, 1.08)
            if schedule.name in ("cosine_warm_restarts", "cyclic"):
                high = 1.45  # room for the labels
            ax.set_ylim(low, high)
            ax.set_yticks([0.8, 0.85, 0.9, 0.95] if "momentum" in schedule.name else [0, 0.5, 1])


def plateau_panel(ax: Axes) -> None:
    """A loss that stalls twice, and the learning rate that follows it."""
    rng = np.random.default_rng(0)
    plateau = ReduceLROnPlateau(1.0, factor=0.3, patience=3)
    loss, losses, rates = 0.95, [], []
    epochs = 50
    for epoch in range(epochs):
        rates.append(plateau(epoch))
        floor = 0.1 + 0.5 * rates[-1]  # noise that the learning rate makes
        loss = floor + (loss - floor) * 0.7
        losses.append(loss + rng.normal(0, 0.01))
        plateau.step(losses[-1])
    at = np.arange(epochs) * STEPS / epochs
    colour = "#333333"
    ax.plot(at, losses, color="#999999", linewidth=1.6, label="the loss it watches")
    ax.step(at, rates, where="post", color=colour, linewidth=2.6, label="learning rate")
    ax.set_ylim(-0.05, 1.08)
    ax.set_yticks([0, 0.5, 1])
    ax.legend(fontsize=7.5, frameon=False, loc="upper right", handlelength=1.2)
    title(ax, "ReduceLROnPlateau(1.0, factor=0.3, patience=3)", colour)


def title(ax: Axes, call: str, colour: str) -> None:
    name, _, rest = call.partition("(")
    ax.set_title(name, loc="left", fontsize=11, fontweight="bold", color=colour, pad=16)
    ax.text(0, 1.03, f"({rest}", transform=ax.transAxes, fontsize=7.5, color="#444444")


def draw() -> Figure:
    from matplotlib.figure import Figure

    count = sum(len(groups) for _, groups in KINDS.values()) + 1
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(3.1 * COLUMNS, 2.1 * rows), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, sharex=True).flat)
    panels(iter(axes))
    plateau_panel(axes[count - 1])
    for ax in axes[:count]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlim(0, STEPS)
        ax.set_xticks([0, 500, 1000])
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
    for ax in axes[count:]:
        ax.set_axis_off()
    kinds = [(name, colour) for name, (colour, _) in KINDS.items()] + [("follows a measure", "#333333")]
    for i, (name, colour) in enumerate(kinds):
        axes[count].text(0.1, 0.9 - 0.17 * i, name, fontsize=12, fontweight="bold", color=colour)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw every schedule.")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path(), help="where to put the picture")
    options = parser.parse_args(argv)
    picture = options.output / "schedules.png"
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        draw().savefig(picture, dpi=110)
    except OSError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"Every schedule is in {picture}.")


if __name__ == "__main__":
    main()
