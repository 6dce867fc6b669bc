"""Measures everything side by side and writes the page of results: `make bench`, `make bench-full`.

All candidates of a row run in turn, round after round in one process (see fastopt/benchmark/). Each row is stored
as soon as it is measured, in a JSON file from which page.py writes the Markdown and pictures.py the pictures:
`--draw` does that alone, `--resume` measures only the rows that are not stored yet.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from cases import WORKLOADS, adam, all_kernels, all_variants, case, facts, kernel_step
from formats import measured_formats
from iteration import MODELS, SHORT, Iteration, bare_steps, torch_iteration
from limits import BANDWIDTH, division_step
from page import one_core, page, with_summary
from peers import CANDIDATES, compiles_long
from pictures import draw
from results import REPEAT, Results
from whole_step import SIZES, measured_whole

import fastopt
from fastopt.benchmark.candidates import Unavailable, use_threads
from fastopt.benchmark.cases import Case
from fastopt.benchmark.internals import CPUS
from fastopt.benchmark.report import progress
from fastopt.benchmark.timing import Timing, measure, measure_case
from fastopt.benchmark.verify import TOLERANCE

TURN = 0.1
"""Seconds that one way to step iterates at a time, so that caches and threads are its own most of the time."""

SETTLED = 50
"""Steps after which the default has chosen its number of threads."""

PLACEMENTS = 5
"""How often the instruction sets are compared, each time with arrays at other addresses."""


# -- Steps -----------------------------------------------------------------------------------------


def step_cases(full: bool) -> list[Case]:
    """Adam on every workload, every optimizer in the cache and far beyond it; the short form has fewer workloads."""
    first, large = "1 x 2^20", "1 x 2^24"
    if full:
        of_adam = [(w, d) for d in TOLERANCE for w in WORKLOADS]
        of_others = [(first, "float32"), (first, "float64"), (large, "float32")]
        return [case(v, *one) for v in all_variants() for one in (of_adam if str(v) == str(adam()) else of_others)]
    sizes = [w for w in WORKLOADS if w not in (first, "1 x 2^26", "ResNet-50", "GPT-2 small")]
    return [
        *(case(adam(), workload) for workload in sizes),
        case(adam(), first, "float64"),
        *(case(variant, first) for variant in all_variants()),
    ]


def measured_steps(one: Case, full: bool, seconds: float) -> dict[str, Any]:
    candidates = {**CANDIDATES, REPEAT: CANDIDATES["fastopt bound"]}
    reasons = {}
    for name in [name for name in candidates if compiles_long(name, one, full)]:
        del candidates[name]
        reasons[name] = "takes minutes to compile a step of so many arrays"
    timings, others = measure_case(one, candidates, seconds)
    return {
        "optimizer": one.label,
        "dtype": one.dtype,
        "workload": one.workload,
        "arrays": len(one.shapes),
        "elements": one.elements,
        "bytes": one.bytes_moved,
        "times": [[name, count, t.median, t.spread] for (name, count), t in timings.items()],
        "reasons": reasons | others,
    }


# -- Whole iterations ------------------------------------------------------------------------------

ARMS: dict[str, tuple[str | None, int | None]] = {
    "NumPy": ("numpy", 1),
    **{f"{n} thread{'s' * (n > 1)}": (None, n) for n in range(1, CPUS + 1)},
    "default": (None, None),
}
"""The instruction set and the number of threads of each."""


def use_arm(name: str) -> None:
    isa, count = ARMS[name]
    fastopt.set_isa(isa)
    fastopt.set_num_threads(count)


def loop_for_each_arm(make: Callable[[], Iteration]) -> dict[str, Iteration]:
    """A training loop for every arm; that of the default has chosen its number of threads."""
    iterations = {}
    for name in ARMS:
        use_arm(name)
        iterations[name] = make()
    for _ in range(SETTLED):
        iterations["default"].run()
    return iterations


def iteration_cases(full: bool) -> dict[str, Callable[[], Iteration]]:
    models = {f"NumPy, {name}": make for name, make in MODELS.items() if full or name in SHORT}
    if full:
        models |= {f"torch, 784-{h}-{h}-10": partial(torch_iteration, h) for h in (256, 512, 1024, 2048)}
        models |= {f"steps alone, 2^{k}": partial(bare_steps, 2**k) for k in range(16, 25, 2)}
    return models


def measured_iterations(name: str, make: Callable[[], Iteration], seconds: float) -> dict[str, Any]:
    iterations = loop_for_each_arm(make)
    timings = measure({arm: it.run for arm, it in iterations.items()}, use_arm, seconds, TURN)
    steps: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(3):
        for arm, iteration in iterations.items():
            use_arm(arm)
            steps[arm] += [iteration.timed_step() for _ in range(10)]
    return {
        "model": name,
        "times": {arm: [t.median, t.spread] for arm, t in timings.items()},
        "steps": {arm: median(values) for arm, values in steps.items()},
        "threads": iterations["default"].threads,
    }


def measured_busy(seconds: float) -> dict[str, Any]:
    """The times of single steps while another process keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            iterations = loop_for_each_arm(MODELS["784-512-512-10"])
            steps: dict[str, list[float]] = {name: [] for name in ARMS}
            end = time.perf_counter() + 5 * seconds
            while time.perf_counter() < end:
                for name in ARMS:
                    use_arm(name)
                    steps[name] += [iterations[name].timed_step() for _ in range(20)]
        finally:
            busy.kill()
    return {
        name: [median(times), quantiles(times, n=100, method="inclusive")[-1], max(times)]
        for name, times in steps.items()
    }


