"""The page of results: Markdown, from what report.py stored."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cases import FLAT, MANY, PACKAGES, WORKLOADS
from formats import OTHERS, SHOWN
from peers import CANDIDATES

from fastopt.benchmark import Timing, in_microseconds, markdown, threads_of

AGAIN = "again"
"""fastopt bound a second time, to see how far two equal figures lie apart."""
LIMITS = ("floor", "divider")
PEERS = [name for name in CANDIDATES if not name.startswith(("fastopt", *LIMITS))]
FIRST = "1 x 2^20"
LARGE = ("1 x 2^24", "1 x 2^26", "ResNet-50", "GPT-2 small")
"""2^24 elements and more."""

# -- What was measured -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One optimizer on one workload, by everybody."""

    optimizer: str
    dtype: str
    workload: str
    arrays: int
    elements: int
    bytes: int
    times: Mapping[tuple[str, int | None], Timing]

    def __str__(self) -> str:
        return f"{self.optimizer} {self.dtype} {self.workload}"

    def best(self, name: str) -> float | None:
        """Seconds with the number of threads that does best, of those that were asked for."""
        return min((t.median for (n, count), t in self.times.items() if n == name and count), default=None)

    def ratio(self, one: tuple[str, int | None], other: tuple[str, int | None]) -> float | None:
        """The time of one by that of the other."""
        if one in self.times and other in self.times:
            return self.times[one].median / self.times[other].median
        return None

    def of_floor(self, count: int | None) -> float | None:
        """The part of the floor's speed that fastopt reaches."""
        return self.ratio(("floor", count), ("fastopt", count))


class Results:
    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.cpus: int = data["cpus"]
        done = [task for task in data["tasks"].values() if "unavailable" not in task]
        self.iterations = [task for task in done if task["kind"] == "iterations"]
        self.formats = [task for task in done if task["kind"] == "formats"]
        self.isas = [task for task in done if task["kind"] == "isas"]
        self.busy = next((task for task in done if task["kind"] == "busy"), None)
        self.rows: list[Row] = []
        self.reasons: dict[str, dict[str, None]] = {}
        for task in done:
            if task["kind"] != "steps":
                continue
            times = {(name, count): Timing(middle, spread) for name, count, middle, spread in task["times"]}
            named = ("optimizer", "dtype", "workload", "arrays", "elements", "bytes")
            self.rows.append(Row(**{name: task[name] for name in named}, times=times))
            for name, reason in task["reasons"].items():
                self.reasons.setdefault(name, {})[reason] = None

    @property
    def counts(self) -> list[int]:
        """Numbers of threads."""
        return sorted({1, self.cpus})

    def apart(self, part: float) -> float:
        """How far two equal figures lie apart, at most in that part of the rows: 0.5 is the median."""
        again = sorted(
            abs(ratio - 1)
            for row in self.rows
            for n in self.counts
            if (ratio := row.ratio((AGAIN, n), ("fastopt bound", n))) is not None
        )
        return quantile(again, part) if again else 0.0

    def row(self, optimizer: str, workload: str, dtype: str = "float32") -> Row | None:
        found = (r for r in self.rows if (r.optimizer, r.workload, r.dtype) == (optimizer, workload, dtype))
        return next(found, None)


def quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


