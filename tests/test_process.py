"""No trace in the process: forks, other threads, and what an import does. Each case has a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
import multiprocessing, os, sys, threading
import numpy as np
import fastopt

def trained(size, steps=3, count=2):
    params = [np.ones(size, np.float32) for _ in range(count)]
    optimizer = fastopt.Adam(params, lr=0.1)
    for step in range(steps):
        optimizer.step([np.full(size, 0.5 + step, np.float32) for _ in params])
    return b"".join(p.tobytes() for p in params)

def threads():
    return len(os.listdir("/proc/self/task"))

def child_finishes(work):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

SMALL, LARGE = 100, 200_000
"""

CASES = {
    "import starts no thread": """
code = "import os, numpy; n = len(os.listdir('/proc/self/task')); import fastopt; " \\
       "assert len(os.listdir('/proc/self/task')) == n"
assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
""",
    "a small step starts no thread": """
fastopt.set_num_threads(4)
before = threads()
trained(SMALL)
assert threads() == before
""",
    "a large step uses as many threads as asked for": """
before = threads()
fastopt.set_num_threads(3)
trained(LARGE)
assert threads() == before + (2 if fastopt._kernels.OPENMP else 0)
""",
    "a child steps after its parent did": """
fastopt.set_num_threads(2)
large, small = trained(LARGE), trained(SMALL)
work = lambda: trained(LARGE) == large and trained(SMALL) == small
assert child_finishes(work)
assert child_finishes(lambda: child_finishes(work))
assert work()
""",
    "a child forked from a thread steps": """
fastopt.set_num_threads(2)
large = trained(LARGE)
ends = []
thread = threading.Thread(target=lambda: ends.append(child_finishes(lambda: trained(LARGE) == large)))
thread.start(); thread.join()
assert ends == [True]
""",
    "a fork pool steps": """
fastopt.set_num_threads(2)
large = trained(LARGE)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(trained, [LARGE] * 4) == [large] * 4
""",
    "threads with an optimizer each have the serial bits": """
fastopt.set_num_threads(2)
serial = trained(LARGE, 30)
found = {}
def work(k): found[k] = trained(LARGE, 30)
workers = [threading.Thread(target=work, args=(k,)) for k in range(3)]
for w in workers: w.start()
for w in workers: w.join()
assert list(found.values()) == [serial] * 3
""",
    "threads with one optimizer take turns or are refused": """
params = [np.ones(LARGE, np.float32)]
grads = [np.ones(LARGE, np.float32)]
optimizer = fastopt.SGD(params, lr=1.0)
refused = []
def work():
    for _ in range(200):
        try:
            optimizer.step(grads)
        except RuntimeError as error:
            assert "inside another call: in another thread" in str(error)
            refused.append(1)
workers = [threading.Thread(target=work) for _ in range(3)]
for w in workers: w.start()
for w in workers: w.join()
assert optimizer.state[0]["step"] == 600 - len(refused)
assert (params[0] == 1 - (600 - len(refused))).all()
""",
    "steps leave the floating-point mode alone": """
def subnormal(): return np.finfo(np.float32).smallest_subnormal, np.float32(1e-40) * np.float32(0.5)
before = subnormal()
fastopt.set_num_threads(2)
trained(LARGE)
assert subnormal() == before and before[1] != 0
""",
}


@pytest.mark.parametrize("case", CASES)
def test_process(case: str) -> None:
    code = PRELUDE + CASES[case]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
