"""Python threads: with an optimizer each, the serial bits; with one optimizer, an error or strict turns."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import table
from own_process import own_process
from table import Variant

import fastopt

SIZE = 70_001  # enough for a parallel step
NAMES = [cls.__name__ for cls in table.OPTIMIZERS]
KINDS = [v.cls.__name__ for v in table.KIND_BASES]
every_optimizer = pytest.mark.parametrize(
    "names", [KINDS, pytest.param([n for n in NAMES if n not in KINDS], marks=table.nightly)], ids=["few", "rest"]
)
"""In one process of their own."""


def base(name: str) -> Variant:
    return table.base(getattr(fastopt, name))


def in_threads(*works: Callable[[], object]) -> None:
    """Runs each in a thread of its own; raises what one of them raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def whole(arrays: Sequence[Any]) -> None:
    """Elements that were equal at first, and had equal gradients, are equal."""
    for array in arrays:
        if isinstance(array, np.ndarray):
            assert np.unique(array).size == 1


@every_optimizer
@own_process
def test_an_optimizer_each(names: list[str]) -> None:
    for name in names:
        with table.named(name):
            an_optimizer_each(name)


def an_optimizer_each(name: str) -> None:
    grads = [[table.plain_values(SIZE, "float32", seed)] for seed in range(3)]

    def trained(found: list[Any]) -> None:
        params = [table.plain_values(SIZE, "float32", 9)]
        optimizer = base(name).make(params)
        for step in range(300):
            optimizer.step(grads[step % 3])
        found.append(table.bits(optimizer, params))

    serial: list[Any] = []
    fastopt.set_num_threads(1)
    trained(serial)
    fastopt.set_num_threads(2)
    found: list[Any] = []
    in_threads(*[lambda: trained(found)] * 2)
    assert found == serial * 2


@own_process
def test_steps_of_one_optimizer_take_turns() -> None:
    fastopt.set_num_threads(2)
    params, grads = [np.zeros(SIZE, np.float32)], [np.ones(SIZE, np.float32)]
    optimizer = fastopt.SGD(params, lr=1.0)

    def work() -> None:
        for _ in range(300):
            optimizer.step(grads)

    in_threads(work, work, work)
    assert optimizer.state[0]["step"] == 900
    assert (params[0] == -900).all()


@own_process
def test_a_copy_is_of_one_moment() -> None:
    params, grads = [np.zeros(2**20, np.float32)], [np.ones(2**20, np.float32)]
    optimizer = fastopt.Adagrad(params)
    stop = threading.Event()

    def step() -> None:
        while not stop.is_set():
            optimizer.step(grads)

    def copy() -> None:
        copies = 0
        while copies < 30:
            state = optimizer.state_dict()["state"][0]
            copies += 1
            assert (state["sum"] == state["step"]).all()
        stop.set()

    in_threads(step, copy)


@every_optimizer
@own_process
def test_any_calls_of_one_optimizer(names: list[str]) -> None:
    sys.setswitchinterval(1e-4)
    for name in names:
        with table.named(name):
            any_calls_of_one_optimizer(name)


def any_calls_of_one_optimizer(name: str) -> None:
    """All elements are equal at first and have equal gradients: a torn update would tell them apart."""
    fastopt.set_num_threads(2)
    params, grads = [np.ones(SIZE, np.float32)], [np.full(SIZE, 0.5, np.float32)]
    optimizer = base(name).make(params)
    saved = [optimizer.state_dict()]
    hypers = [table.options_of(type(optimizer)) | v.options for v in table.variants(type(optimizer))]
    for h in hypers:
        h["state_dtype"] = "float32" if h["state_dtype"] else None  # nothing is rounded at random

    def copy() -> None:
        saved.append(optimizer.state_dict())
        whole(list(saved[-1]["state"][0].values()))

    def bind() -> None:
        optimizer.bind(grads)
        with contextlib.suppress(TypeError):  # another thread's step(grads) has let go of them
            optimizer.step()
        optimizer.bind(None)

    def edit() -> None:
        optimizer.param_groups[0].update(random.choice(hypers))
        optimizer.step(grads)

    calls: list[Callable[[], object]] = [
        lambda: optimizer.step(grads),
        copy,
        lambda: optimizer.load_state_dict(random.choice(saved)),
        bind,
        edit,
    ]
    if isinstance(optimizer, fastopt.NAG):
        calls.append(optimizer.lookahead)
        for h in hypers:  # nobody may change these while the parameters are ahead
            h |= {name: optimizer.param_groups[0][name] for name in ("momentum", "state_dtype")}
    made = [0] * len(calls)
    start = time.monotonic()

    def work(k: int) -> None:
        while time.monotonic() < start + (20 if made[k] == 0 else 0.5):
            try:
                calls[k]()
                made[k] += 1
            except RuntimeError as error:
                assert "ahead already" in str(error)
            time.sleep(random.uniform(0, 1e-3))

    in_threads(*[lambda k=k: work(k) for k in range(len(calls))])  # type: ignore[misc]
    assert all(made)
    whole([*params, *optimizer.state[0].values()])


