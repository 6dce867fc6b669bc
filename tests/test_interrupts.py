"""Interrupts and signals: whatever a call was doing, it was made or not made, and the optimizer goes on.

CPython runs the handlers of signals between the steps of Python code: at calls, at jumps back, when a function
begins. A trace function runs at all of these places and more, so it stands for a signal there. Real timers follow.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import table
from tracing import traced

import fastopt
from fastopt import functional

pytestmark = pytest.mark.filterwarnings("ignore:group .*state_dtype is")

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
        self.optimizer.step([np.full(p.shape, 0.25, p.dtype) for p in table.params_of(self.optimizer)])


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


class UpdateScene(Scene):
    """Parameters that are handed over by names; after the interrupt these, and a new one, are handed over again."""

    def __init__(self, optimizer: Any, params: dict[str, Any], call: Callable[[], object]) -> None:
        super().__init__(optimizer, list(params.values()), call)
        self.by_name = params

    def go_on(self) -> None:
        after = self.by_name | {"after": np.ones(2, np.float32)}
        self.optimizer.update(after, {name: np.full_like(p, 0.25) for name, p in after.items()})


class RowScene(Scene):
    """Rows; after the interrupt all of them are updated."""

    def go_on(self) -> None:
        every, grads = [np.arange(len(p)) for p in self.params], [np.ones_like(p) for p in self.params]
        self.optimizer.update_rows(self.params, every, grads, catch_up=True)


def update(make: Callable[[dict[str, Any]], Any], new: bool = False, moved: bool = False, **options: Any) -> Scene:
    params = dict(zip("abc", arrays(3), strict=True))
    grads = dict(zip("abc", arrays(3, 0.5), strict=True))
    optimizer = make(params)
    for _ in range(2):
        optimizer.update(params, grads)
    optimizer.param_groups[0].update(options)
    if moved:
        params = {name: param.copy() for name, param in params.items()}
    if new:
        params, grads = params | {"new": arrays(1)[0]}, grads | {"new": arrays(1, 0.5)[0]}
    return UpdateScene(optimizer, params, lambda: optimizer.update(params, grads))


SCENES |= {
    f"update_of_{kind}_parameters{name}": partial(update, make, **options)
    for kind, make in {"kept": lambda params: fastopt.Adam(params), "others": lambda _: fastopt.Adam()}.items()
    for name, options in {
        "": {},
        "_that_moved": {"moved": True},
        "_with_a_new_one": {"new": True, "moved": True},
        "_after_amsgrad": {"amsgrad": True},
    }.items()
}


@scene
def update_rows() -> Scene:
    params, rows = arrays(2), [[0, 2, 0], [1]]
    grads = [np.full(len(own), 0.5, np.float32) for own in rows]
    optimizer = fastopt.Adam(lr=0.1, betas=(lambda t: 0.5, 0.9))
    for _ in range(2):
        optimizer.update_rows(params, rows, grads, catch_up=True)
    return RowScene(
        optimizer,
        params,
        lambda: optimizer.update_rows(
            params, [[1, 1], [0, 2]], [np.full(2, 0.25, np.float32) for _ in params], catch_up=True
        ),
    )


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


def handed_over(ahead: bool, dtype: str = "float32", waits: bool = False) -> Scene:
    """waits: the velocities were loaded, so that all names join in the call."""
    params = {name: array for name, array in zip("abc", arrays(3, dtype=dtype), strict=True)}
    grads: dict[str, Any] = dict(zip("abc", arrays(3, 0.5, dtype), strict=True))
    optimizer = fastopt.NAG(momentum=0.5)
    optimizer.update(params, grads)
    if ahead:
        optimizer.lookahead(params)
        grads["a"] = None
    if waits:
        optimizer = copy.deepcopy(optimizer)
    call = partial(optimizer.update, params, grads) if ahead else partial(optimizer.lookahead, params)
    return UpdateScene(optimizer, params, call)


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
    "lookahead_of_handed_over": partial(handed_over, ahead=False),
    "lookahead_of_handed_over_that_join": partial(handed_over, ahead=False, waits=True),
    "update_while_ahead": partial(handed_over, ahead=True),
    "update_while_ahead_in_bfloat16": partial(handed_over, ahead=True, dtype="bfloat16"),
    "update_while_ahead_of_new_names": partial(handed_over, ahead=True, waits=True),
    "step_while_ahead": step_while_ahead,
    "step_while_ahead_of_bound_gradients": partial(step_while_ahead, bind=True),
    "step_while_ahead_in_bfloat16": partial(step_while_ahead, dtype="bfloat16"),
}


def function(shape: Any, **options: Any) -> Scene:
    """Two calls, so that what is kept from call to call is there."""
    param, grad, m, v = (np.full(shape, x) for x in (1.0, 0.5, 0.25, 0.125))
    functional.adam(param, grad, m, v, step=1, lr=0.1)
    return Scene(None, [param, m, v], lambda: functional.adam(param, grad, m, v, step=2, **options))


def function_with_a_number(shape: Any) -> Scene:
    """Its state has a number, which is written after the arrays."""
    param, grad, m, v = (np.full(shape, x) for x in (1.0, 0.5, 0.25, 0.125))
    product = np.ones(())
    functional.nadam(param, grad, m, v, product, step=1, lr=0.1)
    return Scene(
        None, [param, m, v, product], lambda: functional.nadam(param, grad, m, v, product, step=2, lr=0.1)
    )


SCENES |= {
    "function": partial(function, 3, lr=0.1),
    "function_with_a_number": partial(function_with_a_number, 3),
    "function_with_a_number_in_parallel": partial(function_with_a_number, 70_000),
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


FEW = 20
"""Places of each call by default."""


MANY = 3000


def places(name: str, total: int, few: bool) -> Sequence[int]:
    """Some of the places of a call: all where there are not too many."""
    most = MANY if not few else FEW if total < 20_000 else 2
    return sorted(random.Random(name).sample(range(total), min(most, total)))


few_or_all = pytest.mark.parametrize("few", [True, pytest.param(False, marks=table.nightly)], ids=["few", "every"])


def interrupt_everywhere(name: str, few: bool) -> Places:
    make = SCENES[name]
    outcomes = legal(make)
    # the least of three: now and then a call looks at the machine, which takes thousands of places more
    total = min(traced(make().call, -1) for _ in range(3))
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
    # the last ones may not be reached again; Python 3.13 counts fewer operations after some exceptions
    part = 0.5 if sys.version_info < (3, 13) else 0.25
    assert found.interrupted > part * len(places(name, found.total, few))


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
                waiting = scene.optimizer._plan.unseen
                assert len(saved["state"]) == len(scene.optimizer.state) + len(waiting)
                assert type(scene.optimizer).__name__ in repr(scene.optimizer)

        with table.named(f"place {place} of {total}"):
            traced(scene.call, place, handler)
            assert not looks or looks[0][1:] in [
                look[1:] for look in seen_outcomes
            ]  # all but NumPy's errors, in whose `with` it is
            assert scene.look() == outcomes[0][0]


@few_or_all
@pytest.mark.parametrize("name", [n for n in SCENES if not n.startswith("make")])
def test_a_handler_reads_anywhere(name: str, few: bool) -> None:
    look_everywhere(name, few)


WRITES: dict[str, Callable[[Any], object]] = {
    "step": lambda o: o.step([np.ones(t.shape, t.dtype) for t in o._plan.tensors]),
    "load_state_dict": lambda o: o.load_state_dict(o.state_dict()),
    "add_param_group": lambda o: o.add_param_group({"params": [np.zeros(2)]}),
    "bind": lambda o: o.bind(None),
}


@few_or_all
@pytest.mark.parametrize("name", [n for n in SCENES if not n.startswith(("make", "function", "state", "repr"))])
def test_a_handler_cannot_write(name: str, few: bool) -> None:
    """It is refused inside the call, and changes nothing; before the call has begun, and after it, it is made."""
    make = SCENES[name]
    end = make()
    end.call()
    expected = end.look()
    total = traced(make().call, -1)
    refused = 0
    chosen = places(name, total, few)
    for place, (kind, write) in zip(chosen, itertools.cycle(WRITES.items()), strict=False):
        scene = make()
        results: list[bool] = []

        def handler(scene: Scene = scene, results: list[bool] = results, write: Any = write) -> None:
            before = scene.look()
            try:
                write(scene.optimizer)
            except RuntimeError as error:
                assert "inside another call of this thread" in str(error)
                assert scene.look() == before
                results.append(True)
            except ValueError as error:
                assert "share memory" not in str(error)
                results.append(False)
            else:
                results.append(False)

        with table.named(f"{kind} at place {place} of {total}"), contextlib.suppress(TypeError, ValueError):
            traced(scene.call, place, handler)
            if results and results[0]:
                refused += 1
                assert scene.look() == expected
    assert refused > len(chosen) // 3 or total < 200, f"{refused} of {len(chosen)} were inside the call"


# -- Real signals ------------------------------------------------------------------------------------


@contextlib.contextmanager
def handling(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupt(*_: object) -> None:
    raise Interrupt


TIMED = [n for n in SCENES if "100_groups" not in n and "parallel" not in n]


@pytest.mark.parametrize("count", [300, pytest.param(30_000, marks=table.nightly)])
def test_interrupts_by_a_timer(count: int) -> None:
    outcomes = {name: legal(SCENES[name]) for name in TIMED}
    longest: dict[str, float] = {}
    for name in TIMED:
        scene = SCENES[name]()
        start = time.perf_counter()
        scene.call()
        longest[name] = time.perf_counter() - start
    interrupted = 0
    generator = random.Random(1)
    with handling(interrupt):
        for k in range(count):
            name = TIMED[k % len(TIMED)]
            scene = SCENES[name]()
            with table.named(name):
                try:
                    signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-6, 1.2 * longest[name]))
                    scene.call()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupt:
                    interrupted += 1
                check(scene, outcomes[name])
    assert interrupted > count // 10


SIZE = 2**21
"""Elements: a step takes a millisecond or more, and a copy as well."""


def large(cls: Any = fastopt.Adagrad) -> tuple[Any, list[Any], list[Any]]:
    params, grads = [np.zeros(SIZE, np.float32)], [np.ones(SIZE, np.float32)]
    optimizer = cls(params)
    optimizer.step(grads)
    return optimizer, params, grads


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=table.nightly)])
def test_a_handler_saves_during_large_steps(count: int) -> None:
    """All elements are equal: a handler that saw half a step would see two numbers."""
    optimizer, params, grads = large()
    saved = optimizer.state_dict()
    looks = 0

    def handler(*_: object) -> None:
        nonlocal looks
        looks += 1
        state = optimizer.state_dict()["state"][0]
        assert (state["sum"] == state["step"]).all()
        assert optimizer.state[0]["step"] == state["step"]
        assert (params[0] == params[0][0]).all()
        assert "Adagrad" in repr(optimizer)

    generator = random.Random(2)
    done = 0
    with handling(handler):
        while looks < count:
            signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-5, 5e-3))
            if done % 3 == 2:
                optimizer.load_state_dict(saved)
            else:
                optimizer.step(grads)
            done += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
    state = optimizer.state_dict()["state"][0]
    assert (state["sum"] == state["step"]).all()


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=table.nightly)])
def test_interrupts_of_large_steps(count: int) -> None:
    """Inside the kernels, on several threads."""
    fastopt.set_num_threads(2)
    optimizer, params, grads = large()
    generator = random.Random(3)
    interrupted = 0
    with handling(interrupt):
        while interrupted < count:
            before = optimizer.state[0]["step"]
            try:
                signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-5, 4e-3))
                optimizer.step(grads)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                interrupted += 1
            steps = optimizer.state[0]["step"]
            assert steps - before in (0, 1)
            assert (optimizer.state[0]["sum"] == steps).all()
            assert (params[0] == params[0][0]).all()


def test_a_callable_reads_its_optimizer() -> None:
    found: list[Any] = []

    def lr(step: int) -> float:
        if not found or found[-1] is not lr:
            found.append(lr)  # state_dict() asks for the number itself
            found.extend([optimizer.state_dict()["state"][0]["step"], dict(optimizer.state), repr(optimizer)])
        return 0.1

    params = arrays(2)
    optimizer = fastopt.Adam(params, lr=lr)
    optimizer.step(arrays(2))
    assert found[1] == 0
    assert optimizer.state[0]["step"] == 1


@pytest.mark.parametrize("kind", WRITES)
def test_a_signal_inside_a_call_cannot_write(kind: str) -> None:
    """A real signal, whose handler runs inside the call: in a callable."""
    errors: list[RuntimeError] = []

    def handler(*_: object) -> None:
        try:
            WRITES[kind](optimizer)
        except RuntimeError as error:
            errors.append(error)

    def lr(step: int) -> float:
        if step == 1:
            signal.raise_signal(signal.SIGALRM)
        return 0.1

    params = arrays(2)
    optimizer = fastopt.Adam(params, lr=lr)
    with handling(handler):
        for _ in range(3):
            optimizer.step(arrays(2))
    assert errors or kind == "load_state_dict"
    assert [state["step"] for state in optimizer.state.values()] == [3, 3]


class Dying:
    """A number after each step, which looks at its optimizer when it dies."""

    def __init__(self, look: Callable[[], object]) -> None:
        self.look = look

    def __call__(self, step: int) -> float:
        return 0.5

    def __del__(self) -> None:
        self.look()


@pytest.mark.parametrize("call", ["step", "add_param_group"])
def test_what_dies_looks_at_its_optimizer(call: str) -> None:
    """A destructor runs in the middle of what destroys the object, and a signal's handler may run inside it."""
    looks: list[Any] = []
    groups = 3

    def make() -> tuple[Any, dict[str, Any]]:
        optimizer, _, _ = trained(groups=groups)
        saved = optimizer.state_dict()
        for group in saved["param_groups"]:
            group.update(lr=0.7, betas=(0.1, 0.2), amsgrad=False)
        optimizer.step(arrays(2 * groups))
        return optimizer, saved

    optimizer, _ = make()

    def look() -> None:
        looks.append([(s["step"], s["exp_avg"].tobytes()) for s in optimizer.state_dict()["state"].values()])
        looks.append([group["weight_decay"] for group in optimizer.param_groups])

    for group in optimizer.param_groups:
        group["betas"] = (Dying(look), 0.5)
    optimizer.step(arrays(2 * groups))
    before = [[(s["step"], s["exp_avg"].tobytes()) for s in optimizer.state_dict()["state"].values()]]
    if call == "step":
        for group in optimizer.param_groups:
            group.update(betas=(0.1, 0.2), weight_decay=0.5)
        optimizer.step(arrays(2 * groups))
    else:
        for group in optimizer.param_groups:
            group.update(betas=(0.1, 0.2), weight_decay=0.5)
        optimizer.add_param_group({"params": arrays(1, 9.0)})
    gc.collect()
    after = [(s["step"], s["exp_avg"].tobytes()) for s in optimizer.state_dict()["state"].values()]
    assert len(looks) == 2 * groups
    assert all(look in (before[0], after) for look in looks[::2])
    assert all(len({*look[:groups]}) == 1 for look in looks[1::2])
