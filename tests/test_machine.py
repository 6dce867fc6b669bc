"""The machine as the kernel describes it, in files with any bytes, and how many threads steps may use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from own_process import fork, own_process, run

import fastopt
from fastopt import _kernels, machine

needs_openmp = pytest.mark.skipif(not _kernels.OPENMP, reason="this build is serial")
needs_two_cpus = pytest.mark.skipif(machine.available_cpus() < 2, reason="needs two CPUs")

# -- cgroups, by files as the kernel shows them ----------------------------------------------------

V1, V2 = "5:cpuset:/\n3:cpu,cpuacct:{}\n0::/elsewhere\n", "0::{}\n"

CGROUPS: dict[str, tuple[str, dict[str, str], float | None]] = {
    "no cgroup": ("", {}, None),
    "v2, its own": (V2.format("/a/b"), {"a/b/cpu.max": "150000 100000"}, 1.5),
    "v2, one above it": (V2.format("/a/b"), {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
    "v2, the least": (V2.format("/a/b"), {"a/b/cpu.max": "300000 100000", "a/cpu.max": "50000 100000"}, 0.5),
    "v2, of another": (V2.format("/a/b"), {"a/c/cpu.max": "100000 100000"}, None),
    "v2, unlimited": (V2.format("/a"), {"a/cpu.max": "max 100000"}, None),
    "v2, a path that this container does not see": (V2.format("/docker/1"), {"cpu.max": "100000 50000"}, 2),
    "v1, its own": (
        V1.format("/a"),
        {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"},
        4,
    ),
    "v1, one above it": (
        V1.format("/a/b"),
        {
            "cpu/a/b/cpu.cfs_quota_us": "-1",
            "cpu/a/b/cpu.cfs_period_us": "100000",
            "cpu/a/cpu.cfs_quota_us": "100000",
            "cpu/a/cpu.cfs_period_us": "100000",
        },
        1,
    ),
    "v1, unlimited": (
        V1.format("/"),
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        None,
    ),
    "v1, no period": (V1.format("/"), {"cpu/cpu.cfs_quota_us": "100000"}, None),
    "a name that is no text": (V2.format("/\udcff\udcd0"), {"\udcff\udcd0/cpu.max": "300000 100000"}, 3),
    "a name with a colon": (V2.format("/a:b"), {"a:b/cpu.max": "300000 100000"}, 3),
    "words": (V2.format("/a"), {"a/cpu.max": "a lot"}, None),
    "one word": (V2.format("/a"), {"a/cpu.max": "100000"}, None),
    "three words": (V2.format("/a"), {"a/cpu.max": "100000 100000 100000"}, None),
    "empty": (V2.format("/a"), {"a/cpu.max": ""}, None),
    "no text": (V2.format("/a"), {"a/cpu.max": "\udcff\udcfe 100000"}, None),
    "foreign digits": (V2.format("/a"), {"a/cpu.max": "\u0661\u0660 \u0661\u0660"}, None),
    "nothing granted": (V2.format("/a"), {"a/cpu.max": "0 100000"}, None),
    "a period of nothing": (V2.format("/a"), {"a/cpu.max": "100000 0"}, None),
    "a negative period": (V2.format("/a"), {"a/cpu.max": "100000 -100000"}, None),
    "more digits than a number has": (V2.format("/a"), {"a/cpu.max": "9" * 5000 + " 1"}, None),
    "malformed beside a good one": (V2.format("/a/b"), {"a/b/cpu.max": "?", "a/cpu.max": "200000 100000"}, 2),
    "the process's file is empty lines": ("\n\n", {"cpu.max": "100000 100000"}, None),
    "the process's file has no colons": ("no colons\n0\n", {"cpu.max": "100000 100000"}, None),
    "the process's file has one colon": ("0:cpu\n", {"cpu.max": "100000 100000"}, None),
    "the process's file is malformed, then good": ("?\n0::/a\n", {"a/cpu.max": "200000 100000"}, 2),
    "a name with a NUL": (V2.format("/a\0b"), {"cpu.max": "200000 100000"}, 2),
}


@pytest.mark.parametrize("case", CGROUPS)
def test_the_quota_of_a_cgroup(case: str, tmp_path: Path) -> None:
    own, files, expected = CGROUPS[case]
    proc, root = tmp_path / "cgroup", tmp_path / "root"
    proc.write_bytes(os.fsencode(own))
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(text + "\n"))
    assert machine._cgroup_quota(proc, root) == expected


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_bytes(b"0::/\n")
    (tmp_path / "cpu.max").mkdir()
    assert machine._cgroup_quota(tmp_path / "cgroup", tmp_path) is None
    assert machine._cgroup_quota(tmp_path / "cpu.max", tmp_path) is None


def test_without_proc_there_is_no_quota(tmp_path: Path) -> None:
    assert machine._cgroup_quota(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.9, 1), (2.0, 2), (None, 8)])
def test_a_quota_is_one_limit(quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: quota)
    monkeypatch.setattr(machine, "allowed_cpus", lambda: frozenset(range(8)))
    monkeypatch.setattr(_kernels, "max_threads", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.available_cpus() == expected


@pytest.mark.parametrize("value", ["many", "", ",", "²", "0", "-1", "9" * 5000, "\udcff"])
def test_an_omp_num_threads_that_is_no_number_is_no_limit(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    expected = machine.available_cpus()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert machine.available_cpus() == expected


# -- The process's own files -----------------------------------------------------------------------

STAT = b"1234 (%s) S 1 2 3 4 5 %s 6 7 8 9"
FORKED, STARTED = b"4194368", b"4194304"  # with PF_FORKNOEXEC and without

STATS: dict[str, tuple[bytes | None, bool]] = {
    "forked": (STAT % (b"python", FORKED), True),
    "started": (STAT % (b"python", STARTED), False),
    "Cyrillic, cut amid a letter": (STAT % ("обучение-сети".encode()[:15], FORKED), True),
    "no text": (STAT % (bytes(range(128, 143)), FORKED), True),
    "parentheses and lines": (STAT % (b") R 1 (\n\r )", FORKED), True),
    "no flags": (b"1234 (python) S 1 2 3 4 5", False),
    "flags that are no number": (STAT % (b"python", b"\xff"), False),
    "no parenthesis": (b"1234 python", False),
    "empty": (b"", False),
    "missing": (None, False),
}


@pytest.mark.parametrize("case", STATS)
def test_was_forked(case: str, tmp_path: Path) -> None:
    text, expected = STATS[case]
    if text is not None:
        (tmp_path / "self").mkdir()
        (tmp_path / "self/stat").write_bytes(text)
    assert machine.was_forked(tmp_path) is expected


RENAME = """
import ctypes
assert ctypes.CDLL(None).prctl(15, "обучение-сети".encode(), 0, 0, 0) == 0  # PR_SET_NAME keeps 15 bytes
"""


def test_the_name_of_the_process_may_be_any_bytes() -> None:
    code = """
