"""Threads that cannot be made: a step goes on with those that there are, with the same bits; the process lives.

libgomp ends the process where it cannot make a thread: "libgomp: Thread creation failed".
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import table
from own_process import own_process, run

import fastopt

pytestmark = pytest.mark.skipif(not table.OPENMP or sys.platform != "linux", reason="no threads to make")

SIZE = 300_000
ALONE = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""NumPy's own threads would count."""
NOBODY = 54_321
"""A user who has no processes."""


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def trained(threads: int | None, steps: int = 3) -> bytes:
    fastopt.set_num_threads(threads)
    params = [np.linspace(-1, 1, SIZE, dtype=np.float32)]
    grads = [np.linspace(1, -2, SIZE, dtype=np.float32)]
    optimizer = fastopt.Adam(params, lr=0.1)
    for _ in range(steps):
        optimizer.step(grads)
    return params[0].tobytes()


def check(most: int) -> None:
    """Steps of some numbers of threads, where there can be so many threads and no more."""
    expected = trained(1), trained(1, 60)
    for threads in 2, 4, 3:
        assert trained(threads) == expected[0]
        assert count_threads() <= most
    assert trained(None, 60) == expected[1]  # the tuner tries two threads


# -- Too many processes ------------------------------------------------------------------------------


def limit_processes(new: int) -> None:
    if os.getuid() == 0:  # whom the limit does not concern
        trained(1, 60)  # imports what another user may not be able to read
        os.setuid(NOBODY)
        resource.setrlimit(resource.RLIMIT_NPROC, (count_threads() + new,) * 2)
        return
    user = os.getuid()
    processes = [path for path in Path("/proc").glob("[0-9]*") if path.exists() and path.stat().st_uid == user]
    threads = sum(len([*path.glob("task/*")]) for path in processes)
    resource.setrlimit(resource.RLIMIT_NPROC, (threads + new,) * 2)


@pytest.mark.parametrize("new", [0, 1, 2])
def test_a_limit_of_processes(new: int) -> None:
    code = f"import test_no_threads as t; t.limit_processes({new}); t.check(1 + {new})"
    if os.getuid() != 0:
        code = f"import test_no_threads as t; t.limit_processes({new}); t.check(9)"  # other processes come and go
    run(code, environment=ALONE)


# -- Too little memory -------------------------------------------------------------------------------


def limit_memory(megabytes: int) -> None:
    trained(1, 60)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)


@pytest.mark.parametrize("megabytes", [7, 17, 30, pytest.param(12, marks=table.nightly)])
def test_a_limit_of_memory(megabytes: int) -> None:
    """A thread's stack takes 8 MB by default."""
    run(f"import test_no_threads as t; t.limit_memory({megabytes}); t.check(4)", environment=ALONE)


@pytest.mark.parametrize("variable", ["OMP_STACKSIZE", "GOMP_STACKSIZE"])
def test_large_stacks(variable: str) -> None:
    """It is the stacks that OpenMP would give its threads that must fit."""
    environment = ALONE | {variable: "100M"}
    run("import test_no_threads as t; t.limit_memory(90); t.check(1)", environment=environment)
    run("import test_no_threads as t; t.limit_memory(150); t.check(2)", environment=environment)


# -- Control groups ----------------------------------------------------------------------------------


@contextlib.contextmanager
def control_group(controller: str, settings: dict[str, str]) -> Iterator[Path]:
    """A group of its own below the one of this process."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controller in controllers.split(","):
            folder = Path("/sys/fs/cgroup", controller, name.lstrip("/"), f"fastopt-{os.getpid()}")
            break
    else:
        pytest.skip(f"there are no control groups of {controller} (v1)")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        for file, value in settings.items():
            (folder / file).write_text(value)
        yield folder
    finally:
        folder.rmdir()


@table.nightly
def test_a_control_group_of_processes() -> None:
    with control_group("pids", {"pids.max": "2"}) as folder:
        run(
            f"import test_no_threads as t; from pathlib import Path; t.trained(1, 60); "
            f"Path({str(folder)!r}, 'cgroup.procs').write_text('0'); t.check(2)",
            environment=ALONE,
        )


@table.nightly
def test_a_control_group_of_cpus_that_shrinks() -> None:
    """OpenMP has bound its places to CPUs that the process may no longer use."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU")
    first = str(min(os.sched_getaffinity(0)))
    with control_group("cpuset", {"cpuset.mems": "0", "cpuset.cpus": first}) as folder:
        run(
            f"import test_no_threads as t; from pathlib import Path; "
            f"Path({str(folder)!r}, 'cgroup.procs').write_text('0'); t.check(1)",
            environment=ALONE | {"OMP_PROC_BIND": "true"},
        )


# -- Threads that cannot be bound --------------------------------------------------------------------


def refuse_binding() -> None:
    """From now on the kernel answers sched_setaffinity() as it does for CPUs that a cpuset has lost."""
    number = {"x86_64": 203, "aarch64": 122}.get(platform.machine())
    if number is None:
        sys.exit(0)
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EINVAL
    program = b"".join(
        code.to_bytes(2, "little") + bytes([yes, no]) + value.to_bytes(4, "little")
        for code, yes, no, value in [
            (load, 0, 0, 0),  # the number of the call
            (jump_if_equal, 0, 1, number),
            (give, 0, 0, refuse),
            (give, 0, 0, allow),
        ]
    )
    code = ctypes.create_string_buffer(program)
    header = (ctypes.c_uint64 * 2)(len(program) // 8, ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    no_new_privileges, set_filter, filter = 38, 22, 2
    if prctl(no_new_privileges, 1, 0, 0, 0) or prctl(set_filter, filter, ctypes.byref(header), 0, 0):
        print("skipped:", os.strerror(ctypes.get_errno()))
        sys.exit(0)
    with pytest.raises(OSError, match="Invalid argument"):
        os.sched_setaffinity(0, os.sched_getaffinity(0))


@pytest.mark.parametrize("most", [1, 9])
def test_threads_that_cannot_be_bound(most: int) -> None:
    """Where OpenMP binds threads, there can be none then; else it makes no difference."""
    environment = ALONE | ({"OMP_PROC_BIND": "true"} if most == 1 else {})
    run(f"import test_no_threads as t; t.refuse_binding(); t.check({most})", environment=environment)


@own_process
def test_as_many_threads_as_were_asked_for() -> None:
    """Without a limit."""
    before = count_threads()
    trained(4)
    assert count_threads() == before + 3