# -- Instruction sets ------------------------------------------------------------------------------


def scattered(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy that begins at a random place in a page, at a multiple of 16 bytes and of no more.

    NumPy's large arrays all begin at the same place in a page. A load waits for a store to the same place of
    another page, which would hide the difference between instruction sets.
    """
    lines = int(rng.integers(64)) * 64 // array.itemsize
    memory = np.empty(array.size + lines + 4096 // array.itemsize, array.dtype)
    begin = lines + (16 - memory.ctypes.data) % 4096 // array.itemsize
    copy = memory[begin : begin + array.size].reshape(array.shape)
    copy[...] = array
    return copy


def isa_cases(full: bool) -> list[Case]:
    return [
        Case(v.cls, v.options, f"2^{k}", [(2**k,)], dtype)
        for v in all_kernels()
        for dtype in TOLERANCE
        for k in ((12, 16, 20) if full else ())
    ]


def measured_isas(one: Case, seconds: float) -> dict[str, Any]:
    """How many times as long the widest instruction set takes as each narrower one, on one thread."""
    best, *narrower = (name for name in fastopt.available_isas() if name != "numpy")

    def use_isa(name: str) -> None:
        use_threads(1)
        fastopt.set_isa(name)

    placements: list[Mapping[str, Timing]] = []
    for seed in range(PLACEMENTS):
        step = kernel_step(one, partial(scattered, rng=np.random.default_rng(seed)))
        steps = dict.fromkeys((best, *narrower), step)
        placements.append(measure(steps, use_isa, seconds / PLACEMENTS))
    fastopt.set_isa(None)
    return {
        "optimizer": one.label,
        "dtype": one.dtype,
        "size": one.workload,
        "best": best,
        "ratios": {name: median(t[best].median / t[name].median for t in placements) for name in narrower},
    }


# -- The run ---------------------------------------------------------------------------------------


def cpu_seconds() -> tuple[float, float]:
    """Seconds for which all CPUs have worked since boot, and for which this process has (Linux)."""
    try:
        user, nice, system, _, _, irq, softirq, steal, *_ = (
            Path("/proc/stat").read_text().split("\n")[0].split()[1:]
        )
    except (OSError, ValueError):
        return 0.0, 0.0
    ticks = sum(map(int, (user, nice, system, irq, softirq, steal)))
    mine = os.times()
    return ticks / os.sysconf("SC_CLK_TCK"), mine.user + mine.system


def cores() -> float:
    """How many times as fast all threads together divide as one does.

    The CPUs of a virtual machine may be cores at one time and threads of one core at another.
    """
    try:
        step = division_step(case(adam(), "1 x 2^20"), [], [])
    except Unavailable:
        return float(CPUS)
    alone, together = (t.median for t in measure({1: step, CPUS: step}, use_threads, 0.0).values())
    use_threads(None)  # torch sets OpenMP's number, on which fastopt's default depends
    return alone / together


def tasks(full: bool, seconds: float) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """All measurements: their names as "kind: name", and the functions that make them."""
    for one in step_cases(full):
        yield f"steps: {one.label} {one.dtype} {one.workload}", partial(measured_steps, one, full, seconds)
    for name, make in iteration_cases(full).items():
        yield f"iterations: {name}", partial(measured_iterations, name, make, 2 * seconds)
    if full:
        yield "busy: busy", partial(measured_busy, seconds)
    for workload in ("1 x 2^20", "1 x 2^24", "1 x 2^26") if full else ("1 x 2^20",):
        yield f"formats: {workload}", partial(measured_formats, workload, 2 * seconds)
    for workload in SIZES if full else SIZES[:1]:
        yield f"whole: {workload}", partial(measured_whole, workload, 2 * seconds)
    for one in isa_cases(full):
        yield f"isas: {one.label} {one.dtype} {one.workload}", partial(measured_isas, one, seconds / 3)


def chosen(key: str, only: Sequence[str]) -> bool:
    """Whether a task's name contains one of these texts, or there are no texts."""
    return not only or any(text in key for text in only)


def disturbed(task: Mapping[str, Any], most: float) -> bool:
    """Whether the CPUs were one core, or times of fastopt or of the bandwidth limit spread by more than `most`."""
    return one_core(task, CPUS) or (
        task["kind"] == "steps"
        and any(
            spread > most * middle
            for name, _, middle, spread in task.get("times", [])
            if name in ("fastopt", BANDWIDTH)
        )
    )


def run(file: Path, full: bool, seconds: float, only: Sequence[str], resume: float | None) -> None:
    """Measures all tasks and stores each result at once; for a task that is not possible it stores the reason."""
    old: dict[str, Any] = json.loads(file.read_text()) if (resume is not None or only) and file.exists() else {}
    data = {"began": now(), "tasks": {}} | old | {"facts": facts(), "cpus": CPUS, "full": full}
    if resume is not None:
        kept = {key: task for key, task in data["tasks"].items() if not disturbed(task, resume)}
        data["repeated"] = data.get("repeated", 0) + len(data["tasks"]) - len(kept)
    else:
        kept = {key: task for key, task in data["tasks"].items() if not chosen(key, only)}
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = dict(tasks(full, seconds))
    if not any(chosen(key, only) for key in everything):
        raise SystemExit(f"--only: no row has {' or '.join(only)} in its name")
    wanted = [key for key in everything if chosen(key, only) and key not in kept]
    for key in progress(wanted, desc="benchmark", unit="row"):
        there = cores()
        before, began = cpu_seconds(), time.perf_counter()
        try:
            result = everything[key]()
        except Unavailable as reason:
            result = {"unavailable": str(reason)}
        took = time.perf_counter() - began
        total, mine = (after - earlier for after, earlier in zip(cpu_seconds(), before, strict=True))
        use_threads(None)
        fastopt.set_isa(None)
        there = min(there, cores())
        gc.collect()
        others = max(0.0, total - mine) / took
        kind = key.partition(":")[0]
        kept[key] = {"kind": kind, "took": took, "others": others, "cores": there, **result}
        data["tasks"] = {each: kept[each] for each in (*everything, *kept) if each in kept}
        data["ended"] = now()
        part = file.with_suffix(".part")
        part.write_text(as_json(data))
        part.replace(file)


def as_json(data: Mapping[str, Any]) -> str:
    """JSON with a line for each task, so that the file can be kept in the repository."""
    tasks = ",\n".join(f"{json.dumps(key)}: {json.dumps(rounded(task))}" for key, task in data["tasks"].items())
    head = json.dumps({key: value for key, value in data.items() if key != "tasks"}, indent=1)
    return f'{head[:-2]},\n "tasks": {{\n{tasks}\n}}}}\n'


def rounded(value: Any) -> Any:
    """The value with each float in it rounded to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def now() -> str:
    return datetime.datetime.now().strftime("%Y-%m-%d %H:%M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every optimizer, dtype and workload")
    parser.add_argument(
        "--output", type=Path, default=Path("build/bench"), help="where to write (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, help="where to store the measurements (default: benchmark.json in the output)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row, at least (default: %(default)s)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="TEXT",
        help='measure only rows with one of these in their names, keep the rest: "iterations:", "Adam float32"',
    )
    parser.add_argument(
        "--resume",
        type=float,
        nargs="?",
        const=math.inf,
        metavar="SPREAD",
        help="measure rows that are not stored, rows that spread by more than this part, and those with one core",
    )
    parser.add_argument("--draw", action="store_true", help="measure nothing; write page and pictures again")
    parser.add_argument("--readme", type=Path, help="write the summary into this file too, between its marks")
    arguments = parser.parse_args()
    file = arguments.results or arguments.output / "benchmark.json"
    if not arguments.draw:
        run(file, arguments.full, arguments.seconds, arguments.only, arguments.resume)
    results = Results(json.loads(file.read_text()))
    arguments.output.mkdir(parents=True, exist_ok=True)
    pictures = draw(results, arguments.output)
    written = arguments.output / "benchmark.md"
    written.write_text(page(results, pictures))
    if arguments.readme:
        arguments.readme.write_text(with_summary(arguments.readme.read_text(), results))
    print(f"{written}, {', '.join(map(str, pictures.values()))}")


if __name__ == "__main__":
    main()
