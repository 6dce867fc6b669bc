"""The parts of the benchmarks, and the page and pictures that are made of their results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from timeit import repeat
from typing import Any

import calls
import numpy as np
import pytest
from cases import FLAT, MANY, WORKLOADS, adam, all_kernels, all_variants, case, kernel_of
from formats import ENDS, OTHERS, SHOWN, format_step
from instructions import compared
from iteration import BATCH, batch, embedding_gradients, embedding_params, texts
from limits import BANDWIDTH, DIVISION, bandwidth_step, count_divisions, division_step
from page import MARKS, page
from peers import OPTAX, as_expressions, make_optimizer
from pictures import apart, draw
from report import as_json, disturbed, step_cases
from results import PEERS, REPEAT, Results
from targets import TARGETS, Target
from whole_step import NORM, PLAIN, SIZES, TORCH, WHOLE, checked_steps

import fastopt
from fastopt.benchmark import internals
from fastopt.benchmark.candidates import Unavailable
from fastopt.benchmark.cases import Case, fill
from fastopt.benchmark.internals import CPUS
from fastopt.benchmark.tape import trace


@pytest.mark.parametrize(
    ("workload", "arrays", "elements"),
    [
        ("MLP 784-200-10", 4, 159_010),
        ("ResNet-50", 161, 25_557_032),
        ("GPT-2 small", 148, 124_439_808),
        (MANY, 1000, 64_000),
        (FLAT, 1, 64_000),
    ],
)
def test_shapes(workload: str, arrays: int, elements: int) -> None:
    shapes = WORKLOADS[workload]
    assert len(shapes) == arrays
    assert sum(map(prod, shapes)) == elements


def test_every_kernel_is_measured() -> None:
    measured = {(internals.formula_of(c.cls), internals.subset_of(c.cls, c.hyper)) for c in step_cases(full=False)}
    assert measured == {kernel_of(variant) for variant in all_kernels()}
    assert len(step_cases(full=True)) == 2 * len(WORKLOADS) + 3 * (len(all_variants()) - 1)


def test_every_way_of_a_call_computes_the_same() -> None:
    for ways in (calls.ways_of(3, 5), calls.ways_of_groups(3, 5)):
        assert calls.steps_of(ways).keys() == ways.keys()
    for cls in internals.OPTIMIZERS:
        calls.steps_of(calls.ways_of_function(cls, 5))
    wrong = calls.ways_of(3, 5)
    wrong[calls.LISTED][1][0][0] += 1
    with pytest.raises(AssertionError):
        calls.steps_of(wrong)


# -- Candidates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant", [v for v in all_variants() if not internals.needs_factors(v.cls, v.hyper)], ids=str
)
def test_the_twin_as_expressions(variant: Any) -> None:
    """The expressions for numexpr have the twin's bits when Python evaluates them."""
    one = Case(variant.cls, variant.options, "", [(9,)], "float32")
    params, grads = one.arrays(), one.arrays()
    fill(params, 0)
    fill(grads, 1)
    [arrays] = one.with_states(params, grads)
    scalars = [np.array(value, one.dtype) for value in one.coefficients()(1)]

    def twin(arrays: Any, scalars: Any) -> None:
        internals.twin_update(one.cls, one.hyper, arrays, scalars)

    present = [a for a in arrays if a is not None]
    lines = as_expressions(trace(twin, arrays, scalars), present, scalars)
    targets = [target for target, _ in lines]
    if variant.cls is not fastopt.Rprop:  # whose step is read between two changes
        assert len(set(targets)) == len(targets), "every array is written once"
    scope: dict[str, Any] = dict(vars(np))
    scope |= {f"s{k}": s[()] for k, s in enumerate(scalars)} | {f"a{k}": a.copy() for k, a in enumerate(present)}
    for target, expression in lines:
        scope[target] = eval(expression, scope)
    twin(arrays, scalars)
    for k, right in enumerate(present):
        if any(ufunc.__name__ == "cbrt" for ufunc, *_ in trace(twin, arrays, scalars)):  # numexpr has NumPy's own
            np.testing.assert_allclose(scope[f"a{k}"], right, rtol=1e3 * np.finfo(one.dtype).eps)
        else:
            assert scope[f"a{k}"].tobytes() == right.tobytes()


