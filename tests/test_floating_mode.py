"""The floating-point mode: every thread of a step computes in the caller's, and has its own again afterwards."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import table
from own_process import own_process

import fastopt

LIBM = ctypes.CDLL("libm.so.6" if sys.platform == "linux" else None)
SIZE = 200_000
ROOT = Path(__file__).parent.parent

ENVIRONMENT = 32  # bytes of x86-64's fenv_t, of which the last four are MXCSR; aarch64's begins with FPCR
FLUSH = {"x86_64": 0x8040, "aarch64": 1 << 24}.get(platform.machine(), 0)
STATUS = 0x3F if platform.machine() == "x86_64" else 0
PLACE = 28 if platform.machine() == "x86_64" else 0

pytestmark = pytest.mark.skipif(not FLUSH or sys.platform != "linux", reason="a mode that this test does not know")


def get_mode() -> int:
    environment = ctypes.create_string_buffer(ENVIRONMENT)
    assert LIBM.fegetenv(environment) == 0
    return int.from_bytes(environment.raw[PLACE : PLACE + 4], "little") & ~STATUS


def set_mode(mode: int) -> None:
    environment = ctypes.create_string_buffer(ENVIRONMENT)
    assert LIBM.fegetenv(environment) == 0
    environment[PLACE : PLACE + 4] = mode.to_bytes(4, "little")
    assert LIBM.fesetenv(environment) == 0


def rounding(number: int) -> int:
    """The mode with one of four directions of rounding."""
    shift = 13 if platform.machine() == "x86_64" else 22
    return get_mode() & ~(3 << shift) | number << shift


MODES: dict[str, Callable[[], int]] = {
    "as ever": get_mode,
    "flush": lambda: get_mode() | FLUSH,
    "downwards": lambda: rounding(1),
    "upwards": lambda: rounding(2),
    "to zero": lambda: rounding(3),
    "to zero and flush": lambda: rounding(3) | FLUSH,
}


@contextmanager
def mode(name: str) -> Iterator[int]:
    before = get_mode()
    wanted = MODES[name]()
    set_mode(wanted)
    try:
        yield wanted
    finally:
        set_mode(before)


def trained(threads: int, transposed: bool = False) -> bytes:
    """Numbers of which some are, or become, subnormal."""
    fastopt.set_num_threads(threads)
    shape = (SIZE // 500, 500)
    params = [np.linspace(-1e-38, 1e-38, SIZE, dtype=np.float32).reshape(shape)]
    grads = [np.linspace(1e-38, -2e-38, SIZE, dtype=np.float32).reshape(shape)]
    if transposed:
        grads = [np.asfortranarray(g) for g in grads]
    optimizer = fastopt.Adam(params, lr=1e-38, weight_decay=0.3)
    for _ in range(3):
        optimizer.step(grads)
    return params[0].tobytes() + optimizer.state[0]["exp_avg"].tobytes()


TEAM = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def modes_of_the_team(threads: int) -> Sequence[int]:
    """The modes of the threads that OpenMP keeps, as another library finds them."""
    found: list[tuple[int, int]] = []
    done = threading.Barrier(threads)

    @TEAM
    def work(_: Any) -> None:
        found.append((threading.get_ident(), get_mode()))
        done.wait(10)

    ctypes.CDLL("libgomp.so.1").GOMP_parallel(work, None, threads, 0)
    assert len({thread for thread, _ in found}) == threads
    return [mode for _, mode in found]


@pytest.mark.parametrize("name", MODES)
@own_process
def test_all_threads_compute_in_the_callers_mode(name: str) -> None:
    plain = get_mode()
    usual = trained(1)
    with mode(name) as wanted:
        serial = trained(1)
        for threads in 1, 2, 3:
            for transposed in False, True:
                assert trained(threads, transposed) == serial
                assert get_mode() == wanted
    assert (serial == usual) == (name == "as ever")
    for threads in 3, 2, 1:
        assert get_mode() == plain
        assert trained(threads) == usual


@pytest.mark.skipif(not table.OPENMP, reason="built without OpenMP")
@own_process
def test_threads_have_their_own_mode_again() -> None:
    plain = get_mode()
    assert modes_of_the_team(3) == [plain] * 3
    for name in MODES:
        with mode(name):
            trained(3)
        assert modes_of_the_team(3) == [plain] * 3
    fastopt.set_flush_denormal(True)
    trained(3)
    assert modes_of_the_team(3) == [plain] * 3
    trained(4)  # makes a thread, which has the caller's own mode from then on
    assert modes_of_the_team(4) == [plain] * 4


@own_process
def test_a_team_that_began_while_flushing_does_not_flush_for_ever() -> None:
    usual = trained(1)
    with mode("flush"):
        assert trained(3) != usual
    for threads in 3, 2, 1:
        assert trained(threads) == usual
    fastopt.set_flush_denormal(True)
    flushed = trained(1)
    assert flushed == trained(3) != usual
    fastopt.set_flush_denormal(False)
    assert trained(3) == usual


@own_process
def test_callers_in_different_modes() -> None:
    """Each thread's steps are computed in its own mode, at the same time."""
    expected = {}
    for name in MODES:
        with mode(name):
            expected[name] = trained(1)
    found: dict[str, set[bytes]] = {name: set() for name in MODES}

    def work(name: str) -> None:
        with mode(name):
            for _ in range(10):
                found[name].add(trained(2))

    threads = [threading.Thread(target=work, args=[name]) for name in MODES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: {bits} for name, bits in expected.items()}


# -- Fast-math from the environment ------------------------------------------------------------------


@table.nightly
@pytest.mark.parametrize("flags", ["-Ofast -march=native", "-ffast-math", "-O2 -funsafe-math-optimizations -mfma"])
def test_fast_math_from_the_environment(flags: str, tmp_path: Path) -> None:
    """A build with such flags has the same digests, and leaves the process's mode alone when it is loaded."""
    build = tmp_path / "source"
    shutil.copytree(ROOT, build, ignore=shutil.ignore_patterns("*.so", "build", ".git", "fastopt/*.c", ".venv"))
    environment = os.environ | {"CFLAGS": flags, "LDFLAGS": flags, "PYTHONPATH": str(build)}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=build, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert (build / f"fastopt/_kernels{suffix}").exists()
    code = (
        "import sys; sys.path.insert(0, 'tests'); import numpy, ctypes, platform\n"
        "libm = ctypes.CDLL('libm.so.6')\n"
        "def look():\n"
        "    found = ctypes.create_string_buffer(32)\n"
        "    libm.fegetenv(found)\n"
        f"    return int.from_bytes(found.raw[{PLACE}:{PLACE + 4}], 'little') & ~{STATUS}\n"
        "before = look()\n"
        "import fastopt\n"
        f"assert fastopt.__file__.startswith({str(build)!r})\n"
        "assert look() == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=build, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    tests = [sys.executable, "-m", "pytest", "-q", "tests/test_digest.py"]
    done = subprocess.run(tests, cwd=build, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
