"""A deep network: gradients that vanish or explode on their way down, units that die, weights that L2 keeps small.

Nine hidden layers of 32 units. The derivative of a sigmoid is at most 1/4, so nine of them leave nothing of the
gradient; weights twice too large double it in every layer. ReLU with weights of the right size keeps it.
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

# Activation, gain of the first weights, colour. The gain for ReLU is that of He et al. (arXiv:1502.01852).
ARMS = {
    "sigmoid": ("sigmoid", 1.0, RED),
    "sigmoid, weights x 4": ("sigmoid", 4.0, ORANGE),
    "ReLU": ("relu", 2**0.5, BLUE),
    "leaky ReLU": ("leaky relu", 2**0.5, GREEN),
    "ReLU, weights x 2": ("relu", 2 * 2**0.5, BLACK),
}


def losses(network: Network, data: Data, epochs: int, lr: float = RATE, weight_decay: float = 0.0) -> list[float]:
    """The mean training loss of every epoch; of a training that overflows only those before."""
    optimizer = fastopt.SGD(network.params, lr=lr, weight_decay=weight_decay)
    found = [network.loss(data)]
    with np.errstate(over="ignore", invalid="ignore"):
        for now in each_epoch(training(network, optimizer, data, 32, np.random.default_rng(1)), epochs):
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
        learning.plot(found, line, color=colour, linewidth=2)
        if len(found) <= epochs:
            learning.plot(len(found) - 1, 2.55, "x", color=colour, markersize=12, markeredgewidth=3)
            learning.text(len(found), 2.55, "overflow in the first epoch", color=colour, va="center")
        print(f"{name:>20}: loss {found[-1]:.3g} after {len(found) - 1} epochs")
    tidy(
        norms, "The gradient on its way down, before the first step", xlabel="layer (1: the first)", ylabel="norm"
    )
    norms.legend(frameon=False, loc="lower right", fontsize=9)
    norms.text(3.1, 4e-6, "vanishes", color=RED)
    norms.text(3.1, 1.3e3, "explodes", color=BLACK)
    norms.set_ylim(1e-7, 1e4)
    tidy(
        learning,
        "Only a gradient of the right size teaches",
        xlabel="epoch",
        ylabel="training loss",
        ylim=(0, 2.7),
    )

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
    """How large the weights become with L2 and without."""
    bins = np.linspace(-1, 1, 81)
    for name, decay, colour in [("no penalty", 0.0, GREY), ("L2: weight_decay=0.01", 0.01, PINK)]:
        network = Network((64, 128, 128, 10), np.random.default_rng(1))
        losses(network, data, epochs, weight_decay=decay)
        values = np.concatenate([value.ravel() for key, value in network.params.items() if key[0] == "w"])
        label = f"{name}: held-out {network.accuracy(held_out):.1%}"
        ax.hist(values, bins, histtype="stepfilled", alpha=0.6, color=colour, label=label)
    tidy(ax, "L2 keeps the weights small", xlabel="weight", ylabel="how many", yscale="log", ylim=(0.7, 3e4))
    ax.legend(frameon=False, fontsize=9, loc="upper right")


def main(argv: list[str] | None = None) -> None:
    run("deep", "Train a deep network with gradients that vanish, explode, or arrive.", experiment, argv)


if __name__ == "__main__":
    main()
