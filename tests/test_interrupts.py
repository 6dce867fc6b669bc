"""Interrupts and signals: whatever a call was doing, it was made or not made, and the optimizer goes on.

CPython runs the handlers of signals between the steps of Python code: at calls, at jumps back, when a function
begins. A trace function runs at all of these places and more, so it stands for a signal there. Real timers follow.
"""

from __future__ import annotations

import itertools
import random
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import table

import fastopt
from fastopt import functional

Look = list[Any]
"""All that a user can see."""


class Scene:
    """An optimizer before a call, and the call."""

    def __init__(
        self, optimizer: Any, params: Sequence[Any], call: Callable[[], object], grads: Any = None
    ) -> None:
        self.optimizer, self.params, self.call, self.grads = optimizer, list(params), call, grads

    def look(self) -> Look:
        found: Look = [np.geterr(), [bytes_of(p) for p in self.params]]
        if self.optimizer is not None:
            bound = table.bound_gradients(self.optimizer)
            found += [
                [options_of(group) for group in self.optimizer.param_groups],
                [(key, state_of(state)) for key, state in self.optimizer.state.items()],
                None if bound is None else [None if b is None else bytes_of(b) for b in bound],
            ]
        return found

    def go_on(self) -> None:
        """What a user does after the interrupt."""
        if self.optimizer is None:
            return self.call()
        if table.is_bound(self.optimizer):
            self.optimizer.step()
        self.optimizer.step([np.full(t.param.shape, 0.25, t.param.dtype) for t in self.optimizer._plan.tensors])


def options_of(group: dict[str, Any]) -> dict[str, Any]:
    found = {name: re.sub(" at 0x[0-9a-f]+", "", repr(value)) for name, value in group.items()}
    return found | {"params": [bytes_of(p) for p in group["params"]]}


def bytes_of(array: Any) -> Any:
    return str(array.dtype), array.tobytes()


def state_of(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name == "step" else bytes_of(value) for name, value in state.items()}


# -- The calls -------------------------------------------------------------------------------------


def arrays(count: int, value: float = 1.0, dtype: str = "float32", size: int = 3) -> list[Any]:
    return [np.full(size, value + k, table.dtype_of(dtype)) for k in range(count)]


def trained(
    cls: Any = fastopt.Adam,
    groups: int = 1,
    each: int = 2,
    dtype: str = "float32",
    names: bool = False,
    **options: Any,
) -> tuple[Any, list[Any], list[Any]]:
    """An optimizer after two steps, its parameters and gradients for them."""
    params, grads = arrays(groups * each, dtype=dtype), arrays(groups * each, 0.5, dtype)
    given: Any = params
    if names:
        given = {f"w{k}": p for k, p in enumerate(params)}
    elif groups > 1:
        given = [{"params": params[k * each : (k + 1) * each]} for k in range(groups)]
    optimizer = cls(given, **options)
    for _ in range(2):
        optimizer.step(grads)
    return optimizer, params, grads


Make = Callable[[], Scene]
SCENES: dict[str, Make] = {}
EVERY: set[str] = set()
"""The names of those of which the nightly run tries every place, not some thousands."""


def scene(make: Make) -> Make:
    SCENES[make.__name__] = make
    return make


@scene
def step_with_a_list() -> Scene:
    optimizer, params, grads = trained()
    return Scene(optimizer, params, lambda: optimizer.step(grads, grad_scale=0.5))


@scene
def step_with_names() -> Scene:
    optimizer, params, grads = trained(names=True)
    return Scene(optimizer, params, lambda: optimizer.step({"w0": grads[0], "w1": None}))


@scene
def step_with_a_mapping_in_another_order() -> Scene:
    from types import MappingProxyType

    optimizer, params, grads = trained(names=True)
    return Scene(optimizer, params, lambda: optimizer.step(MappingProxyType({"w1": grads[1], "w0": grads[0]})))


@scene
def step_with_other_arrays() -> Scene:
    optimizer, params, grads = trained()
    return Scene(optimizer, params, lambda: optimizer.step([memoryview(grads[0]), grads[1].view(np.recarray)]))


