"""Measured tables, as Markdown: `python bench/report.py`, `--isa`, `--limits`, `--threads`.

All candidates of a row run in turn, round after round in one process, so that what else the machine
does hits all alike; a cell is the median of the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from timeit import Timer

import numpy as np
from cases import (
    EXACT,
    TORCH_TOLERANCE,
    WORKLOADS,
    Case,
    Make,
    Step,
    Unavailable,
    all_kernels,
    all_variants,
    checked,
    facts,
    fastopt_step,
    label,
    numba_step,
    numpy_out_step,
    numpy_step,
    torch,
    torch_step,
)
from floor import floor_step
from iteration import Iteration, bare_steps, numpy_iteration, torch_iteration

import fastopt
from fastopt import _kernels, optimizers, threads
from fastopt.choice import Choices

BLOCK = 2e-3
"""Seconds: so long a candidate runs at a time, at least, because a clock reading costs too."""

PAUSE = 5e-3
"""Seconds between candidates: the last one's threads spin for a while before they sleep."""

PLACEMENTS = 5
"""How often the instruction sets are compared, each time with arrays elsewhere."""


# -- Measuring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """What is measured in one column: `make` returns the step, `prepare` runs before each block."""

    make: Make
    prepare: Callable[[], object] = lambda: None
    tolerance: Mapping[str, float] | None = None
    """How far its result may be from the twin's; None for one that is not checked."""


@dataclass(frozen=True)
class Timing:
    """Seconds a step: the median, and half the distance between the quartiles."""

    median: float
    spread: float


