"""Optimizers that update a matrix row by row, each row with numbers of its own: Adafactor and RowWiseAdagrad."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array, Variant, cases, named

import fastopt
from fastopt import functional

SHAPES = [(40, 33), (1, 9), (9, 1), (5, 3, 4), (2, 3, 3, 3), (3, 9000), (130, 600), (5, 30, 700)]
"""Among them one whose rows have several blocks of sums, one whose columns are added up over two strips, and one in
which a strip lies in several matrices."""
OPTIONS: dict[type[fastopt.Optimizer], dict[str, Any]] = {
    fastopt.Adafactor: {
        "lr": 0.3,
        "beta2_decay": -0.5,
        "eps": (0.5, 2.0),
        "d": 2.0,
        "weight_decay": 0.2,
        "maximize": True,
    },
    fastopt.RowWiseAdagrad: {
        "lr": 0.3,
        "eps": 0.1,
        "weight_decay": 0.2,
        "maximize": True,
        "initial_accumulator_value": 0.5,
    },
}
CHANGES = [(cls, option) for cls, options in OPTIONS.items() for option in options]
CLASSES = [*OPTIONS]


def shapes_of(cls: Any) -> list[tuple[int, ...]]:
    return [shape for shape in SHAPES if len(shape) == 2 or cls is fastopt.Adafactor]


def drawn(shape: tuple[int, ...], seed: int, dtype: Any = "float64") -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(table.dtype_of(dtype))


def trained(
    cls: Any, shape: tuple[int, ...], dtype: Any = "float64", steps: int = 3, **options: Any
) -> tuple[Array, fastopt.Optimizer]:
    param = drawn(shape, 0, dtype)
    optimizer = cls([param], **options)
    for step in range(steps):
        optimizer.step([drawn(shape, 1 + step, dtype) * param.dtype.type(10 if step % 3 == 0 else 0.1)])
    return param, optimizer


def contents(param: Array, optimizer: fastopt.Optimizer) -> list[bytes]:
    return [param.tobytes(), *(np.array(value).tobytes() for value in optimizer.state[0].values())]


def by_definition(cls: Any, p: Array, g: Array, t: int, h: dict[str, Any], state: dict[str, Array]) -> None:
    """The equations, as one writes them in NumPy, in place."""
    g = -g if h["maximize"] else g
    if cls is fastopt.RowWiseAdagrad:
        g = g + h["weight_decay"] * p
        state.setdefault("sum", np.full(len(p), h["initial_accumulator_value"]))
        state["sum"] += (g * g).mean(axis=1)
        p -= h["lr"] * g / (np.sqrt(state["sum"]) + h["eps"])[:, None]
        return
    eps1, eps2 = h["eps"]
    eps1 = np.finfo(p.dtype).eps if eps1 is None else eps1
    weight = t ** h["beta2_decay"]
    for name, axis in ("row_var", -1), ("col_var", -2):
        mean = (g * g).mean(axis=axis, keepdims=True)
        state.setdefault(name, np.zeros_like(mean))
        state[name] += weight * (mean - state[name])
    v = state["row_var"] @ state["col_var"] / np.maximum(state["row_var"].mean(axis=-2, keepdims=True), eps1)
    u = g / np.sqrt(np.maximum(v, eps1**2))
    rate = max(eps2, np.sqrt((p * p).mean())) * min(h["lr"], t**-0.5)
    p *= 1 - h["lr"] * h["weight_decay"]
    p -= rate / max(1, np.sqrt((u * u).mean()) / h["d"]) * u


# -- What is computed ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls, option", [*CHANGES, *((cls, None) for cls in CLASSES)])
def test_the_definition(cls: Any, option: str | None) -> None:
    options = {} if option is None else {option: OPTIONS[cls][option]}
    for shape in shapes_of(cls):
        with named(shape):
            param, optimizer = trained(cls, shape, steps=10, **options)
            expected, state = drawn(shape, 0), {}
            h = optimizer.param_groups[0]
            for step in range(10):
                grad = drawn(shape, 1 + step) * (10 if step % 3 == 0 else 0.1)
                by_definition(cls, expected, grad, step + 1, h, state)
            assert np.abs(param - expected).max() <= 1e-12 * np.abs(expected).max()
            for name, value in state.items():
                assert np.abs(optimizer.state[0][name] - value).max() <= 1e-12 * np.abs(value).max()


@pytest.mark.parametrize("cls, option", CHANGES)
def test_every_option_changes_the_result(cls: Any, option: str) -> None:
    # d and eps count where a gradient is much larger, or smaller, than those before
    found = [
        contents(*trained(cls, (6, 5), steps=4, **options)) for options in ({}, {option: OPTIONS[cls][option]})
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "weight_decay": 0.1}, OPTIONS[fastopt.Adafactor]])
def test_adafactor_is_torchs(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    for shape in [(7,), (), *SHAPES]:
        with named(shape):
            param, optimizer = trained(fastopt.Adafactor, shape, steps=10, **options)
            tensor = torch.from_numpy(np.asarray(drawn(shape, 0)))
            theirs = torch.optim.Adafactor([tensor], **options)
            for step in range(10):
                tensor.grad = torch.from_numpy(np.asarray(drawn(shape, 1 + step) * (10 if step % 3 == 0 else 0.1)))
                theirs.step()
            assert np.abs(param - tensor.numpy()).max() <= 1e-12 * np.abs(tensor.numpy()).max()
            state = fastopt.torch_state.from_torch(theirs.state_dict())["state"][0]
            assert state.keys() == optimizer.state[0].keys()
            for name in state.keys() - {"step"}:
                assert np.abs(optimizer.state[0][name] - state[name]).max() <= 1e-12 * np.abs(state[name]).max()


FEW_FORMATS = [table.DTYPES[0], next(f for f, stored in table.FORMATS.items() if "bfloat16" in stored[:2])]


@cases(
    "cls, format",
    [(cls, format) for cls in CLASSES for format in table.FORMATS],
    [(cls, format) for cls in CLASSES for format in FEW_FORMATS],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_bits_are_the_twins(cls: Any, format: str) -> None:
    variant = Variant(cls, {"lr": 0.1, "weight_decay": 0.1})
    parameter, gradient, _ = table.FORMATS[format]
    for shape in shapes_of(cls):
        grads = [drawn(shape, 1 + step, gradient) for step in range(3)]
        found = {}
        for isa in fastopt.available_isas():
            for threads in (1, 2, 3) if isa != "numpy" else (1,):
                fastopt.set_isa(isa)
                fastopt.set_num_threads(threads)
                param = drawn(shape, 0, parameter)
                optimizer = variant.stored_as(format).make([param])
                for scale, grad in zip(table.SCALES, grads, strict=True):
                    optimizer.step([grad], grad_scale=scale)
                found[isa, threads] = contents(param, optimizer)
        first = found["numpy", 1]
        for key, bits in found.items():
            assert bits == first, f"{shape}: {key} has not the twin's bits"


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "reversed": lambda g: g[::-1, ::-1].copy()[::-1, ::-1],
    "strided": lambda g: np.repeat(g, 2, axis=1)[:, ::2],
    "unaligned": lambda g: np.frombuffer(b"x" + g.tobytes(), g.dtype, offset=1).reshape(g.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_in_any_layout(cls: Any, layout: str) -> None:
    for dtype, isa in (("float32", None), ("float64", None), ("float32", "numpy")):
        found = []
        for change in (lambda g: g), LAYOUTS[layout]:
            fastopt.set_isa(isa)
            param = drawn((130, 600), 0, dtype)
            optimizer = cls([param], lr=0.1)
            for step in range(2):
                grad = change(drawn((130, 600), 1 + step, dtype))
                optimizer.step([grad], max_value=1.5, max_norm_each=20.0)
            found.append(contents(param, optimizer))
        assert found[0] == found[1], dtype


@pytest.mark.parametrize("cls", CLASSES)
def test_a_clipped_step_is_a_step_with_the_clipped_gradient(cls: Any) -> None:
    params = [drawn((30, 20), 0) for _ in range(2)]
    optimizers = [cls([param], lr=0.1) for param in params]
    for step in range(3):
        grad = drawn((30, 20), 1 + step)
        norm = optimizers[0].step([grad.copy()], max_value=1.0, max_norm=3.0, zero_grads=True)
        clipped = np.clip(grad, -1.0, 1.0)
        clipped *= 3.0 / (np.linalg.norm(clipped) + 1e-6)
        optimizers[1].step([clipped])
        np.testing.assert_allclose(norm, np.linalg.norm(grad))
    np.testing.assert_allclose(params[0], params[1], rtol=1e-12)


@pytest.mark.parametrize("cls", CLASSES)
def test_no_rows_and_no_elements(cls: Any) -> None:
    for shape in (0, 3), (3, 0), (0, 0):
        for isa in fastopt.available_isas():
            fastopt.set_isa(isa)
            _, optimizer = trained(cls, shape)
            assert optimizer.state[0]["step"] == 3


@pytest.mark.parametrize("cls", CLASSES)
def test_averages_follow(cls: Any) -> None:
    param = drawn((60, 500), 0)
    optimizer = cls([param], lr=0.1)
    average = fastopt.ExponentialMovingAverage(optimizer, decay=0.9)
    expected = None
    for step in range(3):
        optimizer.step([drawn((60, 500), 1 + step)])
        expected = param.copy() if expected is None else expected + (1 - 0.9) * (param - expected)
    np.testing.assert_allclose(average.arrays[0], expected, rtol=1e-12)


# -- All or nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_is_all_or_nothing(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    params = [drawn((6, 5), seed) for seed in range(2)]
    optimizer = cls(params, lr=0.1)
    optimizer.step([drawn((6, 5), 3), drawn((6, 5), 4)])

    def everything() -> list[Any]:
        return [p.tobytes() for p in params] + [repr(entry) for entry in optimizer.state.values()]

    before = everything()
    bad = drawn((6, 5), 5)
    bad[3, 2] = np.nan
    assert not np.isfinite(optimizer.step([drawn((6, 5), 3), bad], skip_nonfinite=True) or 0.0)
    assert everything() == before
    hook, calls = cls.algorithm.prepare_rows, []

    def fails_at_last(*args: Any) -> Any:
        calls.append(args)
        found = hook(*args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(cls.algorithm, "prepare_rows", staticmethod(fails_at_last))
    with pytest.raises(KeyboardInterrupt):
        optimizer.step([drawn((6, 5), 3), drawn((6, 5), 4)])
    assert everything() == before
    monkeypatch.undo()
    optimizer.step([drawn((6, 5), 3), drawn((6, 5), 4)])
    assert optimizer.state[0]["step"] == 2


# -- The state -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", ["state_dict", "json", "npz", "safetensors", "pickle", "deepcopy", "copy", "update"]
)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_resumed_run_has_the_same_bits(cls: Any, way: str, tmp_path: Path) -> None:
    shape = (12, 7)
    param, optimizer = trained(cls, shape, "float32", lr=0.1)
    if way in ("npz", "safetensors"):
        fastopt.save(tmp_path / f"state.{way}", optimizer, [param])
    saved = optimizer.state_dict()
    if way == "json":
        saved["state"][0] = {name: np.asarray(value).tolist() for name, value in saved["state"][0].items()}
    other_param = param.copy()
    if way in ("pickle", "deepcopy"):
        pair = {"param": param, "optimizer": optimizer}
        pair = pickle.loads(pickle.dumps(pair)) if way == "pickle" else copy.deepcopy(pair)
        other_param, other = pair["param"], pair["optimizer"]
    elif way == "copy":
        other_param = param
        param = param.copy()
        other, optimizer = copy.copy(optimizer), cls([param], lr=0.1)
        optimizer.load_state_dict(saved)
    elif way == "update":
        other = cls(lr=0.1)
        other.load_state_dict(saved)
    else:
        other_param = np.zeros_like(param) if way in ("npz", "safetensors") else other_param
        other = cls([other_param], lr=0.1)
        if way in ("npz", "safetensors"):
            fastopt.load(tmp_path / f"state.{way}", other, [other_param])
        else:
            other.load_state_dict(saved)
    for step in range(3):
        grad = drawn(shape, 10 + step, "float32")
        optimizer.step([grad])
        if way == "update":
            other.update([other_param], [grad])
        else:
            other.step([grad])
    assert contents(param, optimizer) == contents(other_param, other)


@pytest.mark.parametrize("cls", CLASSES)
def test_reset_begins_anew(cls: Any) -> None:
    options = {"initial_accumulator_value": 0.5} if cls is fastopt.RowWiseAdagrad else {}
    param, optimizer = trained(cls, (6, 5), **options)
    optimizer.reset()
    fresh_param = param.copy()
    fresh = cls([fresh_param], **options)
    assert repr(optimizer.state[0]) == repr(fresh.state[0])
    for either in optimizer, fresh:
        either.step([drawn((6, 5), 9)])
    assert contents(param, optimizer) == contents(fresh_param, fresh)


@pytest.mark.parametrize(
    "cls, shape, entry, message",
    [
        (fastopt.Adafactor, (6, 5), {"row_var": np.ones((6, 1))}, "col_var: missing"),
        (
            fastopt.Adafactor,
            (6, 5),
            {"row_var": np.ones(6), "col_var": np.ones((1, 5))},
            r"row_var: it has shape \(6,\); of a parameter of shape \(6, 5\) it has shape \(6, 1\)",
        ),
        (fastopt.Adafactor, (6, 5), {"variance": np.ones((6, 5))}, "variance: no state of a parameter of shape"),
        (fastopt.Adafactor, (6,), {"row_var": np.ones((6, 1))}, "row_var: no state of a parameter of shape"),
        (fastopt.RowWiseAdagrad, (6, 5), {"sum": np.ones((6, 5))}, r"sum: it has shape \(6, 5\); of a parameter"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(cls: Any, shape: Any, entry: Any, message: str) -> None:
    param, optimizer = trained(cls, shape)
    before = contents(param, optimizer)
    saved = optimizer.state_dict()
    saved["state"][0] = {"step": 3, **entry}
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert contents(param, optimizer) == before


@pytest.mark.parametrize("cls", CLASSES)
def test_bfloat16_states_of_elsewhere_are_taken(cls: Any) -> None:
    _, optimizer = trained(cls, (6, 5), "float32")
    saved = optimizer.state_dict()
    for name, value in saved["state"][0].items():
        if name != "step":
            saved["state"][0][name] = value.astype(ml_dtypes.bfloat16)
    optimizer.load_state_dict(saved)
    for name, value in saved["state"][0].items():
        assert np.array_equal(optimizer.state[0][name], np.asarray(value, np.float64))


def test_adafactor_takes_the_memory_of_a_row_and_a_column() -> None:
    param, grad = np.ones((2000, 1000), np.float32), np.ones((2000, 1000), np.float32)
    tracemalloc.start()
    optimizer = fastopt.Adafactor([param])
    for _ in range(3):
        optimizer.step([grad])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < param.nbytes / 10, peak


RESIDENT = """
import resource
import numpy as np
import fastopt
param, grad = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
optimizer = fastopt.Adafactor([param])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
optimizer.step([grad])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("shape", [(1, 2**21), (8, 1, 2**18), (2**21, 1)])
def test_the_sums_of_columns_take_no_more_memory_than_the_columns(shape: tuple[int, ...]) -> None:
    """Where a matrix has one row, its columns are as many as its elements: a few times as many numbers may be there."""
    program = RESIDENT.replace("SHAPE", repr(shape))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 10 * 8 * 2**21


