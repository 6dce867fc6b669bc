"""The pictures of the page of results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import log10
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from cases import FLAT, MANY, WORKLOADS
from limits import BANDWIDTH, DIVISION
from matplotlib.colors import to_rgb
from results import LIMITS, PEERS, Results

from fastopt.benchmark.report import number_of_threads

MINE = "fastopt"


def colours() -> dict[str, Any]:
    """A colour for each library; its other forms are paler."""
    libraries: dict[str, list[str]] = {}
    for name in PEERS:
        libraries.setdefault(name.split()[0], []).append(name)
    hues = [f"tab:{hue}" for hue in ("blue", "olive", "green", "purple", "brown", "red", "cyan", "pink", "orange")]
    found: dict[str, Any] = {}
    for (_, names), hue in zip(libraries.items(), itertools.cycle(hues), strict=False):
        for k, name in enumerate(reversed(names)):
            white = 0.8 * k / len(names)
            found[name] = tuple(white + (1 - white) * part for part in to_rgb(hue))
    return {**{name: found[name] for name in PEERS}, MINE: "black", **dict.fromkeys(LIMITS, "0.6")}


COLOURS = colours()
SIZES = ("1 x 2^20", "1 x 2^24", "1 x 2^26")


def apart(places: Sequence[float], distance: float) -> list[float]:
    """The places, moved upwards where two would be closer to each other than the distance."""
    moved: dict[int, float] = {}
    last = float("-inf")
    for k in sorted(range(len(places)), key=places.__getitem__):
        last = moved[k] = max(places[k], last + distance)
    return [moved[k] for k in range(len(places))]


def by_size(results: Results, file: Path) -> None:
    """Adam, float32: nanoseconds an element against the number of elements, a panel a number of threads."""
    rows = sorted(
        (
            r
            for r in results.rows
            if (r.optimizer, r.dtype, r.arrays) == ("Adam", "float32", 1) and r.workload != FLAT
        ),
        key=lambda row: row.elements,
    )
    figure, panels = plt.subplots(
        1, len(results.counts), figsize=(6.4 * len(results.counts), 5.4), sharey=True, squeeze=False
    )
    ends = []
    for panel, n in zip(panels[0], results.counts, strict=True):
        for name in COLOURS:
            points = [
                (r.elements, r.times[name, n].median / r.elements * 1e9) for r in rows if (name, n) in r.times
            ]
            if points:
                style = {"linewidth": 3.0, "zorder": 3} if name == MINE else {"linewidth": 1.4}
                dashes = {BANDWIDTH: "--", DIVISION: ":"}.get(name, "-")
                panel.plot(*zip(*points, strict=True), dashes, marker="o", ms=3, color=COLOURS[name], **style)
                ends.append((panel, name, points[-1]))
        panel.set(xscale="log", yscale="log", xlabel="elements in one array", title=number_of_threads(n))
        panel.grid(alpha=0.3)
    low, high = map(log10, panels[0][0].get_ylim())
    for panel in panels[0]:
        mine = [(name, point) for where, name, point in ends if where is panel]
        heights = apart([log10(y) for _, (_, y) in mine], 0.042 * (high - low))
        for (name, point), height in zip(mine, heights, strict=True):
            panel.annotate(
                name,
                point,
                (1.04, 10**height),
                textcoords=panel.get_yaxis_transform(),
                color=COLOURS[name],
                va="center",
                fontsize=10,
                fontweight="bold" if name == MINE else "normal",
                arrowprops={"arrowstyle": "-", "color": COLOURS[name], "linewidth": 0.6, "relpos": (0, 0.5)},
            )
    panels[0][0].set_ylabel("nanoseconds per element")
    figure.suptitle("One step of Adam, float32: lower is better")
    save(figure, file)


def share_of_limit(results: Results, file: Path) -> None:
    """The share of the memory-bandwidth limit's speed that every optimizer reaches in large arrays."""
    rows = [r for r in results.rows if r.workload in SIZES]
    optimizers = list(dict.fromkeys(r.optimizer for r in rows))[::-1]
    figure, panels = plt.subplots(
        1,
        len(results.counts),
        figsize=(5.6 * len(results.counts), 1.7 + 0.36 * len(optimizers)),
        sharey=True,
        sharex=True,
        squeeze=False,
    )
    colours = dict(zip(SIZES, ("tab:blue", "tab:orange", "tab:green"), strict=True))
    shapes = {"float32": ("o", 0.14), "float64": ("D", -0.14)}
    for panel, n in zip(panels[0], results.counts, strict=True):
        for size in SIZES:
            for dtype, (shape, lift) in shapes.items():
                points = [
                    (min(100 * part, 119), optimizers.index(r.optimizer) + lift)
                    for r in rows
                    if (r.workload, r.dtype) == (size, dtype) and (part := r.share_of_bandwidth_limit(n))
                ]
                if points:
                    label = f"{size.removeprefix('1 x ')}, {dtype}"
                    panel.scatter(
                        *zip(*points, strict=True),
                        marker=shape,
                        color=colours[size],
                        s=34,
                        label=label,
                        alpha=0.85,
                    )
        panel.axvline(100, color="0.3", linewidth=1)
        panel.axvline(95, color="0.3", linewidth=1, linestyle=":")
        panel.set(
            title=number_of_threads(n), xlabel="per cent of the speed that memory bandwidth allows", xlim=(0, 120)
        )
        panel.set_yticks(range(len(optimizers)), optimizers)
        panel.grid(axis="y", alpha=0.3)
    handles, labels = panels[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) or 1, fontsize=9, frameon=False)
    figure.suptitle("fastopt's speed; 100: a loop that moves the same bytes without arithmetic; dotted: 95")
    save(figure, file)


