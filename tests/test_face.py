"""The public face: parameters, gradients, groups, state, settings."""

from __future__ import annotations

import copy
import inspect
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import table
from table import Array

import fastopt
from fastopt import functional
from fastopt._kernels import TABLE
from fastopt.step_options import DEFAULTS, StepOptions

SHAPES = [(3, 4), (4,), (), (0,), (2, 1)]


def make(shape: tuple[int, ...], seed: int, dtype: str = "float32") -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def parameters(dtype: str = "float32") -> list[Array]:
    return [make(shape, i, dtype) for i, shape in enumerate(SHAPES)]


def gradients(step: int, dtype: str = "float32") -> list[Array]:
    return [make(shape, 100 * step + i + 7, dtype) for i, shape in enumerate(SHAPES)]


def train(optimizer: fastopt.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.step(gradients(step))


def everything(optimizer: fastopt.Optimizer, params: list[Array]) -> Any:
    return table.bits(optimizer, params), [s["step"] for s in optimizer.state.values()]


# -- Parameters and gradients ----------------------------------------------------------------------

NAMES = ["w1", "b1", "scale", "none", "w2"]


def test_list_dict_groups_and_generator_are_the_same() -> None:
    results = []
    for form in ("list", "tuple", "generator", "dict", "groups", "named groups"):
        params = parameters()
        named = dict(zip(NAMES, params, strict=True))
        given: Any = {
            "list": params,
            "tuple": tuple(params),
            "generator": (p for p in params),
            "dict": named,
            "groups": [{"params": params[:2]}, {"params": params[2:]}],
            "named groups": [{"params": {k: named[k]}} for k in NAMES],
        }[form]
        optimizer = fastopt.Adam(given, lr=0.1)
        for step in range(3):
            grads: Any = gradients(step)
            if form in ("dict", "named groups"):
                grads = dict(reversed(list(zip(NAMES, grads, strict=True))))
            elif form == "tuple":
                grads = tuple(grads)
            assert optimizer.step(grads) is None
        results.append(everything(optimizer, params))
    assert all(result == results[0] for result in results)


def test_a_group_has_its_own_options() -> None:
    params, others = parameters(), parameters()
    groups = [{"params": params[:2], "lr": 0.5}, {"params": params[2:], "betas": (0.5, 0.6)}]
    optimizer = fastopt.Adam(groups, lr=0.1)
    train(optimizer, range(2))
    first, second = fastopt.Adam(others[:2], lr=0.5), fastopt.Adam(others[2:], lr=0.1, betas=(0.5, 0.6))
    for step in range(2):
        first.step(gradients(step)[:2])
        second.step(gradients(step)[2:])
    assert [p.tobytes() for p in params] == [p.tobytes() for p in others]


def test_none_leaves_a_parameter_alone() -> None:
    params, alone = parameters(), parameters()
    optimizer, other = fastopt.Adam(params, lr=0.1), fastopt.Adam(alone[:1], lr=0.1)
    for step in range(6):
        grads: list[Array | None] = list(gradients(step))
        if step % 2:
            grads[0] = None
            before = params[0].tobytes(), optimizer.state[0]["exp_avg"].tobytes()
        optimizer.step(grads)
        if step % 2:
            assert before == (params[0].tobytes(), optimizer.state[0]["exp_avg"].tobytes())
        else:
            other.step(gradients(step)[:1])
    assert [s["step"] for s in optimizer.state.values()] == [3, 6, 6, 6, 6]
    assert params[0].tobytes() == alone[0].tobytes()


def test_grad_scale_multiplies_gradients() -> None:
    params, others = parameters(), parameters()
    fastopt.Adam(params).step(gradients(0), grad_scale=0.5)
    fastopt.Adam(others).step([np.asarray(0.5 * g, g.dtype) for g in gradients(0)])
    assert [p.tobytes() for p in params] == [p.tobytes() for p in others]


def test_bound_gradients_are_read_again() -> None:
    params, others, buffers = parameters(), parameters(), gradients(0)
    optimizer, other = fastopt.Adam(params), fastopt.Adam(others)
    optimizer.bind(buffers)
    for step in range(3):
        for buffer, grad in zip(buffers, gradients(step), strict=True):
            buffer[...] = grad
        if step == 1:  # new state, the same buffers
            optimizer.param_groups[0]["amsgrad"] = other.param_groups[0]["amsgrad"] = True
        optimizer.step()
        other.step(gradients(step))
    assert everything(optimizer, params) == everything(other, others)
    optimizer.bind(None)
    with pytest.raises(TypeError, match="needs gradients"):
        optimizer.step()
    with pytest.raises(ValueError, match="must lie in memory"):
        optimizer.bind([make((4, 3), 0).T, *gradients(0)[1:]])


def wrong_once(optimizer: fastopt.Optimizer) -> None:
    """A bound step that is refused between two others."""
    group = optimizer.param_groups[1]
    right, group["lr"] = group["lr"], lambda t: -1.0
    with pytest.raises(ValueError, match="group 1: lr, as its callable"):
        optimizer.step() if table.is_bound(optimizer) else optimizer.step(gradients(9))
    group["lr"] = right


@pytest.mark.parametrize(
    "change",
    [
        lambda optimizer: optimizer.param_groups[1].update(lr=0.5),
        lambda optimizer: optimizer.param_groups[0].update(lr=lambda t: 0.1 / (t + 1)),
        lambda optimizer: optimizer.param_groups[0].update(amsgrad=True),
        lambda optimizer: optimizer.param_groups[1].update(weight_decay=0.1, maximize=True),
        lambda optimizer: optimizer.load_state_dict(optimizer.state_dict() | {"state": {}}),
        lambda optimizer: fastopt.set_isa(None if fastopt.get_isa() == "numpy" else "numpy"),
        lambda optimizer: fastopt.set_isa(fastopt.available_isas()[-2]),
        lambda optimizer: optimizer.step([*gradients(9)[:2], None, None, None]),
        lambda optimizer: optimizer.state_dict(),
        wrong_once,
    ],
)
def test_what_changes_between_bound_steps(change: Any) -> None:
    """A bound step finds what the last one found, unless something has changed: then it must see that."""
    results = []
    for bind in (False, True):
        params, grads = parameters(), gradients(0)
        optimizer = fastopt.Adam([{"params": params[:3]}, {"params": params[3:], "lr": 0.01}])
        optimizer.step([grads[0], None, *grads[2:]])  # so that not all have made as many steps
        given = [*grads[:3], None, grads[4]]
        for step in range(6):
            if bind and step in (0, 3):
                optimizer.bind(given)
            optimizer.step(None if bind and table.is_bound(optimizer) else given)
            if step in (1, 4):
                change(optimizer)
        results.append(everything(optimizer, params))
        fastopt.set_isa(None)
    assert results[0] == results[1]


# -- Groups, schedules, state ----------------------------------------------------------------------


def test_groups_may_be_edited() -> None:
    params, others = parameters(), parameters()
    optimizer = fastopt.SGD(params, lr=0.1)
    train(optimizer, range(2))
    optimizer.param_groups[0]["lr"] = 0.3
    optimizer.param_groups[0]["momentum"] = 0.9  # needs a buffer that was not there
    train(optimizer, range(2, 4))
    other = fastopt.SGD(others, lr=0.1)
    train(other, range(2))
    again = fastopt.SGD(others, lr=0.3, momentum=0.9)
    train(again, range(2, 4))
    assert [p.tobytes() for p in params] == [p.tobytes() for p in others]
    assert optimizer.state[0]["momentum_buffer"].tobytes() == again.state[0]["momentum_buffer"].tobytes()


def test_eps_hat_may_say_how_eps_is_meant() -> None:
    """True goes with whichever eps holds: the group's, the optimizer's or the default."""
    grad, last = np.array([1e-8, 1e-3, 1.0, -2.0]), []
    for groups, options in [
        ([{"eps_hat": 1e-2, "eps": 0}], {}),
        ([{"eps_hat": 1e-2, "eps": 0}], {"eps_hat": True}),
        ([{"eps_hat": 1e-2, "eps": 0}], {"eps_hat": False}),
        ([{}], {"eps_hat": True, "eps": 1e-2}),
        ([{"eps": 1e-2}], {"eps_hat": True}),
        ([{"eps_hat": True}], {"eps": 1e-2}),
        ([{"eps_hat": True, "eps": 1e-2}], {"eps_hat": True}),
    ]:
        param = np.ones(4)
        optimizer = fastopt.Adam([{"params": [param], **groups[0]}], **options)
        optimizer.step([grad])
        last.append(param.tobytes())
        saved = optimizer.state_dict()
        saved["param_groups"][0].update(eps=0, eps_hat=1e-2)
        optimizer.load_state_dict(saved)
        optimizer.step([grad])
        optimizer.param_groups[0].update(eps=1e-2, eps_hat=True)
        optimizer.step([grad])
        optimizer.param_groups[0]["eps_hat"] = False
        optimizer.step([grad])
        last[-1] += param.tobytes()
    assert len(set(last)) == 1
    plain = np.ones(4)
    fastopt.Adam([plain], eps=1e-2).step([grad])
    assert plain.tobytes() != last[0][: plain.nbytes]


def test_lr_may_be_a_callable() -> None:
    params, others, seen = parameters(), parameters(), []

    def schedule(step: int) -> float:
        seen.append(step)
        return 0.1 / (1 + step)

    optimizer, other = fastopt.SGD(params, lr=schedule), fastopt.SGD(others)
    for step in range(4):
        optimizer.step(gradients(step))
        other.param_groups[0]["lr"] = 0.1 / (1 + step)
        other.step(gradients(step))
    assert seen == [0, 1, 2, 3]
    for grads in [[None, *gradients(4)[1:]], gradients(5)]:
        optimizer.step(grads)  # not all have made as many steps: one rate for all, and one question
        other.param_groups[0]["lr"] = 0.1 / (1 + seen[-1])
        other.step(grads)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert [p.tobytes() for p in params] == [p.tobytes() for p in others]
    resumed = fastopt.SGD(parameters(), lr=schedule)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["lr"] is schedule


every_class = pytest.mark.parametrize("cls", table.OPTIMIZERS, ids=lambda cls: cls.__name__)


@every_class
def test_state_is_named_and_aligned(cls: type[fastopt.Optimizer]) -> None:
    for variant in table.variants(cls):
        with table.named(variant):
            state_is_named_and_aligned(variant)


def state_is_named_and_aligned(variant: table.Variant) -> None:
    params = dict(zip(NAMES, parameters(), strict=True))
    optimizer = variant.make(params)
    for i, (name, param) in enumerate(params.items()):
        state = optimizer.state[name]
        names = {*table.states_in_use(variant.cls, optimizer.param_groups[0], param.shape)}
        numbers = {*table.numbers_of(variant.cls)}
        vectors = table.states_of_shape(variant.cls, param.shape)
        assert set(state) == names | numbers | vectors.keys() | {"step"}
        assert all((state[key].shape, state[key].dtype) == (vectors[key], np.float64) for key in vectors)
        assert all((state[key].shape, state[key].dtype) == ((), np.float64) for key in numbers)
        assert state["step"] == 0 == optimizer.state[i]["step"]
        for key in names:
            assert state[key].shape == param.shape
            assert state[key].dtype == (variant.hyper["state_dtype"] or param.dtype)
            assert state[key].ctypes.data % 64 == 0 or not param.size
            assert np.shares_memory(state[key], optimizer.state[i][key]) or not param.size


@every_class
def test_a_state_dict_goes_on_bit_for_bit(cls: type[fastopt.Optimizer]) -> None:
    for variant in table.variants(cls):
        with table.named(variant):
            goes_on_bit_for_bit(variant)


def goes_on_bit_for_bit(variant: table.Variant) -> None:
    params = parameters()
    optimizer = variant.make(params)
    train(optimizer, range(3))
    if isinstance(optimizer, fastopt.NAG):
        optimizer.lookahead()
    saved = copy.deepcopy(optimizer.state_dict())
    others = [p.copy() for p in params]
    train(optimizer, range(3, 5))
    assert set(saved) == {"state", "param_groups"}
    assert saved["param_groups"][0]["params"] == [0, 1, 2, 3, 4]
    resumed = variant.cls(others, state_dtype=variant.hyper["state_dtype"])  # type: ignore[call-arg]
    resumed.load_state_dict(saved)
    train(resumed, range(3, 5))
    assert everything(resumed, others) == everything(optimizer, params)


def test_parameters_may_be_added() -> None:
    params, others = parameters(), parameters()
    optimizer = fastopt.Adam(params[:2])
    optimizer.step(gradients(0)[:2])
    optimizer.add_param_group({"params": params[2:], "lr": 0.1})
    train(optimizer, range(1, 3))
    first, second = fastopt.Adam(others[:2]), fastopt.Adam(others[2:], lr=0.1)
    first.step(gradients(0)[:2])
    for step in range(1, 3):
        first.step(gradients(step)[:2])
        second.step(gradients(step)[2:])
    assert [p.tobytes() for p in params] == [p.tobytes() for p in others]


def test_nag_returns_a_parameter_without_gradient() -> None:
    params = [np.array([1.0, 2.0]), np.array([3.0])]
    optimizer = fastopt.NAG(params, lr=0.1)
    optimizer.step([np.ones(2), np.ones(1)])
    where = params[1].copy()
    optimizer.lookahead()
    assert params[1] != where
    optimizer.step([np.ones(2), None])
    np.testing.assert_allclose(params[1], where, rtol=1e-15)


def test_nag_is_ahead_in_step_alone() -> None:
    params, others = parameters(), parameters()
    optimizer, other = fastopt.NAG(params, lr=0.1), fastopt.NAG(others, lr=0.1)
    for either in optimizer, other:
        train(either, range(2))
        either.lookahead()
    before = everything(optimizer, params)
    with pytest.raises(RuntimeError, match=r"call step\(grads\) before update\(\)"):
        optimizer.update(params, gradients(2))
    assert everything(optimizer, params) == before
    train(optimizer, range(2, 3))
    train(other, range(2, 3))
    optimizer.update(params, gradients(3))
    other.step(gradients(3))
    assert everything(optimizer, params) == everything(other, others)
    with pytest.raises(TypeError, match=r"call lookahead\(\) without them"):
        optimizer.lookahead(params)


@pytest.mark.parametrize("ahead", [0, 1])
def test_nag_returns_what_is_ahead_and_nothing_else(ahead: int) -> None:
    params = parameters()
    optimizer = fastopt.NAG([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    train(optimizer, range(2))
    saved = optimizer.state_dict()
    saved["param_groups"][ahead]["ahead"] = True  # as where a group was added after lookahead()
    optimizer.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="ahead already"):
        optimizer.lookahead()
    before = [p.copy() for p in params]
    optimizer.step([None] * len(params))
    assert not any(group["ahead"] for group in optimizer.param_groups)
    for i, (param, was) in enumerate(zip(params, before, strict=True)):
        back = 0.9 * optimizer.state[i]["velocity"] if (i >= 2) == ahead else 0.0
        np.testing.assert_allclose(param, was - back, rtol=1e-6)
        assert not np.any(back) or not np.array_equal(param, was)


# -- Functional ------------------------------------------------------------------------------------


@every_class
def test_functional_is_the_class(cls: type[fastopt.Optimizer]) -> None:
    for variant in table.variants(cls):
        for dtype in variant.dtypes:
            with table.named((str(variant), dtype)):
                function_is_class(variant, dtype, (5, 7))


@every_class
def test_functional_makes_a_plan_for_long_arrays_only_if_they_need_sums(
    cls: type[fastopt.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan costs as much as the update of 200,000 elements."""
    calls = []
    slow = functional._slow

    def counted(*args: Any) -> None:
        calls.append(args)
        slow(*args)

    monkeypatch.setattr(functional, "_slow", counted)
    fastopt.set_num_threads(2)
    for variant in table.variants(cls):
        with table.named(str(variant)):
            function_is_class(variant, variant.dtypes[0], (5, 7))
            short = len(calls)
            function_is_class(variant, variant.dtypes[0], (70, 1000))
            long = len(calls) - short
            calls.clear()
            h = functional._defaults_of(cls) | cls.algorithm.flags | variant.options
            has_sums = TABLE[cls.algorithm.formula]["sums"] and cls.algorithm.needs_factors(h)
            assert long == (3 if has_sums else short)


def function_is_class(variant: table.Variant, dtype: str, shape: tuple[int, ...]) -> None:
    function = getattr(functional, variant.cls.__name__.lower())
    param, other = (make(shape, 0, dtype) for _ in range(2))
    optimizer = variant.make([param])
    states = {name: array.copy() for name, array in optimizer.state[0].items() if isinstance(array, np.ndarray)}
    options = {name: value for name, value in variant.options.items() if name != "state_dtype"}
    for step in range(1, 4):
        grad = make(shape, step, dtype)
        if step == 2:  # for what is unusual a function takes a longer way
            grad = np.repeat(grad, 2, axis=-1)[..., ::2]
        optimizer.step([grad], grad_scale=2.0)
        function(other, grad, **states, step=step, grad_scale=2.0, **options)
    assert param.tobytes() == other.tobytes()
    for name, array in states.items():
        assert array.tobytes() == optimizer.state[0][name].tobytes()


def test_functional_takes_states_in_torchs_order() -> None:
    parameters = list(inspect.signature(functional.adam).parameters)
    assert parameters[:6] == ["param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"]
    p, g, m, v = (make((3,), i) for i in range(4))
    v = np.abs(v)
    functional.adam(p, g, m, v, step=3, lr=0.1, betas=[0.8, 0.9])


# -- Settings --------------------------------------------------------------------------------------


def test_settings_of_the_process() -> None:
    isas = fastopt.available_isas()
    assert isas[-1] == "numpy"
    assert "baseline" in isas
    for isa in isas:
        fastopt.set_isa(isa)
        assert fastopt.get_isa() == isa
    fastopt.set_num_threads(3)
    assert fastopt.get_num_threads() == (3 if table.OPENMP else 1)  # without OpenMP there is one thread


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code.split(" ", 1)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_settings_of_the_environment() -> None:
    show = "-c import fastopt;print(fastopt.get_isa(),fastopt.get_num_threads())"
    assert (
        run(show, FASTOPT_ISA="baseline", FASTOPT_NUM_THREADS="3").stdout
        == f"baseline {3 if table.OPENMP else 1}\n"
    )
    assert "FASTOPT_ISA" in run(show, FASTOPT_ISA="mmx").stderr
    for wrong in "many", "²":
        assert "FASTOPT_NUM_THREADS" in run(show, FASTOPT_NUM_THREADS=wrong).stderr
    assert run(show, FASTOPT_ISA="baseline", OMP_NUM_THREADS="²").stdout.startswith("baseline ")


def test_python_m_fastopt_says_what_it_is() -> None:
    printed = run("-m fastopt").stdout
    for fact in (fastopt.__version__, "OpenMP", "CPU", *fastopt.available_isas(), *table.TABLE):
        assert fact in printed


@pytest.mark.parametrize("method", ["step", "update"])
def test_the_signature_of_a_step_shows_every_argument(method: str) -> None:
    shown = inspect.signature(getattr(fastopt.Adam, method)).parameters
    shared = {name: p.default for name, p in shown.items() if p.kind is p.KEYWORD_ONLY}
    assert shared == dict(DEFAULTS)
    assert list(shared) == list(StepOptions.__annotations__)
    assert all(re.search(rf"^ *{name}: ", str(fastopt.Adam.step.__doc__), re.MULTILINE) for name in shared)


@pytest.mark.parametrize(("wrong", "meant"), [("max_nrom", "max_norm"), ("gradscale", "grad_scale"), ("lr", None)])
def test_a_step_refuses_other_arguments(wrong: str, meant: str | None) -> None:
    param = np.ones(2)
    with pytest.raises(TypeError, match=rf"^{wrong}: .*(did you mean {meant}\?|its arguments are grad_scale)"):
        fastopt.Adam([param]).step([np.ones(2)], **{wrong: 1.0})  # type: ignore[misc]
    assert param.tolist() == [1, 1]