def test_names_that_come_late_and_a_gradient_of_none() -> None:
    params = {"a": drawn((6, 5), 0), "b": drawn((4,), 1)}
    optimizer = fastopt.Adafactor(lr=0.1)
    optimizer.update({"a": params["a"]}, {"a": drawn((6, 5), 2)})
    optimizer.update(params, {"a": None, "b": drawn((4,), 3)})
    optimizer.update(params, {"a": drawn((6, 5), 4), "b": drawn((4,), 5)})
    assert {name: [*entry] for name, entry in optimizer.state.items()} == {
        "a": ["step", "row_var", "col_var"],
        "b": ["step", "variance"],
    }
    assert [entry["step"] for entry in optimizer.state.values()] == [2, 2]
    alone = drawn((6, 5), 0)
    other = fastopt.Adafactor([alone], lr=0.1)
    other.step([drawn((6, 5), 2)])
    other.step([drawn((6, 5), 4)])
    assert np.array_equal(params["a"], alone)


# -- Functions -------------------------------------------------------------------------------------


def test_the_functions() -> None:
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        matrix, optimizer = trained(fastopt.Adafactor, (6, 5), lr=0.1)
        param, row, column = drawn((6, 5), 0), np.zeros((6, 1)), np.zeros((1, 5))
        for step in range(3):
            grad = drawn((6, 5), 1 + step) * (10 if step % 3 == 0 else 0.1)
            functional.adafactor(param, grad, row_var=row, col_var=column, step=1 + step, lr=0.1)
        assert np.array_equal(param, matrix)
        assert np.array_equal(row, optimizer.state[0]["row_var"])
        vector, optimizer = trained(fastopt.Adafactor, (6,), lr=0.1)
        param, variance = drawn((6,), 0), np.zeros(6)
        for step in range(3):
            grad = drawn((6,), 1 + step) * (10 if step % 3 == 0 else 0.1)
            functional.adafactor(param, grad, variance, step=1 + step, lr=0.1)
        assert np.array_equal(param, vector)
        matrix, optimizer = trained(fastopt.RowWiseAdagrad, (6, 5), lr=0.1)
        param, total = drawn((6, 5), 0), np.zeros(6)
        for step in range(3):
            grad = drawn((6, 5), 1 + step) * (10 if step % 3 == 0 else 0.1)
            functional.rowwiseadagrad(param, grad, total, step=1 + step, lr=0.1)
        assert np.array_equal(param, matrix)
        assert np.array_equal(total, optimizer.state[0]["sum"])