import fastopt, os
from fastopt import machine
from own_process import fork
assert not machine.was_forked()
assert fork(lambda: 0 if machine.was_forked() else 1) == 0
machine.others_keep_cpus_busy(os.cpu_count() + 1000)  # reads the threads' files
machine.facts()
print("done")
"""
    assert run(RENAME + code) == "done\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"processor\t: 0\nmodel name\t: A processor: 3 GHz \nmodel name\t: another\n", "A processor: 3 GHz"),
        (b"\xff\xfe\nmodel name\t: \xff fast\n", "\N{REPLACEMENT CHARACTER} fast"),
        (b"model name\nmodel name\t:\nmodel name : the third", "the third"),
        (b"Features : fp asimd", None),
        (b"", None),
        (None, None),
    ],
)
def test_cpu_name(text: bytes | None, expected: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_bytes(text)
    found = machine.cpu_name(tmp_path)
    assert found == expected if expected else found


# -- CPUs that other processes keep busy -----------------------------------------------------------


def threads_run(proc: Path, running: int, own: bytes = b"R") -> None:
    """Writes how many threads run on the machine, and the states of our own."""
    (proc / "loadavg").write_bytes(b"0.1 0.2 0.3 %d/99 1234\n" % running)
    shutil.rmtree(proc / "self", ignore_errors=True)
    for i, state in enumerate(own):
        stat = proc / f"self/task/{i}/stat"
        stat.parent.mkdir(parents=True)
        stat.write_bytes(b"%d (\xd0 (name) R ) %c 1 2 3" % (i, state))


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine, "allowed_cpus", lambda: frozenset(range(4)))


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("running", "count", "expected"), [(2, 4, False), (3, 4, True), (3, 3, False), (6, 1, True), (0, 4, False)]
)
def test_others_keep_cpus_busy(running: int, count: int, expected: bool, tmp_path: Path) -> None:
    threads_run(tmp_path, running, own=b"RSR")
    assert machine.others_keep_cpus_busy(count, tmp_path) is expected


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    "text", [b"", b"something else", b"0 0 0 x/9 1", b"0 0 0 / 1", b"\xff \xff \xff \xff", None]
)
def test_without_a_known_load_nobody_is_busy(text: bytes | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "loadavg").write_bytes(text)
    assert not machine.others_keep_cpus_busy(4, tmp_path)


@pytest.mark.usefixtures("four_cpus")
def test_malformed_files_of_threads_count_as_threads_that_wait(tmp_path: Path) -> None:
    threads_run(tmp_path, running=3, own=b"RRR")
    assert not machine.others_keep_cpus_busy(4, tmp_path)
    for text in b"", b"no parenthesis", b"1 (name)", b"\xff\xfe":
        (tmp_path / "self/task/0/stat").write_bytes(text)
        assert machine.others_keep_cpus_busy(4, tmp_path)


class PartOfAMachine:
    """Eight CPUs, of which this process may use two, 2 and 5; time passes when it is told to."""

    def __init__(self, proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.now, self.own, self.idle = proc, 1000.0, 10.0, dict.fromkeys(range(8), 500.0)
        self.cpus = frozenset({2, 5})
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        monkeypatch.setattr(machine, "allowed_cpus", lambda: self.cpus)
        monkeypatch.setattr(machine, "_last_idle_time", None)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.own)
        threads_run(proc, running=20)
        self.write()

    def write(self) -> None:
        ticks = os.sysconf("SC_CLK_TCK")
        lines = [f"cpu{i} 9 9 9 {int((s - 100) * ticks)} {100 * ticks} 9 9 9 9 9" for i, s in self.idle.items()]
        (self.proc / "stat").write_text("\n".join(["cpu 1 2 3 4 5", *lines, "intr 1 2 3", "cpu0 of another kind"]))

    def passes(self, seconds: float, idle: dict[int, float], own: float) -> None:
        """Each CPU was idle, and this process used CPUs, for these parts of the time."""
        self.now += seconds
        self.own += own * seconds
        for cpu, part in idle.items():
            self.idle[cpu] += part * seconds
        self.write()

    def busy(self, count: int) -> bool:
        return machine.others_keep_cpus_busy(count, self.proc)


def test_cpus_outside_the_mask_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PartOfAMachine(tmp_path, monkeypatch)
    assert not part.busy(2), "nothing is known at first"
    part.passes(10, {2: 0.5, 5: 0.9}, own=0.5)  # the other six are busy
    assert not part.busy(2)
    part.passes(10, {2: 0.0, 5: 0.1}, own=1.9)
    assert not part.busy(2), "only this process"
    part.passes(10, {2: 0.0, 5: 0.0, 0: 1.0, 1: 1.0}, own=1.0)
    assert part.busy(2)
    assert not part.busy(1)
    part.passes(0.05, {2: 1.0, 5: 1.0}, own=0.0)
    assert part.busy(2), "too short a time: as before"
    part.passes(10, {2: 0.5, 5: 0.5}, own=0.0)
    assert part.busy(2)
    part.passes(10, {2: 0.0, 5: 0.0}, own=0.2)
    assert part.busy(1)
    threads_run(tmp_path, running=1)
    assert not part.busy(1), "no other thread runs on the whole machine"


def test_another_mask_is_another_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PartOfAMachine(tmp_path, monkeypatch)
    part.busy(2)
    part.passes(10, {}, own=0.0)
    assert part.busy(2)
    part.cpus = frozenset({2, 6})
    assert not part.busy(2)
    part.passes(10, {}, own=0.0)
    assert part.busy(2)


@pytest.mark.parametrize(
    "line", [b"", b"cpu5", b"cpu5 1 2 3 4", b"cpu5 1 2 3 4 x", b"cpu5 1 2 3 -4 5", b"cpu\xff 1 2 3 4 5"]
)
def test_without_idle_times_nobody_is_busy(line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PartOfAMachine(tmp_path, monkeypatch)
    part.busy(2)
    part.passes(10, {}, own=0.0)
    (tmp_path / "stat").write_bytes(b"cpu2 1 2 3 4 5\n" + line)
    assert not part.busy(2)
    (tmp_path / "stat").unlink()
    assert not part.busy(2)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
def test_a_busy_cpu_of_the_mask_is_seen() -> None:
    code = """
