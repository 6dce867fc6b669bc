"""Train a small network on images with every classic optimizer, by plain NumPy and by fastopt.

Both runs of an optimizer start from the same seed and see the same batches, so that they can end
with the same bits. They take turns, so that a disturbance of the machine slows both. The table
compares the times of whole training iterations; the picture shows the losses.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import mnist
import numpy as np
from classics import CLASSICS, Classic
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from network import Network
from numpy.typing import NDArray
from tqdm import tqdm

import fastopt

HIDDEN = 200
BATCH = 64

# The two runs of every optimizer: NumPy or fastopt computes its steps.
ARMS = ("NumPy", "fastopt")

# The arms take turns of so many iterations: few enough that a busy spell of the machine slows both,
# enough that most iterations find the cache as their own arm left it.
TURN = 20


@dataclass
class Run:
    """A network in training, and the measurements of every iteration (times in seconds)."""

    network: Network
    optimizer: fastopt.Optimizer
    losses: list[float] = field(default_factory=list)
    step_times: list[float] = field(default_factory=list)
    iteration_times: list[float] = field(default_factory=list)

    def iterate(self, data: mnist.Images, batch: NDArray[np.intp]) -> None:
        """Train on the images of one batch, given by their indices."""
        start = time.perf_counter()
        loss, grads = self.network.backward(data.train_images[batch], data.train_labels[batch])
        before_step = time.perf_counter()
        self.optimizer.step(grads)
        end = time.perf_counter()
        self.losses.append(loss)
        self.step_times.append(end - before_step)
        self.iteration_times.append(end - start)

    @property
    def iteration_time(self) -> float:
        """The median: a shared machine now and then holds up an iteration for long."""
        return float(np.median(self.iteration_times))

    @property
    def step_share(self) -> float:
        return float(np.median(self.step_times)) / self.iteration_time


def batches(count: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """The indices 0 to count - 1 in random order, cut into mini-batches."""
    order = rng.permutation(count)
    for begin in range(0, count, BATCH):
        yield order[begin : begin + BATCH]


def train(
    classic: Classic,
    data: mnist.Images,
    epochs: int,
    seed: int,
    after_iteration: Callable[[], object],
) -> dict[str, Run]:
    """Train the same network once in every arm."""
    runs = {}
    for arm in ARMS:
        sizes = (data.train_images.shape[1], HIDDEN, mnist.CLASSES)
        network = Network(sizes, np.random.default_rng(seed))
        runs[arm] = Run(network, classic.make(network.params))
    shuffle = np.random.default_rng(seed)
    chosen = fastopt.get_isa()
    isas = {"NumPy": "numpy", "fastopt": chosen}
    try:
        for _ in range(epochs):
            epoch = list(batches(len(data.train_images), shuffle))
            for begin in range(0, len(epoch), TURN):
                for arm, run in runs.items():
                    fastopt.set_isa(isas[arm])
                    for batch in epoch[begin : begin + TURN]:
                        run.iterate(data, batch)
                        after_iteration()
    finally:
        fastopt.set_isa(chosen)
    return runs


def train_all(data: mnist.Images, epochs: int, seed: int) -> dict[str, dict[str, Run]]:
    """Train with every classic optimizer, in every arm."""
    iterations = epochs * -(-len(data.train_images) // BATCH)
    results = {}
    total = len(CLASSICS) * len(ARMS) * iterations
    with tqdm(total=total, unit=" iterations", mininterval=0.5, leave=False) as bar:
        for name, classic in CLASSICS.items():
            bar.set_description(name)
            results[name] = train(classic, data, epochs, seed, bar.update)
    return results


def same_bits(a: Network, b: Network) -> bool:
    """Whether two networks agree in every bit of every parameter."""
    return all(a.params[name].tobytes() == b.params[name].tobytes() for name in a.params)


def table(results: dict[str, dict[str, Run]], data: mnist.Images, epochs: int) -> str:
    """A Markdown table with a row for each optimizer."""
    header = [
        "optimizer",
        *(f"ms {arm}" for arm in ARMS),
        *(f"step {arm}" for arm in ARMS),
        "same bits",
        *(f"loss {epoch}" for epoch in range(1, epochs + 1)),
        "accuracy",
    ]
    rows = [header]
    for name, runs in results.items():
        ours = runs["fastopt"]
        rows.append(
            [
                name,
                *(f"{runs[arm].iteration_time * 1e3:.3f}" for arm in ARMS),
                *(f"{runs[arm].step_share:.1%}" for arm in ARMS),
                "yes" if same_bits(*(run.network for run in runs.values())) else "NO",
                *(f"{loss:.4f}" for loss in np.reshape(ours.losses, (epochs, -1)).mean(axis=1)),
                f"{ours.network.accuracy(data.test_images, data.test_labels):.2%}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def draw(results: dict[str, dict[str, Run]], epochs: int, title: str) -> Figure:
    """The training loss of every optimizer over the epochs, smoothed, on a logarithmic axis."""
    # The colours of Okabe and Ito, which colour-blind readers can tell apart, without the yellow
    # that is faint on white; dashes, because Nesterov and Momentum nearly coincide.
    styles = [
        ("#000000", "-"),
        ("#e69f00", "-"),
        ("#0072b2", "--"),
        ("#009e73", "-"),
        ("#d55e00", "-"),
        ("#56b4e9", "-"),
        ("#cc79a7", "--"),
    ]
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    ends = {}
    for (name, runs), (colour, dashes) in zip(results.items(), styles, strict=True):
        losses = runs["fastopt"].losses
        window = max(1, len(losses) // epochs // 4)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        epoch = (np.arange(len(smooth)) + (window + 1) / 2) * epochs / len(losses)
        (line,) = axes.plot(epoch, smooth, dashes, color=colour, label=name)
        ends[line] = smooth[-1]
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter("")
    axes.set(xlim=(0, epochs), xlabel="epoch", ylabel="training loss, mean of a quarter of an epoch")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        # In the order in which the lines end, so that the eye goes straight from line to name.
        handles=sorted(ends, key=ends.__getitem__, reverse=True),
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
    )
    return figure


def natural(text: str) -> int:
    """A whole number from 1 on, from the command line."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parser_of(description: str, epochs: int) -> argparse.ArgumentParser:
    """The options of a training on images."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="MNIST's four files (default: scikit-learn digits)"
    )
    parser.add_argument("--epochs", type=natural, default=epochs, help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path(), help="where to put the picture")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("Train on images with every classic optimizer.", epochs=5)
    parser.add_argument("--seed", type=natural, default=1, help="default: %(default)s")
    options = parser.parse_args(argv)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        data = mnist.load(options.data) if options.data else mnist.digits()
        results = train_all(data, options.epochs, options.seed)
        count, inputs = data.train_images.shape
        source = options.data.resolve().name if options.data else "scikit-learn's digits"
        print(
            f"{source}: {count:,} images of {inputs} pixels to train on, "
            f"{len(data.test_images):,} to test; fastopt uses {fastopt.get_isa()}\n"
        )
        print(table(results, data, options.epochs))
        picture = options.output / "train_mlp.png"
        title = f"How fast each optimizer learns {source} ({inputs}-{HIDDEN}-{mnist.CLASSES} network)"
        draw(results, options.epochs, title).savefig(picture, dpi=150)
    except (mnist.DataError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"""
"ms" is the median time of a whole iteration (fetch a batch, forward, backward, step) with the steps
computed by NumPy or by fastopt, "step" the optimizer's share of it; on a busy machine compare them
within a row only. "Same bits" says whether both runs ended with exactly the same parameters. Losses
are means over the mini-batches of an epoch; accuracy is on the test images.
The loss curves are in {picture}.""")


if __name__ == "__main__":
    main()
