"""Averages of the weights, Lookahead and mirrors."""

from __future__ import annotations

import copy
import math
import os
import pickle
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array

import fastopt

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SIZES = [0, 1, 5, 17, 4097, 16_385, 65_537]
Maker = Callable[[fastopt.Optimizer], Any]
MAKERS: dict[str, Maker] = {
    "EMA": lambda opt: fastopt.ExponentialMovingAverage(opt, 0.7),
    "slow EMA": lambda opt: fastopt.ExponentialMovingAverage(opt),
    "corrected EMA": lambda opt: fastopt.ExponentialMovingAverage(opt, 0.9, bias_correction=True),
    "EMA of a schedule": lambda opt: fastopt.ExponentialMovingAverage(opt, lambda t: min(0.9, (1 + t) / (10 + t))),
    "SWA": lambda opt: fastopt.StochasticWeightAverage(opt),
    "late SWA": lambda opt: fastopt.StochasticWeightAverage(opt, start=3, every=2),
    "Lookahead": lambda opt: fastopt.Lookahead(opt, k=2),
}


def arrays(dtype: Any = np.float64, seed: int = 0, sizes: list[int] = SIZES) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


def contents(*lists: list[Array]) -> list[bytes]:
    return [array.tobytes() for arrays in lists for array in arrays]


# -- What they compute -----------------------------------------------------------------------------


def expected(name: str, path: list[Array]) -> tuple[Array, Array]:
    """The average by its definition, and the parameters; path: the parameters after 0, 1, 2, … steps without it."""
    start, *after = path
    if "EMA" in name:
        decays = {"EMA": [0.7], "slow EMA": [0.999], "corrected EMA": [0.9]}.get(name, []) * len(after)
        decays = decays or [min(0.9, (1 + t) / (10 + t)) for t in range(len(after))]
        if name == "corrected EMA":
            weights = [(1 - d) * math.prod(decays[i + 1 :]) for i, d in enumerate(decays)]
            return sum(w * p for w, p in zip(weights, after, strict=True)) / sum(weights), after[-1]
        average = after[0]
        for decay, p in zip(decays[1:], after[1:], strict=True):
            average = decay * average + (1 - decay) * p
        return average, after[-1]
    if name == "SWA":
        return np.mean(after, axis=0), after[-1]
    if name == "late SWA":
        return np.mean(after[4::2], axis=0), after[-1]
    slow = p = start
    for t in range(1, len(path)):
        p = p + (path[t] - path[t - 1])
        if t % 2 == 0:
            slow = p = slow + 0.5 * (p - slow)
    return slow, p


@pytest.mark.parametrize("name", MAKERS)
def test_averages_are_what_their_definitions_say(name: str) -> None:
    plain, params = arrays(), arrays()
    opt, other = fastopt.SGD(params, lr=0.1), fastopt.SGD(plain, lr=0.1)
    average = MAKERS[name](opt)
    paths = [[p.copy()] for p in plain]
    for step in range(8):
        grads = arrays(seed=1 + step)
        opt.step(grads)
        other.step(grads)
        for path, p in zip(paths, plain, strict=True):
            path.append(p.copy())
    assert average.steps == 8
    for path, array, p in zip(paths, average.arrays, params, strict=True):
        want, want_p = expected(name, path)
        np.testing.assert_allclose(array, want, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(p, want_p, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["EMA", "SWA"])
def test_torch_has_the_same_averages(kind: str) -> None:
    torch = pytest.importorskip("torch")
    swa_utils = pytest.importorskip("torch.optim.swa_utils")
    params = arrays()
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params])
    multi = swa_utils.get_ema_multi_avg_fn(0.95) if kind == "EMA" else None
    theirs = swa_utils.AveragedModel(model, multi_avg_fn=multi)
    opt = fastopt.Adam(params, lr=0.1)
    ours = fastopt.ExponentialMovingAverage(opt, 0.95) if kind == "EMA" else fastopt.StochasticWeightAverage(opt)
    for step in range(20):
        opt.step(arrays(seed=1 + step))
        with torch.no_grad():
            for p, q in zip(params, model, strict=True):
                q.copy_(torch.from_numpy(p))
        theirs.update_parameters(model)
    for a, b in zip(ours.arrays, theirs.module, strict=True):
        b = b.detach().numpy()
        assert np.abs(a - b).max(initial=0) <= 1e-12 * np.abs(b).max(initial=0)


def test_the_first_step_copies_infinities_and_signs_too() -> None:
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        params = [np.array([math.inf, -math.inf, -0.0, 0.0, 1e-310])]
        opt = fastopt.SGD(params, lr=0.0)
        average = fastopt.ExponentialMovingAverage(opt)
        opt.step([np.zeros(5)])
        assert average.arrays[0].tobytes() == params[0].tobytes()