import os, subprocess, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the other process inherits it
from fastopt import machine
busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
time.sleep(0.3)
machine._cpus_left(machine.allowed_cpus())
time.sleep(1)
print(machine._cpus_left(machine.allowed_cpus()) < 0.5)
busy.kill()
busy.wait()
"""
    assert run(code) == "True\n"


# -- Forked children -------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [None, 3])
@own_process
def test_a_forked_child_uses_one_thread(fixed: int | None) -> None:
    fastopt.set_num_threads(fixed)
    before = fastopt.get_num_threads()

    def child() -> int:
        fastopt.set_num_threads(fixed)
        return fastopt.get_num_threads()

    assert fork(child) == 1
    assert fork(lambda: fork(child)) == 1
    assert fastopt.get_num_threads() == before


@pytest.mark.parametrize(("name", "value"), [("fork_count", lambda: 1), ("OPENMP", 0)])
def test_where_steps_never_use_threads(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, name, value)
    fastopt.set_num_threads(3)
    assert fastopt.get_num_threads() == 1
    assert machine.is_limited_to_one_thread()


# -- Facts -----------------------------------------------------------------------------------------


def test_without_metadata_the_version_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.version("numpy")
    assert machine.version("a distribution that nobody has installed") is None
    monkeypatch.setattr(machine, "version", lambda distribution: None)
    assert getattr(fastopt, "__version__", None) is None
    assert not hasattr(fastopt, "__version__")
    with pytest.raises(AttributeError, match="metadata is not installed"):
        _ = fastopt.__version__
    assert "not installed" in machine.facts()["fastopt"]
    monkeypatch.setattr(machine, "version", lambda distribution: "1.2.3")
    assert fastopt.__version__ == machine.facts()["fastopt"] == "1.2.3"


# -- Each case in a process of its own -------------------------------------------------------------

PRELUDE = """
import os
import numpy as np
import fastopt

