"""No call costs more than what it touches: times of small and large optimizers are compared, by their ratio."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt

SMALL, LARGE = 100, 800
TIMES = LARGE // SMALL


def seconds(work: Callable[[Any], object], prepare: Callable[[], Any], rounds: int = 4) -> float:
    """The best of some runs by this process's time: what other processes do does not count, nor does a pause."""
    found = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            prepared = prepare()
            start = time.process_time()
            work(prepared)
            found.append(time.process_time() - start)
    finally:
        gc.enable()
    return min(found)


def ratio(work: Callable[[Any], object], prepare: Callable[[int], Any], enough: float = 1.25 * TIMES) -> float:
    """How many times as long the work takes of the large one; measured again where that is not good enough."""
    best = float("inf")
    for _ in range(3):
        times = [seconds(work, lambda n=n: prepare(n)) for n in (SMALL, LARGE)]  # type: ignore[misc]
        best = min(best, times[1] / times[0])
        if best < enough:
            break
    return best


def arrays(count: int) -> list[np.ndarray]:
    return [np.ones(3, np.float32) for _ in range(count)]


def of_parameters(count: int, named: bool = False) -> fastopt.Optimizer:
    params = arrays(count)
    return fastopt.Adam({f"w{i}": p for i, p in enumerate(params)} if named else params)


def of_groups(count: int) -> fastopt.Optimizer:
    return fastopt.Adam([{"params": [p]} for p in arrays(count)])


def repeated(call: Callable[[Any], object], times: int = 200) -> Callable[[Any], None]:
    def work(prepared: Any) -> None:
        for _ in range(times):
            call(prepared)

    return work


@pytest.mark.parametrize("named", [False, True])
def test_the_state_of_one_parameter(named: bool) -> None:
    key: Any = "w7" if named else 7
    found = ratio(repeated(lambda o: o.state[key]), lambda n: of_parameters(n, named), TIMES / 3)
    assert found < TIMES / 2, f"opt.state[i] of {TIMES} times the parameters takes {found:.1f} times as long"


def test_the_state_of_all_parameters() -> None:
    def read(optimizer: Any) -> None:
        state = optimizer.state
        for key in state:
            assert state[key]["step"] == 0

    found = ratio(read, of_parameters)
    assert found < 2 * TIMES, f"to read {TIMES} times the states takes {found:.1f} times as long"


EDITS: dict[str, Callable[[dict[str, Any], int], object]] = {
    "a number": lambda group, k: group.update(lr=0.1 / (k + 1)),
    "several options": lambda group, k: group.update(betas=(0.5, 0.9 + 0.001 * k), weight_decay=0.1, eps=1e-7),
    "a callable": lambda group, k: group.update(lr=lambda step: 0.1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_one_group(edit: str) -> None:
    """An edit and a step, against a step: what the step itself touches is no less than all groups."""

    def prepare(edited: bool) -> Callable[[], Any]:
        optimizer = of_groups(LARGE)
        grads = arrays(LARGE)
        optimizer.step(grads)
        return lambda: (optimizer, grads, edited)

    def work(prepared: Any) -> None:
        optimizer, grads, edited = prepared
        for k in range(5):
            if edited:
                EDITS[edit](optimizer.param_groups[LARGE // 2], k)
            optimizer.step(grads)

    found = min(seconds(work, prepare(True)) / seconds(work, prepare(False)) for _ in range(3))
    assert found < 2, f"with an edit of one of {LARGE} groups a step takes {found:.1f} times as long as without"


@pytest.mark.parametrize("prepare", [of_parameters, of_groups])
def test_a_state_dict_and_back(prepare: Callable[[int], Any]) -> None:
    found = ratio(lambda o: o.load_state_dict(o.state_dict()), prepare)
    assert found < 2 * TIMES, f"of {TIMES} times as many takes {found:.1f} times as long"


def test_an_edit_that_needs_states() -> None:
    def prepare(count: int) -> Any:
        optimizer = of_groups(count)
        for group in optimizer.param_groups:
            group["amsgrad"] = True
        return optimizer, arrays(count)

    found = ratio(lambda prepared: prepared[0].step(prepared[1]), prepare)
    assert found < 2 * TIMES, f"of {TIMES} times the groups takes {found:.1f} times as long"


def test_adding_groups_one_by_one() -> None:
    """Each of them touches its own parameter, whatever was there before."""

    def work(count: int) -> None:
        optimizer = fastopt.Adam(arrays(1))
        for param in arrays(count):
            optimizer.add_param_group({"params": [param]})

    few, many = 100, 400
    best = float("inf")
    for _ in range(3):
        times = [seconds(lambda count: work(count), lambda n=n: n, rounds=3) for n in (few, many)]  # type: ignore[misc]
        best = min(best, times[1] / times[0])
        if best < 6:
            break
    assert best < 8, f"{many} groups take {best:.1f} times as long to add as {few}"


WORKS: dict[str, tuple[Callable[[Any], object], Callable[[int], Any]]] = {
    "make": (of_groups, lambda n: n),
    "step": (lambda made: made[0].step(made[1]), lambda n: (of_parameters(n), arrays(n))),
    "bind": (lambda made: made[0].bind(made[1]), lambda n: (of_parameters(n), arrays(n))),
    "repr": (repr, of_groups),
}


@pytest.mark.parametrize("name", WORKS)
def test_what_touches_all(name: str) -> None:
    found = ratio(*WORKS[name])
    assert found < 2 * TIMES, f"of {TIMES} times as many takes {found:.1f} times as long"