@scene
def step_of_bound_gradients() -> Scene:
    optimizer, params, grads = trained()
    optimizer.bind(grads)
    return Scene(optimizer, params, optimizer.step)


@scene
def step_beside_bound_gradients() -> Scene:
    optimizer, params, grads = trained()
    optimizer.bind(grads)
    return Scene(optimizer, params, lambda: optimizer.step([memoryview(grads[1]), None]))


@scene
def step_with_callables() -> Scene:
    optimizer, params, grads = trained(groups=3, lr=lambda t: 0.1 / (t + 1), betas=(lambda t: 0.5, 0.9))
    return Scene(optimizer, params, lambda: optimizer.step(grads))


@scene
def step_in_parallel() -> Scene:
    fastopt.set_num_threads(None)
    params, grads = arrays(1, size=70_000), arrays(1, 0.5, size=70_000)
    optimizer = fastopt.SGD(params)
    for _ in range(10):  # behind them the tuner tries other numbers of threads
        optimizer.step(grads)
    return Scene(optimizer, params, lambda: optimizer.step(grads))


def step_after_edits(edit: dict[str, Any], groups: int = 3, **options: Any) -> Scene:
    optimizer, params, grads = trained(groups=groups, **options)
    for group in optimizer.param_groups:
        group.update(edit)
    return Scene(optimizer, params, lambda: optimizer.step(grads))


SCENES |= {
    "step_after_lr": partial(step_after_edits, {"lr": 0.5}),
    "step_after_betas": partial(step_after_edits, {"betas": [0.5, 0.6]}),
    "step_after_amsgrad": partial(step_after_edits, {"amsgrad": True}),
    "step_after_amsgrad_in_100_groups": partial(step_after_edits, {"amsgrad": True}, 100),
    "step_after_state_dtype": partial(step_after_edits, {"state_dtype": "bfloat16"}),
    "step_after_all": partial(
        step_after_edits, {"lr": lambda t: 0.3, "betas": [0.5, 0.6], "amsgrad": True, "weight_decay": 0.1}
    ),
}


@scene
def step_after_edits_of_bound_gradients() -> Scene:
    optimizer, params, grads = trained(groups=2)
    optimizer.bind(grads)
    optimizer.param_groups[1].update(amsgrad=True, state_dtype="bfloat16")
    return Scene(optimizer, params, optimizer.step)


@scene
def step_after_an_edit_before_each() -> Scene:
    optimizer, params, grads = trained(each=3)
    for k in range(3):
        optimizer.param_groups[0]["weight_decay"] = 0.1 * k
        optimizer.step(grads)
    optimizer.param_groups[0]["weight_decay"] = 0.7
    return Scene(optimizer, params, lambda: optimizer.step(grads))


@scene
def bind() -> Scene:
    optimizer, params, grads = trained()
    return Scene(optimizer, params, lambda: optimizer.bind(grads))


@scene
def bind_others() -> Scene:
    optimizer, params, grads = trained(names=True)
    optimizer.bind({"w0": grads[0], "w1": None})
    return Scene(optimizer, params, lambda: optimizer.bind({"w1": memoryview(grads[1]), "w0": grads[0]}))


@scene
def bind_none() -> Scene:
    optimizer, params, grads = trained()
    optimizer.bind(grads)
    return Scene(optimizer, params, lambda: optimizer.bind(None))


@scene
def add_param_group() -> Scene:
    optimizer, params, _ = trained()
    more = arrays(1, 5.0)
    return Scene(optimizer, params + more, lambda: optimizer.add_param_group({"params": more, "lr": 0.5}))


@scene
def add_param_group_with_several() -> Scene:
    optimizer, params, grads = trained(names=True)
    optimizer.bind({"w0": grads[0], "w1": grads[1]})
    optimizer.param_groups[0].update(amsgrad=True, lr=0.25)
    more = {f"v{k}": p for k, p in enumerate(arrays(4, 5.0))}
    return Scene(
        optimizer,
        [*params, *more.values()],
        lambda: optimizer.add_param_group({"params": more, "betas": [0.5, 0.6]}),
    )