def team(steps=1, size=200_000):
    '''How many threads large steps start, besides those that are there.'''
    before = len(os.listdir("/proc/self/task"))
    optimizer = fastopt.Adam([np.ones(size, np.float32)])
    for _ in range(steps):
        optimizer.step([np.ones(size, np.float32)])
    return len(os.listdir("/proc/self/task")) - before
"""


def printed(code: str, cpus: set[int] | None = None, **environment: str) -> str:
    """The output of the code, on these CPUs alone."""
    code = PRELUDE + code
    if cpus is not None:  # before anything is loaded
        code = f"import os\nos.sched_setaffinity(0, {cpus})\n" + code
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "FASTOPT_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_affinity_is_one_limit() -> None:
    one = {min(os.sched_getaffinity(0))}
    assert printed("print(fastopt.get_num_threads(), team(200))", one) == "1 0"


@needs_openmp
@needs_two_cpus
@pytest.mark.parametrize(("omp", "expected"), [("1", "1"), ("1,4", "1"), ("2", "2"), ("100", None), ("", None)])
def test_omp_num_threads_is_one_limit(omp: str, expected: str | None) -> None:
    environment = {"OMP_NUM_THREADS": omp} if omp else {}
    # in a process of its own, because torch may have limited this one
    every_cpu = printed("from fastopt import machine\nprint(machine.available_cpus())")
    assert printed("print(fastopt.get_num_threads())", **environment) == (expected or every_cpu)


@needs_openmp
def test_threads_are_tried_when_a_team_grows_and_not_at_every_step() -> None:
    """A thread that is made beside one of OpenMP's, which waits and keeps its CPU busy, waits for milliseconds."""
    code = """
import threading
def next_number():  # the kernel numbers threads in the order of their making
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return thread.native_id

params, grads = [np.zeros(2**17, np.float32)], [np.ones(2**17, np.float32)]
optimizer = fastopt.SGD(params, lr=0.1)
fastopt.set_num_threads(2)
optimizer.step(grads)
before = next_number()
for _ in range(2000):
    optimizer.step(grads)
print(next_number() - before)
"""
    assert int(printed(code)) < 1000  # other programs make some, too


@needs_openmp
def test_fastopts_own_settings_beat_every_limit() -> None:
    one = {min(os.sched_getaffinity(0))}
    asked = "fastopt.set_num_threads(3); print(fastopt.get_num_threads(), team())"
    assert printed(asked, one, OMP_NUM_THREADS="1") == "3 2"
    shown = "print(fastopt.get_num_threads(), team())"
    assert printed(shown, one, OMP_NUM_THREADS="1", FASTOPT_NUM_THREADS="4") == "4 3"
    back = "fastopt.set_num_threads(3); fastopt.set_num_threads(None); print(fastopt.get_num_threads())"
    assert printed(back, one) == "1"


BINDINGS = [{"OMP_PROC_BIND": "true"}, {"OMP_PROC_BIND": "spread"}, {"OMP_PLACES": "cores"}]


