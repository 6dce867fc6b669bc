"""How many threads a step may use: affinity, cgroups, OpenMP's settings, and who beats whom."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastopt import _kernels, threads

needs_openmp = pytest.mark.skipif(not _kernels.OPENMP, reason="this build is serial")
needs_two_cpus = pytest.mark.skipif(threads.available_cpus() < 2, reason="needs two CPUs")

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
    "rubbish": (V2.format("/a"), {"a/cpu.max": "a lot"}, None),
}


@pytest.mark.parametrize("case", CGROUPS)
def test_the_quota_of_a_cgroup(case: str, tmp_path: Path) -> None:
    own, files, expected = CGROUPS[case]
    proc, root = tmp_path / "cgroup", tmp_path / "root"
    proc.write_text(own)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    assert threads._cgroup_quota(proc, root) == expected


def test_without_proc_there_is_no_quota(tmp_path: Path) -> None:
    assert threads._cgroup_quota(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.9, 1), (2.0, 2), (None, 8)])
def test_a_quota_is_one_limit(quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(_kernels, "max_threads", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.available_cpus() == expected


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
    """What the code prints, on these CPUs alone."""
    code = PRELUDE + code
    if cpus is not None:  # before anything is loaded
        code = f"import os\nos.sched_setaffinity(0, {cpus})\n" + code
    clean = {k: v for k, v in os.environ.items() if k not in {"OMP_NUM_THREADS", "FASTOPT_NUM_THREADS"}}
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
    assert printed("print(fastopt.get_num_threads())", **environment) == (
        expected or str(threads.available_cpus())
    )


@needs_openmp
def test_fastopts_own_settings_beat_every_limit() -> None:
    one = {min(os.sched_getaffinity(0))}
    asked = "fastopt.set_num_threads(3); print(fastopt.get_num_threads(), team())"
    assert printed(asked, one, OMP_NUM_THREADS="1") == "3 2"
    shown = "print(fastopt.get_num_threads(), team())"
    assert printed(shown, one, OMP_NUM_THREADS="1", FASTOPT_NUM_THREADS="4") == "4 3"
    back = "fastopt.set_num_threads(3); fastopt.set_num_threads(None); print(fastopt.get_num_threads())"
    assert printed(back, one) == "1"


@needs_openmp
@needs_two_cpus
def test_threadpoolctl_is_obeyed() -> None:
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
print(*found)
"""
    assert printed(code) == "1 0 True 1 0 True 3 2"


@needs_openmp
@needs_two_cpus
def test_the_default_tries_no_threads_beside_a_busy_process() -> None:
    code = """
import subprocess, sys, time
from fastopt.choice import crowded
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() - 1)]
time.sleep(0.5)
seen = all(crowded(2) for _ in range(20))
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
