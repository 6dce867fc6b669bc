"""Python threads: with an optimizer each, the serial bits; with one optimizer, an error or strict turns."""

from __future__ import annotations

import contextlib
import os
import random
import re
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
from own_process import fork, own_process
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


# -- Turns -----------------------------------------------------------------------------------------


@own_process
def test_nobody_starves() -> None:
    """A thread that steps in a loop lets others in, whether its steps give the GIL away or not."""
    for size in SIZE, 10:
        params, grads = [np.zeros(size, np.float32)], [np.ones(size, np.float32)]
        optimizer = fastopt.SGD(params, lr=1.0)
        stop = threading.Event()

        def step(optimizer: Any = optimizer, grads: Any = grads, stop: Any = stop) -> None:
            while not stop.is_set():
                optimizer.step(grads)

        loops = [threading.Thread(target=step) for _ in range(2)]
        for thread in loops:
            thread.start()
        between = 0
        for _ in range(20):  # the threads may not have come to a step yet
            before = optimizer.state[0]["step"]
            for _ in range(50):
                optimizer.state_dict()
                time.sleep(0)  # small steps and copies keep the GIL, and so the turn
            between = optimizer.state[0]["step"] - before
            if between >= 50:
                break
        stop.set()
        for thread in loops:
            thread.join()
        assert between >= 50, between  # each of the two steps once while one copies


@own_process
def test_waiting_threads_are_served_in_order() -> None:
    entered: list[int] = []
    inside, go_on = threading.Event(), threading.Event()

    def lr(step: int) -> float:
        entered.append(threading.get_ident())
        inside.set()
        go_on.wait()
        return 0.1

    optimizer = fastopt.SGD([np.ones(2)], lr=lr)
    threads = []
    for _ in range(5):
        threads.append(threading.Thread(target=lambda: optimizer.step([np.ones(2)])))
        threads[-1].start()
        inside.wait()
        time.sleep(0.05)  # until it waits
    go_on.set()
    for thread in threads:
        thread.join()
    assert entered == [thread.ident for thread in threads]


class Holder:
    """An optimizer that is inside a call of another thread until it is told to go on."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.params, self.grads = [np.ones(3)], [np.ones(3)]
        self.optimizer = fastopt.SGD(self.params, lr=self.lr)
        self.thread = threading.Thread(target=lambda: self.optimizer.step(self.grads))
        self.thread.start()
        self.inside.wait()

    def lr(self, step: int) -> float:
        if not self.inside.is_set():
            self.inside.set()
            self.go_on.wait()
        return 0.1

    def end(self) -> None:
        """All calls were served, and the next ones are."""
        self.go_on.set()
        self.thread.join()
        steps = self.optimizer.state_dict()["state"][0]["step"]
        in_threads(lambda: self.optimizer.step(self.grads), lambda: self.optimizer.step(self.grads))
        assert self.optimizer.state[0]["step"] == steps + 2


@pytest.mark.parametrize("call", ["step", "state_dict"])
@own_process
def test_ctrl_c_while_waiting(call: str) -> None:
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for delay in [0.05] + [0.002] * 20:
        holder = Holder()
        calls = {"step": lambda o=holder: o.optimizer.step(o.grads), "state_dict": holder.optimizer.state_dict}
        signal.setitimer(signal.ITIMER_REAL, delay)
        with pytest.raises(KeyboardInterrupt):
            if call == "step" or delay > 0.01:
                calls[call]()
            else:  # at about the time when it gets its turn
                threading.Timer(delay, holder.go_on.set).start()
                calls[call]()
            time.sleep(10)
        holder.end()


@own_process
def test_a_handler_while_its_thread_waits() -> None:
    """It reads, before its own thread's call, and may not write."""
    found: list[Any] = []
    holder = Holder()

    def handler(*_: object) -> None:
        for write in (
            lambda: holder.optimizer.step(holder.grads),
            lambda: holder.optimizer.add_param_group({"params": [np.ones(2)]}),
            lambda: holder.optimizer.bind(None),
        ):
            with pytest.raises(RuntimeError, match="inside another call of this thread"):
                write()
        threading.Timer(0.05, holder.go_on.set).start()
        found.append(holder.optimizer.state_dict()["state"][0]["step"])
        found.append(len(repr(holder.optimizer)))
        found.append(holder.optimizer.state[0]["step"])

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    holder.optimizer.step(holder.grads)
    assert [found[0], found[2]] == [1, 1]
    assert holder.optimizer.state[0]["step"] == 2
    holder.end()


