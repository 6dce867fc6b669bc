"""Writes the page of results, in Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cases import MANY, WORKLOADS
from formats import OTHERS, SHOWN
from limits import BANDWIDTH, DIVISION
from peers import CANDIDATES
from results import LIMITS, Results, best_of_formats, quantile, shown_ratio
from targets import FIRST, TARGETS
from whole_step import NORM, PLAIN, TORCH, WHOLE

from fastopt.benchmark.report import markdown
from fastopt.benchmark.timing import Timing, in_microseconds

# -- In short --------------------------------------------------------------------------------------


def comparison(results: Results, workload: str) -> str:
    """Says how many times as long other libraries take as fastopt for a step of Adam."""
    row = results.row("Adam", workload)
    mine = row.best("fastopt") if row else None
    if not row or not mine:
        return ""
    ratios = {
        name: time / mine for name in ("NumPy", "torch fused", "DeepSpeed", "numba") if (time := row.best(name))
    }
    (first, ratio), *others = ratios.items()
    parts = [f"{first} takes {shown_ratio(ratio)} times as long as fastopt"]
    parts += [f"{name} {shown_ratio(ratio)} times" for name, ratio in others]
    bound = row.best("fastopt bound")
    if workload == MANY and bound and "torch fused" in ratios:
        after_bind = shown_ratio(ratios["torch fused"] * mine / bound)
        parts.append(
            f"and torch fused {after_bind} times where fastopt's gradients were registered once, by `opt.bind`"
        )
    return ", ".join(parts)


def summary(results: Results) -> str:
    """The most important figures, each as one sentence."""
    models = [one for one in results.iterations if one["model"].startswith("NumPy")]
    gains = sorted(one["times"]["NumPy"][0] / one["times"]["default"][0] for one in models)
    lines = []
    if gains:
        lowest, highest = map(shown_ratio, (gains[0], gains[-1]))
        span = f"{lowest} to {highest}" if len(gains) > 1 else lowest
        networks = f"{len(gains)} network{'s' * (len(gains) > 1)}"
        lines.append(
            f"A whole training iteration of a network in NumPy takes {span} times as long with a hand-written "
            f"Adam as with fastopt ({networks})."
        )
    texts = {FIRST: "A step of Adam on 2^20 float32 numbers", MANY: "A step of Adam on 1,000 arrays of 64 numbers"}
    for workload, text in texts.items():
        if ratios := comparison(results, workload):
            lines.append(f"{text}: {ratios}.")
    if results.rows:
        lines.append(lost_sentence(results))
    return "".join(textwrap.fill(f"* {line}", 115, subsequent_indent="  ") + "\n" for line in lines)


def lost_sentence(results: Results) -> str:
    """Says how often other libraries are faster."""
    lost = sorted(results.lost().items(), key=lambda item: -len(item[1]))
    rows = f"Of {len(results.rows)} combinations of optimizer, dtype and workload,"
    if not lost:
        return f"{rows} none is faster with another library."
    (first, found), *others = lost
    counts = [f"{first} is faster than fastopt in {len(found)}", *(f"{name} in {len(f)}" for name, f in others)]
    worst = max(ratio for _, found in lost for ratio, _ in found)
    return f"{rows} {', '.join(counts)}; there fastopt takes up to {worst:.2f} times as long."


MARKS = "<!-- written by bench/report.py --readme -->\n", "<!-- until here -->\n"
"""Enclose the summary in the README."""


def with_summary(readme: str, results: Results) -> str:
    """The README with the summary of a run, its machine and its date."""
    facts = results.data["facts"]
    machine = f"{facts.get('CPU', '')}, {results.cpus} shared cores, {results.data['began'].partition(' ')[0]}."
    before, _, rest = readme.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}{machine}\n\n{summary(results)}{MARKS[1]}{after}"


# -- Tables ----------------------------------------------------------------------------------------


def iteration_table(results: Results) -> str:
    arms = list(results.iterations[0]["times"])
    titles = {"NumPy": "hand-written NumPy", "default": "fastopt, its choice"}
    rows = []
    for one in results.iterations:
        times = {arm: Timing(*values) for arm, values in one["times"].items()}
        default, fixed = times["default"].median, [t.median for arm, t in times.items() if "thread" in arm]
        rows.append(
            [
                one["model"],
                f"{times['NumPy'].median / default:.2f}",
                *(f"{time}, {one['steps'][arm] / time.median:.0%}" for arm, time in times.items()),
                str(one["threads"]),
                f"{default / min(fixed):.2f}",
            ]
        )
    head = ["network", "NumPy takes … times as long", *(titles.get(arm, f"fastopt, {arm}") for arm in arms)]
    return markdown([*head, "threads chosen", "its choice takes … times as long as the best"], rows)


def lost_list(results: Results) -> str:
    found = results.lost()
    if not found:
        return "No other library is faster than fastopt in any row.\n"
    lines = (
        f"* {name}, in {len(rows)}: {', '.join(f'{row} ({r:.2f})' for r, row in rows)}\n"
        for name, rows in found.items()
    )
    return (
        "Rows in which another library is faster than fastopt, each with its best number of threads. In "
        f"parentheses: how many times as long fastopt takes.\n\n{''.join(lines)}"
    )


def format_table(results: Results) -> str:
    rows = []
    for one in results.formats:
        best = best_of_formats(one)
        for n in results.counts:
            times = {name: Timing(middle, spread) for name, count, middle, spread in one["times"] if count == n}
            rows.append([one["workload"], str(n), *(str(times.get(name, "")) for name in (*SHOWN, *OTHERS))])
        ratios = {name: f"{best['float32'] / time:.2f}" for name, time in best.items()}
        rows.append([one["workload"], "speed-up", *(ratios.get(name, "") for name in (*SHOWN, *OTHERS))])
    moved = results.formats[0]["bytes"]
    return markdown(["workload", "threads", *(f"{name}, {moved[name]} bytes" for name in SHOWN), *OTHERS], rows)


def isa_table(results: Results) -> str:
    sizes = list(dict.fromkeys(one["size"] for one in results.isas))
    cells: dict[str, dict[str, str]] = {}
    for one in results.isas:
        ratios = ", ".join(f"**{r:.2f}**" if r > 1.05 else f"{r:.2f}" for r in one["ratios"].values())
        cells.setdefault(f"{one['optimizer']} {one['dtype']}", {})[one["size"]] = ratios
    rows = ([name, *(row.get(size, "") for size in sizes)] for name, row in cells.items())
    return markdown(["kernel", *(f"{size} elements" for size in sizes)], rows)


def target_table(results: Results) -> str:
    return markdown(["case", "result", "target", "reached"], (target.line(results) for target in TARGETS))


def step_tables(results: Results) -> Iterable[str]:
    """For every optimizer a table: a row for each workload, dtype and number of threads."""
    names = [name for name in CANDIDATES if any(n == name for row in results.rows for n, _ in row.times)]
    head = ["workload", "dtype", "threads", *names, "fastopt, its choice of threads"]
    head += ["GB/s", "share of the memory-bandwidth limit", "ns an element"]
    for optimizer in dict.fromkeys(row.optimizer for row in results.rows):
        rows = []
        of_it = [row for row in results.rows if row.optimizer == optimizer]
        for row in sorted(of_it, key=lambda row: (row.dtype, list(WORKLOADS).index(row.workload))):
            for n in results.counts:
                mine = row.times["fastopt", n]
                cells = []
                for name in names:
                    timing = row.times.get((name, n))
                    faster = timing and timing.median < mine.median and name not in ("fastopt bound", *LIMITS)
                    mark = "**" if faster else ""
                    cells.append(f"{mark}{timing or ''}{mark}")
                chosen = row.times.get(("fastopt", None)) if n == results.counts[-1] else None
                share = row.share_of_bandwidth_limit(n)
                rows.append(
                    [
                        *(row.workload, row.dtype, str(n), *cells, str(chosen or "")),
                        f"{row.bytes / mine.median / 1e9:.1f}",
                        f"{share:.0%}" if share else "",
                        f"{mine.median / row.elements * 1e9:.3g}",
                    ]
                )
        yield f"### {optimizer}\n\n{markdown(head, rows)}\n"


# -- Sections --------------------------------------------------------------------------------------

HOW_TO_READ = f"""\
* A *workload* is written as the number of arrays x the elements of each; networks are named. Arrays are float32
  unless it says otherwise.