def load(edit: dict[str, Any], dtype: str | None = None, bind: bool = False, **options: Any) -> Scene:
    other, _, _ = trained(groups=2, **options | edit)
    saved = other.state_dict()
    if dtype:
        for state in saved["state"].values():
            state.update({k: v.astype(dtype) * 1e300 for k, v in state.items() if k != "step"})
    optimizer, params, grads = trained(groups=2, **options)
    optimizer.step(grads)
    if bind:
        optimizer.bind(grads)
    return Scene(optimizer, params, lambda: optimizer.load_state_dict(saved))


SCENES |= {
    "load_state_dict": partial(load, {"lr": 0.5}),
    "load_state_dict_of_float64": partial(load, {}, "float64"),
    "load_state_dict_with_other_states": partial(load, {"amsgrad": True, "state_dtype": "bfloat16"}, bind=True),
    "load_state_dict_without_states": partial(load, {"momentum": 0.0}, cls=fastopt.SGD, momentum=0.9),
}


@scene
def state_dict() -> Scene:
    optimizer, params, _ = trained(groups=2, lr=lambda t: 0.1)
    return Scene(optimizer, params, optimizer.state_dict)


@scene
def state_dict_with_edits() -> Scene:
    optimizer, params, _ = trained(groups=2)
    optimizer.param_groups[1].update(amsgrad=True, state_dtype="bfloat16")
    return Scene(optimizer, params, optimizer.state_dict)


@scene
def state() -> Scene:
    optimizer, params, _ = trained()
    return Scene(optimizer, params, lambda: [dict(optimizer.state), repr(optimizer.state)])


@scene
def representation() -> Scene:
    optimizer, params, _ = trained()
    return Scene(optimizer, params, optimizer.__repr__)


def nag(ahead: bool, dtype: str = "float32", momentum: Any = 0.9) -> tuple[Any, list[Any], list[Any]]:
    optimizer, params, grads = trained(fastopt.NAG, groups=2, dtype=dtype, momentum=momentum)
    if ahead:
        optimizer.lookahead()
    return optimizer, params, grads


def lookahead(**options: Any) -> Scene:
    optimizer, params, _ = nag(ahead=False, **options)
    return Scene(optimizer, params, optimizer.lookahead)


def step_while_ahead(bind: bool = False, **options: Any) -> Scene:
    optimizer, params, grads = nag(ahead=True, **options)
    grads = [None, *grads[1:-1], None]
    if not bind:
        return Scene(optimizer, params, lambda: optimizer.step(grads))
    optimizer.bind(grads)
    return Scene(optimizer, params, optimizer.step)


SCENES |= {
    "lookahead": lookahead,
    "lookahead_in_bfloat16": partial(lookahead, dtype="bfloat16"),
    "lookahead_with_a_callable": partial(lookahead, momentum=lambda t: 0.5),
    "step_while_ahead": step_while_ahead,
    "step_while_ahead_of_bound_gradients": partial(step_while_ahead, bind=True),
    "step_while_ahead_in_bfloat16": partial(step_while_ahead, dtype="bfloat16"),
}


def function(shape: Any, **options: Any) -> Scene:
    """Two calls, so that what is kept from call to call is there."""
    param, grad, m, v = (np.full(shape, x) for x in (1.0, 0.5, 0.25, 0.125))
    functional.adam(param, grad, m, v, step=1, lr=0.1)
    return Scene(None, [param, m, v], lambda: functional.adam(param, grad, m, v, step=2, **options))


SCENES |= {
    "function": partial(function, 3, lr=0.1),
    "function_with_another_lr": partial(function, 3, lr=0.2),
    "function_with_other_options": partial(function, 3, lr=0.2, betas=[0.5, 0.6]),
    "function_by_way_of_a_plan": partial(function, 3, lr=lambda t: 0.2),
    "function_in_parallel": partial(function, 70_000, lr=0.1),
}


@scene
def make_an_optimizer() -> Scene:
    params = arrays(2)
    group: dict[str, Any] = {"params": params, "betas": [0.5, 0.6]}
    groups = [group]
    found = Scene(None, params, lambda: fastopt.Adam(groups))
    found.look = lambda: [len(groups), options_of(group), [p.tobytes() for p in params], np.geterr()]  # type: ignore[method-assign]
    return found


# -- An exception at every place ---------------------------------------------------------------------


