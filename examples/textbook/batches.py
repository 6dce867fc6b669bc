"""The effect of the batch size: all samples at once, mini-batches of 16 to 1,024, single samples.

Every size trains the same network from the same start, with the same learning rate, for the same time. Small
batches learn most from an epoch, large ones compute fastest, single samples never come to rest: the middle wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from common import BLACK, BLUE, GREEN, ORANGE, RED, SKY, Data, Network, digits, repeated, run, tidy, training
from matplotlib.figure import Figure

import fastopt

SIZES = (1, 16, 64, 256, 1024)
RATE = 0.1


@dataclass
class Curve:
    """The measurements in the course of a training."""

    steps: list[int] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    pace: float = 0.0
    """Seconds a step, the median: other work on the machine would bend a curve by the clock."""

    @property
    def seconds(self) -> Sequence[float]:
        return np.multiply(self.steps, self.pace).tolist()


def train(batch: int, data: Data, held_out: Data, budget: float) -> Curve:
    """Trains for so many seconds; measures whenever the number of steps has grown by a fifth."""
    rng = np.random.default_rng(1)
    network = Network((64, 32, 10), rng)
    optimizer = fastopt.SGD(network.params, lr=RATE)
    sample = data.take(slice(2_000))
    curve, due, clock = Curve(), 1.0, [0.0]
    for step, now in enumerate(training(network, optimizer, data, batch, rng), 1):
        clock.append(now.seconds)
        if step >= due:
            due = step * 1.2
            curve.steps.append(step)
            curve.epochs.append(now.epochs)
            curve.losses.append(network.loss(sample))
            curve.accuracies.append(network.accuracy(held_out))
            curve.pace = float(np.median(np.diff(clock)))
            if step * curve.pace >= budget:
                break
    return curve


def experiment(short: bool) -> Figure:
    rng = np.random.default_rng(0)
    data, held_out = digits(1_437, rng)
    data = repeated(data, 9, 0.2, rng)
    budget = 0.1 if short else 6.0
    names = {size: f"{size:,} samples" for size in SIZES} | {1: "single samples", len(data): f"all {len(data):,}"}
    curves = {}
    for size, name in names.items():
        curves[size] = train(size, data, held_out, budget)
        print(f"{name:>15}: {curves[size].epochs[-1]:7.1f} epochs, held-out {curves[size].accuracies[-1]:.1%}")

    figure = Figure(figsize=(14, 4.8), layout="constrained")
    by_epochs, by_time, accuracy = figure.subplots(1, 3)
    for (size, curve), colour in zip(curves.items(), (RED, ORANGE, GREEN, SKY, BLUE, BLACK), strict=True):
        style = {"color": colour, "linewidth": 2.0, "label": names[size]}
        by_epochs.loglog(curve.epochs, curve.losses, **style)
        by_time.loglog(curve.seconds, curve.losses, **style)
        accuracy.semilogx(curve.seconds, curve.accuracies, **style)
    tidy(by_epochs, "By epochs, small batches learn fastest", xlabel="epochs", ylabel="training loss")
    tidy(
        by_time,
        "By the clock, batches of 16 and 64 do",
        xlabel="seconds",
        ylabel="training loss",
        xlim=(1e-3, None),
    )
    tidy(
        accuracy,
        "… and on images that were held out",
        xlabel="seconds",
        ylabel="accuracy on held-out images",
        xlim=(1e-3, None),
        ylim=(0, 1),
    )
    for ax in (by_epochs, by_time):
        ax.legend(title="a batch is", fontsize=9, loc="lower left", frameon=False)
    return figure


def main(argv: list[str] | None = None) -> None:
    run("batches", "Train with batches of different sizes.", experiment, argv)


if __name__ == "__main__":
    main()