@pytest.mark.parametrize("format", table.FORMATS)
def test_the_same_bits_everywhere(format: str) -> None:
    parameter, gradient, states = table.FORMATS[format]
    results = []
    for isa in fastopt.available_isas():
        for threads in (1, 2, 5) if isa != "numpy" else (1,):
            fastopt.set_isa(isa)
            fastopt.set_num_threads(threads)
            params = arrays(table.dtype_of(parameter))
            opt = fastopt.Adam(params, lr=0.1, state_dtype=None if states == parameter else states)
            averages = [make(opt) for make in MAKERS.values()]
            copies = [np.empty_like(p, kind) for kind in (np.float16, BFLOAT16) for p in params]
            opt.mirror(copies[: len(params)])
            opt.mirror(copies[len(params) :])
            for step in range(6):
                grads: list[Any] = arrays(table.dtype_of(gradient), 1 + step)
                if step == 2:
                    grads[3] = grads[5] = None
                opt.step(grads, max_norm=1.0 if step % 2 else None, zero_grads=step == 3)
            assert all(
                x.dtype == (np.float64 if parameter == "float64" else np.float32) for x in averages[0].arrays
            )
            results.append(contents(*(average.arrays for average in averages), copies, params))
    assert all(result == results[-1] for result in results)


@pytest.mark.parametrize("isa", fastopt.available_isas())
def test_parameters_without_a_gradient_take_part(isa: str) -> None:
    fastopt.set_isa(isa)
    params = [np.ones(3), np.ones(40)]
    opt = fastopt.SGD(params, lr=0.1)
    average = fastopt.ExponentialMovingAverage(opt, 0.5)
    opt.step([np.ones(3), None])
    params[1][:] = 3.0
    opt.step([np.ones(3), None])
    assert (average.arrays[1] == 2.0).all()
    opt.step([np.ones(3), np.ones(40)])
    assert (params[1] == 2.9).all()
    assert opt.state_dict()["state"].get(1, {}).get("momentum_buffer") is None


@pytest.mark.parametrize("name", MAKERS)
def test_a_setting_that_is_assigned_takes_effect_or_is_refused(name: str) -> None:
    changes = {"decay": 0.5, "bias_correction": True, "start": 1, "every": 3, "k": 3, "alpha": 0.25}

    def run(change: str | None) -> list[bytes]:
        params = arrays()
        opt = fastopt.SGD(params, lr=0.1)
        average = MAKERS[name](opt)
        for step in range(8):
            if step == 2 and change is not None:
                setattr(average, change, changes[change])
            opt.step(arrays(seed=step))
        return contents(average.arrays)

    average = MAKERS[name](fastopt.SGD(arrays(), lr=0.1))
    for setting in type(average).settings:
        before = getattr(average, setting)
        with pytest.raises((TypeError, ValueError), match=rf"^{setting}: "):
            setattr(average, setting, "x")
        with pytest.raises(AttributeError, match=rf"'{setting}x' cannot be set; .*{setting}"):
            setattr(average, setting + "x", before)
        assert getattr(average, setting) == before
        assert (run(setting) == run(None)) == (changes[setting] == before)
    for fixed in "opt", "steps", "arrays", "row":
        with pytest.raises(AttributeError, match=f"'{fixed}' cannot be set; what can be set: "):
            setattr(average, fixed, None)


# -- All or nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", fastopt.available_isas())
@pytest.mark.parametrize("name", MAKERS)
def test_steps_that_are_skipped_or_refused_change_nothing(name: str, isa: str) -> None:
    fastopt.set_isa(isa)
    params = arrays()
    opt = fastopt.Adam(params, lr=0.1)
    average = MAKERS[name](opt)
    copies = [np.empty_like(p, np.float16) for p in params]
    opt.mirror(copies)
    opt.step(arrays(seed=1))
    before = contents(params, average.arrays, copies), str(average.state_dict())
    bad: list[Any] = arrays(seed=2)
    bad[-1][-1] = math.nan
    assert math.isnan(opt.step(bad, skip_nonfinite=True, zero_grads=True) or 0.0)
    bad[4] = None
    with pytest.raises(ValueError, match="parameter 5"):
        opt.step([*bad[:5], np.ones(3), bad[6]])
    assert (contents(params, average.arrays, copies), str(average.state_dict())) == before
    opt.step(bad)
    assert average.steps == 2
    assert contents(average.arrays) != before[0][len(params) : 2 * len(params)] or name in (
        "late SWA",
        "Lookahead",
    )


@pytest.mark.parametrize("isa", fastopt.available_isas())
@pytest.mark.parametrize("dtype", [np.float64, BFLOAT16], ids=str)
def test_parameters_that_come_back_from_ahead_take_part(isa: str, dtype: Any) -> None:
    """In the step after `NAG.lookahead`, a parameter without a gradient goes back; what follows it comes after that."""
    fastopt.set_isa(isa)
    params = arrays(dtype)
    opt = fastopt.NAG(params, lr=0.1)
    average = fastopt.ExponentialMovingAverage(opt, 0.5)
    copies = [np.empty_like(p, np.float16) for p in params]
    opt.mirror(copies)
    for step in range(3):
        opt.step(arrays(dtype, seed=step))
    before, own = [a.copy() for a in average.arrays], contents(params)
    opt.lookahead()
    assert average.steps == 3
    opt.step([None if i % 2 else g for i, g in enumerate(arrays(dtype, seed=5))])
    assert average.steps == 4
    for i, (p, a, b, half) in enumerate(zip(params, average.arrays, before, copies, strict=True)):
        if i % 2 and dtype != np.float64:  # what is rounded comes back exactly
            assert p.tobytes() == own[i]
        np.testing.assert_allclose(a, (b + p.astype(a.dtype)) / 2, rtol=1e-6, atol=1e-6)
        assert half.tobytes() == p.astype(np.float16).tobytes()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("isa", fastopt.available_isas())