@pytest.mark.parametrize(
    "states, message",
    [
        ({}, r"row_var: missing; pass a float64 array of shape \(6, 1\), at first zeros"),
        (
            {"row_var": np.zeros(6), "col_var": np.zeros((1, 5))},
            r"row_var: expected a float64 array of shape \(6, 1\), .* make it with numpy.zeros\(\(6, 1\)\)",
        ),
    ],
)
def test_the_function_says_what_it_needs(states: dict[str, Any], message: str) -> None:
    param = drawn((6, 5), 0)
    with pytest.raises(TypeError, match=message):
        functional.adafactor(param, drawn((6, 5), 1), step=1, **states)
    assert np.array_equal(param, drawn((6, 5), 0))


# -- What is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_parameters_in_fortran_order_are_refused_with_advice(cls: Any) -> None:
    param = np.asfortranarray(drawn((6, 5), 0))
    with pytest.raises(ValueError, match=r"'w': it is in Fortran order, .* numpy.ascontiguousarray"):
        cls({"w": param})
    cls({"w": np.ascontiguousarray(param)}).step({"w": param})


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_row_wise_adagrad_takes_matrices(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"two axes, this has shape {shape}; give it to Adagrad")):
        fastopt.RowWiseAdagrad([np.ones(shape)])
    fastopt.Adagrad([np.ones(shape)]).step([np.ones(shape)])


