"""Steps on a few rows of large parameters: `opt.update_rows`."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array, Variant, cases, named

import fastopt

ROWS, WIDTH = 30, 5


def is_by_element(variant: Variant) -> bool:
    return not table.flags_of(variant.cls) and not variant.cls.algorithm.needs_factors(variant.hyper)


VARIANTS = [v for v in table.VARIANTS if is_by_element(v) and v.hyper.get("l1", 0.0) == 0.0]
BASES = [v for v in table.BASES if is_by_element(v)]
OTHERS = [v for v in table.VARIANTS if not is_by_element(v)]
CLASSES = [fastopt.SGD, fastopt.Adagrad, fastopt.RMSprop, fastopt.Adam, fastopt.AdamW]
"""Those that users know sparse steps of."""

every_base = cases("variant", BASES, [v for v in BASES if v.cls in CLASSES])


def matrix(seed: int = 0, rows: int = ROWS, dtype: Any = "float64") -> Array:
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(table.dtype_of(dtype))


def call(step: int, dtype: Any = "float64", count: int = 7, rows: int = ROWS) -> tuple[Array, Array]:
    """The rows of a call, some of them twice, and their gradients."""
    rng = np.random.default_rng(1000 + step)
    return rng.integers(0, rows, count), rng.standard_normal((count, WIDTH)).astype(table.dtype_of(dtype))


def dense(rows: Array, grads: Array, count: int = ROWS) -> Array:
    """The same gradient with a row for each of the parameter's, added up in the order of the call."""
    wide = np.float64 if grads.dtype == np.float64 else np.float32
    found = np.zeros((count, WIDTH), wide)
    for row, grad in zip(rows, grads, strict=True):
        found[row] += grad.astype(wide)
    return found


@pytest.fixture
def isas() -> Any:
    yield fastopt.available_isas()
    fastopt.set_isa(None)


# -- What is computed ------------------------------------------------------------------------------


@every_base
def test_caught_up_rows_are_those_of_dense_steps(variant: Variant, isas: Any) -> None:
    for isa in isas:
        fastopt.set_isa(isa)
        for dtype in variant.dtypes:
            with named((isa, dtype)):
                param = matrix(dtype=dtype)
                right = param.copy()
                ours, whole = Variant(variant.cls, variant.options).make(None), variant.make([right])
                for step in range(12):
                    rows, grads = call(step, "float64" if dtype == "float64" else "float32")
                    if step == 11:
                        rows, grads = np.arange(ROWS), matrix(77).astype(grads.dtype)
                    ours.update_rows([param], [rows], [grads], catch_up=True)
                    whole.step([dense(rows, grads)])
                assert param.tobytes() == right.tobytes()
                state, its = ours.state[0], whole.state[0]
                assert state["step"] == 12
                for name in its:
                    assert np.array_equal(np.asarray(state[name]), np.asarray(its[name])), name


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_500_dense_steps(cls: Any) -> None:
    options = {"momentum": 0.9} if cls is fastopt.SGD else {}
    param = matrix()
    right = param.copy()
    ours, whole = cls(lr=0.01, weight_decay=0.1, **options), cls([right], lr=0.01, weight_decay=0.1, **options)
    for step in range(500):
        rows, grads = call(step) if step < 499 else (np.arange(ROWS), matrix(7))
        ours.update_rows({"e": param}, {"e": rows}, {"e": grads}, catch_up=True)
        whole.step([dense(rows, grads)])
    assert np.array_equal(param, right)


@every_base
def test_without_catching_up_a_row_is_an_array_of_its_own(variant: Variant, isas: Any) -> None:
    """But for the number of the step, which is the parameter's."""
    for isa in isas:
        fastopt.set_isa(isa)
        param = matrix()
        alone = [row.copy() for row in param]
        ours, others = variant.make(None), [variant.make([row]) for row in alone]
        for step in range(6):
            rows, grads = call(step)
            ours.update_rows([param], [rows], [grads])
            for row, grad in enumerate(dense(rows, grads)):
                saved = others[row].state_dict()
                saved["state"][0]["step"] = step
                others[row].load_state_dict(saved)
                if row in rows:
                    others[row].step([grad])
        with named(isa):
            assert np.array_equal(param, np.stack(alone))
            for name, array in ours.state[0].items():
                if name != "step":
                    assert np.array_equal(array, np.stack([other.state[0][name] for other in others])), name


