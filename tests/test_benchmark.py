"""The parts of ``python -m fastopt bench``: cases, checks, loops made of the NumPy twin, and the run itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import table

import fastopt
from fastopt import benchmark, tape
from fastopt.benchmark import PERIOD, Candidate, Case, Timing, Unavailable, checked, fill, measure
from fastopt.optimizer import Array

SHAPES = [(3, 5), (), (PERIOD + 7,), (0,), (11,)]


def case(variant: table.Variant, dtype: str = "float32", shapes: Any = SHAPES) -> Case:
    return Case(variant.cls, variant.options, "", shapes, dtype)


ADAM = table.base(fastopt.Adam)
IN_ONE_DTYPE = [v for v in table.VARIANTS if v.hyper["state_dtype"] is None]
"""What other libraries compute too."""


def test_numbers_go_on_from_array_to_array() -> None:
    arrays, whole = case(ADAM).arrays(), np.empty(sum(int(np.prod(s)) for s in SHAPES), np.float32)
    fill(arrays, 1)
    fill([whole], 1)
    np.testing.assert_array_equal(np.concatenate([a.ravel() for a in arrays]), whole)
    assert np.abs(whole).min() > np.finfo("float32").tiny
    assert not np.array_equal(whole[:100], whole[100:200])


def test_arrays_lie_at_16_bytes_and_no_more() -> None:
    assert {a.ctypes.data % 64 for a in case(ADAM).arrays() if a.size} == {16}


@pytest.mark.parametrize("dtype", table.DTYPES)
@pytest.mark.parametrize("variant", IN_ONE_DTYPE, ids=str)
def test_candidates_without_libraries(variant: table.Variant, dtype: str) -> None:
    one = case(variant, dtype, [(3, 5), (), (70,)])
    for name in ("NumPy", "NumPy out=", "fastopt"):
        checked(benchmark.CANDIDATES[name], one, one.arrays(), one.arrays())


def late(one: Case, params: list[Array], grads: list[Array]) -> Callable[[], None]:
    """Leaves out its first step."""
    step, calls = benchmark.numpy_step(one, params, grads), iter(range(9))
    return lambda: next(calls) and step()


def rounded(one: Case, params: list[Array], grads: list[Array]) -> Callable[[], None]:
    """Is wrong by one unit in the last place, in one element."""
    step = benchmark.numpy_step(one, params, grads)

    def wrong() -> None:
        step()
        params[-1][-1] = np.nextafter(params[-1][-1], 9)

    return wrong


@pytest.mark.parametrize("exact", [True, False])
def test_a_wrong_candidate_is_found(exact: bool) -> None:
    one = case(ADAM)
    with pytest.raises(AssertionError):
        checked(Candidate(late, exact=exact), one, one.arrays(), one.arrays())


def test_exact_is_exact() -> None:
    one = case(ADAM)
    checked(Candidate(rounded), one, one.arrays(), one.arrays())
    with pytest.raises(AssertionError):
        checked(Candidate(rounded, exact=True), one, one.arrays(), one.arrays())


@pytest.mark.parametrize("variant", IN_ONE_DTYPE, ids=str)
def test_the_twin_as_a_loop(variant: table.Variant) -> None:
    """What numba compiles, run by Python: the twin's bits."""
    one = case(variant, shapes=[(9,)])
    params, grads = one.arrays(), one.arrays()
    fill(params, 0)
    fill(grads, 1)
    [arrays] = benchmark.with_states(one, params, grads)
    scalars = [np.array(value, one.dtype) for value in one.coefficients()(1)]

    def twin(arrays: Any, scalars: Any) -> None:
        benchmark.update(one.cls.kernel, arrays, scalars)

    present = [a for a in arrays if a is not None]
    scope: dict[str, Any] = {"np": np, "prange": range}
    exec(tape.as_loop(tape.trace(twin, arrays, scalars), present, scalars), scope)
    expected = [None if a is None else a.copy() for a in arrays]
    twin(expected, scalars)
    scope["step"](*present, *(s[()] for s in scalars))
    for array, right in zip(present, (a for a in expected if a is not None), strict=True):
        assert array.tobytes() == right.tobytes()


def test_all_take_turns() -> None:
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    timings = measure(steps, lambda name: calls.append(f"prepare {name}"), 0.0, block=1e-5, rounds=4)
    turns = [c for c, before in zip(calls, ["", *calls], strict=False) if c != before]
    assert calls.count("prepare a") == calls.count("prepare b") == 5, "once before, then in every round"
    assert all(turns[k + 1] == turn[-1] for k, turn in enumerate(turns) if turn.startswith("prepare"))
    assert all(0 < t.median < 1e-3 for t in timings.values())


def test_timing_as_text() -> None:
    assert [str(Timing(s, s / 10)) for s in (1.234e-6, 1.234e-5, 1.234)] == [
        "1.23 ±10%",
        "12.3 ±10%",
        "1,234,000 ±10%",
    ]


def test_a_missing_library_has_a_reason() -> None:
    with pytest.raises(Unavailable, match="no_such_library is not installed"):
        benchmark.library("no_such_library.part")


def test_the_whole_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"1 x 1,000": [(1000,)], "1 x 2^20": [(2000,)], "too large": [(2**25,)]}
    monkeypatch.setattr(benchmark, "WORKLOADS", sizes)
    library = benchmark.library

    def library_but(name: str) -> Any:
        if name in ("numba", "torch"):  # to compile takes long
            raise Unavailable(f"{name} is away")
        return library(name)

    monkeypatch.setattr(benchmark, "library", library_but)
    benchmark.main(seconds=0.0)
    out = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {len(rows[0])}
    names = [row[0] for row in rows]
    assert {"1 x 1,000", "1 x 2^20"} <= set(names)
    assert "too large" not in names
    assert {cls.__name__ for cls in table.OPTIMIZERS} <= set(names)
    assert "fastopt, 1 thread" in rows[0]
    assert "±" in rows[2][-1]
    assert out.endswith("Not measured: numba is away; torch is away.\n")


def test_commands() -> None:
    code = "import sys, fastopt; print('fastopt.benchmark' in sys.modules, 'fastopt.tape' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"], "an import brings no benchmark"
    done = subprocess.run([sys.executable, "-m", "fastopt", "bank"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "[bench]" in done.stderr
