"""Whole training iterations of thinc's networks, with its own Adam and with fastopt's.

    python bench/thinc_models.py

Each without moving averages, as in spaCy's configs. fastopt updates key by key, as thinc does, or the whole model in one
call. All compute the same losses but for rounding in float32, which is checked first. They run in turn, round after
round in one process; each figure is the median of five such runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import thinc.api
from networks import CLASSES, HIDDEN, Inputs, batches, compared, images, name_of, seconds_of

import fastopt.thinc
from fastopt.benchmark.internals import Step

THEIRS, BY_KEY, WHOLE = "thinc", "key by key", "whole model"


def of_images(hidden: tuple[int, ...]) -> tuple[Any, Inputs]:
    """A network, and its inputs."""
    layers = [thinc.api.Relu(width) for width in hidden]
    return thinc.api.chain(*layers, thinc.api.Softmax(CLASSES)), images


def of_words(words: int) -> tuple[Any, Inputs]:
    """A small form of spaCy's usual network: hash embeddings of four attributes, and windows of neighbours."""
    t, width = thinc.api, 96
    embeddings = [t.HashEmbed(width, rows, column=k, seed=k) for k, rows in enumerate((5000, 1000, 2500, 2500))]
    mixed = t.Maxout(nO=width, nI=4 * width, nP=3, normalize=True)
    windows = [
        t.residual(t.chain(t.expand_window(1), t.Maxout(nO=width, nI=3 * width, nP=3, normalize=True)))
        for _ in range(4)
    ]

    def attributes(rng: np.random.Generator) -> Any:
        return rng.integers(2**40, size=(words, len(embeddings))).astype(np.uint64)

    return t.chain(t.concatenate(*embeddings), mixed, *windows, t.Softmax(CLASSES, width)), attributes


NETWORKS: dict[str, Callable[[], tuple[Any, Inputs]]] = {
    **{name_of(hidden): partial(of_images, hidden) for hidden in HIDDEN},
    **{f"hash embeddings, {words} words": partial(of_words, words) for words in (20, 100, 500)},
}


def iteration(name: str, optimizer: Any, finish: Callable[[Any, Any], None]) -> Callable[[], float]:
    """A step, which returns the loss."""
    thinc.api.fix_random_seed(0)
    model, inputs = NETWORKS[name]()
    data = batches(inputs)
    one_hot = np.eye(CLASSES, dtype=np.float32)
    model.initialize(next(batches(inputs))[0], one_hot)

    def step() -> float:
        x, labels = next(data)
        y = one_hot[labels]
        guesses, backward = model.begin_update(x)
        backward((guesses - y) / len(x))
        finish(model, optimizer)
        return -float(np.log(guesses[y == 1]).mean())

    return step


def iterations(network: str) -> dict[str, Step]:
    """One step of each, after five steps of each were found to have the same losses."""
    by_key, whole = thinc.api.Model.finish_update, lambda model, optimizer: optimizer.finish_update(model)
    theirs, ours = thinc.api.Adam, fastopt.thinc.Adam
    found = {
        name: iteration(network, cls(use_averages=False), finish)
        for name, cls, finish in ((THEIRS, theirs, by_key), (BY_KEY, ours, by_key), (WHOLE, ours, whole))
    }
    losses = {name: [step() for _ in range(5)] for name, step in found.items()}
    for name in BY_KEY, WHOLE:
        np.testing.assert_allclose(losses[name], losses[THEIRS], rtol=1e-4)
    return found


def main(argv: list[str] | None = None) -> None:
    seconds = seconds_of(__doc__, argv)
    print("| network | way | thinc, µs | fastopt, µs | times |\n|---|---|---|---|---|")
    for network in NETWORKS:
        steps = iterations(network)
        for name in BY_KEY, WHOLE:
            pair = {THEIRS: steps[THEIRS], name: steps[name]}
            print(f"| {network} | {name} | {compared(pair, seconds)} |", flush=True)


if __name__ == "__main__":
    main()
