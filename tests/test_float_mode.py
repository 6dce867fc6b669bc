"""The floating-point mode of the caller holds for all threads of a step, and for nothing else.

What a program sets for its own thread, as `torch.set_flush_denormal(True)` does or C's `fesetround`, decides about
the bits of its steps, on however many threads they run; threads that were made meanwhile do not keep it.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import table
from own_process import own_process

import fastopt

SIZE = 200_000  # enough for three threads
MACHINE = platform.machine()
ROUNDING = {
    "x86_64": {"down": 0x400, "up": 0x800, "towards zero": 0xC00},
    "aarch64": {"up": 0x400000, "down": 0x800000, "towards zero": 0xC00000},
}.get(MACHINE, {})
FLUSHING = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}.get(MACHINE)
"""Where in C's fenv_t the register lies that has the bits for flushing, and those."""

needs_flushing = pytest.mark.skipif(FLUSHING is None, reason="no mode of this processor is known here")


@contextmanager
def rounding(way: str) -> Iterator[None]:
    libm = ctypes.CDLL("libm.so.6")
    before = libm.fegetround()
    assert libm.fesetround(ROUNDING[way]) == 0
    try:
        yield
    finally:
        libm.fesetround(before)


@contextmanager
def flushing() -> Iterator[None]:
    """As another library does it: numbers below the normal ones are zeros, for this thread."""
    libm = ctypes.CDLL("libm.so.6")
    before, changed = ctypes.create_string_buffer(256), ctypes.create_string_buffer(256)
    assert FLUSHING
    at, bits = FLUSHING
    assert libm.fegetenv(before) == 0
    register = int.from_bytes(before.raw[at : at + 4], "little") | bits
    changed[:] = before.raw[:at] + register.to_bytes(4, "little") + before.raw[at + 4 :]
    assert libm.fesetenv(changed) == 0
    try:
        yield
    finally:
        libm.fesetenv(before)


def inputs(tiny: bool) -> tuple[np.ndarray, np.ndarray]:
    """A parameter and its gradient; tiny ones are subnormal."""
    param, grad = (table.plain_values(SIZE, "float32", seed) for seed in (0, 1))
    return (param * np.float32(1e-39), grad * np.float32(1e-39)) if tiny else (param, grad)


def trained(isa: str, threads: int, tiny: bool = False) -> bytes:
    """The bits of a parameter and its states after three steps."""
    fastopt.set_isa(isa)
    fastopt.set_num_threads(threads)
    param, grad = INPUTS[tiny]
    params = [param.copy()]
    # 0.3 is rounded in every mode; nothing here but products and sums, which keep subnormal numbers small
    optimizer = fastopt.SGD(params, lr=0.3, momentum=0.9) if tiny else fastopt.Adam(params, lr=0.3)
    for _ in range(3):
        optimizer.step([grad])
    return b"".join([params[0].tobytes(), *(x.tobytes() for x in optimizer.state[0].values() if np.ndim(x))])


INPUTS = {tiny: inputs(tiny) for tiny in (False, True)}


@pytest.mark.skipif(not ROUNDING, reason="no mode of this processor is known here")
@own_process
def test_the_callers_rounding_holds_on_every_thread() -> None:
    nearest = trained("baseline", 1)
    found = {nearest}
    for way in ROUNDING:
        with rounding(way):
            serial = trained("baseline", 1)
            for isa in table.NATIVE_ISAS:
                for threads in 1, 2, 3:
                    assert trained(isa, threads) == serial, f"{way}: {isa}, {threads} threads"
            assert trained("numpy", 1) == serial, f"{way}: the twin"
        assert serial not in found, f"{way}: rounded like another mode"
        found.add(serial)
        for threads in 1, 2, 3:
            assert trained("baseline", threads) == nearest, f"after {way}, {threads} threads"


@needs_flushing
@own_process
def test_the_callers_flushing_holds_on_every_thread() -> None:
    kept = trained("baseline", 1, tiny=True)
    with flushing():
        flushed = trained("baseline", 1, tiny=True)
        for isa in table.NATIVE_ISAS:
            for threads in 1, 2, 3:
                assert trained(isa, threads, tiny=True) == flushed, f"{isa}, {threads} threads"
    assert flushed != kept
    for isa in table.NATIVE_ISAS:
        for threads in 1, 2, 3:
            assert trained(isa, threads, tiny=True) == kept, f"afterwards: {isa}, {threads} threads"


@needs_flushing
@pytest.mark.parametrize("begun", ["flushing", "rounding"])
@own_process
def test_threads_do_not_keep_the_mode_in_which_they_began(begun: str) -> None:
    """The first step on several threads makes them, here while the caller computes in another mode."""
    with flushing() if begun == "flushing" else rounding("up"):
        trained("baseline", 3, tiny=True)
    for tiny in False, True:
        serial = trained("baseline", 1, tiny)
        for threads in 2, 3:
            assert trained("baseline", threads, tiny) == serial, f"{threads} threads"


@needs_flushing
@own_process
def test_flush_denormal_and_the_callers_mode_go_together() -> None:
    """fastopt's own setting flushes; the caller's rounding holds beside it."""
    for way in ROUNDING:
        with rounding(way):
            fastopt.set_flush_denormal(True)
            flushed = {trained("baseline", threads, tiny=True) for threads in (1, 2, 3)}
            fastopt.set_flush_denormal(False)
            kept = {trained("baseline", threads, tiny=True) for threads in (1, 2, 3)}
        assert len(flushed) == len(kept) == 1, way
        assert flushed != kept, way