@own_process
def test_a_child_never_waits() -> None:
    holder = Holder()
    waiting = threading.Thread(target=lambda: holder.optimizer.step(holder.grads))
    waiting.start()
    time.sleep(0.02)

    def refused() -> None:
        for call in (lambda: holder.optimizer.step(holder.grads), holder.optimizer.state_dict):
            with pytest.raises(RuntimeError, match="when the process was forked"):
                call()

    def child() -> None:
        # a new thread here may have the very identity of the parent's that was stepping
        in_threads(*[refused] * 8)
        refused()
        in_threads(refused)
        assert fork(refused) == 0

    assert fork(child) == 0
    waiting_before = threading.active_count()
    assert waiting_before == 3
    holder.end()
    waiting.join()
    assert fork(lambda: holder.optimizer.step(holder.grads)) == 0


@own_process
def test_a_child_that_is_forked_inside_a_call_goes_on() -> None:
    """The thread that forked has the turn in the child too."""
    children: list[int] = []

    def lr(step: int) -> float:
        if step == 1:
            children.append(os.fork())
        return 0.1

    optimizer = fastopt.SGD([np.ones(2)], lr=lr)
    for _ in range(3):
        optimizer.step([np.ones(2)])
    in_threads(lambda: optimizer.step([np.ones(2)]))
    assert optimizer.state_dict()["state"][0]["step"] == 4
    if not children[0]:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


@own_process
def test_a_child_that_is_forked_while_waiting() -> None:
    """By a handler, while another thread of the parent had the turn: the call is refused in the child."""
    holder = Holder()
    children: list[int] = []

    def handler(*_: object) -> None:
        children.append(os.fork())
        if children[0]:
            holder.go_on.set()

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        holder.optimizer.step(holder.grads)
    except RuntimeError as error:
        os._exit(0 if "forked" in str(error) and not children[0] else 1)
    if not children[0]:
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    holder.end()


@own_process
def test_forks_while_turns_are_handed_over() -> None:
    """In the child a call is made or refused at once, whatever moment the fork found."""
    sys.setswitchinterval(1e-5)
    params, grads = [np.zeros(20_000, np.float32)], [np.ones(20_000, np.float32)]
    optimizer = fastopt.SGD(params, lr=1.0, momentum=0.5)
    stop = threading.Event()

    def step() -> None:
        while not stop.is_set():
            optimizer.step(grads)

    def child() -> int:
        try:
            optimizer.step(grads)
            in_threads(lambda: optimizer.step(grads))
        except RuntimeError as error:
            assert "forked" in str(error)
            return 3
        whole([*params, optimizer.state[0]["momentum_buffer"]])
        return 0

    threads = [threading.Thread(target=step) for _ in range(3)]
    for thread in threads:
        thread.start()
    ends = {fork(child, seconds=10) for _ in range(60)}
    stop.set()
    for thread in threads:
        thread.join()
    assert ends <= {0, 3}
    whole([*params, optimizer.state[0]["momentum_buffer"]])


@own_process
def test_saving_in_the_background() -> None:
    """And parameters that are added meanwhile: nobody gets an error."""
    optimizer = fastopt.Adagrad([np.zeros(SIZE, np.float32)], lr=0.1)
    stop = threading.Event()
    saves = 0

    def save() -> None:
        nonlocal saves
        while not stop.is_set():
            saved = optimizer.state_dict()
            assert len(saved["state"]) == sum(len(group["params"]) for group in saved["param_groups"])
            for state in saved["state"].values():
                whole([state["sum"]] if "sum" in state else [])
            assert "Adagrad" in repr(optimizer)
            assert len(dict(optimizer.state)) <= len(optimizer.state)
            saves += 1

    def train() -> None:
        while saves < 200:
            if saves % 10 == 0 and len(optimizer.param_groups) < 50:
                optimizer.add_param_group({"params": [np.zeros(10, np.float32)]})
            optimizer.step([np.ones_like(p) for group in optimizer.param_groups for p in group["params"]])
            if saves % 7 == 0:
                optimizer.load_state_dict(optimizer.state_dict())
        stop.set()

    in_threads(save, save, train)