def speed_ups(results: Results, file: Path) -> None:
    """How many times as long as fastopt every other library takes, Adam, float32, each at its best."""
    rows = [r for w in WORKLOADS if w != FLAT and (r := results.row("Adam", w))]
    peers = [n for n in COLOURS if n not in (MINE, *LIMITS) and any(r.best(n) for r in rows)][::-1]
    figure, panel = plt.subplots(figsize=(9.5, 1.9 + 0.42 * len(peers)))
    shades = plt.get_cmap("viridis")
    for k, row in enumerate(rows):
        mine = row.best(MINE)
        points = [(t / mine, y) for y, name in enumerate(peers) if mine and (t := row.best(name))]
        shape = {1: "o", len(WORKLOADS[MANY]): "s"}.get(row.arrays, "D")
        lift = 0.3 - 0.6 * k / max(len(rows) - 1, 1)
        panel.scatter(
            [x for x, _ in points],
            [y + lift for _, y in points],
            marker=shape,
            color=shades(0.95 * k / max(len(rows) - 1, 1)),
            s=40,
            label=row.workload,
        )
    panel.axvline(1, color="black", linewidth=1)
    panel.set(
        xscale="log",
        xlabel="times as long as fastopt takes (1: equally long)",
        title="How long a step of Adam takes with other libraries, each with its best number of threads",
    )
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_yticks(range(len(peers)), peers)
    panel.grid(axis="x", alpha=0.3)
    for y in range(len(peers) - 1):
        panel.axhline(y + 0.5, color="0.85", linewidth=0.8)
    panel.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False, title="arrays x elements"
    )
    save(figure, file)


def save(figure: Any, file: Path) -> None:
    figure.set_layout_engine("constrained")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """Writes the pictures; returns the files by their captions."""
    if not results.rows:
        return {}
    kinds: dict[str, tuple[str, Callable[[Results, Path], None]]] = {
        "How many times as long as fastopt other libraries take for a step of Adam": ("peers", speed_ups),
        "Nanoseconds per element of a step of Adam, against the number of elements": ("size", by_size),
        "The share of the memory-bandwidth limit's speed that fastopt reaches": ("limit", share_of_limit),
    }
    files = {}
    for caption, (name, picture) in kinds.items():
        files[caption] = folder / f"benchmark-{name}.png"
        picture(results, files[caption])
    return files