def test_an_option_that_a_library_lacks() -> None:
    class Any_:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: name

    variants = {str(v): v for v in all_variants()}
    adam, amsgrad = (case(variants[name], "1 x 64") for name in ("Adam()", "Adam(amsgrad=True)"))
    assert make_optimizer("optax", OPTAX, adam, Any_()) == (adam, "adam")
    with pytest.raises(Unavailable, match="optax has no Adam amsgrad"):
        make_optimizer("optax", OPTAX, amsgrad, Any_())
    with pytest.raises(Unavailable, match="optax has no NAG"):
        make_optimizer("optax", OPTAX, case(variants["NAG()"], "1 x 64"), Any_())
    form, _ = make_optimizer("optax", OPTAX, case(variants["Adagrad()"], "1 x 64"), Any_())
    assert form.hyper["eps"] == 0
    assert form.hyper["eps_root"] == 1e-10


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("variant", [v for v in all_kernels() if v.cls in (fastopt.SGD, fastopt.Adam)], ids=str)
def test_the_bandwidth_loop_touches_every_element(
    variant: Any, threads: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every array but the gradient has 2 = 1 + 1 in each element, and 1 beyond its end."""
    seen: list[np.ndarray] = []
    ones = np.ones
    monkeypatch.setattr(np, "ones", lambda *a: seen.append(ones(*a)) or seen[-1])
    one = Case(variant.cls, variant.options, "", [(1001,)], dtype)
    step = bandwidth_step(one, [], [])
    fastopt.set_num_threads(threads)
    step()
    fastopt.set_num_threads(None)
    gradient, *written = seen
    assert len(written) == 1 + one.state_count
    assert (gradient == 1).all()
    assert [np.count_nonzero(array == 2) for array in written] == [1001] * len(written)


def test_the_divisions_of_a_formula_are_counted() -> None:
    counted = {one.label: count_divisions(one) for one in step_cases(full=False)}
    assert counted["SGD momentum"] == (0, 0)
    assert counted["Adadelta"] == counted["Adam"] == counted["RMSprop momentum centered"] == (1, 1)
    assert {"Lion", "NAG", "SGD", "Signum"} <= {name for name, of in counted.items() if of == (0, 0)}


def test_the_division_loop_takes_time_for_each_element() -> None:
    """Three thousand times the work takes longer, however busy the machine is."""
    adam = next(v for v in all_kernels() if v.cls is fastopt.Adam)
    fastopt.set_num_threads(1)
    times = []
    for size in (2**11, 2**11 * 3000):
        step = division_step(Case(adam.cls, {}, "", [(size,)], "float32"), [], [])
        times.append(min(repeat(step, number=1, repeat=5)))
    fastopt.set_num_threads(None)
    assert times[1] > 30 * times[0]


def test_gradients_of_the_embedding() -> None:
    """They predict how the loss changes along a direction: central differences, in float64."""
    labels, words = batch()[1], texts()
    params = {name: p.astype("float64") for name, p in embedding_params().items()}

    def loss(by: float) -> float:
        moved = {name: p + by * along[name] for name, p in params.items()}
        odds = moved["words"][words].mean(axis=1) @ moved["w1"] + moved["b1"]
        return float((np.log(np.exp(odds).sum(axis=1)) - odds[np.arange(BATCH), labels]).mean())

    rng = np.random.default_rng(3)
    along = {name: rng.standard_normal(p.shape) for name, p in params.items()}
    grads = embedding_gradients(params, words, labels)
    slopes = {name: float((g * along[name]).sum()) for name, g in grads.items()}
    assert min(map(abs, slopes.values())) > 1e-4, "the sum depends on each of them"
    assert sum(slopes.values()) == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("size", [7, 1000, 2 * ENDS + 3])
@pytest.mark.parametrize("format", SHOWN.values())
def test_steps_of_formats_are_checked(format: str, size: int) -> None:
    format_step(format, size)()


def test_a_format_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    step = fastopt.Adam.step

    def only_the_twin_steps(optimizer: fastopt.Adam, grads: Any) -> None:
        if fastopt.get_isa() == "numpy":
            step(optimizer, grads)

    monkeypatch.setattr(fastopt.Adam, "step", only_the_twin_steps)
    with pytest.raises(AssertionError, match="not the bits"):
        format_step("float32_float32_bfloat16", 100)


# -- Instructions ----------------------------------------------------------------------------------


def test_only_growth_fails() -> None:
    stored = {"grew": 1000, "grew a little": 1000, "fell": 1000, "gone": 1}
    grown, other = compared({"grew": 1031, "grew a little": 1029, "fell": 900, "new": 5}, stored)
    assert grown == ["grew: 1,031, stored 1,000 (+3.1%)"]
    assert [line.split(":")[0] for line in other] == ["fell", "new", "gone"]


# -- The page --------------------------------------------------------------------------------------


def results(**changes: float) -> Results:
    """A full run: fastopt takes 1 unit of time, the memory-bandwidth limit 0.97, others 50 times their change."""
    rows: dict[str, Any] = {}
    for one in step_cases(full=True):
        unit = one.bytes_moved * 1e-11
        times = [[name, count, 50 * unit, unit] for name in PEERS for count in {1, CPUS}]
        names = {"fastopt": 1.0, "fastopt bound": 0.4, BANDWIDTH: 0.97, DIVISION: 0.5, REPEAT: 0.4}
        times += [[name, count, t * unit, 0.01 * unit] for name, t in names.items() for count in {1, CPUS}]
        times += [["fastopt", None, unit, 0.0]]
        for time in times:
            time[2] *= changes.get(time[0], 1.0)
        row = {"optimizer": one.label, "dtype": one.dtype, "workload": one.workload, "arrays": len(one.shapes)}
        row |= {"elements": one.elements, "bytes": one.bytes_moved, "times": times, "reasons": {"optax": "why"}}
        rows[f"{one.label} {one.dtype} {one.workload}"] = {"kind": "steps", "others": 0.1, **row}
    arms = {"NumPy": 3.0, "1 thread": 2.0, "default": 2.0 * changes.get("default", 1.0)}
    model = {"model": "NumPy, 784-512-512-10", "times": {arm: [t, 0.1] for arm, t in arms.items()}, "threads": 1}
    rows["iteration"] = {"kind": "iterations", "steps": dict.fromkeys(arms, 0.2), **model}
    isa = {"optimizer": "Adam", "dtype": "float32", "size": "2^20", "best": "avx512"}
    rows["isa"] = {"kind": "isas", "ratios": {"avx2": changes.get("isa", 1.0)}, **isa}
    stored = dict.fromkeys(SHOWN, 0.7) | {"float32": 1.0} | dict.fromkeys(OTHERS, 1.0)
    rows["formats"] = {
        **{"kind": "formats", "workload": "1 x 2^26", "bytes": dict.fromkeys(SHOWN, 20)},
        "times": [[name, 1, time * changes.get(name, 1.0), 0.01] for name, time in stored.items()],
    }
    rows |= {
        f"whole {workload}": {
            **{"kind": "whole", "workload": workload},
            "times": [
                [name, 1, time * changes.get(name, 1.0), 0.01]
                for name, time in {PLAIN: 1.0, NORM: 1.1, WHOLE: 1.3, TORCH: 100.0}.items()
            ],
        }
        for workload in SIZES
    }
    rows["away"] = {"kind": "steps", "unavailable": "a reason"}
    rows = {name: {"others": 0.0, "cores": CPUS} | row for name, row in rows.items()}
    return Results({"facts": {"CPU": "one"}, "began": "then", "cpus": CPUS, "full": True, "tasks": rows})


@pytest.mark.parametrize("workload", ["1,000 x 64", "MLP 784-200-10"])
def test_whole_steps_are_those_of_torch(workload: str) -> None:
    pytest.importorskip("torch")
    steps, arrays = checked_steps(case(adam(), workload))
    assert [len(arrays[name]) for name in steps] == [len(WORKLOADS[workload]) * k for k in (1, 1, 2, 2)]


def verdicts(results: Results) -> Mapping[str, str]:
    return {str(target): target.line(results)[-1] for target in TARGETS}


def test_targets_that_are_reached() -> None:
    reached = verdicts(results(**{"torch fused": 3.0}))
    assert len(reached) == len(TARGETS)
    assert set(reached.values()) == {"yes"}, reached


@pytest.mark.parametrize(
    ("change", "target"),
    [
        (
            {BANDWIDTH: 0.9},
            "one array of 2^24 elements or more: fastopt reaches {} of the speed that memory bandwidth allows",
        ),
        ({"torch fused": 0.01}, "Adam, 2^24 elements or more: torch fused takes {} as long as fastopt"),
        ({"DeepSpeed": 0.02}, "Adam, 1 x 2^20: DeepSpeed takes {} as long as fastopt"),
        ({"numba": 0.01}, "Adam, 1 x 2^20: numba takes {} as long as fastopt"),
        (
            {"fastopt bound": 5.0},
            "Adam, 1,000 x 64: fastopt with bound gradients takes {} as long as on one array of 64,000",
        ),
        (
            {"torch foreach": 0.05},
            "RMSprop and Adadelta, 1 x 2^20 and 1 x 2^24: torch's fastest form takes {} as long as fastopt",
        ),
        (
            {"default": 1.2},
            "training iteration, 784-512-512-10: an iteration with a hand-written NumPy step takes {} as long as "
            "one with fastopt",
        ),
        ({"default": 1.2}, "every optimizer: the default number of threads takes {} as long as one thread"),
        ({"isa": 1.1}, "kernels alone: the widest instruction set takes {} as long as a narrower one"),
        ({NORM: 1.2}, "Adam, 1 x 2^24: a step with a norm takes {} as long as one without"),
        (
            {TORCH: 0.01},
            "norm, Adam, average and zeros, ResNet-50: torch takes {} as long as fastopt with as many threads",
        ),
        ({"numba": 0.0195}, "Adam, 1 x 2^14 to 1 x 2^20: numba takes {} as long as fastopt with as many threads"),
        ({"bfloat16 state": 1.2}, "Adam, 1 x 2^26: a float32 state takes {} as long as a bfloat16 state"),
        ({"torch fused": 0.9}, "Adam, 1 x 2^26: torch fused takes {} as long as fastopt with a bfloat16 state"),
    ],
)
def test_targets_that_are_missed(change: dict[str, float], target: str) -> None:
    assert verdicts(results(**({"torch fused": 3.0} | change)))[target].startswith("**no**")


def test_the_worst_figure_counts() -> None:
    figures = [(1.0, "a"), (30.2, "b"), (None, "c")]
    missed = "**no**: 1 of 2 miss it, 1 by more than the noise"
    low = Target("x", "takes {}", 2.0, lambda _: figures).line(results())
    assert low == ["x", "takes 1.00 times (lowest of 2: a)", "at least 2.00 times", missed]
    high = Target("x", "takes {}", 2.0, lambda _: figures, at_least=False).line(results())
    assert high == ["x", "takes 30 times (highest of 2: b)", "at most 2.00 times", missed]
    share = Target("x", "reaches {}", 0.02, lambda _: figures[:1], at_least=False, unit="%").line(results())
    assert share == ["x", "reaches 100.0%", "at most 2.0%", "**no**"]
    none = Target("x", "takes {}", 2.0, lambda _: figures[2:]).line(results())
    assert none == ["x", "not measured", "at least 2.00 times", ""]


def test_page_and_pictures(tmp_path: Path) -> None:
    one = results(numba=0.01)
    pictures = draw(one, tmp_path)
    text = page(one, pictures)
    assert len(pictures) == 3
    for file in pictures.values():
        assert file.stat().st_size > 20_000
        assert f"]({file.name})" in text
    tables = [[line.count(" | ") for line in part.splitlines()] for part in text.split("\n\n") if part[:2] == "| "]
    assert all(len(set(columns)) == 1 for columns in tables), "a row has as many cells as its head"
    assert len(tables) == 5 + len(all_variants())
    assert f"* numba, in {len(one.rows)}: {one.rows[0]} (2.00)" in text
    assert "* optax: why\n" in text
    assert "No other library is faster" not in text
    assert "differs by 0.0% in the median row" in text


def test_rows_with_one_core_are_disturbed() -> None:
    row = {
        "kind": "steps",
        "others": 0.0,
        "cores": CPUS,
        "times": [["fastopt", 1, 1.0, 0.1], ["numba", 1, 1.0, 0.9]],
    }
    assert not disturbed(row, 0.2) and disturbed(row, 0.05)
    shared = row | {"cores": 0.5 * CPUS}
    assert disturbed(shared, 0.2)
    assert not disturbed(shared | {"kind": "isas"}, 0.2)
    one = results()
    one.data["tasks"]["away"] |= {"cores": 0.5 * CPUS}
    assert f"During 1 of {len(one.data['tasks'])} tasks all CPUs" in page(one, {})


def test_a_page_of_little() -> None:
    empty = Results({"facts": {}, "began": "then", "cpus": 2, "full": False, "tasks": {}})
    assert "| not measured |" in page(empty, draw(empty, Path()))


def test_the_readme_quotes_the_page() -> None:
    root = Path(__file__).parents[1]
    stored, readme = ((root / name).read_text() for name in ("docs/benchmark.md", "README.md"))
    summary = stored.partition("\n\n")[2].partition("\n\n")[0]
    assert summary.count("\n* ") >= 2
    assert summary in readme.partition(MARKS[0])[2].partition(MARKS[1])[0], "the README quotes another run"


def test_the_stored_page_is_worded_as_a_new_one() -> None:
    stored = (Path(__file__).parents[1] / "docs/benchmark.md").read_text()
    one = results()
    one.whole.clear()  # the stored run has none
    new = page(one, {})
    for name in [line for line in new.splitlines() if line.startswith(("# ", "## ", "* *", "| case"))]:
        assert name in stored, "write the page again, with bench/report.py --draw"
    table = stored.partition("\n## Targets\n")[2].partition("\n## ")[0].splitlines()
    rows = [row for row in table if row.startswith("| ")][2:]
    for row, target in zip(rows, TARGETS, strict=False):  # targets that are newer stand at the end
        before, _, after = target.sentence.partition("{}")
        assert row.startswith(f"| {target.case} | {before}")
        assert after in row


def test_stored_measurements_are_read_again() -> None:
    data = {"cpus": 2, "facts": {"CPU": "x"}, "tasks": {"a: b": {"times": [["n", 1, 1.23456789e-6, 0.5]]}}}
    stored = as_json(data)
    assert stored.count("\n") == 8, "a task takes one line"
    assert json.loads(stored) == {**data, "tasks": {"a: b": {"times": [["n", 1, 1.2346e-6, 0.5]]}}}


def test_labels_stay_apart() -> None:
    places = [3.0, 1.0, 1.1, 3.05, 9.0]
    moved = apart(places, 0.5)
    ordered = sorted(moved)
    assert min(b - a for a, b in pairwise(ordered)) >= 0.5 - 1e-9
    assert [moved.index(m) for m in ordered] == [places.index(p) for p in sorted(places)]
    assert max(abs(m - p) for m, p in zip(moved, places, strict=True)) <= 0.5