def test_lookahead_starts_from_parameters_that_are_not_ahead(isa: str, kept: bool, tmp_path: Any) -> None:
    fastopt.set_isa(isa)
    params, others = ([np.full(5, 3.0), np.full(70, -2.0)] for _ in range(2))
    grads = [np.ones(5), np.ones(70)]
    opt, plain = fastopt.NAG(params if kept else None, lr=0.1), fastopt.NAG(others, lr=0.1)

    def step() -> None:
        plain.lookahead()
        plain.step(grads)
        opt.lookahead(*([] if kept else [params]))
        opt.update(params, grads) if not kept else opt.step(grads)

    step()
    fastopt.save(tmp_path / "a.npz", opt, params)
    slow = fastopt.Lookahead(opt, k=1, alpha=0.25)
    before = [p.copy() for p in others]
    step()
    for p, q, start in zip(params, others, before, strict=True):
        np.testing.assert_allclose(p, start + 0.25 * (q - start), rtol=1e-15)
    slow.remove()
    fastopt.load(tmp_path / "a.npz", opt, params)
    slow = fastopt.Lookahead(opt, k=1, alpha=0.25)
    opt.lookahead(*([] if kept else [params]))
    fastopt.load(tmp_path / "a.npz", opt, params)  # what it has taken before the load does not count
    for p in params:
        p += 1
    start = params[0].copy()
    opt.update(params, grads) if not kept else opt.step(grads)
    velocity = opt.state[0]["velocity"]
    np.testing.assert_allclose(params[0], start + 0.25 * velocity, rtol=1e-15)
    np.testing.assert_array_equal(slow.arrays[0], params[0])


@pytest.mark.parametrize("isa", fastopt.available_isas())
def test_a_step_that_is_skipped_leaves_parameters_ahead(isa: str) -> None:
    fastopt.set_isa(isa)
    params, others = arrays(), arrays()
    opt, other = fastopt.NAG(params, lr=0.1), fastopt.NAG(others, lr=0.1)
    for either in opt, other:
        fastopt.Lookahead(either, k=2)
        either.step(arrays(seed=1))
        either.lookahead()
    bad = [None if i % 2 else np.full_like(g, math.nan) for i, g in enumerate(arrays())]
    assert math.isnan(opt.step(bad, skip_nonfinite=True, zero_grads=True) or 0.0)
    assert contents(params) == contents(others)
    for either in opt, other:
        either.step([None if i % 2 else g for i, g in enumerate(arrays(seed=2))])
    assert contents(params) == contents(others)


def test_an_interrupt_finds_a_step_made_or_not_made() -> None:
    fastopt.set_num_threads(1)

    def run(at: int) -> tuple[list[bytes], bool]:
        params, copies = [np.ones(3), np.ones(70_000)], [np.empty(3, np.float16), np.empty(70_000, np.float16)]
        opt = fastopt.Adam(params, lr=lambda t: 0.1)
        averages = [make(opt) for make in MAKERS.values()]
        opt.mirror(copies)
        places = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal places
            places += 1
            if places == at:
                raise KeyboardInterrupt
            return trace

        interrupted = False
        before = sys.gettrace()
        try:
            sys.settrace(trace)
            opt.step([np.ones(3), np.ones(70_000)], max_norm=1.0)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        found = contents(
            params, copies, *(average.arrays for average in averages[:-1])
        )  # but what Lookahead starts from
        found.append(str([average.steps for average in averages]).encode())
        opt.step([np.ones(3), np.ones(70_000)])
        return found, interrupted

    made, _ = run(0)
    seen = set()
    for at in range(1, 400):
        found, interrupted = run(at)
        seen.add(tuple(found))
        if not interrupted:
            break
    else:
        raise AssertionError("the step has no end")
    assert tuple(made) in seen
    assert len(seen) == 2


@pytest.mark.parametrize("wrong", [-0.1, 1.0, math.nan, "0.9", None])
def test_wrong_arguments_are_refused(wrong: Any) -> None:
    opt = fastopt.SGD([np.ones(3)])
    with pytest.raises((TypeError, ValueError), match=r"^decay: "):
        fastopt.ExponentialMovingAverage(opt, wrong)
    with pytest.raises((TypeError, ValueError), match=r"^alpha: "):
        fastopt.Lookahead(opt, alpha=0.0 if wrong == 1.0 else wrong)
    with pytest.raises((TypeError, ValueError), match=r"^every: "):
        fastopt.StochasticWeightAverage(opt, every=0 if wrong == 1.0 else wrong)
    with pytest.raises(TypeError, match=r"^opt: expected an optimizer"):
        fastopt.Lookahead([np.ones(3)])
    average = fastopt.ExponentialMovingAverage(opt, lambda t: 2.0)
    with pytest.raises(ValueError, match=r"^decay\(0\): 2.0 is out of range"):
        opt.step([np.ones(3)])
    assert average.steps == 0
    assert opt.state[0]["step"] == 0


