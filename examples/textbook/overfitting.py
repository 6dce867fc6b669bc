"""Overfitting: 200 noisy digits, a fifth of them with a wrong label, and a network that can learn all by heart.

Dropout and weight decay keep it from that, early stopping ends before it happens and puts the best weights back,
and k-fold cross-validation chooses a learning rate without touching the test set.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

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
    repeated,
    run,
    tidy,
    training,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fastopt

RATE = 1e-3


class Split(NamedTuple):
    train: Data
    validation: Data
    test: Data


@dataclass(frozen=True)
class Arm:
    """A way to train."""

    colour: str
    dropout: float = 0.0
    weight_decay: float = 0.0
    patience: int | None = None
    """Stop after so many epochs without a better validation loss, and put the best weights back."""


ARMS = {
    "no remedy": Arm(RED),
    "early stopping": Arm(BLACK, patience=20),
    "weight decay": Arm(BLUE, weight_decay=3.0),
    "dropout": Arm(GREEN, dropout=0.7),
    "all three": Arm(ORANGE, dropout=0.5, weight_decay=1.0, patience=40),
}


@dataclass
class History:
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        """The epoch of the lowest validation loss."""
        return int(np.argmin(self.validation))


def split(seed: int) -> Split:
    rng = np.random.default_rng(seed)
    train, rest = (repeated(data, 1, 0.3, rng) for data in digits(200, rng))
    labels = np.where(rng.random(200) < 0.2, rng.integers(0, 10, 200), train.labels)
    return Split(Data(train.images, labels), rest.take(slice(300)), rest.take(slice(300, None)))


def fit(
    arm: Arm, train: Data, validation: Data, epochs: int, seed: int, lr: float = RATE
) -> tuple[Network, History]:
    """Trains a network; with patience until the validation loss has stopped falling."""
    rng = np.random.default_rng(seed)
    network = Network((64, 256, 10), rng)
    optimizer = fastopt.AdamW(network.params, lr=lr, weight_decay=arm.weight_decay)
    history = History()
    best = {name: value.copy() for name, value in network.params.items()}
    for _ in each_epoch(training(network, optimizer, train, 20, rng, arm.dropout), epochs):
        history.train.append(network.loss(train))
        history.validation.append(network.loss(validation))
        epoch = len(history.validation) - 1
        if arm.patience is not None:
            if history.best == epoch:
                best = {name: value.copy() for name, value in network.params.items()}
            elif epoch - history.best >= arm.patience:
                break
    if arm.patience is not None:
        for name, value in best.items():
            network.params[name][...] = value
    return network, history


def experiment(short: bool) -> Figure:
    epochs, seeds = (5, 2) if short else (200, 8)
    figure = Figure(figsize=(13, 9), layout="constrained")
    (by_heart, arms), (accuracies, folds) = figure.subplots(2, 2)

    parts = split(0)
    histories = {name: fit(arm, parts.train, parts.validation, epochs, 0)[1] for name, arm in ARMS.items()}
    plain = histories["no remedy"]
    by_heart.plot(plain.train, color=GREY, linewidth=2, label="training")
    by_heart.plot(plain.validation, color=RED, linewidth=2, label="validation")
    by_heart.axvline(plain.best, color=BLACK, linestyle="--")
    by_heart.plot(plain.best, plain.validation[plain.best], "*", color=BLACK, markersize=15, zorder=5)
    by_heart.text(plain.best + 0.02 * epochs, 2.1, "stop, and put\nthese weights back", va="top")
    tidy(by_heart, "Learned by heart: on new images it gets worse", xlabel="epoch", ylabel="loss", ylim=(0, 2.3))
    by_heart.legend(frameon=False, loc="upper right")

    for name, history in histories.items():
        arms.plot(history.validation, color=ARMS[name].colour, linewidth=2, label=name)
    tidy(arms, "… and what helps against it", xlabel="epoch", ylabel="validation loss", ylim=(0.8, 1.6))
    arms.legend(frameon=False, loc="upper right", ncols=2)

    compare(accuracies, epochs, seeds)
    cross_validate(folds, parts, epochs // 4 + 1, short)
    return figure


def compare(ax: Axes, epochs: int, seeds: int) -> None:
    """The accuracy on the test set of every arm, from several seeds."""
    for row, (name, arm) in enumerate(ARMS.items()):
        found = []
        for seed in range(seeds):
            parts = split(seed)
            network, _ = fit(arm, parts.train, parts.validation, epochs, seed)
            found.append(network.accuracy(parts.test))
        ax.plot(found, [row] * seeds, "o", color=arm.colour, alpha=0.35, markersize=8)
        ax.plot(np.mean(found), row, "|", color=arm.colour, markersize=30, markeredgewidth=4)
        print(f"{name:>15}: test accuracy {np.mean(found):.1%}")
    ax.set_yticks(range(len(ARMS)), list(ARMS))
    ax.set_ylim(len(ARMS) - 0.5, -0.5)
    tidy(ax, f"On the test set, from {seeds} seeds (bar: their mean)", xlabel="accuracy on new images")


def cross_validate(ax: Axes, parts: Split, epochs: int, short: bool, k: int = 5) -> None:
    """For every learning rate the mean validation loss over k folds of the training set."""
    rates = [1e-4, 1e-3, 1e-2] if short else [float(10**x) for x in np.linspace(-4, -1, 13)]
    pieces = np.array_split(np.random.default_rng(0).permutation(len(parts.train)), k)
    table = []
    for lr in rates:
        losses = []
        for fold in range(k):
            rest = np.concatenate([piece for i, piece in enumerate(pieces) if i != fold])
            _, history = fit(
                ARMS["no remedy"], parts.train.take(rest), parts.train.take(pieces[fold]), epochs, fold, lr
            )
            losses.append(history.validation[-1])
        table.append(losses)
    means, spread = np.mean(table, axis=1), np.std(table, axis=1)
    chosen = int(np.argmin(means))
    ax.semilogx(rates, table, ".", color=GREY)
    ax.errorbar(rates, means, spread, color=PINK, linewidth=2, capsize=3, label=f"mean of {k} folds")
    ax.plot(
        rates[chosen],
        means[chosen],
        "*",
        color=BLACK,
        markersize=15,
        zorder=5,
        label=f"chosen: {rates[chosen]:.1g}",
    )
    tidy(
        ax,
        "Cross-validation chooses the learning rate",
        xlabel="learning rate",
        ylabel="loss on the fold that was left out",
    )
    ax.set_ylim(0.6 * means[chosen], min(4 * means[chosen], float(np.max(table))))
    ax.legend(frameon=False, loc="upper center")


def main(argv: list[str] | None = None) -> None:
    run("overfitting", "Overfit few samples, and what helps against it.", experiment, argv)


if __name__ == "__main__":
    main()
