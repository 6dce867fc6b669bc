"""Exponentially weighted averages: 180 noisy daily temperatures, smoothed with three decays, and three beginnings.

The library's own average follows the parameters of an optimizer. Here the parameter is the temperature: a step of SGD
with the learning rate 1 moves it from one day's to the next's.
"""

import numpy as np
from common import BLUE, GREEN, GREY, RED, run, tidy
from matplotlib.figure import Figure
from numpy.typing import NDArray

import fastopt

DAYS = 180
SEED = 3  # of a year whose first day is a warm one


def temperatures(days: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """From the middle of winter to the middle of summer, in degrees Celsius."""
    return 19 - 8 * np.cos(np.pi * np.arange(days) / DAYS) + rng.normal(0, 3, days)


def averages(values: NDArray[np.float64], decay: float, bias_correction: bool) -> NDArray[np.float64]:
    """The average after each day."""
    today = np.zeros(1)
    optimizer = fastopt.SGD([today], lr=1.0)
    average = fastopt.ExponentialMovingAverage(optimizer, decay, bias_correction=bias_correction)
    found = []
    for value in values:
        optimizer.step([today - value])
        found.append(float(average.arrays[0][0]))
    return np.array(found)


def experiment(short: bool) -> Figure:
    days = np.arange(1, (40 if short else DAYS) + 1)
    values = temperatures(len(days), np.random.default_rng(SEED))
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    decays, beginnings = figure.subplots(1, 2)
    decays.plot(days, values, "o", color=GREY, markersize=3, label="each day")
    for decay, colour in (0.5, BLUE), (0.9, RED), (0.98, GREEN):
        smooth = averages(values, decay, bias_correction=True)
        decays.plot(
            days, smooth, color=colour, linewidth=2.5, label=f"β = {decay}: some {1 / (1 - decay):.0f} days"
        )
        print(f"β = {decay:<4}: from day to day it changes by {np.abs(np.diff(smooth)).mean():.2f} degrees")
    tidy(decays, "A larger β is smoother, and lags behind", xlabel="day", ylabel="degrees Celsius")
    decays.legend(frameon=False, loc="upper left")

    first, decay = days[:60], 0.98
    corrected = averages(values, decay, bias_correction=True)
    beginnings.plot(first, values[: len(first)], "o", color=GREY, markersize=3)
    for label, smooth, colour in (
        ("begun with 0: too near to 0 for weeks", corrected * (1 - decay**days), RED),
        ("begun with the first day: it counts too much", averages(values, decay, bias_correction=False), BLUE),
        ("with bias correction", corrected, GREEN),
    ):
        beginnings.plot(first, smooth[: len(first)], color=colour, linewidth=2.5, label=label)
    tidy(
        beginnings, f"The beginning decides the first weeks (β = {decay})", xlabel="day", ylabel="degrees Celsius"
    )
    beginnings.legend(frameon=False, loc="lower right")
    return figure


def main(argv: list[str] | None = None) -> None:
    run("temperatures", "Smooth noisy daily temperatures by moving averages.", experiment, argv)


if __name__ == "__main__":
    main()
