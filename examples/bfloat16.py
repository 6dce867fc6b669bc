"""Train a small network with Adam, its state in float32 and in bfloat16, from several seeds.

The picture shows whether storing the state, or the parameters too, in 16 bits costs anything: whether the loss
stays within the range that the seeds alone make. It also shows why fastopt rounds at random: one curve is of a
state that is rounded to the nearest after every step.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import mnist
import numpy as np
from matplotlib.figure import Figure
from network import Network
from numpy.typing import NDArray
from tqdm import tqdm
from train_mlp import HIDDEN, batches, natural, parser_of

import fastopt

Arrays = dict[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Arm:
    """How a training stores its numbers."""

    colour: str
    parameters: type = np.float32
    states: str = "float32"
    nearest: bool = False
    """Whether the float32 state is rounded to the nearest bfloat16 after every step, as in other libraries."""


ARMS = {
    "float32": Arm("#0072b2"),
    "bfloat16 state": Arm("#d55e00", states="bfloat16"),
    "bfloat16 state and parameters": Arm("#009e73", ml_dtypes.bfloat16, "bfloat16"),
    "state rounded to the nearest bfloat16": Arm("#000000", nearest=True),
}


SIXTEEN_BITS = [name for name, arm in ARMS.items() if arm.states == "bfloat16"]


def train(
    arm: Arm, data: mnist.Images, epochs: int, seed: int, tick: Callable[[], object]
) -> tuple[list[float], float]:
    """The mean loss of every epoch, and the accuracy on the test images at the end."""
    sizes = (data.train_images.shape[1], HIDDEN, mnist.CLASSES)
    network = Network(sizes, np.random.default_rng(seed))
    params = {name: value.astype(arm.parameters) for name, value in network.params.items()}
    optimizer = fastopt.Adam(params, state_dtype=arm.states, seed=seed)
    shuffle = np.random.default_rng(seed)
    means = []
    for _ in range(epochs):
        losses = []
        for batch in batches(len(data.train_images), shuffle):
            network.params = {name: value.astype(np.float32) for name, value in params.items()}
            loss, grads = network.backward(data.train_images[batch], data.train_labels[batch])
            optimizer.step(grads)
            if arm.nearest:
                for state in optimizer.state.values():
                    for name in "exp_avg", "exp_avg_sq":
                        state[name][...] = state[name].astype(ml_dtypes.bfloat16)
            losses.append(loss)
            tick()
        means.append(float(np.mean(losses)))
    return means, network.accuracy(data.test_images, data.test_labels)


def draw(losses: dict[str, NDArray[np.floating]], title: str) -> Figure:
    """Above the mean loss of each arm's seeds; below its distance from float32's, and the range of those seeds."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    usual = losses["float32"].mean(axis=0)
    epochs = np.arange(1, len(usual) + 1)
    for name, curves in losses.items():
        style: dict[str, Any] = {"color": ARMS[name].colour, "lw": 1.8, "label": name}
        relative = 100 * (curves / usual - 1)
        if name == "float32":
            spread = relative.min(axis=0), relative.max(axis=0)
            widest = np.abs(relative).max()
            below.fill_between(epochs, *spread, color="0.85", lw=0, label=f"the {len(curves)} seeds of float32")
        above.plot(epochs, curves.mean(axis=0), "--" if name in SIXTEEN_BITS else "-", **style)
        below.plot(epochs, relative.mean(axis=0), **style)
    above.set(yscale="log", ylabel="training loss", xlim=(1, epochs[-1]))
    above.set_title(title, loc="left")
    # a curve that leaves this panel is seen in the other
    below.set(xlabel="epoch", ylabel="per cent above float32's mean loss", ylim=(-2 * widest, 2 * widest))
    below.legend(frameon=False, ncols=2)
    for axes in above, below:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def table(losses: dict[str, NDArray[np.floating]], accuracies: dict[str, list[float]]) -> str:
    """A Markdown table with a row for each arm."""
    low, high = losses["float32"].min(axis=0), losses["float32"].max(axis=0)
    rows = [
        "| stored | last loss | over the seeds | epochs within float32's range | accuracy |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, curves in losses.items():
        mean, last = curves.mean(axis=0), curves[:, -1]
        within = int(((low <= mean) & (mean <= high)).sum())
        rows.append(
            f"| {name} | {mean[-1]:.4g} | {last.min():.4g} to {last.max():.4g} | {within} of {len(mean)} "
            f"| {np.mean(accuracies[name]):.2%} |"
        )
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("Train with a state of 16 bits.", epochs=100)
    parser.add_argument("--seeds", type=natural, default=5, help="how many (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        data = mnist.load(options.data) if options.data else mnist.digits()
        losses: dict[str, list[list[float]]] = {name: [] for name in ARMS}
        accuracies: dict[str, list[float]] = {name: [] for name in ARMS}
        iterations = sum(1 for _ in batches(len(data.train_images), np.random.default_rng(0)))
        total = iterations * options.epochs * options.seeds * len(ARMS)
        with tqdm(total=total, unit=" iterations", mininterval=0.5, leave=False) as bar:
            for seed in range(1, options.seeds + 1):
                for name, arm in ARMS.items():
                    means, accuracy = train(arm, data, options.epochs, seed, bar.update)
                    losses[name].append(means)
                    accuracies[name].append(accuracy)
        curves = {name: np.array(values) for name, values in losses.items()}
        print(table(curves, accuracies))
        source = options.data.resolve().name if options.data else "scikit-learn's digits"
        picture = options.output / "bfloat16.png"
        draw(curves, f"Adam on {source}, {options.seeds} seeds").savefig(picture, dpi=150)
    except (mnist.DataError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"\nThe loss curves are in {picture}.")


if __name__ == "__main__":
    main()
