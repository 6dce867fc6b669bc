"""What a call costs grows with what it touches, and with nothing else: by ratios of processor time."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest

import fastopt

FEW, MANY = 100, 1000
SLACK = 3.0
"""Times may differ by so much for other reasons: caches, a machine that is busy."""


def cost(call: Callable[[], object], repeats: int = 15) -> float:
    """The median of the processor's time for a call."""
    found = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        found.append(time.thread_time() - start)
    return median(found)


def assert_at_most(factor: float, measure: Callable[[], tuple[float, float]]) -> None:
    """The second cost is at most so many times the first one, in one of some attempts."""
    ratios = []
    for _ in range(5):
        small, large = measure()
        ratios.append(large / small)
        if ratios[-1] <= factor:
            return
    pytest.fail(f"ratios {[round(ratio, 1) for ratio in ratios]}, expected at most {factor}")


def arrays(count: int) -> list[Any]:
    return list(np.ones((count, 3)))


def groups(count: int) -> tuple[Any, list[Any]]:
    """An optimizer of so many groups, and gradients."""
    grads = arrays(count)
    optimizer = fastopt.Adam([{"params": [p]} for p in arrays(count)])
    for _ in range(3):
        optimizer.step(grads)
    return optimizer, grads


def test_the_state_of_one_parameter() -> None:
    few, many = (fastopt.Adam(arrays(count)) for count in (FEW, MANY))
    for read in (lambda o: o.state[0], lambda o: o.state[FEW // 2]["exp_avg"], lambda o: len(o.state)):
        assert_at_most(SLACK, lambda read=read: (cost(lambda: read(few), 50), cost(lambda: read(many), 50)))


@pytest.mark.parametrize(
    "edits", [{"lr": [0.1, 0.2]}, {"betas": [(0.5, 0.6), (0.6, 0.7)]}, {"maximize": [False, True]}], ids=str
)
def test_an_edit_of_one_group_among_many(edits: dict[str, list[Any]]) -> None:
    """A step looks at all groups; with one edit it costs hardly more."""
    [(name, values)] = edits.items()
    optimizer, grads = groups(MANY)

    def step() -> None:
        optimizer.step(grads)

    def edit() -> None:
        group = optimizer.param_groups[MANY // 2]
        group[name] = values[group[name] == values[0]]
        optimizer.step(grads)

    assert_at_most(SLACK, lambda: (cost(step), cost(edit)))


def test_a_new_state_for_one_group_among_many() -> None:
    def measure() -> tuple[float, float]:
        optimizer, grads = groups(MANY)
        plain, edited = cost(lambda: optimizer.step(grads)), []
        for k in range(5):
            optimizer.param_groups[k]["amsgrad"] = True
            edited.append(cost(lambda: optimizer.step(grads), 1))
        return plain, median(edited)

    assert_at_most(SLACK, measure)


def test_parameters_that_are_added() -> None:
    """Beyond what is new a call looks for edits, as a step does, which costs less than the step."""
    optimizer, grads = groups(MANY)
    new = iter(arrays(1000))

    def measure() -> tuple[float, float]:
        step = cost(lambda: optimizer.step(grads))
        added = cost(lambda: optimizer.add_param_group({"params": [grads.append(np.ones(3)) or next(new)]}))
        return step, added

    assert_at_most(1.0, measure)


def test_names_outside_a_call_cost_nothing() -> None:
    def handed(count: int) -> Callable[[], None]:
        params = {f"w{k}": p for k, p in enumerate(arrays(count))}
        optimizer = fastopt.Adam(lr=0.1)
        optimizer.update(params, {name: np.ones(3) for name in params})
        some = {name: params[name] for name in list(params)[3:9]}
        grads = {name: np.ones(3) for name in some}
        return lambda: optimizer.update(some, grads)

    few, many = handed(FEW), handed(MANY)
    assert_at_most(SLACK, lambda: (cost(few, 50), cost(many, 50)))


LINEAR: dict[str, Callable[[Any, list[Any], dict[str, Any]], object]] = {
    "step": lambda o, grads, saved: o.step(grads),
    "bind": lambda o, grads, saved: o.bind(grads),
    "state_dict": lambda o, grads, saved: o.state_dict(),
    "load_state_dict": lambda o, grads, saved: o.load_state_dict(saved),
    "repr": lambda o, grads, saved: repr(o),
    "state": lambda o, grads, saved: dict(o.state),
    "make": lambda o, grads, saved: groups(len(grads)),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("kind", ["groups", "parameters"])
def test_what_touches_all_grows_with_their_number(name: str, kind: str) -> None:
    made = []
    for count in FEW, MANY:
        optimizer, grads = groups(count)
        if kind == "parameters":
            optimizer = fastopt.Adam(arrays(count))
        optimizer.step(grads)
        made.append((optimizer, grads, optimizer.state_dict()))
    call = LINEAR[name]

    def measure() -> tuple[float, float]:
        small, large = (cost(lambda of=of: call(*of), 5) for of in made)  # type: ignore[misc]
        return small, large

    assert_at_most(MANY / FEW * SLACK, measure)
