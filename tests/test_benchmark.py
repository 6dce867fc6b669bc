"""The parts of ``python -m fastopt bench``: cases, verification, loops made of the NumPy twin, the run itself."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import table

import fastopt
from fastopt.benchmark import candidates, internals, report, tape, timing
from fastopt.benchmark.candidates import CANDIDATES, Candidate, Unavailable, numpy_step
from fastopt.benchmark.cases import PERIOD, Case, fill
from fastopt.benchmark.internals import Array
from fastopt.benchmark.timing import Timing, measure, measure_case
from fastopt.benchmark.verify import verified

SHAPES = [(3, 5), (), (PERIOD + 7,), (0,), (11,)]


def case(variant: table.Variant, dtype: str = "float32", shapes: Any = SHAPES) -> Case:
    return Case(variant.cls, variant.options, "", shapes, dtype)


ADAM = table.base(fastopt.Adam)
IN_ONE_DTYPE = [v for v in table.VARIANTS if v.hyper["state_dtype"] is None and not table.adds_up_all(v.cls)]
"""The variants whose states have the dtype of the parameters, as in other libraries, and whose parameters do not depend
on each other."""


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
    # what is updated row by row has its own tests; here the twin takes a whole array
    one = case(variant, dtype, [(70,), ()] if variant.cls in table.BY_ROWS else [(3, 5), (), (70,)])
    for name in ("NumPy", "NumPy out=", "fastopt"):
        if name == "NumPy out=" and internals.needs_factors(variant.cls, variant.hyper):
            with pytest.raises(Unavailable, match="of a whole tensor"):
                verified(CANDIDATES[name], one, one.arrays(), one.arrays())
        else:
            verified(CANDIDATES[name], one, one.arrays(), one.arrays())


def without_first_step(one: Case, params: list[Array], grads: list[Array]) -> Callable[[], None]:
    """A wrong candidate: it leaves out its first step."""
    step, calls = numpy_step(one, params, grads), iter(range(9))
    return lambda: next(calls) and step()


def off_by_one_unit(one: Case, params: list[Array], grads: list[Array]) -> Callable[[], None]:
    """A wrong candidate: one element is off by one unit in the last place."""
    step = numpy_step(one, params, grads)

    def wrong() -> None:
        step()
        params[-1][-1] = np.nextafter(params[-1][-1], 9)

    return wrong


@pytest.mark.parametrize("exact", [True, False])
def test_a_wrong_candidate_is_found(exact: bool) -> None:
    one = case(ADAM)
    with pytest.raises(AssertionError):
        verified(Candidate(without_first_step, exact=exact), one, one.arrays(), one.arrays())


def test_a_library_with_other_results_is_not_timed() -> None:
    one = case(ADAM)
    right = Candidate(numpy_step, exact=True)
    timings, reasons = measure_case(one, {"wrong": Candidate(without_first_step), "NumPy": right}, 0.0)
    assert {name for name, _ in timings} == {"NumPy"}
    assert "further than 1e-05" in reasons["wrong"]
    with pytest.raises(AssertionError):
        measure_case(one, {"wrong": Candidate(without_first_step, exact=True), "NumPy": right}, 0.0)


def test_exact_is_exact() -> None:
    one = case(ADAM)
    verified(Candidate(off_by_one_unit), one, one.arrays(), one.arrays())
    with pytest.raises(AssertionError):
        verified(Candidate(off_by_one_unit, exact=True), one, one.arrays(), one.arrays())


@pytest.mark.parametrize(
    "variant", [v for v in IN_ONE_DTYPE if not internals.needs_factors(v.cls, v.hyper)], ids=str
)
def test_the_twin_as_a_loop(variant: table.Variant) -> None:
    """The loop that numba compiles has the twin's bits when Python runs it, but for NumPy's own cube root."""
    one = case(variant, shapes=[(9,)])
    params, grads = one.arrays(), one.arrays()
    fill(params, 0)
    fill(grads, 1)
    [arrays] = one.with_states(params, grads)
    scalars = [np.array(value, one.dtype) for value in one.coefficients()(1)]

    def twin(arrays: Any, scalars: Any) -> None:
        internals.twin_update(one.cls, one.hyper, arrays, scalars)

    present = [a for a in arrays if a is not None]
    scope: dict[str, Any] = {"np": np, "prange": range}
    exec(tape.as_loop(tape.trace(twin, arrays, scalars), present, scalars), scope)
    expected = [None if a is None else a.copy() for a in arrays]
    twin(expected, scalars)
    scope["step"](*present, *(s[()] for s in scalars))
    for array, right in zip(present, (a for a in expected if a is not None), strict=True):
        if "cbrt(" in inspect.getsource(one.cls.algorithm.twin):
            np.testing.assert_allclose(array, right, rtol=1e3 * np.finfo(one.dtype).eps)
        else:
            assert array.tobytes() == right.tobytes()


def test_all_take_turns() -> None:
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    timings = measure(steps, lambda name: calls.append(f"prepare {name}"), 0.0, turn=1e-5, rounds=4)
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
        candidates.library("no_such_library.part")


def test_the_whole_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"1 x 1,000": [(1000,)], "1 x 2^20": [(2000,)], "too large": [(2**25,)]}
    monkeypatch.setattr(report, "WORKLOADS", sizes)
    library = candidates.library

    def library_but(name: str) -> Any:
        if name in ("numba", "torch"):  # to compile takes long
            raise Unavailable(f"{name} is away")
        return library(name)

    monkeypatch.setattr(candidates, "library", library_but)
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    report.main(seconds=0.0)
    out = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {len(rows[0])}
    names = [row[0] for row in rows]
    assert {"1 x 1,000", "1 x 2^20"} <= set(names)
    assert "too large" not in names
    assert {cls.__name__ for cls in table.OPTIMIZERS if not table.adds_up_all(cls)} <= set(names)
    assert "fastopt, 1 thread" in rows[0]
    assert "±" in rows[2][-1]
    reasons = "numba is away; torch is away; optimizers with numbers of a whole tensor are not written as one loop"
    assert out.endswith(f"Not measured: {reasons}.\n")


def test_commands() -> None:
    code = "import sys, fastopt; print('fastopt.benchmark' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"], "import fastopt does not import the benchmark"
    done = subprocess.run([sys.executable, "-m", "fastopt", "bank"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "[bench]" in done.stderr