* A *time* is the median in microseconds ± half the distance between the quartiles. In each round all libraries run
  in turn, in one process. Each is measured with one thread and with all CPUs; sentences that compare libraries
  take each library's best number of threads.
* *NumPy* is the update as one writes it by hand; *NumPy out=* the same with its temporaries allocated beforehand;
  *numexpr* the same in as few expressions as possible; *numba* the same as one compiled loop, parallel on more
  than one thread.
* *torch* is `torch.optim` as a loop over the parameters; *foreach* and *fused* are its faster forms, where it has
  them; *compile* is foreach by way of `torch.compile`. *optax* is jitted, with its buffers donated. *MLX* is compiled,
  on its CPU backend. *thinc* clears the gradient, and its time includes copying it back. *DeepSpeed* is its
  optimizer for CPUs.
* *fastopt* is given its gradients in a list at each step; *fastopt bound* has registered them beforehand with
  `opt.bind`. *Its choice* is the number of threads that fastopt chooses by itself.
* The *{BANDWIDTH}* is the time of a C loop that reads and writes the bytes of a step without
  computing anything, in one flat array for each of parameter, gradient and states, at the best addresses. Below
  some thousand elements this is the cost of a call from Python.
* The *{DIVISION}* is the time that the divisions and square roots of a step take alone, on
  numbers that stay in the nearest cache.