class Interrupt(KeyboardInterrupt):
    pass


class Places(NamedTuple):
    total: int
    interrupted: int


def traced(call: Callable[[], object], at: int, handler: Callable[[], object] = lambda: None) -> int:
    """Runs a call, with a handler at its place ``at``; returns the number of its places."""
    count = itertools.count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event in ("call", "opcode") and next(count) == at:
            handler()
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return next(count)


def legal(make: Make) -> list[tuple[Look, Look]]:
    """The ways in which a call may have been made or not made: what is seen then, and after `go_on`.

    The edits of groups are taken first and stay taken, as when a step is refused.
    """
    found = []
    for done in range(3):
        scene = make()
        if done == 1:
            if scene.optimizer is None or not hasattr(scene.optimizer, "_take_edits"):
                continue
            table.take_edits(scene.optimizer)
        elif done == 2:
            scene.call()
        before = scene.look()
        scene.go_on()
        found.append((before, scene.look()))
    return found


def check(scene: Scene, outcomes: list[tuple[Look, Look]]) -> None:
    """Asserts that a call was made or not made, and that the next one finds all in order."""
    look = scene.look()
    after = [next for before, next in outcomes if before == look]
    assert after, difference(look, outcomes)
    scene.go_on()
    assert scene.look() in after


def difference(look: Look, outcomes: list[tuple[Look, Look]]) -> str:
    differing = [
        [k for k, (a, b) in enumerate(zip(look, before, strict=True)) if a != b] for before, _ in outcomes
    ]
    return f"neither made nor not made: from the legal outcomes it differs in the parts {differing}"


FEW = 30
"""Places of each call by default."""


MANY = 3000


def places(name: str, total: int, few: bool) -> Sequence[int]:
    """Some of the places of a call: all where there are not too many."""
    most = MANY if not few else FEW if total < 20_000 else 4
    return sorted(random.Random(name).sample(range(total), min(most, total)))


few_or_all = pytest.mark.parametrize("few", [True, pytest.param(False, marks=table.nightly)], ids=["few", "every"])


def interrupt_everywhere(name: str, few: bool) -> Places:
    make = SCENES[name]
    outcomes = legal(make)
    outside = make()
    total = traced(outside.call, -1)
    interrupted = 0
    for place in places(name, total, few):
        scene = make()

        def handler(scene: Scene = scene) -> None:
            raise Interrupt

        with table.named(f"place {place} of {total}"):
            try:
                traced(scene.call, place, handler)
            except Interrupt:
                interrupted += 1
                check(scene, outcomes)  # inside the `except`, with the traceback alive
            else:
                check(scene, outcomes)
    return Places(total, interrupted)


@few_or_all
@pytest.mark.parametrize("name", SCENES)
def test_an_interrupt_anywhere(name: str, few: bool) -> None:
    found = interrupt_everywhere(name, few)
    assert found.interrupted > 0.9 * len(places(name, found.total, few))  # the last ones may not be reached again


# -- Handlers that look ------------------------------------------------------------------------------


def look_everywhere(name: str, few: bool) -> None:
    """A handler reads at each place; the call goes on."""
    make = SCENES[name]
    seen_outcomes = [before for before, _ in legal(make)]
    end = make()
    end.call()
    outcomes = [(end.look(), [])]
    total = traced(make().call, -1)
    for place in places(name, total, few):
        scene = make()
        looks: list[Look] = []

        def handler(scene: Scene = scene, looks: list[Look] = looks) -> None:
            looks.append(scene.look())
            if scene.optimizer is not None:
                saved = scene.optimizer.state_dict()
                assert len(saved["state"]) == len(scene.optimizer.state)
                assert type(scene.optimizer).__name__ in repr(scene.optimizer)

        with table.named(f"place {place} of {total}"):
            traced(scene.call, place, handler)
            assert looks[0][1:] in [
                look[1:] for look in seen_outcomes
            ]  # all but NumPy's errors, in whose `with` it is
            assert scene.look() == outcomes[0][0]


@few_or_all
@pytest.mark.parametrize("name", [n for n in SCENES if not n.startswith("make")])
def test_a_handler_reads_anywhere(name: str, few: bool) -> None:
    look_everywhere(name, few)