# -- Claims ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A number that must not be below, or not above, a limit; of several the worst counts."""

    what: str
    limit: float
    figures: Callable[[Results], Iterable[tuple[float | None, object]]]
    above: bool = True
    unit: str = "x"

    def shown(self, value: float) -> str:
        match self.unit:
            case "%":
                return f"{value:.1%}"
            case "µs":
                return f"{in_microseconds(value)} µs"
        return f"{value:.2f}"

    def line(self, results: Results) -> list[str]:
        found = [(value, str(of)) for value, of in self.figures(results) if value is not None]
        values = [value for value, _ in found]
        limit = f"{'at least' if self.above else 'at most'} {self.shown(self.limit)}"
        if not found:
            return [self.what, "not measured", limit, ""]
        value, of = min(found) if self.above else max(found)
        failures = self.failures(values)
        clear = self.failures(values, results.apart(0.95))
        many = f" (the worst of {len(found)}: {of})" if len(found) > 1 else f" ({of})"
        if not failures:
            verdict = "yes"
        elif len(found) > 1:
            verdict = f"**no**, in {failures} of {len(found)}, {clear or 'none'} by more than noise"
        else:
            verdict = "**no**" if clear else "**no**, not by more than noise"
        return [self.what, self.shown(value) + many, limit, verdict]

    def failures(self, values: Sequence[float], part: float = 0.0) -> int:
        """How many do not hold, by more than a part of the limit."""
        if self.above:
            return sum(value < self.limit * (1 - part) for value in values)
        return sum(value > self.limit * (1 + part) for value in values)


def limits(
    names: Sequence[str], chosen: Callable[[Row], bool]
) -> Callable[[Results], Iterable[tuple[float | None, object]]]:
    """The part of the speed that fastopt reaches which the slowest of the limits allows."""

    def figures(results: Results) -> Iterable[tuple[float | None, object]]:
        for row in filter(chosen, results.rows):
            for n in results.counts:
                times = [row.times[name, n].median for name in names if (name, n) in row.times]
                yield max(times) / row.times["fastopt", n].median if times else None, f"{row}, {threads_of(n)}"

    return figures


def is_large(row: Row) -> bool:
    return row.workload in LARGE and row.arrays == 1


def by(
    peers: str | Sequence[str],
    optimizers: str | Sequence[str],
    workloads: str | Sequence[str],
    mine: str = "fastopt",
) -> Callable[[Results], Iterable[tuple[float | None, object]]]:
    """The peer's best time (of several peers the best one's) by fastopt's, in float32."""
    every = [[x] if isinstance(x, str) else list(x) for x in (peers, optimizers, workloads)]

    def figures(results: Results) -> Iterable[tuple[float | None, object]]:
        for row in results.rows:
            if row.optimizer in every[1] and row.workload in every[2] and row.dtype == "float32":
                times = [time for peer in every[0] if (time := row.best(peer))]
                own = row.best(mine)
                yield min(times) / own if times and own else None, f"{row.optimizer} {row.workload}"

    return figures


def iteration(
    of: Callable[[Mapping[str, Any]], float],
) -> Callable[[Results], Iterable[tuple[float | None, object]]]:
    return lambda results: (
        (of(one), one["model"]) for one in results.iterations if one["model"] == "NumPy, 784-512-512-10"
    )


def flat(results: Results) -> Iterable[tuple[float | None, object]]:
    many, one = results.row("Adam", MANY), results.row("Adam", FLAT)
    if many and one:
        mine, theirs = many.best("fastopt bound"), one.best("fastopt")
        yield mine / theirs if mine and theirs else None, f"{MANY} bound, by {FLAT}"


def single(results: Results) -> Iterable[tuple[float | None, object]]:
    row = results.row("Adam", "1 x 1,000")
    yield (row.best("fastopt"), row) if row else (None, "")


def single_or_double(results: Results) -> Iterable[tuple[float | None, object]]:
    for row in results.rows:
        other = results.row(row.optimizer, row.workload, "float64")
        if row.dtype == "float32" and other and row.elements >= 1000:
            for n in results.counts:
                one, two = row.times.get(("fastopt", n)), other.times.get(("fastopt", n))
                yield one.median / two.median if one and two else None, f"{row}, {threads_of(n)}"


def default_or_one(results: Results) -> Iterable[tuple[float | None, object]]:
    for row in results.rows:
        yield row.ratio(("fastopt", None), ("fastopt", 1)), row
    for one in results.iterations:
        yield one["times"]["default"][0] / one["times"]["1 thread"][0], one["model"]


