"""A deep network: gradients that vanish or explode on their way down, clipping, units that die, L1 and L2.

Nine hidden layers of 32 units. The derivative of a sigmoid is at most 1/4, so nine of them leave nothing of the
gradient; weights 1.6 times too large multiply it by 1.6 in every layer. ReLU with weights of the right size keeps it,
and clipping keeps a step from being longer than the network bears.
"""

import numpy as np
from common import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    Data,
    Network,
    digits,
    each_epoch,
    run,
    tidy,
    training,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fastopt

DEEP = (64, *[32] * 9, 10)
RATE = 0.05

# Activation, gain of the first weights, clipping, colour. The gain for ReLU is that of He et al. (arXiv:1502.01852).
ARMS: dict[str, tuple[str, float, float | None, str]] = {
    "sigmoid": ("sigmoid", 1.0, None, RED),
    "sigmoid, weights x 4": ("sigmoid", 4.0, None, ORANGE),
    "ReLU": ("relu", 2**0.5, None, BLUE),
    "leaky ReLU": ("leaky relu", 2**0.5, None, GREEN),
    "ReLU, weights x 1.6": ("relu", 1.6 * 2**0.5, None, BLACK),
    "the same, clipped: max_norm=1": ("relu", 1.6 * 2**0.5, 1.0, PINK),
}


def losses(
    network: Network, data: Data, epochs: int, max_norm: float | None = None, lr: float = RATE, **options: float
) -> list[float]:
    """The mean training loss of every epoch; of a training that overflows only those before."""
    optimizer = fastopt.SGD(network.params, lr=lr, **options)
    found = [network.loss(data)]
    with np.errstate(over="ignore", invalid="ignore"):
        steps = training(network, optimizer, data, 32, np.random.default_rng(1), max_norm=max_norm)
        for now in each_epoch(steps, epochs):
            if not np.isfinite(now.loss):
                break
            found.append(now.loss)
    return found


def experiment(short: bool) -> Figure:
    epochs = 2 if short else 40
    data, held_out = digits(1_437, np.random.default_rng(0))
    figure = Figure(figsize=(13, 9), layout="constrained")
    (norms, learning), (dead, weights) = figure.subplots(2, 2)

    for name, (activation, gain, max_norm, colour) in ARMS.items():
        network = Network(DEEP, np.random.default_rng(1), activation, gain)
        line = "--" if name == "leaky ReLU" else "-"
        if max_norm is None:
            _, grads = network.gradients(data)
            layers = range(1, network.layers + 1)
            sizes = [np.linalg.norm(grads[f"w{i}"]) for i in layers]
            norms.semilogy(layers, sizes, f"o{line}", color=colour, label=name)
        found = losses(network, data, epochs, max_norm)
        learning.plot(found, line, color=colour, linewidth=2, label=name)
        if len(found) <= epochs:
            learning.plot(0, 3.9, "x", color=colour, markersize=12, markeredgewidth=3)
            learning.text(1, 3.9, "not clipped: overflow in the first epoch", color=colour, va="center")
        print(f"{name:>30}: loss {found[-1]:.3g} after {len(found) - 1} epochs")
    tidy(
        norms,
        "Before the first step: a gradient vanishes or explodes on its way down",
        xlabel="layer (the gradient comes from the last, at the right)",
        ylabel="size of the gradient (norm)",
        ylim=(1e-7, 1e4),
    )
    norms.legend(frameon=False, loc="lower right", fontsize=9)
    norms.text(3.1, 4e-6, "vanishes", color=RED)
    norms.text(3.1, 2e2, "explodes", color=BLACK)
    tidy(
        learning,
        "Training: only a gradient of the right size teaches, or one that is clipped",
        xlabel="epoch",
        ylabel="training loss",
        ylim=(0, 4.2),
    )
    learning.legend(frameon=False, fontsize=9, loc="upper right")

    dying(dead, data, epochs)
    penalties(weights, data, held_out, epochs)
    return figure


def dying(ax: Axes, data: Data, epochs: int) -> None:
    """Units that are off for every image get no gradient through a ReLU, and a little through a leaky one."""
    for name, activation, colour in [
        ("ReLU: no gradient, they stay dead", "relu", BLUE),
        ("leaky ReLU: a little gradient, they come back", "leaky relu", GREEN),
    ]:
        network = Network((64, 32, 10), np.random.default_rng(1), activation)
        network.params["b1"] -= 3.0
        ax.plot(losses(network, data, epochs, lr=0.5), color=colour, linewidth=2, label=name)
    tidy(ax, "Units that start dead: off for every image (biases at -3)", xlabel="epoch", ylabel="training loss")
    ax.set_ylim(0, 2.7)
    ax.legend(frameon=False, loc="lower left")


def penalties(ax: Axes, data: Data, held_out: Data, epochs: int) -> None:
    """What L2 and L1 make of the weights: L2 makes all smaller, L1 puts most of them to 0."""
    bins = np.linspace(-0.8, 0.8, 65)
    arms: list[tuple[str, dict[str, float], str, str]] = [
        ("no penalty", {}, GREY, "stepfilled"),
        ("L2: weight_decay=0.01", {"weight_decay": 0.01}, PINK, "step"),
        ("L1: l1=0.002", {"l1": 0.002}, BLUE, "step"),
    ]
    for name, options, colour, kind in arms:
        network = Network((64, 128, 128, 10), np.random.default_rng(1))
        losses(network, data, epochs, **options)
        values = np.concatenate([value.ravel() for key, value in network.params.items() if key[0] == "w"])
        zeros = np.mean(np.abs(values) < 1e-3)  # a step of l1 is 1e-4 long: they cross 0 for ever
        label = f"{name}: {zeros:.0%} at 0, accuracy {network.accuracy(held_out):.1%}"
        alpha = 0.5 if kind == "stepfilled" else 1
        ax.hist(values, bins, histtype=kind, linewidth=2, alpha=alpha, color=colour, label=label)
    tidy(
        ax,
        "L2 makes every weight smaller, L1 makes most of them 0",
        xlabel="weight",
        ylabel=f"how many of the {values.size:,}",
        yscale="log",
        ylim=(0.7, 1e6),
    )
    ax.legend(frameon=False, fontsize=9, loc="upper right")


def main(argv: list[str] | None = None) -> None:
    run("deep", "Train a deep network with gradients that vanish, explode, or arrive.", experiment, argv)


if __name__ == "__main__":
    main()