# -- Applied ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16], ids=str)
def test_applied_swaps_the_averages_in_and_back(dtype: Any) -> None:
    params = arrays(dtype)
    opt = fastopt.Adam(params, lr=0.1)
    average, other = fastopt.ExponentialMovingAverage(opt, 0.9), fastopt.StochasticWeightAverage(opt)
    for step in range(3):
        opt.step(arrays(dtype, 1 + step))
    before, averages = contents(params), contents(average.arrays)
    with pytest.raises(KeyError), average.applied():
        for p, a in zip(params, average.arrays, strict=True):
            assert (p == a.astype(dtype)).all()
        assert contents(average.arrays) == averages
        for call in (
            lambda: opt.step(arrays(dtype, 9)),
            lambda: other.applied().__enter__(),
            lambda: average.applied().__enter__(),
            average.remove,
        ):
            with pytest.raises(RuntimeError, match=r"average.applied\(\)"):
                call()
        raise KeyError
    assert contents(params) == before
    opt.step(arrays(dtype, 9))
    assert average.steps == 4


def test_an_interrupt_leaves_the_parameters_as_they_were() -> None:
    fastopt.set_num_threads(1)
    params = [np.ones(3), np.ones(70_000)]
    opt = fastopt.Adam(params)
    average = fastopt.ExponentialMovingAverage(opt)
    for _ in range(2):
        opt.step([np.ones(3), np.ones(70_000)])
    own = contents(params)
    for at in range(1, 400):
        places = 0

        def trace(frame: FrameType, event: str, _: object, at: int = at) -> Any:
            nonlocal places
            places += 1
            if places == at:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        is_swapped = False
        try:
            sys.settrace(trace)
            with average.applied():
                is_swapped = contents(params) == contents(average.arrays)
        except KeyboardInterrupt:
            is_swapped = False
        finally:
            sys.settrace(before)
        assert contents(params) == own
        assert opt.step([np.zeros(3), None], max_norm=1.0) == 0.0
        own = contents(params)
        if is_swapped:
            return
    raise AssertionError("the block has no end")


