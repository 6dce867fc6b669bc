"""Draw the paths of the classic optimizers down three small landscapes.

On each landscape all optimizers start at the same point and take the same number of steps at the
same learning rate, so what differs is the optimizer. Gradient descent written out in NumPy runs
beside them, and plain SGD must meet it at every point, bit for bit.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from classics import CLASSICS, Classic
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

import fastopt

Array = NDArray[np.float64]

# As the pictures have them: above, one step size for all parameters; below, one for each.
OPTIMIZERS = {
    **{name: CLASSICS[name] for name in ("SGD", "Momentum", "Nesterov")},
    "NAG": Classic(fastopt.NAG, {"lr": 1e-2, "momentum": 0.9}),
    **{name: CLASSICS[name] for name in ("Adagrad", "RMSprop", "Adadelta", "Adam")},
}
ROWS, COLUMNS = 2, 4

# The blue and the vermilion of Okabe and Ito, which colour-blind readers can tell apart.
BLUE, VERMILION = "#0072b2", "#d55e00"
START: dict[str, Any] = {"marker": "o", "color": "black", "mfc": "white", "ms": 7, "ls": ""}
MINIMUM: dict[str, Any] = {"marker": "*", "color": "black", "ms": 11, "ls": ""}
VALLEY: dict[str, Any] = {"color": "0.75", "ls": "--", "zorder": 0}
SINE_PATHS: list[dict[str, Any]] = [
    {"color": BLUE, "marker": "o", "lw": 1},
    {"color": VERMILION, "marker": "s", "lw": 1},
]
PLANE_PATH: dict[str, Any] = {"color": VERMILION, "marker": "o", "ms": 2.5, "lw": 1}
NUMPY_PATH: dict[str, Any] = {"marker": "o", "color": BLUE, "mfc": "none", "ms": 8, "ls": ""}


@dataclass(frozen=True)
class Landscape:
    """A function to descend, how to descend it, and the part of it to show.

    `value` takes points of shape (dimensions, ...) and returns shape (...); `gradient` takes one
    point of shape (dimensions,) and returns the same shape. All are float64.
    """

    name: str
    title: str
    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    start: tuple[float, ...]
    minimum: tuple[float, ...]
    steps: int
    settings: dict[str, float]
    axes: tuple[str, ...]
    view: tuple[tuple[float, float], ...]


def sine(lr: float) -> Landscape:
    """sin(x), whose valleys repeat, so that a large step can end in another one."""
    return Landscape(
        name=f"sin, lr {lr:g}",
        title="Down sin(x) at two learning rates",
        value=lambda x: np.sin(x[0]),
        gradient=np.cos,
        start=(1.0,),
        minimum=(-np.pi / 2,),
        steps=40,
        settings={"lr": lr, "momentum": 0.9},
        axes=("x",),
        view=((-10.6, 2.6),),
    )


def bowl() -> Landscape:
    """0.1 x1² + 2 x2², twenty times as steep across the valley as along it."""
    return Landscape(
        name="bowl",
        title=r"Down $0.1\,x_1^2 + 2\,x_2^2$",
        value=lambda x: 0.1 * x[0] ** 2 + 2 * x[1] ** 2,
        gradient=lambda x: np.array([0.2, 4.0]) * x,
        start=(-5.0, -2.0),
        minimum=(0.0, 0.0),
        steps=30,
        settings={"lr": 0.4, "momentum": 0.5},
        axes=("$x_1$", "$x_2$"),
        view=((-6, 2), (-3.2, 3.2)),
    )


def fit() -> Landscape:
    """The line y = θ0 + θ1 x through five points: half the mean squared error."""
    x, y = np.array([(1, 2), (2, 3), (3, 5), (4, 7), (5, 11)], np.float64).T
    slope, intercept = np.polyfit(x, y, 1)

    def error(theta: Array) -> Array:
        theta0, theta1 = theta[..., np.newaxis]
        misses: Array = theta0 + theta1 * x - y
        return misses

    return Landscape(
        name="fit",
        title=r"Fitting $y = \theta_0 + \theta_1 x$ to five points",
        value=lambda theta: (error(theta) ** 2).mean(axis=-1) / 2,
        gradient=lambda theta: np.array([error(theta).mean(), (error(theta) * x).mean()]),
        start=(0.0, 0.0),
        minimum=(intercept, slope),
        steps=500,
        settings={"lr": 0.1, "momentum": 0.9},
        axes=(r"$\theta_0$", r"$\theta_1$"),
        view=((-2, 2), (-0.6, 4.4)),
    )


def path(classic: Classic, land: Landscape) -> Array:
    """The points (steps + 1, dimensions) an optimizer goes through."""
    point = np.array(land.start)
    optimizer = classic.make([point], **land.settings)
    points = [point.copy()]
    for _ in range(land.steps):
        if isinstance(optimizer, fastopt.NAG):
            optimizer.lookahead()
        optimizer.step([land.gradient(point)])
        points.append(point.copy())
    return np.array(points)


def numpy_path(land: Landscape) -> Array:
    """The points (steps + 1, dimensions) of gradient descent, by NumPy alone."""
    point = np.array(land.start)
    points = [point]
    for _ in range(land.steps):
        point = point - land.settings["lr"] * land.gradient(point)
        points.append(point)
    return np.array(points)


def draw_sine(walks: list[tuple[Landscape, dict[str, Array]]]) -> Figure:
    """One panel an optimizer: the curve, and under it the position at every step, time going down.

    On the curve alone a path that swings to and fro would hide itself.
    """
    land = walks[0][0]
    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(f"{land.title}: {land.steps} steps, momentum {land.settings['momentum']}", size="x-large")
    panels = figure.subplots(2 * ROWS, COLUMNS, sharex=True, sharey="row", height_ratios=[1, 3] * ROWS)
    x = np.linspace(*land.view[0], 500)
    valleys = {r"$-5\pi/2$": -5 * np.pi / 2, r"$-\pi/2$": -np.pi / 2}
    for position, name in enumerate(OPTIMIZERS):
        row, column = divmod(position, COLUMNS)
        curve, steps = panels[2 * row : 2 * row + 2, column]
        curve.plot(x, np.sin(x), color="0.5")
        for axes in (curve, steps):
            for valley in valleys.values():
                axes.axvline(valley, **VALLEY)
        for (_, paths), style in zip(walks, SINE_PATHS, strict=True):
            points = paths[name][:, 0]
            steps.plot(points, range(len(points)), ms=3, **style)
            curve.plot(points[-1], np.sin(points[-1]), ms=7, **style)
        curve.plot(*land.start, np.sin(land.start), **START)
        curve.set_title(name, weight="bold")
        curve.set(xlim=land.view[0], ylim=(-1.4, 1.4), yticks=[-1, 0, 1])
        steps.set(ylim=(land.steps, 0))
        steps.set_xticks([*valleys.values(), 0], [*valleys, "0"])
        steps.tick_params(labelbottom=True)
    for curve, steps in zip(panels[::2, 0], panels[1::2, 0], strict=True):
        curve.set_ylabel("sin(x)")
        steps.set_ylabel("step")
    for steps in panels[-1]:
        steps.set_xlabel(land.axes[0])
    add_legend(
        figure,
        *(
            Line2D([], [], label=f"learning rate {land.settings['lr']:g}", **style)
            for (land, _), style in zip(walks, SINE_PATHS, strict=True)
        ),
        Line2D([], [], label="start", **START),
        Line2D([], [], label="minimum", **VALLEY),
    )
    return figure


def draw_planes(walks: list[tuple[Landscape, dict[str, Array]]]) -> Figure:
    """One panel an optimizer and landscape: the path over the contours."""
    figure = Figure(figsize=(13, 14), layout="constrained")
    parts = figure.subfigures(len(walks), squeeze=False, hspace=0.03)[:, 0]
    for part, (land, paths) in zip(parts, walks, strict=True):
        draw_plane(part, land, paths)
    add_legend(
        figure,
        Line2D([], [], label="fastopt, a dot a step", **PLANE_PATH),
        Line2D([], [], label="gradient descent by NumPy alone", **NUMPY_PATH),
        Line2D([], [], label="start", **START),
        Line2D([], [], label="minimum", **MINIMUM),
    )
    return figure


def draw_plane(figure: SubFigure, land: Landscape, paths: dict[str, Array]) -> None:
    figure.suptitle(
        f"{land.title}: {land.steps} steps, learning rate {land.settings['lr']}, "
        f"momentum {land.settings['momentum']}",
        size="x-large",
    )
    plane = np.array(np.meshgrid(*(np.linspace(low, high, 200) for low, high in land.view)))
    height = land.value(plane)
    lowest = land.value(np.array(land.minimum))
    # Closer together near the minimum, where the slope is gentle.
    levels = lowest + (height.max() - lowest) * np.linspace(0, 1, 13) ** 4
    panels = figure.subplots(ROWS, COLUMNS, sharex=True, sharey=True)
    for axes, (name, points) in zip(panels.flat, paths.items(), strict=True):
        axes.contourf(*plane, height, levels=levels, cmap="Greys", alpha=0.4)
        axes.contour(*plane, height, levels=levels, colors="0.7", linewidths=0.6)
        if name == "SGD":
            axes.plot(*numpy_path(land).T, **NUMPY_PATH)
        low, high = np.transpose(land.view)
        outside = np.flatnonzero(((points < low) | (points > high)).any(axis=1))
        # A path that swings ever wider would paint the panel over: show it up to where it leaves.
        shown = points[: outside[0] + 1] if len(outside) else points
        axes.plot(*shown.T, **PLANE_PATH)
        axes.plot(*land.start, **START)
        axes.plot(*land.minimum, **MINIMUM)
        axes.set_title(name, loc="left", weight="bold")
        verb = "leaves, to" if len(outside) else "ends at"
        axes.set_title(f"{verb} height {land.value(points[-1]):.2g}", loc="right", size="medium")
        axes.set(xlim=land.view[0], ylim=land.view[1])
    for axes in panels[-1]:
        axes.set_xlabel(land.axes[0])
    for axes in panels[:, 0]:
        axes.set_ylabel(land.axes[1])


def add_legend(figure: Figure, *handles: Line2D) -> None:
    """A legend under the panels, where it covers no line."""
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the paths of the classic optimizers.")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path(), help="where to put the pictures")
    output = parser.parse_args(argv).output
    walks = [
        (land, {name: path(classic, land) for name, classic in OPTIMIZERS.items()})
        for land in (sine(0.1), sine(2), bowl(), fit())
    ]

    def row(name: str, cells: list[str]) -> str:
        return f"{name:10}" + "".join(f"{cell:>18}" for cell in cells)

    def numbers(point: Array | tuple[float, ...]) -> str:
        return ", ".join(f"{number:.3f}" for number in point)

    print("Where each path ends:\n")
    print(row("", [land.name for land, _ in walks]))
    for name in OPTIMIZERS:
        print(row(name, [numbers(paths[name][-1]) for _, paths in walks]))
    print(row("(minimum)", [numbers(land.minimum) for land, _ in walks]))
    same = all(numpy_path(land).tobytes() == paths["SGD"].tobytes() for land, paths in walks)
    print(f"\nSGD and the NumPy loop agree in every bit of every point: {'yes' if same else 'NO'}.")

    pictures = {
        output / "paths_sin.png": draw_sine(walks[:2]),
        output / "paths_2d.png": draw_planes(walks[2:]),
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        for file, figure in pictures.items():
            figure.savefig(file, dpi=100)
    except OSError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"The pictures are {' and '.join(map(str, pictures))}.")


if __name__ == "__main__":
    main()