# -- Some rows -------------------------------------------------------------------------------------


def test_rows_of_row_wise_adagrad() -> None:
    """A named row has the bits of a dense step's; one that occurs twice counts once, with the sum of its gradients."""
    for dtype, gradient in ("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32"):
        found = []
        for isa in fastopt.available_isas():
            fastopt.set_isa(isa)
            param = drawn((30, 5), 0, dtype)
            dense_param = param.copy()
            optimizer = fastopt.RowWiseAdagrad([param], lr=0.1, weight_decay=0.1)
            dense = fastopt.RowWiseAdagrad([dense_param], lr=0.1, weight_decay=0.1)
            for step, rows in enumerate([[3, 7, 3, 29], [7, 0], []]):
                grads = drawn((4, 5), 1 + step, gradient)[: len(rows)]
                whole = np.zeros((30, 5), grads.dtype)
                np.add.at(whole, rows, grads)
                before = dense_param.copy(), dense.state[0].get("sum").copy()
                optimizer.update_rows([param], [rows], [grads])
                dense.step([whole])
                others = [row for row in range(30) if row not in rows]
                # a dense step decays the others too
                dense_param[others] = before[0][others]
                state = dense.state_dict()
                state["state"][0]["sum"][others] = before[1][others]
                dense.load_state_dict(state)
                assert param.tobytes() == dense_param.tobytes()
                assert np.array_equal(optimizer.state[0]["sum"], dense.state[0]["sum"])
            found.append(contents(param, optimizer))
        assert all(bits == found[0] for bits in found)