def test_rows_that_are_not_named_are_neither_read_nor_written() -> None:
    param = matrix()
    param[10:] = np.nan
    before = param.copy()
    optimizer = fastopt.Adam(lr=0.1)
    optimizer.update_rows([param], [[3, 0, 3]], [np.ones((3, WIDTH))])
    assert np.array_equal(param[10:], before[10:], equal_nan=True)
    assert (param[[0, 3]] != before[[0, 3]]).all()
    assert np.array_equal(np.delete(param[:10], [0, 3], 0), np.delete(before[:10], [0, 3], 0))
    assert not optimizer.state[0]["exp_avg"][1:3].any()


def test_the_order_in_which_gradients_are_added() -> None:
    """1e8 + 1 - 1e8 is 0 in float32, in another order 1."""
    param = np.zeros((2, 1), np.float32)
    grads = np.array([[1e8], [5.0], [1.0], [-1e8]], np.float32)
    fastopt.SGD(lr=1.0).update_rows([param], [[1, 0, 1, 1]], [grads])
    assert param.tolist() == [[-5.0], [0.0]]


def test_many_rows_have_the_same_bits_for_any_number_of_threads(isas: Any) -> None:
    found = []
    for isa in isas:
        for threads in (1, 2, 5) if isa != "numpy" else (1,):
            fastopt.set_isa(isa)
            fastopt.set_num_threads(threads)
            param = matrix(rows=8_000, dtype="float32")
            optimizer = fastopt.AdamW(lr=0.1, state_dtype="bfloat16")
            for step in range(3):
                rows, grads = call(step, "float32", 7_000, 8_000)  # three tasks
                optimizer.update_rows([param], [rows], [grads], catch_up=True)
            found.append(table.bits(optimizer, [param]))
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint64", ">i8"])
def test_rows_of_any_whole_numbers(dtype: str) -> None:
    def after(rows: Any) -> bytes:
        param = matrix()
        fastopt.SGD(lr=1.0).update_rows([param], [rows], [np.ones((3, WIDTH))])
        return param.tobytes()

    assert after(np.array([5, 2, 5], dtype)) == after([5, 2, 5]) == after(np.array([5, 0, 2, 0, 5, 0])[::2])
    unaligned = np.frombuffer(b"x" + np.array([5, 2, 5], dtype).tobytes(), np.uint8)[1:].view(dtype)
    assert after(unaligned) == after([5, 2, 5])


