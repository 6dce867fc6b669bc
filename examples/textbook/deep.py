"""A deep network: gradients that vanish or explode on their way down, units that die, weights under L1 and L2.

Nine hidden layers of 32 units. The derivative of a sigmoid is at most 1/4, so nine of them leave nothing of the
gradient; weights 1.7 times too large multiply it by 1.7 in every layer. ReLU with weights of the right size keeps it,
and clipping to a norm lets a network learn whose gradient explodes.
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

EXPLODING = "ReLU, weights x 1.7"

# Activation, gain of the first weights, colour. The gain for ReLU is that of He et al. (arXiv:1502.01852).
ARMS = {
    "sigmoid": ("sigmoid", 1.0, RED),
    "sigmoid, weights x 4": ("sigmoid", 4.0, ORANGE),
    "ReLU": ("relu", 2**0.5, BLUE),
    "leaky ReLU": ("leaky relu", 2**0.5, GREEN),
    EXPLODING: ("relu", 1.7 * 2**0.5, BLACK),
}


def losses(
    network: Network, data: Data, epochs: int, max_norm: float | None = None, lr: float = RATE, **penalty: float
) -> list[float]:
    """The mean training loss of every epoch; of a training that overflows only those before."""
    optimizer = fastopt.SGD(network.params, lr=lr, **penalty)
    found = [network.loss(data)]
    steps = training(network, optimizer, data, 32, np.random.default_rng(1), max_norm=max_norm)
    with np.errstate(over="ignore", invalid="ignore"):
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

    for name, (activation, gain, colour) in ARMS.items():
        network = Network(DEEP, np.random.default_rng(1), activation, gain)
        _, grads = network.gradients(data)
        layers = range(1, network.layers + 1)
        line = "--" if name == "leaky ReLU" else "-"
        norms.semilogy(
            layers, [np.linalg.norm(grads[f"w{i}"]) for i in layers], f"o{line}", color=colour, label=name
        )
        found = losses(network, data, epochs)
        learning.plot(found, line, color=colour, linewidth=2, label=name if len(found) > epochs else None)
        if len(found) <= epochs:
            learning.plot(len(found) - 1, 2.55, "x", color=colour, markersize=12, markeredgewidth=3)
            learning.text(5, 2.55, f"{name}: overflow in the first epoch", color=colour, va="center")
        print(f"{name:>30}: loss {found[-1]:.3g} after {len(found) - 1} epochs")
    activation, gain, colour = ARMS[EXPLODING]
    clipped = losses(Network(DEEP, np.random.default_rng(1), activation, gain), data, epochs, max_norm=1.0)
    learning.plot(clipped, ":", color=colour, linewidth=3, label=f"{EXPLODING}, max_norm=1")
    print(f"{EXPLODING + ', clipped':>30}: loss {clipped[-1]:.3g} after {len(clipped) - 1} epochs")
    tidy(
        norms, "The gradient on its way down, before the first step", xlabel="layer (1: the first)", ylabel="norm"
    )
    norms.legend(frameon=False, loc="lower right", fontsize=9)
    norms.text(3.1, 4e-6, "vanishes", color=RED)
    norms.text(3.1, 4e2, "explodes", color=BLACK)
    norms.set_ylim(1e-7, 1e4)
    tidy(
        learning,
        "Only a gradient of the right size teaches",
        xlabel="epoch",
        ylabel="training loss",
        ylim=(0, 2.7),
    )
    learning.legend(frameon=False, loc="center right", fontsize=9)

    dying(dead, data, epochs)
    penalties(weights, data, held_out, epochs)
    return figure


def dying(ax: Axes, data: Data, epochs: int) -> None:
    """Units that are off for every image get no gradient through a ReLU, and a little through a leaky one."""
    for name, activation, colour in [("ReLU", "relu", BLUE), ("leaky ReLU", "leaky relu", GREEN)]:
        network = Network((64, 32, 10), np.random.default_rng(1), activation)
        network.params["b1"] -= 3.0
        ax.plot(losses(network, data, epochs, lr=0.5), color=colour, linewidth=2, label=name)
    tidy(ax, "One hidden layer whose units start dead (biases at -3)", xlabel="epoch", ylabel="training loss")
    ax.set_ylim(0, 2.7)
    ax.legend(frameon=False, loc="lower left")


def penalties(ax: Axes, data: Data, held_out: Data, epochs: int) -> None:
    """How large the weights become with L2, with L1, and without."""
    bins = np.linspace(-0.8, 0.8, 81)
    arms = [
        ("no penalty", {}, GREY),
        ("weight_decay=0.01", {"weight_decay": 0.01}, PINK),
        ("l1=0.001", {"l1": 1e-3}, BLUE),
    ]
    for name, penalty, colour in arms:
        network = Network((64, 128, 128, 10), np.random.default_rng(1))
        losses(network, data, epochs, **penalty)
        values = np.concatenate([value.ravel() for key, value in network.params.items() if key[0] == "w"])
        small = np.mean(np.abs(values) < 0.001)
        label = f"{name}: {small:.0%} are below 0.001, held-out {network.accuracy(held_out):.1%}"
        print(f"{label:>30}")
        filled = not penalty
        ax.hist(values, bins, histtype="stepfilled" if filled else "step", alpha=0.6 if filled else 1, linewidth=2,
                color=colour, label=label)  # fmt: skip
    tidy(
        ax, "L2 makes all weights smaller, L1 makes many of them 0",
        xlabel="weight", ylabel="how many", yscale="log", ylim=(0.7, 1e6),
    )  # fmt: skip
    ax.legend(frameon=False, fontsize=9, loc="upper right")


def main(argv: list[str] | None = None) -> None:
    run("deep", "Train a deep network with gradients that vanish, explode, or arrive.", experiment, argv)


if __name__ == "__main__":
    main()