@needs_openmp
@needs_two_cpus
@pytest.mark.parametrize("binding", BINDINGS, ids=str)
def test_the_cpus_of_openmps_places_count_where_it_binds_threads(binding: dict[str, str]) -> None:
    code = """
from fastopt import machine
cpus = os.sched_getaffinity(0)
print(len(cpus) == 1, fastopt.get_num_threads())
"""
    two = set(sorted(os.sched_getaffinity(0))[:2])
    assert printed(code, two, **binding) == "True 2"
    assert printed(code, {min(two)}, **binding) == "True 1"
    one_place = {"OMP_PLACES": f"{{{min(two)}}}"}
    assert printed(code, two, **one_place) == "True 1"


@needs_openmp
@needs_two_cpus
def test_a_mask_that_is_narrowed_later_counts() -> None:
    last = max(os.sched_getaffinity(0))
    code = f"os.sched_setaffinity(0, {{{last}}}); print(fastopt.get_num_threads(), team(200))"
    assert printed(code) == "1 0"
    for binding in BINDINGS:
        assert printed(code, **binding) == "1 0"


@needs_openmp
@needs_two_cpus
def test_threads_that_openmp_binds_are_used_by_default() -> None:
    """A step whose second thread makes it faster: the tuner, on real time, gets to try two threads."""
    code = """
from fastopt import machine
machine.others_keep_cpus_busy = lambda count: False
print(team(200, 2**20))
"""
    assert printed(code, OMP_PROC_BIND="true") == printed(code) != "0"


PLACES: list[tuple[Callable[[], tuple[frozenset[int], ...]], set[int], set[int]]] = [
    (lambda: (), {0, 3}, {0, 3}),
    (lambda: (frozenset({0}), frozenset({1}), frozenset({2, 3})), {0}, {0, 1, 2, 3}),
    (lambda: (frozenset({0}), frozenset({1}), frozenset({2, 3})), {1}, {1}),
    (lambda: (frozenset({0}), frozenset({1}), frozenset({2, 3})), {1, 2, 5}, {1, 2}),
    (lambda: (frozenset({0}), frozenset({1}), frozenset({2, 3})), {5}, {5}),
    (lambda: (frozenset({0, 4}), frozenset({1, 5})), {4}, {4}),
    (lambda: (frozenset({0, 4}),), {0, 4}, {0, 4}),
]


@pytest.mark.parametrize(("places", "mask", "expected"), PLACES)
def test_places_and_the_mask(
    places: Callable[[], object], mask: set[int], expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_openmp_places", places)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: mask)
    assert machine.allowed_cpus() == expected


def test_where_the_mask_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: int) -> set[int]:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", forbidden)
    assert len(machine.allowed_cpus()) == os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity")
    assert len(machine.allowed_cpus()) == os.cpu_count()


@needs_openmp
@needs_two_cpus
def test_threadpoolctl_is_obeyed_in_the_thread_that_calls_it() -> None:
    pytest.importorskip("threadpoolctl")
    code = """
from threadpoolctl import threadpool_limits
found = []
for setting in (None, 3):
    fastopt.set_num_threads(setting)
    with threadpool_limits(limits=1, user_api="openmp"):
        found += [fastopt.get_num_threads(), team(200)]
    found.append(fastopt.get_num_threads() > 1)
with threadpool_limits(limits=1):
    fastopt.set_num_threads(3)  # the last word
    found += [fastopt.get_num_threads(), team()]
fastopt.set_num_threads(None)
with threadpool_limits(limits=1, user_api="openmp"):
    import threading
    thread = threading.Thread(target=lambda: found.append(fastopt.get_num_threads() > 1))
    thread.start()
    thread.join()
print(*found)
"""
    assert printed(code) == "1 0 True 1 0 True 3 2 True"


@needs_openmp
@needs_two_cpus
def test_the_default_tries_no_threads_beside_a_busy_process() -> None:
    code = """
import subprocess, sys, time
from fastopt import machine
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() - 1)]
time.sleep(0.5)
seen = all(machine.others_keep_cpus_busy(2) for _ in range(20))
print(team(200, 2**20) if seen else "unseen")
for process in busy:
    process.kill()
"""
    extra = printed(code)
    if extra == "unseen":
        pytest.skip("/proc/loadavg does not show the other process")
    assert extra == "0"


def test_small_steps_start_no_thread() -> None:
    assert printed("fastopt.set_num_threads(4); print(team(200, 1000))") == "0"