@pytest.mark.parametrize("layout", ["transposed", "strided", "unaligned", "read-only"])
def test_gradients_in_any_layout(layout: str) -> None:
    rows, grads = call(0)
    given = grads.copy()
    if layout == "transposed":
        given = np.asfortranarray(grads)
    elif layout == "strided":
        given = np.repeat(grads, 2, axis=1)[:, ::2]
    elif layout == "unaligned":
        given = np.frombuffer(b"x" + grads.tobytes(), np.uint8)[1:].view(np.float64).reshape(grads.shape)
    given.flags.writeable = False
    found = []
    for each in grads, given:
        param = matrix()
        fastopt.Adam(lr=0.1).update_rows([param], [rows], [each])
        found.append(param.tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("rows", [[1, 4], [1, 4, 1]], ids=["each once", "one twice"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_16_bits(dtype: str, rows: list[int]) -> None:
    grads = matrix(5, len(rows), dtype)
    found = []
    for given in grads, grads.astype(np.float32):
        param = matrix(dtype="float32")
        fastopt.Adam(lr=0.1).update_rows([param], [rows], [given])
        found.append(param.tobytes())
    assert found[0] == found[1]


def test_a_step_after_rows_takes_its_own_gradients_dtype() -> None:
    """Sums of 16-bit gradients are of float32; what comes next is checked anew."""
    param = matrix(dtype="float32")
    right = param.copy()
    grads = np.zeros(2 * param.size, np.float32)
    wide, half = (
        grads[: param.size].reshape(param.shape),
        grads.view(np.float16)[: param.size].reshape(param.shape),
    )
    ours, plain = fastopt.SGD([param], lr=0.5), fastopt.SGD([right], lr=0.5)
    ours.update_rows([param], [[1, 1]], [np.ones((2, WIDTH), np.float16)])
    plain.update_rows([right], [[1]], [np.full((1, WIDTH), 2, np.float32)])
    for grad in wide, half:
        grad[...] = 0.25
        for optimizer in ours, plain:
            optimizer.step([grad.copy() if optimizer is plain else grad])
    assert np.array_equal(param, right)


def test_gradients_of_float64_are_rounded_with_a_warning() -> None:
    param, grads = matrix(dtype="float32"), matrix(5, 2)
    right = param.copy()
    optimizer = fastopt.Adam(lr=0.1)
    with pytest.warns(UserWarning, match="every step rounds such gradients"):
        optimizer.update_rows([param], [[1, 4]], [grads])
    fastopt.Adam(lr=0.1).update_rows([right], [[1, 4]], [grads.astype(np.float32)])
    assert np.array_equal(param, right)


def test_parameters_of_one_and_of_three_axes() -> None:
    for shape in (ROWS,), (ROWS, 2, 3):
        param, grads = np.ones(shape), np.full((2, *shape[1:]), 0.5)
        fastopt.SGD(lr=1.0).update_rows([param], [[1, 4]], [grads])
        assert (param[[1, 4]] == 0.5).all()
        assert param.sum() == param.size - 0.5 * grads.size


def test_no_rows_and_no_elements(isas: Any) -> None:
    for isa in isas:
        fastopt.set_isa(isa)
        empty, wide, param = np.ones((0, 3)), np.ones((3, 0)), np.ones((3, 2))
        optimizer = fastopt.Adam(lr=0.1)
        grads = [np.ones((0, 3)), np.ones((2, 0)), np.ones((0, 2))]
        for _ in range(2):
            optimizer.update_rows([empty, wide, param], [[], [0, 1], []], grads, catch_up=True)
        assert (param == 1).all()
        assert [optimizer.state[i]["step"] for i in range(3)] == [2, 2, 2]


def test_a_gradient_of_none_leaves_the_parameter_alone() -> None:
    params = [matrix(0), matrix(1)]
    before = params[1].copy()
    optimizer = fastopt.Adam(lr=0.1)
    optimizer.update_rows(params, [[1], [1]], [np.ones((1, WIDTH)), None])
    assert np.array_equal(params[1], before)
    assert [optimizer.state[i]["step"] for i in range(2)] == [1, 0]


def test_names_and_kept_parameters() -> None:
    """As in `update`: state belongs to the name, arrays may move, and an optimizer made with arrays holds the new."""
    param = matrix()
    optimizer = fastopt.Adam({"e": param, "w": np.ones(2)}, lr=0.1)
    optimizer.bind({"e": np.ones_like(param), "w": np.ones(2)})
    moved = param.copy()
    optimizer.update_rows({"e": moved}, {"e": [2]}, {"e": np.ones((1, WIDTH))})
    assert not table.is_bound(optimizer)
    assert optimizer.param_groups[0]["params"][0] is moved
    assert (optimizer.state["e"]["step"], optimizer.state["w"]["step"]) == (1, 0)
    optimizer.step({"e": np.ones_like(param), "w": np.ones(2)})
    assert (moved != param).all()


def test_schedules_go_by_the_steps_of_the_call() -> None:
    param = np.zeros((4, 1))
    optimizer = fastopt.SGD(lr=lambda t: 10.0**t)
    for row in 0, 1, 0:
        optimizer.update_rows([param], [[row]], [-np.ones((1, 1))])
    assert param[:, 0].tolist() == [101.0, 10.0, 0.0, 0.0]


# -- Against torch ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_as_torchs_sparse_adam() -> None:
    torch = pytest.importorskip("torch")
    param = matrix()
    tensor = torch.from_numpy(param.copy()).requires_grad_()
    theirs, ours = torch.optim.SparseAdam([tensor], lr=0.1), fastopt.Adam(lr=0.1, eps=0.0, eps_hat=1e-8)
    for step in range(20):
        rows, grads = call(step)
        tensor.grad = torch.sparse_coo_tensor(rows[None], torch.from_numpy(grads), param.shape)
        theirs.step()
        ours.update_rows([param], [rows], [grads])
        their = tensor.detach().numpy()
        assert np.abs(param - their).max() <= 1e-12 * np.abs(their).max()


# -- Making up for missed steps --------------------------------------------------------------------


def behind(**options: Any) -> tuple[Any, Array]:
    """An optimizer of whose rows some are behind."""
    param = matrix()
    optimizer = fastopt.Adam(**{"lr": 0.1, **options})
    for rows in [0, 1], [1, 2]:
        optimizer.update_rows([param], [rows], [np.ones((2, WIDTH))], catch_up=True)
    return optimizer, param


def all_rows(optimizer: Any, param: Array) -> None:
    optimizer.update_rows([param], [np.arange(ROWS)], [np.zeros_like(param)], catch_up=True)


def test_options_must_not_change_while_rows_are_behind() -> None:
    optimizer, param = behind()
    optimizer.lr = 0.5
    before = table.bits(optimizer, [param])
    with pytest.raises(
        ValueError, match=r"^parameter 0: its group's options have changed since row 0 was updated"
    ):
        all_rows(optimizer, param)
    assert table.bits(optimizer, [param]) == before
    optimizer.update_rows([param], [[1, 2]], [np.ones((2, WIDTH))], catch_up=True)  # they are not behind
    with pytest.raises(ValueError, match="name all rows, with gradients of 0, before options change"):
        all_rows(optimizer, param)
    # the advice
    optimizer, param = behind()
    all_rows(optimizer, param)
    optimizer.lr = 0.5
    all_rows(optimizer, param)


def test_callables_may_have_other_values_while_rows_are_behind() -> None:
    schedule = lambda t: 0.1 / (1 + t)  # noqa: E731
    param, whole = matrix(), matrix()
    ours, theirs = fastopt.AdamW(lr=schedule), fastopt.AdamW([whole], lr=schedule)
    for step in range(5):
        rows, grads = call(step) if step < 4 else (np.arange(ROWS), matrix(3))
        ours.update_rows([param], [rows], [grads], catch_up=True)
        theirs.step([dense(rows, grads)])
    assert np.array_equal(param, whole)


def test_catch_up_in_every_call_or_in_none() -> None:
    optimizer, param = behind()
    before = table.bits(optimizer, [param])
    with pytest.raises(ValueError, match="earlier calls had catch_up=True"):
        optimizer.update_rows([param], [[0]], [np.ones((1, WIDTH))])
    assert table.bits(optimizer, [param]) == before
    optimizer.update([param], [np.ones_like(param)])
    with pytest.raises(ValueError, match="it made steps without catch_up since the last call"):
        all_rows(optimizer, param)
    optimizer.reset()
    assert "row_steps" not in optimizer.state[0]
    optimizer.update_rows([param], [[0]], [np.ones((1, WIDTH))])
    all_rows(optimizer, param)  # from here on: what was before is no missed step
    assert optimizer.state[0]["row_steps"].tolist() == [2] * ROWS
    with pytest.raises(ValueError, match="read-only"):
        optimizer.state[0]["row_steps"][0] = 1


def go_on_by(way: str, optimizer: Any, path: Path) -> Any:
    if way == "state_dict":
        other = fastopt.Adam(lr=0.1)
        other.load_state_dict(optimizer.state_dict())
        return other
    if way in (".npz", ".safetensors"):
        fastopt.save(path / f"file{way}", optimizer)
        other = fastopt.Adam(lr=0.1)
        fastopt.load(path / f"file{way}", other)
        return other
    return {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.copy, "deepcopy": copy.deepcopy}[way](
        optimizer
    )


@pytest.mark.parametrize("way", ["state_dict", ".npz", ".safetensors", "pickle", "copy", "deepcopy"])
def test_rows_that_are_behind_survive(way: str, tmp_path: Path) -> None:
    optimizer, param = behind()
    moved = param.copy()
    other = go_on_by(way, optimizer, tmp_path)
    for one, array in (optimizer, param), (other, moved):
        all_rows(one, array)
    assert np.array_equal(param, moved)
    assert other.state[0]["row_steps"].tolist() == [3] * ROWS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(3, int), "shape"),
        (np.zeros(ROWS), "dtype float64"),
        (np.full(ROWS, 3), "from 0 to 2 steps"),
        (np.full(ROWS, -1), "from 0 to 2 steps"),
    ],
)
def test_wrong_numbers_of_steps_are_not_loaded(wrong: Array, message: str) -> None:
    optimizer, param = behind()
    saved = optimizer.state_dict()
    saved["state"][0]["row_steps"] = wrong
    before = table.bits(optimizer, [param])
    with pytest.raises(ValueError, match=f"row_steps: .*{re.escape(message)}"):
        optimizer.load_state_dict(saved)
    assert table.bits(optimizer, [param]) == before


