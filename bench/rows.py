"""Steps on a few rows of a large embedding, by fastopt, NumPy and torch.

    python bench/rows.py [--rows 1000000]

Adam on 1,000 rows of 64 numbers a step. The rows are others in every step, as those of words are, so that their memory
is in no cache; so are the arrays of the bound step beside which they are held. All compute the same, which is checked
first. They run in turn, in one process, fastopt with as many threads as torch; each figure is the median of five such
runs.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

import fastopt
from fastopt.benchmark.internals import Array
from fastopt.benchmark.timing import in_microseconds

NAMED, WIDTH = 1000, 64
CALLS = 64
"""Different rows before the first are named again: they and their states take 49 MB."""
RUNS = 5
BETAS, LR, EPS = (0.9, 0.999), 1e-3, 1e-8
Step = Callable[[int], object]
"""Makes the step of that number, 0 first, with the rows of that number."""

FASTOPT, CAUGHT_UP, NUMPY, TORCH, BOUND = (
    "fastopt", "fastopt, catch_up", "NumPy, np.add.at", "torch.optim.SparseAdam", "1,000 bound arrays",
)  # fmt: skip


def calls_of(rows: int) -> tuple[list[Array], Array]:
    """The rows of each call, and gradients; a few rows occur twice."""
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((NAMED, WIDTH)).astype(np.float32)
    return [rng.integers(0, rows, NAMED) for _ in range(CALLS)], grads


def fastopt_step(param: Array, catch_up: bool = False) -> Step:
    calls, grads = calls_of(len(param))
    optimizer = fastopt.Adam(lr=LR, betas=BETAS, eps=0.0, eps_hat=EPS)
    return lambda k: optimizer.update_rows([param], [calls[k % CALLS]], [grads], catch_up=catch_up)


def numpy_step(param: Array) -> Step:
    calls, grads = calls_of(len(param))
    m, v = np.zeros_like(param), np.zeros_like(param)
    clock = itertools.count(1)

    def step(k: int) -> None:
        t, total = next(clock), np.zeros_like(grads)
        rows, places = np.unique(calls[k % CALLS], return_inverse=True)
        np.add.at(total, places, grads)
        g = total[: len(rows)]
        m[rows] = BETAS[0] * m[rows] + (1 - BETAS[0]) * g
        v[rows] = BETAS[1] * v[rows] + (1 - BETAS[1]) * g * g
        lr = LR * (1 - BETAS[1] ** t) ** 0.5 / (1 - BETAS[0] ** t)
        param[rows] -= lr * m[rows] / (np.sqrt(v[rows]) + EPS)

    return step


def torch_step(param: Array) -> Step:
    calls, grads = calls_of(len(param))
    tensor, values = torch.from_numpy(param).requires_grad_(), torch.from_numpy(grads)
    optimizer = torch.optim.SparseAdam([tensor], lr=LR, betas=BETAS, eps=EPS)
    indices = [torch.from_numpy(rows[None]) for rows in calls]

    def step(k: int) -> None:
        tensor.grad = torch.sparse_coo_tensor(indices[k % CALLS], values, param.shape)
        optimizer.step()

    return step


def bound_step(_: Array) -> Step:
    """As many arrays as a call has rows, others in every step."""
    _, grads = calls_of(CALLS)
    optimizers = [fastopt.Adam([np.zeros(WIDTH, np.float32) for _ in grads], lr=LR) for _ in range(CALLS)]
    for optimizer in optimizers:
        optimizer.bind(list(grads))
    return lambda k: optimizers[k % CALLS].step()


def checked(rows: int) -> dict[str, Step]:
    """The steps, after three of them were found to agree on a small embedding."""
    makers: dict[str, Callable[[Array], Step]] = {
        FASTOPT: fastopt_step,
        CAUGHT_UP: lambda param: fastopt_step(param, catch_up=True),
        NUMPY: numpy_step,
        TORCH: torch_step,
        BOUND: bound_step,
    }
    found = {}
    for name in FASTOPT, NUMPY, TORCH:
        param = np.ones((3000, WIDTH), np.float32)
        step = makers[name](param)
        for k in range(3):
            step(k)
        found[name] = param
    for name in NUMPY, TORCH:
        np.testing.assert_allclose(found[FASTOPT], found[name], rtol=1e-5, atol=1e-6)
    return {name: make(np.ones((rows, WIDTH), np.float32)) for name, make in makers.items()}


def measured(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """The median time of a step of each; torch, which takes a thousand times as long, makes fewer."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(rounds):
        for name, step in steps.items():
            if name in (TORCH, NUMPY) and k % 8:
                continue
            begin = time.perf_counter()
            step(k)
            times[name].append(time.perf_counter() - begin)
    return {name: median(values) for name, values in times.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the embedding; default 1,000,000")
    parser.add_argument("--rounds", type=int, default=96, help="steps of each in each of five runs; default 96")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message="Sparse invariant checks")
    warnings.filterwarnings("ignore", category=fastopt.OrphanedParameterWarning)
    fastopt.set_num_threads(torch.get_num_threads())
    steps = checked(options.rows)
    measured(steps, CALLS)  # the first steps get their memory
    runs = [measured(steps, options.rounds) for _ in range(RUNS)]
    times = {name: median(run[name] for run in runs) for name in steps}
    threads, isa = fastopt.get_num_threads(), fastopt.get_isa()
    print(f"{options.rows:,} x {WIDTH} float32, {NAMED:,} rows a step, {threads} threads, {isa}\n")
    print("| | µs | times fastopt's |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {in_microseconds(seconds)} | {seconds / times[FASTOPT]:.2f} |")


if __name__ == "__main__":
    main()