@own_process
def test_a_callable_cannot_change_its_own_optimizer() -> None:
    params, grads = [np.ones(3)], [np.ones(3)]
    calls: list[Callable[[], object]] = []

    def lr(step: int) -> float:
        if calls:
            calls.pop()()
        return 0.1

    optimizer = fastopt.Adam(params, lr=lr)
    saved = optimizer.state_dict()
    before = table.bits(optimizer, params)
    for call in [
        lambda: optimizer.step(grads),
        lambda: optimizer.bind(grads),
        lambda: optimizer.load_state_dict(saved),
        lambda: optimizer.add_param_group({"params": [np.ones(2)]}),
    ]:
        calls.append(call)
        with pytest.raises(RuntimeError, match="inside another call of this thread"):
            optimizer.step(grads)
        assert table.bits(optimizer, params) == before
    # an edit that needs another array of state waits for the next step
    calls.append(lambda: optimizer.param_groups[0].update(amsgrad=True))
    optimizer.step(grads)
    assert "max_exp_avg_sq" not in optimizer.state[0]
    optimizer.step(grads)
    assert "max_exp_avg_sq" in optimizer.state[0]


@pytest.mark.parametrize(("call", "watched"), [("lookahead", 0), ("step", 0), ("step", 1)])
@own_process
def test_ctrl_c_during_a_kernel_of_nag(call: str, watched: int) -> None:
    """It waits for the kernel, and for those that follow: the parameters stand where the optimizer says."""
    fastopt.set_num_threads(1)
    size = 2**22
    grads = [np.ones(size, np.float32), None]
    signal.signal(signal.SIGALRM, signal.default_int_handler)

    def made(interrupted: bool) -> list[Any]:
        """What the call leaves."""
        params = [np.ones(size, np.float32) for _ in grads]
        optimizer = fastopt.NAG(params, lr=0.1)
        optimizer.step([np.ones(size, np.float32)] * 2)
        if call == "step":
            optimizer.lookahead()
        before, end, caller = params[watched][0], time.monotonic() + 10, threading.get_ident()

        def interrupt() -> None:
            while params[watched][0] == before and time.monotonic() < end:
                time.sleep(1e-5)
            signal.pthread_kill(caller, signal.SIGALRM)

        with pytest.raises(KeyboardInterrupt) if interrupted else contextlib.nullcontext():
            if interrupted:
                threading.Thread(target=interrupt).start()
            optimizer.lookahead() if call == "lookahead" else optimizer.step(grads)
            time.sleep(10 if interrupted else 0)  # where it comes late
        states = optimizer.state.values()
        for array in (*params, *(state["velocity"] for state in states)):
            assert (array == array[0]).all()
        return [[p[0] for p in params], [s["step"] for s in states], optimizer.param_groups[0]["ahead"]]

    assert made(interrupted=True) == made(interrupted=False)


def test_free_threading_is_not_declared() -> None:
    """Not before it is proven: one call at a time is the GIL's doing."""
    assert not [c for c in metadata("fastopt").get_all("Classifier", []) if "Free Threading" in c]
    root = Path(__file__).parent.parent
    for source in root / "fastopt" / "_kernels.pyx", root / "setup.py":
        assert "freethreading_compatible" not in source.read_text()
    assert getattr(sys, "_is_gil_enabled", lambda: True)()