@own_process
def test_functions_in_several_threads() -> None:
    """Each call has the options that it was given, whatever another thread's call left behind."""
    sys.setswitchinterval(1e-6)
    adam = fastopt.functional.adam
    betas = [(0.5, 0.5), (0.9, 0.9), (0.1, 0.99)]

    def once(k: int, lr: float) -> bytes:
        p, g, m, v = (np.full(3, x) for x in (1.0, 0.5, 0.0, 0.0))
        adam(p, g, m, v, step=1, lr=lr, betas=betas[k])
        return p.tobytes() + m.tobytes()

    expected = [[once(k, lr) for lr in (0.1, 0.2)] for k in range(3)]

    def work(k: int) -> None:
        for i in range(3000):
            assert once(k, (0.1, 0.2)[i % 2]) == expected[k][i % 2]

    in_threads(*[lambda k=k: work(k) for k in range(3)])  # type: ignore[misc]


# -- Sources ---------------------------------------------------------------------------------------

SOURCES = Path(__file__).parent.parent


def statics(text: str) -> list[str]:
    """Declarations of C variables that live as long as the process, in C or in Cython's verbatim C."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = re.findall(r"^[ \t]*static\b([^;{}()=]*)[;=]", text, flags=re.MULTILINE)
    return [" ".join(words.split()) for words in found]


def test_what_c_keeps_is_constant_or_a_threads_own() -> None:
    kept = {}
    for path in [*SOURCES.glob("src_c/**/*"), *SOURCES.glob("fastopt/*.p[yx][xid]")]:
        if path.is_file():
            kept |= {words: path.name for words in statics(path.read_text())}
    kept = {
        words: name for words, name in kept.items() if not {"const", "_Thread_local", "inline"} & {*words.split()}
    }
    # changed by one thread alone: in a child that has just been forked, or by an atomic instruction
    assert kept.keys() == {
        "int fastopt_forks", "uint64_t fastopt_last_thread", "uint64_t fastopt_survivor", "int fastopt_fork_count"
    }  # fmt: skip


def test_what_cython_keeps_is_set_once_or_one_word() -> None:
    """Variables of modules that functions set: settings, which are one word each, what is always the same, and what each
    thread has of its own."""
    kept = []
    for path in SOURCES.glob("fastopt/*.p[yx][xi]"):
        kept += re.findall(r"^ +global (.*)$", path.read_text(), flags=re.MULTILINE)
    assert sorted(kept) == [
        "PLACES, places_are_known", "bfloat16_number", "fastopt_last_team", "is_flushing", "selected_index"
    ]  # fmt: skip


def test_what_functions_set_is_not_a_variable_of_their_own() -> None:
    """Without `global`, an assignment to a variable of the module makes a new one, which nobody reads."""
    text = "\n".join(path.read_text() for path in sorted(SOURCES.glob("fastopt/*.p[yx][xi]")))
    cython = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)  # without C and docstrings
    kept = {
        *re.findall(r"^cdef (?!class|extern|enum|struct)[\w. ]+? \*?(\w+)(?: =|$)", cython, flags=re.MULTILINE),
        *re.findall(r"_Thread_local \w+ (\w+)", text),
    }
    assert {"bfloat16_number", "fastopt_last_team", "is_flushing", "selected_index"} <= kept
    for function in re.split(r"^ *(?:cdef|cpdef|def) [^=\n]*\(.*$", cython, flags=re.MULTILINE)[1:]:
        assigned = re.findall(r"^ +(\w+(?:, \w+)*) [-+*/|]?= ", function, flags=re.MULTILINE)
        declared = re.findall(r"^ +global (.*)$", function, flags=re.MULTILINE)
        assert not {*", ".join(assigned).split(", ")} & kept - {*", ".join(declared).split(", ")}


def test_free_threading_is_not_declared() -> None:
    """Not before it is proven: one call at a time is the GIL's doing."""
    assert not [c for c in metadata("fastopt").get_all("Classifier", []) if "Free Threading" in c]
    root = Path(__file__).parent.parent
    for source in root / "fastopt" / "_kernels.pyx", root / "setup.py":
        assert "freethreading_compatible" not in source.read_text()
    assert getattr(sys, "_is_gil_enabled", lambda: True)()