def sixteen_bits(of: str) -> Callable[[Results], Iterable[tuple[float | None, object]]]:
    """The time of `of` by that of fastopt with a state of bfloat16, each with the threads that suit it."""

    def figures(results: Results) -> Iterable[tuple[float | None, object]]:
        for one in results.formats:
            if one["workload"] == "1 x 2^26":
                best = best_of(one)
                yield best[of] / best["bfloat16 state"] if of in best else None, one["workload"]

    return figures


def best_of(one: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of each, with the number of threads that does best."""
    found: dict[str, float] = {}
    for name, _, middle, _ in one["times"]:
        found[name] = min(middle, found.get(name, middle))
    return found


NOT_FUSED = ("RMSprop", "RMSprop momentum", "RMSprop centered", "RMSprop momentum centered", "Adadelta")
"""The optimizers that torch does not fuse on a CPU."""

TORCH = ("torch", "torch foreach", "torch fused")

CLAIMS = [
    Claim("1. 2^24 and more: the floor's time by fastopt's", 0.95, limits(("floor",), is_large), unit="%"),
    Claim("1. the same: the floor's or the divider's, which is longer", 0.95, limits(LIMITS, is_large), unit="%"),
    Claim("1. the same, Adam: torch fused by fastopt", 1.0, by("torch fused", "Adam", LARGE)),
    Claim("1. the same, Adam: DeepSpeed by fastopt", 1.0, by("DeepSpeed", "Adam", LARGE)),
    Claim("2. 2^20, Adam: torch fused by fastopt", 1.3, by("torch fused", "Adam", FIRST)),
    Claim("2. 2^20, Adam: DeepSpeed by fastopt", 1.3, by("DeepSpeed", "Adam", FIRST)),
    Claim("2. 2^20, Adam: numba by fastopt", 1.0, by("numba", "Adam", FIRST)),
    Claim(
        "2. 2^20, Adam: the floor's time or the divider's, which is longer, by fastopt's",
        0.9,
        limits(LIMITS, lambda row: str(row) == f"Adam float32 {FIRST}"),
        unit="%",
    ),
    Claim(f"3. {MANY}, Adam: torch fused by fastopt", 40, by("torch fused", "Adam", MANY)),
    Claim(f"3. {MANY}, Adam: torch fused by fastopt bound", 100, by("torch fused", "Adam", MANY, "fastopt bound")),
    Claim(f"3. {MANY}, Adam: DeepSpeed by fastopt bound", 50, by("DeepSpeed", "Adam", MANY, "fastopt bound")),
    Claim("3. many arrays, bound, by one flat array", 1.5, flat, above=False),
    Claim("4. one array of 1,000, Adam", 1.5e-6, single, above=False, unit="µs"),
    Claim("4. one array of 1,000, Adam: numba by fastopt", 4, by("numba", "Adam", "1 x 1,000")),
    Claim("4. one array of 1,000, Adam: torch's best by fastopt", 15, by(TORCH, "Adam", "1 x 1,000")),
    Claim(
        "5. RMSprop's forms and Adadelta, 2^20 and 2^24: torch's best by fastopt",
        4,
        by(TORCH, NOT_FUSED, (FIRST, "1 x 2^24")),
    ),
    Claim(
        "6. a training iteration, batch 128: the step's part",
        0.12,
        iteration(lambda one: one["steps"]["default"] / one["times"]["default"][0]),
        above=False,
        unit="%",
    ),
    Claim(
        "6. the same: the iteration with hand-written NumPy by that with fastopt",
        1.3,
        iteration(lambda one: one["times"]["NumPy"][0] / one["times"]["default"][0]),
    ),
    Claim(
        "7. the best instruction set's time by a narrower one's",
        1.05,
        lambda results: (
            (ratio, f"{one['optimizer']} {one['dtype']} {one['size']}, {name}")
            for one in results.isas
            for name, ratio in one["ratios"].items()
        ),
        above=False,
    ),
    Claim("7. float32's time by float64's", 1.05, single_or_double, above=False),
    Claim("7. the default number of threads, by one thread", 1.05, default_or_one, above=False),
    Claim("8. 2^26, Adam: fastopt by fastopt with a bfloat16 state", 1.25, sixteen_bits("float32")),
    Claim("8. the same: torch fused by fastopt with a bfloat16 state", 1.35, sixteen_bits("torch fused")),
]
"""What must hold. 5 % are left for noise where a ratio is to be 1."""


# -- Tables ----------------------------------------------------------------------------------------


def one_core(task: Mapping[str, Any], cpus: int) -> bool:
    """Whether all CPUs did hardly more than one, before or after a task that uses them."""
    return bool(task["kind"] != "isas" and task["cores"] < 0.75 * cpus)


def noise(results: Results) -> str:
    """What a reader must know of the machine at the time."""
    spreads = sorted(t.spread / t.median for row in results.rows for t in row.times.values())
    tasks = results.data["tasks"].values()
    others = sorted(task["others"] for task in tasks)
    if not results.rows:
        return "No step was measured.\n"
    shared = sum(one_core(task, results.cpus) for task in tasks)

    def at(values: Sequence[float], part: float) -> str:
        return f"{quantile(values, part):.1%}"

    return (
        "How noisy: the same optimizer measured a second time in the same rounds, in arrays of its own, differs "
        f"by {results.apart(0.5):.1%} in the median row and by {results.apart(0.95):.1%} in one of twenty; "
        f"half the distance between a cell's quartiles is {at(spreads, 0.5)} of it in the median cell and "
        f"{at(spreads, 0.95)} in one of twenty; other processes kept {at(others, 0.5)} of one CPU busy in the "
        f"median row and {others[-1]:.0%} in the worst. During {shared} of {len(tasks)} all CPUs together divided "
        "hardly faster than one, as the threads of one core do. Rows measured again for that, or because the "
        f"times of fastopt or of the floor lay far apart: {results.data.get('repeated', 0)}.\n"
    )


def step_tables(results: Results) -> Iterable[str]:
    """For every optimizer a table: a row for each workload, dtype and number of threads."""
    names = [name for name in CANDIDATES if any(n == name for row in results.rows for n, _ in row.times)]
    head = ["workload", "dtype", "threads", *names, "own choice", "GB/s", "of the floor", "ns an element"]
    for optimizer in dict.fromkeys(row.optimizer for row in results.rows):
        rows = []
        of_it = [row for row in results.rows if row.optimizer == optimizer]
        for row in sorted(of_it, key=lambda row: (row.dtype, list(WORKLOADS).index(row.workload))):
            for n in results.counts:
                mine = row.times[("fastopt", n)]
                cells = []
                for name in names:
                    timing = row.times.get((name, n))
                    mark = (
                        "**"
                        if timing and timing.median < mine.median and name not in ("fastopt bound", *LIMITS)
                        else ""
                    )
                    cells.append(f"{mark}{timing or ''}{mark}")
                own = row.times.get(("fastopt", None)) if n == results.counts[-1] else None
                of_floor = row.of_floor(n)
                rows.append(
                    [
                        row.workload,
                        row.dtype,
                        str(n),
                        *cells,
                        str(own or ""),
                        f"{row.bytes / mine.median / 1e9:.1f}",
                        f"{of_floor:.0%}" if of_floor else "",
                        f"{mine.median / row.elements * 1e9:.3g}",
                    ]
                )
        yield f"### {optimizer}\n\n{markdown(head, rows)}\n"


def losses(results: Results) -> Mapping[str, Sequence[tuple[float, Row]]]:
    """Where every peer did better than fastopt, each with its best number of threads, and how many times."""
    found: dict[str, list[tuple[float, Row]]] = {}
    for row in results.rows:
        mine = row.best("fastopt")
        for name in PEERS:
            theirs = row.best(name)
            if mine and theirs and theirs < mine:
                found.setdefault(name, []).append((mine / theirs, row))
    return found


def loss_list(results: Results) -> str:
    found = losses(results)
    if not found:
        return "Nobody is faster than fastopt in any row, each with the number of threads that suits it best.\n"
    lines = (f"* {name}: {', '.join(f'{row} ({r:.2f})' for r, row in rows)}\n" for name, rows in found.items())
    said = "Who is faster than fastopt, each with the number of threads that suits it best, and how many times:"
    return f"{said}\n\n{''.join(lines)}"


def claim_table(results: Results) -> str:
    return markdown(["", "measured", "must be", "holds"], (claim.line(results) for claim in CLAIMS))


MARKS = "<!-- written by bench/report.py --readme -->\n", "<!-- until here -->\n"
"""Around what the README says of a run."""


def quoted(readme: str, results: Results) -> str:
    """The README with what it says of a run: the machine, the claims, how often others are faster."""
    facts = results.data["facts"]
    python, cpu, isa = (facts.get(name, "") for name in ("Python", "CPU", "in use"))
    others = ", ".join(f"{name} {facts.get(name, '')}" for name in PACKAGES)
    machine = (
        f"{cpu}, {results.cpus} shared cores, {isa}; compiler {facts.get('compiler', '')}; Python {python}; "
        f"{others}; {results.data['began']}."
    )
    worst = {name: (len(rows), *max(rows, key=lambda one: one[0])) for name, rows in losses(results).items()}
    who = "; ".join(f"{name} in {n} (at most {r:.2f} times, {row})" for name, (n, r, row) in worst.items())
    lost = (
        f"Noise is {results.apart(0.95):.1%}: how far two equal figures lie apart in one row of twenty. Of the "
        f"{len(results.rows)} rows, each with an optimizer, a dtype and a workload, somebody else is faster in "
        f"these: {who or 'none'}. The page names them all."
    )
    before, _, rest = readme.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    wrapped = (textwrap.fill(text, 115, break_on_hyphens=False) for text in (machine, lost))
    return (
        before + MARKS[0] + f"\n{claim_table(results)}\n".join(f"{text}\n" for text in wrapped) + MARKS[1] + after
    )


def iteration_table(results: Results) -> str:
    arms = list(results.iterations[0]["times"])
    rows = []
    for one in results.iterations:
        times = {arm: Timing(*values) for arm, values in one["times"].items()}
        default, fixed = times["default"].median, [t.median for arm, t in times.items() if "thread" in arm]
        rows.append(
            [
                one["model"],
                *(f"{time}, {one['steps'][arm] / time.median:.0%}" for arm, time in times.items()),
                f"{times['NumPy'].median / default:.2f}",
                f"{default / min(fixed):.2f}",
                str(one["threads"]),
            ]
        )
    return markdown(["", *arms, "NumPy / default", "default / best fixed", "threads chosen"], rows)


def format_table(results: Results) -> str:
    rows = []
    for one in results.formats:
        best = best_of(one)
        for n in results.counts:
            times = {name: Timing(middle, spread) for name, count, middle, spread in one["times"] if count == n}
            rows.append([one["workload"], str(n), *(str(times.get(name, "")) for name in (*SHOWN, *OTHERS))])
        ratios = {name: f"{best['float32'] / time:.2f}" for name, time in best.items()}
        rows.append([one["workload"], "best", *(ratios.get(name, "") for name in (*SHOWN, *OTHERS))])
    moved = results.formats[0]["bytes"]
    return markdown(["", "threads", *(f"{name}, {moved[name]} bytes" for name in SHOWN), *OTHERS], rows)


def isa_table(results: Results) -> str:
    sizes = list(dict.fromkeys(one["size"] for one in results.isas))
    cells: dict[str, dict[str, str]] = {}
    for one in results.isas:
        ratios = ", ".join(f"**{r:.2f}**" if r > 1.05 else f"{r:.2f}" for r in one["ratios"].values())
        cells.setdefault(f"{one['optimizer']} {one['dtype']}", {})[one["size"]] = ratios
    return markdown(["", *sizes], ([name, *(row.get(size, "") for size in sizes)] for name, row in cells.items()))


LEGEND = """\
Microseconds a step: the median ± half the distance between the quartiles, of rounds in which all take turns. Bold:
faster than fastopt with as many threads. The first three steps of every candidate are compared before it is timed:
fastopt and NumPy to the bit with the NumPy twin, all others with the twin in float64. Arrays begin at a multiple
of 16 bytes and of no more, as NumPy's do.

* NumPy is the update written by hand; out= the same, its temporaries allocated beforehand; numexpr the same in as
  few expressions as it takes; numba the same as one compiled loop, parallel on more threads than one.
* optax is jitted, and its buffers are donated. thinc clears the gradient, which is copied back within its time.
* fastopt is given its gradients in a list; bound was given them before; own choice: the default number of threads.
* The floor reads and writes the same bytes without the arithmetic, in one flat array for each stream, at the best
  of addresses. Below some thousand elements it is the cost of a call from Python.
* The divider takes the roots and quotients of a step alone, on numbers that stay in the nearest cache.
* GB/s, the part of the floor's speed and ns an element are fastopt's.
"""


def page(results: Results, pictures: Mapping[str, Any]) -> str:
    """pictures: files by what they show."""
    data = results.data
    facts = "".join(f"{name + ':':18}{value}\n" for name, value in data["facts"].items())
    form = "full" if data["full"] else "short"
    parts = [
        "# What a step costs\n",
        f"Made by `make bench{'-full' if data['full'] else ''}` (the {form} form), {data['began']} to "
        f"{data.get('ended', '')}, on this machine:\n\n```\n{facts}```\n",
        noise(results),
        *(f"![{shows}]({file.name})\n" for shows, file in pictures.items()),
        "## What must hold\n",
        "The peers with the number of threads that suits them best, and fastopt likewise. Noise is how far two "
        f"equal figures lie apart in one row of twenty, {results.apart(0.95):.1%}.\n",
        claim_table(results),
        loss_list(results),
    ]
    if results.iterations:
        parts += [
            "## Whole training iterations\n",
            "Adam, float32, batches of 128, microseconds an iteration, and the step's part of it. NumPy is the "
            "hand-written update; the others are fastopt, on a fixed number of threads and on what it chooses.\n",
            iteration_table(results),
        ]
    if results.busy:
        rows = [[name, *map(in_microseconds, results.busy[name])] for name in results.iterations[0]["times"]]
        parts += [
            "The steps alone, 784-512-512-10, while another process keeps a core busy: microseconds.\n",
            markdown(["", "median", "99 %", "longest"], rows),
        ]
    if results.formats:
        parts += [
            "## Numbers of 16 bits\n",
            "Adam, microseconds a step; in the rows called best how many times as fast as fastopt in float32, "
            "each with the number of threads that suits it. Bytes are those that an element moves. The first "
            "steps of each format are compared with the NumPy twin, to the bit.\n",
            format_table(results),
        ]
    if results.isas:
        first = results.isas[0]
        parts += [
            "## Instruction sets\n",
            f"A kernel's time under {first['best']} by that under {', '.join(first['ratios'])}: one thread, every "
            "array at a multiple of 16 bytes and of no more, the median of 5 placements. Bold: over 1.05.\n",
            isa_table(results),
        ]
    parts += [
        "## Every cell\n",
        LEGEND,
        *step_tables(results),
    ]
    if results.reasons:
        lines = (f"* {name}: {'; '.join(reasons)}\n" for name, reasons in results.reasons.items())
        parts += ["## Empty cells\n", "".join(lines)]
    return "\n".join(parts)