def measure(
    steps: Mapping[str, Step],
    prepare: Mapping[str, Callable[[], object]],
    seconds: float,
    block: float = BLOCK,
) -> dict[str, Timing]:
    """Runs all steps in turn for about so many seconds, each for `block` seconds at a time."""
    timers = {name: Timer(step) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    numbers = {}
    for name, timer in timers.items():
        prepare[name]()
        timer.timeit(1)
        numbers[name] = int(block / timer.timeit(3) * 3) + 1
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, samples.values())) < 5:
        for name in steps:
            prepare[name]()
            time.sleep(PAUSE)
            timers[name].timeit(numbers[name] // 4 + 1)  # to warm up
            samples[name].append(timers[name].timeit(numbers[name]) / numbers[name])
    timings = {}
    for name, values in samples.items():
        low, middle, high = quantiles(values, n=4)
        timings[name] = Timing(middle, (high - low) / 2)
    return timings


def measure_case(case: Case, candidates: Mapping[str, Candidate], seconds: float) -> dict[str, Timing]:
    """Timings of the candidates that can run the case, each after its result was checked."""
    steps: dict[str, Step] = {}
    for name, candidate in candidates.items():
        candidate.prepare()
        try:
            if candidate.tolerance is None:
                steps[name] = candidate.make(case, [], [])
            else:
                steps[name] = checked(candidate.make, case, candidate.tolerance[case.dtype])
        except Unavailable:
            continue
    gc.collect()
    return measure(steps, {name: c.prepare for name, c in candidates.items()}, seconds)


def use_threads(count: int) -> None:
    fastopt.set_num_threads(count)
    if torch is not None:
        torch.set_num_threads(count)


def use_fastopt(isa: str | None, count: int | None) -> None:
    fastopt.set_isa(isa)
    fastopt.set_num_threads(count)


def use_isa(name: str) -> None:
    use_threads(1)
    fastopt.set_isa(name)


# -- Candidates: one line each ---------------------------------------------------------------------

CPUS = threads.available_cpus()
EXACTLY = dict.fromkeys(TORCH_TOLERANCE, EXACT)
ONE, ALL = partial(use_threads, 1), partial(use_threads, CPUS)


def torch_candidate(implementation: str, prepare: Callable[[], object] = ALL) -> Candidate:
    return Candidate(partial(torch_step, implementation), prepare, TORCH_TOLERANCE)


NUMPY = {
    "NumPy": Candidate(numpy_step, ONE, EXACTLY),
    "NumPy out=": Candidate(numpy_out_step, ONE, EXACTLY),
}
FASTOPT = {
    "fastopt 1 thread": Candidate(fastopt_step, ONE, EXACTLY),
    f"fastopt {CPUS} threads": Candidate(fastopt_step, ALL, EXACTLY),
}
FLOOR = {"floor 1 thread": Candidate(partial(floor_step, 1))}
MANY = {
    **NUMPY,
    "numba": Candidate(numba_step, ONE, TORCH_TOLERANCE),
    "torch": torch_candidate("loop"),
    "torch foreach": torch_candidate("foreach"),
    "torch fused": torch_candidate("fused"),
    **FASTOPT,
    **FLOOR,
}
FEW = {**NUMPY, "torch best": torch_candidate("best"), **FASTOPT, **FLOOR}


# -- Tables ----------------------------------------------------------------------------------------


def print_header() -> None:
    print("```")
    print(f"{'date:':18}{datetime.date.today()}")
    for name, value in facts().items():
        print(f"{name + ':':18}{value}")
    print("```\n")


def print_row(cells: Sequence[str], width: int = 0) -> None:
    print("| " + " | ".join(cell.ljust(width) for cell in cells) + " |", flush=True)


def print_head(cells: Sequence[str]) -> None:
    print_row(cells)
    print_row(["---", *("---:" for _ in cells[1:])])


def in_microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def print_timings(cases: Mapping[str, Case], candidates: Mapping[str, Candidate], seconds: float) -> None:
    """A row a case; a cell that beats a column of fastopt is marked, and named below."""
    losses: dict[str, list[str]] = {}
    print_head(["", *candidates])
    for row, case in cases.items():
        timings = measure_case(case, candidates, seconds)
        cells = []
        for name in candidates:
            if name not in timings:
                cells.append("")
                continue
            timing = timings[name]
            beaten = [
                mine for mine in FASTOPT if name not in FASTOPT | FLOOR and timing.median < timings[mine].median
            ]
            for mine in beaten:
                figures = f"{in_microseconds(timing.median)} : {in_microseconds(timings[mine].median)}"
                losses.setdefault(f"{name} before {mine} on", []).append(f"{row} ({figures})")
            mark = "**" if beaten else ""
            spread = f" ±{timing.spread / timing.median:.0%}"
            cells.append(f"{mark}{in_microseconds(timing.median)}{mark}{spread}")
        print_row([row, *cells])
    print()
    if losses:
        pairs = (f"{pair} {', '.join(rows)}" for pair, rows in losses.items())
        print(f"Where fastopt is not the fastest: {'; '.join(pairs)}.\n")
    else:
        print("In this run fastopt is the fastest in every row.\n")


def report_readme(seconds: float) -> None:
    """The tables of the README."""
    print(
        "Microseconds a step, float32: the median ± half the distance between the quartiles.\n"
        "NumPy is the package's NumPy twin; out= the same, its temporaries allocated beforehand;\n"
        f"numba the same as one compiled loop. torch has {CPUS} threads. The floor moves the same\n"
        "bytes, in flat arrays, without the arithmetic. Bold: faster than fastopt.\n"
    )
    adam = next(v for v in all_variants() if v.cls is optimizers.Adam)
    print("Adam:\n")
    workloads = {name: Case(adam, name) for name in WORKLOADS if name != "1 x 2^16"}
    print_timings(workloads, MANY, seconds)
    print("Every optimizer, 1 x 2^20; torch is fused where it can be, else foreach:\n")
    print_timings({label(v): Case(v, "1 x 2^20") for v in all_variants()}, FEW, seconds)


def scattered(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy that begins anywhere in a page, at a multiple of 16 bytes and of no more.

    Large arrays all begin at the same place of a page, small ones where luck will have it. A load
    waits for a store to the same place, which says nothing about instruction sets.
    """
    lines = int(rng.integers(64)) * 64 // array.itemsize
    memory = np.empty(array.size + lines + 4096 // array.itemsize, array.dtype)
    begin = lines + (16 - memory.ctypes.data) % 4096 // array.itemsize
    copy = memory[begin : begin + array.size].reshape(array.shape)
    copy[...] = array
    return copy


def isa_step(case: Case, rng: np.random.Generator) -> Step:
    """A kernel on arrays of the caller's, states too, none aligned to more than 16 bytes."""
    cls, h = case.variant.cls, case.variant.hyper
    row = _kernels.TABLE[cls.kernel]
    letters = (*row["state"], *row["optional"])
    params, grads = ([scattered(a, rng) for a in case.values(seed)] for seed in (0, 1))
    states = [
        {letter: scattered(a, rng) for letter, a in zip(letters, arrays, strict=True) if a is not None}
        for arrays in case.states()
    ]
    count = len(params)
    plan = _kernels.Plan(cls.kernel, params, list(range(count)), [0] * count, states, np.zeros(count, np.int64))
    chosen = cls.subset(h), cls.scalars(h, h["lr"], 1, 1.0)
    plan.bind(grads)
    return lambda: plan.step(None, 1.0, lambda *_: chosen, Choices(), None)


def report_isas(seconds: float) -> None:
    """Whether a wider instruction set ever loses, on buffers aligned as NumPy's are."""
    best, *narrower = [name for name in fastopt.available_isas() if name != "numpy"]
    if not narrower:
        print(f"This machine has one instruction set, {best}.")
        return
    sizes = {f"2^{k}": [(2**k,)] for k in (12, 16, 20)}
    WORKLOADS.update({f"isa {size}": shapes for size, shapes in sizes.items()})
    print(f"Time under {best} by that under a narrower set, one thread; every array begins at a")
    print(f"multiple of 16 bytes and of no more; the median of {PLACEMENTS} placements. Bold: more")
    print("than 5 % slower.\n")
    print_head(["kernel", *(f"{best}/{name} {size}" for size in sizes for name in narrower)])
    slow = []
    for variant in all_kernels():
        for dtype in TORCH_TOLERANCE:
            cells = []
            for size in sizes:
                case = Case(variant, f"isa {size}", dtype)
                isas = (best, *narrower)
                prepare = {name: partial(use_isa, name) for name in isas}
                placements = []
                for seed in range(PLACEMENTS):
                    step = isa_step(case, np.random.default_rng(seed))
                    steps = dict.fromkeys(isas, step)
                    placements.append(measure(steps, prepare, seconds / PLACEMENTS))
                for name in narrower:
                    ratio = median(t[best].median / t[name].median for t in placements)
                    mark = "**" if ratio > 1.05 else ""
                    cells.append(f"{mark}{ratio:.2f}{mark}")
                    if mark:
                        slow.append(f"{label(variant)} {dtype} {size} ({ratio:.2f} of {name})")
            print_row([f"{label(variant)} {dtype}", *cells])
    fastopt.set_isa(None)
    print(f"\nSlower by more than 5 %: {'; '.join(slow) or 'none'}.")


def report_limits(seconds: float) -> None:
    """The three figures that the package promises."""
    adam = next(v for v in all_variants() if v.cls is optimizers.Adam)
    WORKLOADS["1 x 64,000"] = [(64_000,)]
    mine = {"fastopt": FASTOPT["fastopt 1 thread"]}
    fused = {
        "fused 1": torch_candidate("fused", ONE),
        f"fused {CPUS}": torch_candidate("fused", ALL),
    }
    print_head(["", "measured", "limit"])

    many = Case(adam, "1,000 x 64")
    flat = Case(adam, "1 x 64,000")
    steps = {"many": checked(fastopt_step, many), "flat": checked(fastopt_step, flat)}
    timings = measure(steps, dict.fromkeys(steps, ONE), seconds)
    cost = (timings["many"].median - timings["flat"].median) / len(many.shapes)
    print_row(["an array more, 1,000 x 64 against 1 x 64,000", f"{cost * 1e9:.1f} ns", "100 ns"])

    timings = measure_case(many, mine | fused, seconds)
    for name in (name for name in fused if name in timings):
        ratio = timings[name].median / timings["fastopt"].median
        row = f"1,000 x 64: torch {name} thread(s) / fastopt 1 thread"
        print_row([row, f"{ratio:.1f}", "at least 40"])

    one = measure_case(Case(adam, "1 x 1,000"), mine, seconds)["fastopt"].median
    print_row(["1 x 1,000, everything included", f"{in_microseconds(one)} µs", "2.5 µs"])

    case = Case(adam, "1 x 2^24")
    for count, name in zip((1, CPUS), FASTOPT, strict=True):
        pair = {"fastopt": FASTOPT[name], "floor": Candidate(partial(floor_step, count))}
        timings = measure_case(case, pair, seconds)
        if "floor" not in timings:
            continue
        mine_speed, floor_speed = (case.bytes_moved / timings[x].median / 1e9 for x in pair)
        print_row(
            [
                f"Adam 2^24, {count} thread(s): bytes a second by the floor's",
                f"{mine_speed:.1f} of {floor_speed:.1f} GB/s = {mine_speed / floor_speed:.1%}",
                "at least 90 %",
            ]
        )


TURN = 0.1
"""Seconds: so long one arm iterates at a time: its caches and threads are its own most of the time."""

SETTLED = 50
"""Steps after which the default has chosen its threads."""


def report_threads(seconds: float) -> None:
    """The default's choice of threads against every fixed number, where a step is one part of a loop."""
    arms: dict[str, Callable[[], object]] = {
        "NumPy": partial(use_fastopt, "numpy", 1),
        **{f"{n} thread{'s' * (n > 1)}": partial(use_fastopt, None, n) for n in range(1, CPUS + 1)},
        "default": partial(use_fastopt, None, None),
    }
    fixed = [name for name in arms if "thread" in name]
    tables: dict[str, dict[str, Callable[[], Iteration]]] = {
        "A whole iteration of a 784-h-h-10 network in NumPy, batches of 128, Adam, float32": {
            f"h = {h}": partial(numpy_iteration, h) for h in (64, 256, 512, 1024, 2048, 4096)
        },
        "The same network's products in torch, the step on NumPy's view": {
            f"h = {h}": partial(torch_iteration, h) for h in (256, 512, 1024, 2048) if torch is not None
        },
        "Nothing but steps": {f"2^{k} elements": partial(bare_steps, 2**k) for k in range(16, 25, 2)},
    }
    for title, rows in tables.items():
        print(f"{title}: microseconds\n")
        print_head(["", *arms, "default / best fixed", "default / NumPy", "threads chosen"])
        for row, make in rows.items():
            iterations = made_in_each(arms, make)
            timings = measure({name: it.run for name, it in iterations.items()}, arms, seconds, TURN)
            cells = [f"{in_microseconds(t.median)} ±{t.spread / t.median:.0%}" for t in timings.values()]
            default = timings["default"].median
            best = min(timings[name].median for name in fixed)
            ratios = (f"{default / best:.2f}", f"{default / timings['NumPy'].median:.2f}")
            print_row([row, *cells, *ratios, str(iterations["default"].threads)])
        print()
    report_busy(arms, seconds)


def made_in_each(arms: Mapping[str, Callable[[], object]], make: Callable[[], Iteration]) -> dict[str, Iteration]:
    """One loop for every arm, of which the default's has chosen its threads."""
    iterations = {}
    for name, prepare in arms.items():
        prepare()
        iterations[name] = make()
    for _ in range(SETTLED):
        iterations["default"].run()
    return iterations


def report_busy(arms: Mapping[str, Callable[[], object]], seconds: float) -> None:
    """Single steps while another process keeps one core busy."""
    print("Steps of the loop with h = 512 while another process keeps a core busy: microseconds\n")
    print_head(["", "median", "99 %", "longest", "steps"])
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            iterations = made_in_each(arms, partial(numpy_iteration, 512))
            steps: dict[str, list[float]] = {name: [] for name in arms}
            end = time.perf_counter() + 5 * seconds
            while time.perf_counter() < end:
                for name, prepare in arms.items():
                    prepare()
                    steps[name] += [iterations[name].timed_step() for _ in range(20)]
        finally:
            busy.kill()
    for name, times in steps.items():
        figures = median(times), quantiles(times, n=100)[-1], max(times)
        print_row([name, *map(in_microseconds, figures), f"{len(times):,}"])
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", action="store_true", help="compare the instruction sets")
    parser.add_argument("--limits", action="store_true", help="the figures that must hold")
    parser.add_argument("--threads", action="store_true", help="the default's choice of threads")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row (default: 2)")
    arguments = parser.parse_args()
    print_header()
    if arguments.isa:
        report_isas(arguments.seconds / 3)
    if arguments.limits:
        report_limits(arguments.seconds)
    if arguments.threads:
        report_threads(arguments.seconds)
    if not (arguments.isa or arguments.limits or arguments.threads):
        report_readme(arguments.seconds)


if __name__ == "__main__":
    main()
