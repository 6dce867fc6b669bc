"""Random search: the baseline that learning has to beat.

Three ways to find the weights of a network, compared by how often each passes over the data: drawing all weights
at random and keeping the best, random steps from the best that are kept if they help, and gradients.
"""

from collections.abc import Iterator

import numpy as np
from common import BLUE, GREEN, RED, Data, Network, digits, run, tidy
from matplotlib.figure import Figure

import fastopt

GRADIENT = 3
"""Passes over the data that a gradient counts for: forward, and backward twice as much work."""


def at_random(hidden: int, data: Data, rng: np.random.Generator) -> Iterator[tuple[int, Network]]:
    """Draws network after network; yields the passes so far and the best network."""
    best, best_loss, passes = Network((64, hidden, 10), rng), np.inf, 0
    while True:
        network = Network((64, hidden, 10), rng)
        loss, passes = network.loss(data), passes + 1
        if loss < best_loss:
            best, best_loss = network, loss
        yield passes, best


def random_steps(hidden: int, data: Data, rng: np.random.Generator) -> Iterator[tuple[int, Network]]:
    """Adds noise to all weights and takes it back unless the loss falls; the noise adapts to the success."""
    network = Network((64, hidden, 10), rng)
    loss, passes, size = network.loss(data), 1, 0.1
    while True:
        before = {name: value.copy() for name, value in network.params.items()}
        for value in network.params.values():
            value += size * rng.standard_normal(value.shape, np.float32)
        tried, passes = network.loss(data), passes + 1
        if tried < loss:
            loss, size = tried, size * 1.2
        else:
            size *= 0.96
            for name, value in before.items():
                network.params[name][...] = value
        yield passes, network


def gradients(hidden: int, data: Data, rng: np.random.Generator) -> Iterator[tuple[int, Network]]:
    """Adam on the gradient of all data."""
    network = Network((64, hidden, 10), rng)
    optimizer, passes = fastopt.Adam(network.params, lr=0.02), 0
    while True:
        optimizer.step(network.gradients(data)[1])
        passes += GRADIENT
        yield passes, network


def after(budget: int, search: Iterator[tuple[int, Network]]) -> Network:
    """The best point that a search has found after so many passes."""
    return next(network for passes, network in search if passes >= budget)


WAYS = {
    "weights at random, the best": (at_random, RED),
    "random steps that help": (random_steps, BLUE),
    "gradients, Adam": (gradients, GREEN),
}


def experiment(short: bool) -> Figure:
    budget = 60 if short else 10_000
    widths = (2, 16) if short else (2, 4, 8, 16, 32, 64, 128)
    data, held_out = digits(1_437, np.random.default_rng(0))
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    course, sizes = figure.subplots(1, 2)
    for name, (search, colour) in WAYS.items():
        found: list[tuple[int, float]] = []
        for passes, network in search(32, data, np.random.default_rng(1)):
            if not found or passes >= found[-1][0] * 1.15:
                found.append((passes, network.accuracy(held_out)))
            if passes >= budget:
                break
        course.semilogx(*zip(*found, strict=True), color=colour, linewidth=2.5, label=name)
        print(f"{name:>27}: held-out {found[-1][1]:.1%} after {found[-1][0]:,} passes")

        reached = []
        for hidden in widths:
            network = after(budget // 10, search(hidden, data, np.random.default_rng(1)))
            reached.append((sum(value.size for value in network.params.values()), network.loss(data)))
        sizes.loglog(*zip(*reached, strict=True), "o-", color=colour, linewidth=2.5, label=name)
    course.axhline(0.1, color="#999999", linestyle=":")
    course.text(budget, 0.04, "guessing", color="#777777", ha="right")
    tidy(
        course,
        "A gradient needs a fiftieth of the passes over the data",
        xlabel=f"passes over the data (a gradient counts for {GRADIENT})",
        ylabel="held-out accuracy",
        ylim=(0, 1),
    )
    course.legend(frameon=False, loc="upper left")
    tidy(
        sizes,
        f"The more weights, the more a gradient is worth ({budget // 10:,} passes)",
        xlabel="weights of the network",
        ylabel="training loss",
    )
    sizes.legend(frameon=False, loc="lower left")
    return figure


def main(argv: list[str] | None = None) -> None:
    run("random-search", "Search the weights of a network at random, and learn them.", experiment, argv)


if __name__ == "__main__":
    main()