* The first three steps of every candidate are compared before it is timed: fastopt and NumPy bit for bit with the
  formula in plain NumPy that ships with fastopt, the others with the same formula in float64. Arrays begin at a
  multiple of 16 bytes and of no more, as NumPy's own do.
"""


def one_core(task: Mapping[str, Any], cpus: int) -> bool:
    """Whether all CPUs together were hardly faster than one, before or after a task that uses them."""
    return bool(task["kind"] != "isas" and task["cores"] < 0.75 * cpus)


def noise(results: Results) -> str:
    """How far the figures of this run can be trusted."""
    if not results.rows:
        return "No step was measured.\n"
    spreads = sorted(t.spread / t.median for row in results.rows for t in row.times.values())
    tasks = results.data["tasks"].values()
    others = sorted(task["others"] for task in tasks)
    shared = sum(one_core(task, results.cpus) for task in tasks)

    def at(values: Sequence[float], part: float) -> str:
        return f"{quantile(values, part):.1%}"

    lines = [
        "The same optimizer, measured twice in the same rounds in arrays of its own, differs by "
        f"{results.noise(0.5):.1%} in the median row and by {results.noise(0.95):.1%} in one row of twenty. "
        "*Noise* is the latter figure.",
        f"Half the distance between the quartiles is {at(spreads, 0.5)} of the time in the median cell and "
        f"{at(spreads, 0.95)} in one cell of twenty.",
        f"Other processes kept {at(others, 0.5)} of one CPU busy in the median row and {others[-1]:.0%} in the "
        "worst.",
        f"During {shared} of {len(tasks)} tasks all CPUs together divided numbers hardly faster than one, as two "
        "threads of one core do.",
        f"{results.data.get('repeated', 0)} tasks were measured again for that reason, or because the times of "
        "fastopt or of the memory-bandwidth limit lay far apart.",
    ]
    return "".join(f"* {line}\n" for line in lines)


def machine(results: Results) -> str:
    data = results.data
    facts = "".join(f"{name + ':':18}{value}\n" for name, value in data["facts"].items())
    command = f"make bench{'-full' if data['full'] else ''}"
    when = f"{data['began']} to {data.get('ended', '')}"
    return f"Measured by `{command}`, {when}, on this machine:\n\n```\n{facts}```\n"


def iterations(results: Results) -> Iterable[str]:
    if not results.iterations:
        return
    yield "## Whole training iterations\n"
    yield (
        "An iteration is forward pass, backward pass and a step of Adam, in float32, on batches of 128. Each cell "
        "has the microseconds of an iteration and the share of its step. The rows called *torch* compute the "
        "gradients with torch. The rows called *steps alone* do nothing but steps, on one array; a step in a "
        "training loop gains less, because forward and backward pass displace the optimizer's arrays from the "
        "cache.\n"
    )
    yield iteration_table(results)
    if results.busy:
        titles = {"NumPy": "hand-written NumPy", "default": "fastopt, its choice of threads"}
        rows = [
            [titles.get(name, f"fastopt, {name}"), *map(in_microseconds, results.busy[name])]
            for name in results.iterations[0]["times"]
        ]
        yield (
            "While another process keeps one core busy: microseconds of the steps of the 784-512-512-10 network.\n"
        )
        yield markdown(["", "median", "99th percentile", "longest"], rows)


def formats(results: Results) -> Iterable[str]:
    if not results.formats:
        return
    yield "## Numbers stored in 16 bits\n"
    yield (
        "Adam, microseconds a step. The heading says how many bytes a step moves for each element. *Speed-up* is "
        "how many times as long fastopt takes in float32, each with its best number of threads. The first steps "
        "of each format are compared bit for bit with the formula in plain NumPy.\n"
    )
    yield format_table(results)


def whole_steps(results: Results) -> Iterable[str]:
    if not results.whole:
        return
    yield "## The whole step\n"
    yield (
        "Adam, microseconds a step. *With a norm*: `max_norm`. *Whole step*: `max_norm`, a moving average of the "
        "weights and `zero_grads`, in one call. *torch*: `clip_grad_norm_`, the fused Adam, `_foreach_lerp_` and "
        "`zero_grad`. The first steps are compared with torch's.\n"
    )
    names = (PLAIN, NORM, WHOLE, TORCH)
    rows = []
    for one in results.whole:
        for n in results.counts:
            times = {name: Timing(middle, spread) for name, count, middle, spread in one["times"] if count == n}
            ratio = f"{times[TORCH].median / times[WHOLE].median:.2f}" if {TORCH, WHOLE} <= times.keys() else ""
            rows.append([one["workload"], str(n), *(str(times.get(name, "")) for name in names), ratio])
    yield markdown(["workload", "threads", *names, "torch takes … times as long"], rows)


def instruction_sets(results: Results) -> Iterable[str]:
    if not results.isas:
        return
    first = results.isas[0]
    yield "## Instruction sets\n"
    yield (
        f"How many times as long a kernel takes under {first['best']} as under {', '.join(first['ratios'])}: one "
        "thread, arrays at a multiple of 16 bytes and of no more, the median of 5 placements in memory. Bold: "
        "above 1.05.\n"
    )
    yield isa_table(results)


def page(results: Results, pictures: Mapping[str, Any]) -> str:
    """The whole page. pictures: files by their captions."""
    parts = [
        "# How long a step takes\n",
        summary(results),
        *(f"![{caption}]({file.name})\n" for caption, file in pictures.items()),
        machine(results),
        "## How to read this page\n",
        HOW_TO_READ,
        *iterations(results),
        "## Where other libraries are faster\n",
        lost_list(results),
        *formats(results),
        *whole_steps(results),
        *instruction_sets(results),
        "## Targets\n",
        "The targets, and whether this run reached them. Where several rows are judged, the worst is "
        f"shown. Noise is how far two equal figures lie apart in one row of twenty: {results.noise(0.95):.1%}.\n",
        target_table(results),
        "## Noise\n",
        noise(results),
        "## Every measurement\n",
        "Microseconds a step. Bold: faster than fastopt with as many threads. GB/s, the share of the "
        "memory-bandwidth limit and ns an element are those of fastopt.\n",
        *step_tables(results),
    ]
    if results.reasons:
        lines = (f"* {name}: {'; '.join(reasons)}\n" for name, reasons in results.reasons.items())
        parts += ["## Empty cells\n", "".join(lines)]
    return re.sub("\n{3,}", "\n\n", "\n".join(parts))