# -- What is refused -------------------------------------------------------------------------------

GRADS = np.ones((2, WIDTH))

REFUSED: dict[str, tuple[Any, Any, str]] = {
    "negative": ([0, -1], GRADS, r"it has no row -1: .* 0 to 29; rows are counted from 0"),
    "out of range": ([0, ROWS], GRADS, r"it has no row 30: it has 30 rows, 0 to 29"),
    "enormous": (np.array([0, 2**64 - 1], np.uint64), GRADS, "it has no row 18446744073709551615"),
    "floats": ([0.0, 1.0], GRADS, "must be whole numbers, got dtype float64"),
    "a mask": (np.arange(ROWS) < 2, GRADS, r"pass numpy.flatnonzero\(mask\)"),
    "masked": (np.ma.MaskedArray([0, 1]), GRADS, r"pass those that count, rows.compressed\(\)"),
    "two axes": ([[0, 1]], GRADS, r"pass rows.ravel\(\)"),
    "one number": (3, GRADS, r"pass rows.ravel\(\)"),
    "text": ("ab", GRADS, "must be whole numbers"),
    "None": (None, GRADS, "must be whole numbers"),
    "too many gradients": ([0], GRADS, r"has shape \(2, 5\), it must be \(1, 5\)"),
    "gradients of another width": ([0, 1], np.ones((2, 4)), r"it must be \(2, 5\)"),
    "a gradient like the parameter": ([0, 1], np.ones((ROWS, WIDTH)), r"it must be \(2, 5\)"),
    "gradients of another dtype": ([0, 1], np.ones((2, WIDTH), np.float32), "convert it with astype"),
    "whole gradients": ([0, 1], np.ones((2, WIDTH), int), "convert it with astype"),
    "a list": ([0, 1], GRADS.tolist(), "its gradient must be a NumPy array"),
}