def test_a_forked_child_goes_on() -> None:
    params = [np.ones(100_000)]
    opt = fastopt.SGD(params, lr=0.1)
    average = fastopt.StochasticWeightAverage(opt)
    opt.step([np.ones(100_000)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        status = 1
        try:
            opt.step([np.ones(100_000)])
            with average.applied():
                status = 0 if np.allclose(params[0], 0.85) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert average.steps == 1


def test_load_is_refused_while_an_average_is_applied(tmp_path: Any) -> None:
    params = [np.ones(3)]
    opt = fastopt.Adam(params)
    average = fastopt.ExponentialMovingAverage(opt)
    fastopt.save(tmp_path / "a.npz", opt)
    with average.applied(), pytest.raises(RuntimeError, match=r"average.applied\(\)"):
        fastopt.load(tmp_path / "a.npz", opt)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("owner", ["optimizer", "program"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_save_while_an_average_is_applied_has_the_training_parameters(
    suffix: str, owner: str, dtype: str, tmp_path: Path
) -> None:
    def start(value: float) -> tuple[dict[str, Array], fastopt.Optimizer, Any]:
        params = {"w": np.full((3, 4), value, table.dtype_of(dtype)), "none": np.zeros(0, table.dtype_of(dtype))}
        opt = fastopt.Adam(params, lr=0.5) if owner == "optimizer" else fastopt.Adam(lr=0.5)
        return params, opt, fastopt.ExponentialMovingAverage(opt, 0.5)

    def step(params: dict[str, Array], opt: fastopt.Optimizer) -> None:
        opt.update(params, {name: np.ones_like(p) for name, p in params.items()})

    params, opt, average = start(3.0)
    for _ in range(3):
        step(params, opt)
    path, own = tmp_path / f"a{suffix}", contents(list(params.values()))
    for given in (params, {"again": params["w"]} | params):
        with average.applied(None if owner == "optimizer" else params):
            assert contents(list(params.values())) != own
            fastopt.save(path, opt, given, averages=[average])
            with pytest.raises(
                ValueError, match="'flat' is a view of a parameter that has the values of an average"
            ):
                fastopt.save(path, opt, given | {"flat": params["w"].reshape(-1)})
        others, other, second = start(7.0)
        step(others, other)
        fastopt.load(path, other, dict.fromkeys(given, others["w"]) | others, averages=[second])
        assert contents(list(others.values())) == own
        step(others, other)
        assert contents(list(others.values())) != own
    fastopt.save(path, opt, params | {"flat": params["w"].reshape(-1)})  # outside, views are arrays as any


def test_update_has_averages_by_name() -> None:
    params = {"w": np.ones(3), "b": np.ones((2, 2), np.float32)}
    opt = fastopt.SGD(lr=0.5)
    average = fastopt.ExponentialMovingAverage(opt, 0.5)
    for _ in range(2):
        opt.update(params, {name: np.ones_like(p) for name, p in params.items()})
    opt.update({"w": params["w"]}, {"w": np.zeros(3)})
    assert average.arrays["b"].tolist() == [[0.25] * 2] * 2
    assert average.arrays["w"].tolist() == [0.125] * 3
    with pytest.raises(TypeError, match=r"^params: .*applied\(params=...\)"), average.applied():
        pass
    with average.applied(params=params):
        assert params["w"].tolist() == [0.125] * 3
    assert params["w"].tolist() == [0.0] * 3
    with pytest.raises(ValueError, match=r"^'x': there is no average"), average.applied(params={"x": np.ones(3)}):
        pass
    again = fastopt.SGD(lr=0.5)
    other = fastopt.ExponentialMovingAverage(again, 0.5)
    other.load_state_dict(average.state_dict())
    assert other.state_dict()["state"].keys() == {"w", "b"}
    for one in opt, again:
        one.update(params, {name: np.ones_like(p) for name, p in params.items()})
        params = {name: np.ones_like(p) * (0 if name == "w" else -0.0) for name, p in params.items()}
    assert average.steps == 4
    assert other.state_dict()["state"]["w"]["step"] == 4
    with pytest.raises(TypeError, match=r"pass mirror\(params=\.\.\.\)"):
        opt.mirror({"w": np.ones(3, np.float16)})


CALLS = [
    *["step"] * 3, "clipped", "without a gradient", "some", "moved", "skipped", "refused", "instruction set", "save",
    "load", "another average",
]  # fmt: skip


class Definition:
    """What is written after the parameters of a program, one parameter and one step at a time."""

    def __init__(self, params: dict[str, Array]) -> None:
        self.params = {name: p.copy() for name, p in params.items()}
        self.averages = {name: p.copy() for name, p in params.items()}
        self.means = {name: p.copy() for name, p in params.items()}
        self.steps = dict.fromkeys(params, 0)
        self.mean_steps = dict.fromkeys(params, 0)

    def step(self, names: list[str], grads: dict[str, Array | None]) -> None:
        for name in names:
            grad = grads[name]
            p = self.params[name] = self.params[name] - (0.0 if grad is None else 0.1 * grad)
            share = 0.3 if self.steps[name] else 1.0
            self.averages[name] = self.averages[name] + share * (p - self.averages[name])
            taken, rest = divmod(self.mean_steps[name], 2)
            if not self.mean_steps[name]:
                self.means[name] = p
            elif not rest:  # start=1, every=2: steps 3, 5, …
                self.means[name] = self.means[name] + (p - self.means[name]) / taken
            self.steps[name] += 1
            self.mean_steps[name] += 1


@pytest.mark.parametrize("seed", range(20))
def test_a_step_follows_its_definition_whatever_calls_came_before(seed: int) -> None:
    """What a step finds unchanged since the last one, it does not work out again."""
    rng = np.random.default_rng(seed)
    params = {name: rng.standard_normal(size) for name, size in (("a", 5), ("b", 4097), ("c", 17))}
    opt, wanted = fastopt.SGD(params, lr=0.1), Definition(params)
    ema = fastopt.ExponentialMovingAverage(opt, 0.7)
    swa = fastopt.StochasticWeightAverage(opt, start=1, every=2)
    mirror = {name: np.empty(p.shape, np.float16) for name, p in params.items()}
    opt.mirror(mirror)
    saved = copy.deepcopy((ema.state_dict(), wanted.averages, wanted.steps))
    for call in rng.choice(CALLS, 60):
        grads: dict[str, Any] = {name: rng.standard_normal(p.shape) for name, p in params.items()}
        names, options = list(params), {}
        if call == "instruction set":
            fastopt.set_isa(rng.choice(fastopt.available_isas()))
        elif call == "save":
            saved = copy.deepcopy((ema.state_dict(), wanted.averages, wanted.steps))
        elif call == "load":
            ema.load_state_dict(saved[0])
            wanted.averages, wanted.steps = copy.deepcopy(saved[1:])
        elif call == "another average":
            swa.remove()
            swa = fastopt.StochasticWeightAverage(opt, start=1, every=2)
            wanted.means, wanted.mean_steps = copy.deepcopy(params), dict.fromkeys(params, 0)
        elif call == "clipped":
            options["max_value"] = 10.0
        elif call == "without a gradient":
            grads[rng.choice(names)] = None
        elif call == "skipped":
            opt.step({**grads, "c": np.full(17, np.nan)}, skip_nonfinite=True)
        if call in ("some", "moved", "refused"):
            names = [str(name) for name in rng.permutation(names)[: rng.integers(1, 4)]]
            handed = {name: params[name] if call == "some" else params[name].copy() for name in names}
            grads = {name: grads[name] for name in names}
            if call == "refused":
                with pytest.raises(ValueError, match=names[-1]):
                    opt.update(handed, {**grads, names[-1]: np.ones(3)})
                continue
            opt.update(handed, grads)
            params |= handed
            wanted.step(names, grads)
        elif call != "skipped":
            opt.step(grads, **options)
            wanted.step(names, grads)
        for name, p in params.items():
            close(p, wanted.params[name])
            close(ema.arrays[name], wanted.averages[name])
            close(swa.arrays[name], wanted.means[name])
        for name, half in mirror.items():
            assert half.tobytes() == params[name].astype(np.float16).tobytes()


def close(a: Array, b: Array) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_an_average_that_is_made_after_update_begins_with_its_next_step(name: str) -> None:
    """An optimizer without parameters of its own has none that the average could begin with."""
    results = []
    for is_late in True, False:
        params = dict(zip("abcdefg", arrays(), strict=True))
        opt = fastopt.SGD(lr=0.1)
        grads = [dict(zip("abcdefg", arrays(seed=i), strict=True)) for i in range(9)]
        opt.update(params, grads[0])
        if is_late:
            average = MAKERS[name](opt)
            assert average.arrays == {} or average.arrays == []
            assert average.steps == 0
            assert average.state_dict()["state"] == {}
            with pytest.raises(ValueError, match="there is no average of it yet"), average.applied(params=params):
                pass
        else:  # it has the parameters
            opt = fastopt.SGD(params, lr=0.1)
            average = MAKERS[name](opt)
        for step in grads[1:5]:
            opt.update(params, step)
        again = fastopt.SGD(lr=0.1)
        again.update({name: p.copy() for name, p in params.items()}, grads[5])
        other = MAKERS[name](again)
        other.load_state_dict(average.state_dict())  # into one that has nothing yet
        others = copy.deepcopy(params)
        for step in grads[6:]:
            opt.update(params, step)
            again.update(others, step)
        assert contents(list(average.arrays.values())) == contents(list(other.arrays.values()))
        results.append(contents(list(params.values()), list(average.arrays.values())))
    assert results[0] == results[1]


# -- States, copies, threads -----------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle", "file"])
def test_averages_go_on_with_the_same_bits(name: str, way: str, tmp_path: Any) -> None:
    if way == "pickle" and name == "EMA of a schedule":
        pytest.skip("a lambda cannot be pickled")
    params = arrays()
    opt = fastopt.Adam(params, lr=0.1)
    average = MAKERS[name](opt)
    for step in range(3):
        opt.step(arrays(seed=1 + step))
    if way in ("deepcopy", "pickle"):
        whole = params, opt, average
        others, opt2, average2 = copy.deepcopy(whole) if way == "deepcopy" else pickle.loads(pickle.dumps(whole))
    else:
        others = arrays(seed=7)
        opt2 = fastopt.Adam(others, lr=0.1)
        average2 = MAKERS[name](opt2)
        if way == "file":
            fastopt.save(tmp_path / "a.safetensors", opt, averages=[average])
            fastopt.load(tmp_path / "a.safetensors", opt2, averages=[average2])
        else:
            opt2.load_state_dict(opt.state_dict())
            average2.load_state_dict(average.state_dict())
            for p, q in zip(params, others, strict=True):
                q[...] = p
    for step in range(3, 7):
        grads = arrays(seed=1 + step)
        opt.step(grads)
        opt2.step(grads)
    assert average2.steps == average.steps == 7
    assert contents(others, average2.arrays) == contents(params, average.arrays)
    assert repr(average2).partition(" at ")[0] == repr(average).partition(" at ")[0]


def test_states_that_do_not_fit_are_refused() -> None:
    opt = fastopt.Adam([np.ones(3), np.ones(4)])
    average = fastopt.ExponentialMovingAverage(opt)
    opt.step([np.ones(3), np.ones(4)])
    before = average.state_dict()
    good = before["state"][0]
    for wrong, message in (
        ({}, "it has no 'state'"),
        ({"state": {0: good}}, "lacks parameter 1"),
        ({"state": {0: good, 1: good}}, "parameter 1: its shape is"),
        ({"state": {**before["state"], 2: good}}, "has parameter 2"),
        ({"state": {0: {**good, "step": -1}, 1: before["state"][1]}}, "parameter 0: step: -1"),
        ({"state": {0: {"average": good["average"]}, 1: before["state"][1]}}, "it has no 'step'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            average.load_state_dict(wrong)
        assert str(average.state_dict()) == str(before)


def test_removed_averages_stay_as_they_are() -> None:
    params = [np.ones(3)]
    opt = fastopt.SGD(params, lr=0.1)
    first, second = fastopt.ExponentialMovingAverage(opt, 0.5), fastopt.StochasticWeightAverage(opt)
    opt.step([np.ones(3)])
    first.remove()
    first.remove()
    kept = first.arrays[0].copy()
    opt.step([np.ones(3)])
    assert (first.arrays[0] == kept).all()
    assert (first.steps, second.steps) == (1, 2)
    second.remove()
    opt.step([np.ones(3)])
    assert second.steps == 2


def test_they_are_updated_in_the_order_of_their_making() -> None:
    for is_first in True, False:
        params = [np.zeros(3)]
        opt = fastopt.SGD(params, lr=1.0)
        makers = [lambda o: fastopt.StochasticWeightAverage(o), lambda o: fastopt.Lookahead(o, k=1)]
        swa = next(a for a in [make(opt) for make in makers[:: 1 if is_first else -1]] if hasattr(a, "every"))
        opt.step([np.ones(3)])
        assert (swa.arrays[0] == (-1.0 if is_first else -0.5)).all()


def test_parameters_that_are_added_later_take_part() -> None:
    opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    average = fastopt.ExponentialMovingAverage(opt, 0.5)
    opt.step([np.ones(3)])
    opt.add_param_group({"params": [np.zeros(2)]})
    assert len(average.arrays) == 2
    opt.step([np.ones(3), np.ones(2)])
    assert average.arrays[1].tolist() == [-1.0, -1.0]
    assert average.arrays[0].tolist() == [-1.5] * 3


def test_reset_leaves_averages_alone() -> None:
    opt = fastopt.Adam([np.zeros(3)])
    average = fastopt.ExponentialMovingAverage(opt)
    opt.step([np.ones(3)])
    opt.reset()
    opt.step([np.ones(3)])
    assert average.steps == 2


def test_steps_of_several_threads() -> None:
    opt = fastopt.SGD([np.zeros(100_000)], lr=1.0)
    average = fastopt.StochasticWeightAverage(opt)
    grads = [np.ones(100_000)]
    threads = [threading.Thread(target=lambda: [opt.step(grads) for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert average.steps == 100
    np.testing.assert_allclose(average.arrays[0], -50.5)


def test_steady_steps_take_no_memory() -> None:
    params = [np.ones(100_000), np.ones(3)]
    opt = fastopt.Adam(params)
    averages = [make(opt) for make in MAKERS.values()]
    opt.mirror([np.empty_like(p, np.float16) for p in params])
    grads = [np.ones(100_000), np.ones(3)]
    for _ in range(5):
        opt.step(grads, max_norm=1.0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        peaks = []
        for _ in range(4):
            tracemalloc.reset_peak()
            for _ in range(5):
                opt.step(grads, max_norm=1.0)
            after, peak = tracemalloc.get_traced_memory()
            peaks.append(peak)
    finally:
        tracemalloc.stop()
    assert min(peaks) - before < 40_000  # another thread may take memory at the same time
    assert after - before < 20_000
    assert averages[0].steps == 25


# -- Mirrors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", fastopt.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16], ids=str)
@pytest.mark.parametrize("copied", [np.float16, BFLOAT16], ids=str)
def test_a_mirror_is_written_at_once_after_steps_and_loads(
    dtype: Any, copied: Any, isa: str, tmp_path: Any
) -> None:
    fastopt.set_isa(isa)
    params = arrays(dtype, sizes=[0, 7, 20_000])
    params[1][:3] = [math.nan, math.inf, -1e-30]
    opt = fastopt.SGD(params, lr=0.1)
    copies = [np.full_like(p, 5, copied) for p in params]

    @np.errstate(all="ignore")
    def check() -> None:
        for p, mirrored in zip(params, copies, strict=True):
            wide = p.astype(np.float64)
            near = np.abs(wide - mirrored.astype(np.float64))
            for other in (
                np.nextafter(mirrored, mirrored.dtype.type(1e4)),
                np.nextafter(mirrored, mirrored.dtype.type(-1e4)),
            ):
                assert not (near > np.abs(wide - other.astype(np.float64))).any()
            assert (np.isnan(wide) == np.isnan(mirrored.astype(np.float64))).all()

    mirror = opt.mirror(copies)
    check()
    opt.step(arrays(dtype, 1, [0, 7, 20_000]))
    check()
    fastopt.save(tmp_path / "a.npz", opt)
    opt.step(arrays(dtype, 2, [0, 7, 20_000]))
    after = contents(copies)
    fastopt.load(tmp_path / "a.npz", opt)
    check()
    assert contents(copies) != after
    mirror.remove()
    opt.step(arrays(dtype, 2, [0, 7, 20_000]))
    assert contents(copies) != after


@pytest.mark.parametrize("isa", fastopt.available_isas())
def test_parameters_that_are_handed_over_have_mirrors(isa: str, tmp_path: Any) -> None:
    fastopt.set_isa(isa)
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((30, 4)), "b": rng.standard_normal(5), "7": rng.standard_normal(3)}
    grads = {name: rng.standard_normal(p.shape) for name, p in params.items()}

    def made(cls: Any) -> tuple[Any, dict[str, Array]]:
        opt, copies = cls(lr=0.1), {name: np.zeros(p.shape, np.float16) for name, p in params.items()}
        opt.mirror(copies, params)
        return opt, copies

    def check(copies: dict[str, Array]) -> None:
        assert all(np.array_equal(copies[name], p.astype(np.float16)) for name, p in params.items())

    for cls in fastopt.Adam, fastopt.NAG, fastopt.ScheduleFreeSGD:
        opt, copies = made(cls)
        check(copies)
        for names in ["w", "b"], ["b"], ["7", "w"]:
            params = {name: p.copy() for name, p in params.items()}
            if cls is fastopt.NAG:
                opt.lookahead({name: params[name] for name in opt.state} | {name: params[name] for name in names})
                names = names + [name for name in opt.state if name not in names]
            opt.update({name: params[name] for name in names}, {name: grads[name] for name in names})
            check(copies)
        fastopt.save(tmp_path / "a.npz", opt, params)
        saved = {name: p.copy() for name, p in params.items()}
        opt.update(params, grads)
        check(copies)
        other, others = made(cls)
        for one, its in (opt, copies), (other, others):  # also where update has not seen the names yet
            for p in params.values():
                p += 1
            fastopt.load(tmp_path / "a.npz", one, params)
            assert all(np.array_equal(p, saved[name]) for name, p in params.items())
            check(its)
        if cls is fastopt.ScheduleFreeSGD:
            opt.eval(params)
            assert any(not np.array_equal(p, saved[name]) for name, p in params.items())
            check(copies)
            opt.train()
            check(copies)
            continue
        average = fastopt.ExponentialMovingAverage(opt, 0.5)
        opt.update(params, grads)
        opt.update(params, grads)
        with average.applied(params):
            check(copies)
        check(copies)


def test_mirrors_of_other_parameters_are_refused() -> None:
    params = {"w": np.ones((3, 4)), "b": np.ones(5)}
    copies = {name: np.zeros(p.shape, np.float16) for name, p in params.items()}
    opt = fastopt.SGD(lr=0.1)
    with pytest.raises(ValueError, match="got 1 arrays for 2 parameters"):
        opt.mirror({"w": copies["w"]}, params)
    block = np.zeros(100, np.float16)
    within = {"w": block[:12].reshape(3, 4), "b": block[8:28].view(np.float64)}
    with pytest.raises(ValueError, match="the mirror of 'w' and 'b' share memory"):
        opt.mirror({"w": within["w"], "b": copies["b"]}, {"w": params["w"], "b": within["b"]})
    assert not block.any()
    opt.mirror(copies, params)
    before = contents([*params.values(), *copies.values()])
    for other in np.ones((4, 3)), np.ones((4, 3)).T:
        with pytest.raises(ValueError, match="the mirror of 'w': its shape or its order"):
            opt.update({"w": other, "b": params["b"]}, {"w": np.ones(other.shape), "b": np.ones(5)})
    assert contents([*params.values(), *copies.values()]) == before
    assert not opt.state
    opt.update(params, {"w": np.ones((3, 4)), "b": np.ones(5)})
    kept = fastopt.SGD(params)
    with pytest.raises(TypeError, match=r"call mirror\(arrays\) without them"):
        kept.mirror({name: c.copy() for name, c in copies.items()}, params)
    kept.mirror({name: c.copy() for name, c in copies.items()})


def test_a_half_is_rounded_once() -> None:
    # just above the middle between two numbers of bfloat16, by less than float32 can tell
    value = 1 + 2.0**-8 + 2.0**-40
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        copies = [np.empty(1, BFLOAT16)]
        fastopt.SGD([np.array([value])]).mirror(copies)
        assert float(copies[0][0]) == 1 + 2.0**-7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([np.ones(3, np.float16)], "got 1 arrays for 2 parameters"),
        ([np.ones(3, np.float16), np.ones(4, np.float16)], "parameter 1: its shape is"),
        ([np.ones(3, np.float16), np.ones((2, 3), np.float32)], "parameter 1: its dtype is float32"),
        ([np.ones(3, np.float16), np.ones((3, 2), np.float16).T], "parameter 1: .* in C order"),
        (np.ones(3, np.float16), "arrays: .* put a single array into a list"),
        (5, "arrays: expected a list or a dict by names, got int"),
    ],
)
def test_mirrors_that_do_not_fit_are_refused(given: Any, message: str) -> None:
    opt = fastopt.SGD([np.ones(3), np.ones((2, 3))])
    with pytest.raises((TypeError, ValueError), match=message):
        opt.mirror(given)
    shared = np.ones(9, np.float16)
    with pytest.raises(ValueError, match=r"mirror of parameter 0 and .* of parameter 1 share memory"):
        opt.mirror([shared[:3], shared[2:8].reshape(2, 3)])
    mirror = opt.mirror([shared[:3], shared[3:].reshape(2, 3)])
    with pytest.raises(ValueError, match="share memory"):
        opt.mirror([shared[:3], np.ones((2, 3), np.float16)])
    mirror.remove()
    opt.mirror([shared[:3], np.ones((2, 3), np.float16)])
    opt.step([np.ones(3), np.ones((2, 3))])


def test_gradients_and_parameters_in_the_memory_of_an_average_are_refused() -> None:
    params, grads = [np.ones(3), np.ones(4)], [np.ones(3), np.ones(4)]
    opt = fastopt.SGD(params, lr=0.1)
    opt.step(grads)
    average = fastopt.ExponentialMovingAverage(opt)
    for wrong in (
        [grads[0], average.arrays[1]],
        [average.arrays[1][1:], grads[1]],
        [average.arrays[0][::-1], None],
    ):
        for _ in range(2):
            with pytest.raises(ValueError, match="shares memory with the average or mirror of parameter"):
                opt.step(wrong)
    opt.step(grads)
    assert average.steps == 1
    average.remove()
    opt.step([average.arrays[0], grads[1]])
    other = fastopt.SGD(lr=0.1)
    average = fastopt.ExponentialMovingAverage(other)
    other.update([params[0]], [grads[0]])
    with pytest.raises(ValueError, match="share memory"):
        other.update([average.arrays[0]], [grads[0]])
    assert average.steps == 1