def test_rows_that_are_refused() -> None:
    params = {fastopt.RowWiseAdagrad: drawn((6, 5), 0), fastopt.Adafactor: drawn((6, 5), 0)}
    messages = {
        fastopt.RowWiseAdagrad: "cannot be made up; leave out catch_up",
        fastopt.Adafactor: "needs numbers of the whole parameter; use update",
    }
    for cls, param in params.items():
        optimizer = cls([param])
        with pytest.raises(ValueError, match=messages[cls]):
            optimizer.update_rows([param], [[1]], [np.ones((1, 5))], catch_up=True)
        assert np.array_equal(param, drawn((6, 5), 0))
        assert optimizer.state[0]["step"] == 0
    fastopt.RowWiseAdagrad([params[fastopt.RowWiseAdagrad]]).update_rows(
        [params[fastopt.RowWiseAdagrad]], [[1]], [np.ones((1, 5))]
    )


# -- torch -----------------------------------------------------------------------------------------


def test_the_adaptor_for_torch() -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch as adaptor

    shapes = [(12, 7), (7,), (4, 3, 3, 3)]
    starts = [torch.from_numpy(drawn(shape, 0)) for shape in shapes]
    starts += [torch.from_numpy(drawn((12, 7), 0)).T]
    starts += [torch.from_numpy(drawn((4, 3, 3, 3), 0)).contiguous(memory_format=torch.channels_last)]
    models = [[start.clone().requires_grad_() for start in starts] for _ in range(2)]
    theirs, ours = torch.optim.Adafactor(models[0], lr=0.05), adaptor.Adafactor(models[1], lr=0.05)
    for step in range(6):
        for k in range(len(starts)):
            grad = torch.from_numpy(drawn(tuple(starts[k].shape), 10 * step + k))
            for model in models:
                model[k].grad = grad.clone()
        if step == 3:  # the states change places
            saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in (theirs, ours)]
            assert saved[0]["state"][0].keys() == saved[1]["state"][0].keys()
            theirs.load_state_dict(saved[1])
            ours.load_state_dict(saved[0])
        theirs.step()
        ours.step()
        for one, other in zip(*models, strict=True):
            assert (one - other).abs().max() <= 1e-12 * one.abs().max(), step
        for one, other in zip(theirs.state.values(), ours.state.values(), strict=True):
            for name in one.keys() - {"step"}:
                assert (one[name] - other[name]).abs().max() <= 1e-12 * one[name].abs().max(), (step, name)