@pytest.mark.parametrize(("rows", "grads", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_changes_nothing(rows: Any, grads: Any, message: str) -> None:
    params = [matrix(0), matrix(1)]
    optimizer = fastopt.Adam(lr=0.1)
    optimizer.update_rows(params, [[0], [1]], [GRADS[:1], GRADS[:1]])
    before = table.bits(optimizer, params)
    with pytest.raises((TypeError, ValueError), match=rf"^parameter 1: .*{message}"):
        optimizer.update_rows(params, [[0], rows], [GRADS[:1], grads])
    assert table.bits(optimizer, params) == before
    assert optimizer.state[0]["step"] == 1


def test_a_refused_call_joins_no_name() -> None:
    optimizer = fastopt.Adam(lr=0.1)
    with pytest.raises(ValueError, match="no row"):
        optimizer.update_rows({"e": matrix()}, {"e": [99, 0]}, {"e": GRADS})
    assert not len(optimizer.state)


@pytest.mark.parametrize("catch_up", [False, True])
@pytest.mark.parametrize("variant", OTHERS, ids=str)
def test_optimizers_that_need_all_of_a_parameter(variant: Variant, catch_up: bool) -> None:
    param = matrix(dtype="float32")
    before, optimizer = param.copy(), variant.make(None)
    with pytest.raises(ValueError, match=r"^update_rows: .*; use update"):
        optimizer.update_rows([param], [[0, 1]], [GRADS.astype("float32")], catch_up=catch_up)
    assert np.array_equal(param, before)
    optimizer.update([param], [np.ones_like(param)])


def test_what_follows_all_of_a_parameter() -> None:
    param = matrix()
    optimizer = fastopt.Adam([param], lr=0.1)
    average = fastopt.ExponentialMovingAverage(optimizer)
    with pytest.raises(ValueError, match="an average, Lookahead or mirror"):
        optimizer.update_rows([param], [[0, 1]], [GRADS])
    average.remove()
    optimizer.l1 = 0.1
    with pytest.raises(ValueError, match="its option l1 is not 0"):
        optimizer.update_rows([param], [[0, 1]], [GRADS])
    optimizer.l1 = 0.0
    optimizer.update_rows([param], [[0, 1]], [GRADS])


def test_the_parameters_themselves() -> None:
    fortran, single = np.asfortranarray(matrix()), np.ones(())
    for param, message in (
        (fortran, "make it with numpy.ascontiguousarray"),
        (single, r"because its shape is \(\)"),
    ):
        with pytest.raises(ValueError, match=f"^parameter 0: .*{message}"):
            fastopt.Adam(lr=0.1).update_rows([param], [[0, 1]], [GRADS])
    param = matrix()
    for shared in param[:2], param[3:5]:
        with pytest.raises(ValueError, match="shares memory"):
            fastopt.Adam(lr=0.1).update_rows([param], [[0, 1]], [shared])
    fastopt.Adam(lr=0.1).update_rows([np.ascontiguousarray(fortran)], [[0, 1]], [GRADS])


@pytest.mark.parametrize(
    ("params", "rows", "grads", "message"),
    [
        ([matrix()], {"e": [0, 1]}, [GRADS], "pass three lists in one order, or three dicts"),
        ({"e": matrix()}, [[0, 1]], {"e": GRADS}, "pass three lists in one order, or three dicts"),
        ({"e": matrix()}, {"e": [0, 1]}, [GRADS], "update_rows: got dict of parameters and list of gradients"),
        ({"e": matrix()}, {}, {"e": GRADS}, "no rows for 'e'"),
        ({"e": matrix()}, {"e": [0, 1], "f": [0]}, {"e": GRADS}, "rows for the unknown name 'f'"),
        ({"e": matrix()}, {"e": [0, 1]}, {}, "no gradient for 'e'"),
        ([matrix()], [[0, 1], [2]], [GRADS], "got 2 arrays for 1 parameters"),
        ([matrix()], np.array([[0, 1]]), [GRADS], "expected a list with an array for every parameter"),
        ([matrix()], [[0, 1]], [GRADS, GRADS], "got 2 for 1 parameters"),
    ],
)
def test_lists_and_dicts(params: Any, rows: Any, grads: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fastopt.Adam(lr=0.1).update_rows(params, rows, grads)


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_catch_up_is_true_or_false(wrong: Any) -> None:
    with pytest.raises(TypeError, match="catch_up: expected True or False"):
        fastopt.Adam(lr=0.1).update_rows([matrix()], [[0, 1]], [GRADS], catch_up=wrong)


def test_a_read_only_parameter() -> None:
    param = matrix()
    optimizer = fastopt.Adam(lr=0.1)
    optimizer.update_rows([param], [[0, 1]], [GRADS])
    param.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer.update_rows([param], [[0, 1]], [GRADS])


def test_bfloat16_parameters(isas: Any) -> None:
    found = []
    for isa in isas:
        fastopt.set_isa(isa)
        param = matrix(dtype="bfloat16")
        optimizer = fastopt.AdamW(lr=0.1, weight_decay=0.1, seed=5)
        for step in range(3):
            rows, grads = call(step, "bfloat16")
            optimizer.update_rows([param], [rows], [grads], catch_up=True)
        assert param.dtype == ml_dtypes.bfloat16
        found.append(table.bits(optimizer, [param]))
    assert all(one == found[0] for one in found)
