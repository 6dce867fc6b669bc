"""A ravine: 100 times as steep across as along. A fixed learning rate oscillates, or stands still, or bursts.

RMSprop divides every gradient by the root of its own mean square, which makes both directions alike. It has bursts
of its own: in its first steps, and after a plateau, when the mean square has faded. A learning rate that warms up
and decays cures both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from common import BLACK, BLUE, GREEN, GREY, ORANGE, RED, run, tidy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import fastopt
from fastopt.schedules import exponential, warmup

Array = NDArray[np.float64]

CURVATURE = np.array([1.0, 100.0])
START = np.array([-9.0, 0.4])
RATE = 0.1


@dataclass(frozen=True)
class Path:
    points: Array
    """(steps + 1, 2), from the start on."""
    mean_squares: Array
    """RMSprop's, after each step; of SGD zeros."""

    @property
    def values(self) -> Array:
        return value(*self.points.T)

    @property
    def lengths(self) -> Array:
        return np.linalg.norm(np.diff(self.points, axis=0), axis=1)


def value(x: Array, y: Array) -> Array:
    return (CURVATURE[0] * x**2 + CURVATURE[1] * y**2) / 2


def descend(make: Callable[[list[Array]], fastopt.Optimizer], steps: int) -> Path:
    """The path of an optimizer down the ravine."""
    point = START.copy()
    opt = make([point])
    points, squares = [START], []
    for _ in range(steps):
        opt.step([CURVATURE * point])
        points.append(point.copy())
        squares.append(opt.state[0].get("square_avg", np.zeros(2)).copy())
    return Path(np.array(points), np.array(squares))


def rmsprop(
    lr: float | Callable[[int], float], alpha: float = 0.99, momentum: float = 0.0
) -> Callable[..., fastopt.Optimizer]:
    return lambda params: fastopt.RMSprop(params, lr=lr, alpha=alpha, momentum=momentum)


def sgd(lr: float) -> Callable[..., fastopt.Optimizer]:
    return lambda params: fastopt.SGD(params, lr=lr)


def draw_map(ax: Axes, title: str, paths: dict[str, tuple[Path, str]]) -> None:
    """Paths on the ravine's contour lines."""
    x, y = np.meshgrid(np.linspace(-10, 2, 200), np.linspace(-0.95, 0.95, 200))
    ax.contour(x, y, value(x, y), levels=[0.3, 2, 6, 13, 24, 40, 60], colors="0.85", linewidths=1, zorder=0)
    for label, (path, colour) in paths.items():
        ax.plot(*path.points.T, ".-", color=colour, linewidth=1.2, markersize=4, label=label)
    ax.plot(*START, "o", color=BLACK, markerfacecolor="white", markersize=8)
    ax.plot(0, 0, "*", color=BLACK, markersize=12, zorder=5)
    tidy(ax, title, xlim=(-10, 2), ylim=(-0.95, 0.95), xlabel="along", ylabel="across")
    ax.grid(False)
    ax.legend(loc="lower left", fontsize=8, framealpha=0.9)


def experiment(short: bool) -> Figure:
    steps = 60 if short else 1000
    cure = warmup(exponential(RATE, 0.995), 20)
    slow, zigzag = descend(sgd(1e-3), steps), descend(sgd(0.0195), 60)
    fixed, cured = descend(rmsprop(RATE), steps), descend(rmsprop(cure), steps)
    heavy = descend(rmsprop(RATE / 10, momentum=0.9), steps)

    figure = Figure(figsize=(14, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    draw_map(
        axes[0, 0],
        "SGD oscillates or stands still",
        {"lr=0.0195, 60 steps": (zigzag, ORANGE), f"lr=0.001, {steps} steps": (slow, BLUE)},
    )
    draw_map(axes[0, 1], "RMSprop with a fixed rate bursts", {f"lr={RATE}": (fixed, RED)})
    draw_map(axes[0, 2], "With warm-up and decay it does not", {f"lr={cure!r}": (cured, GREEN)})

    ax = axes[1, 0]
    ax.plot(fixed.lengths[:50], ".-", color=RED, label="fixed rate: 10 times as long as meant")
    ax.plot(cured.lengths[:50], ".-", color=GREEN, label="warm-up of 20 steps")
    tidy(
        ax,
        "The burst at the start: no mean square yet",
        xlabel="step",
        ylabel="length of the step",
        ylim=(0, None),
    )
    ax.legend(fontsize=9)

    ax = axes[1, 1]
    limit = 2 / CURVATURE[1]
    for label, path, rates, colour in [
        ("fixed rate", fixed, np.full(steps, RATE), RED),
        ("warm-up and decay", cured, [cure(k) for k in range(steps)], GREEN),
    ]:
        ax.plot(rates / np.sqrt(path.mean_squares[:, 1]), color=colour, linewidth=1.6, label=label)
    ax.axhspan(limit, 1, color=GREY, alpha=0.2)
    ax.axhline(limit, color=GREY)
    ax.text(
        steps * 0.98,
        0.043,
        "too long: each step overshoots by more",
        ha="right",
        color="#555555",
    )
    tidy(
        ax,
        "The burst after a plateau: the mean square fades",
        xlabel="step",
        ylabel="lr / √(mean square) across the ravine",
        ylim=(0, 0.05),
    )
    ax.legend(fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 0.02))

    ax = axes[1, 2]
    for label, path, colour, width in [
        ("SGD, lr=0.001", slow, BLUE, 1.5),
        ("RMSprop", fixed, RED, 1.5),
        ("RMSprop, momentum 0.9", heavy, ORANGE, 1.5),
        ("RMSprop, warm-up and decay", cured, GREEN, 2.5),
    ]:
        ax.semilogy(path.values, color=colour, linewidth=width, label=label or None)
    tidy(
        ax, "Bursts keep it from the minimum", xlabel="step", ylabel="height above the minimum", ylim=(1e-16, 1e6)
    )
    ax.legend(fontsize=8, loc="upper right", ncols=2)
    return figure


def main(argv: list[str] | None = None) -> None:
    run("ravine", "Descend a ravine with fixed and scheduled learning rates.", experiment, argv)


if __name__ == "__main__":
    main()
