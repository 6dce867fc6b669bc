"""The bits are the NumPy twin's: any optimizer, option, format, instruction set, threads, layout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import ml_dtypes
import numpy as np
import pytest
import table
from table import BY_CLASS, FEW_CLASSES, SIZES, STEPS, Array, Variant, cases, inputs, train

import fastopt

every_optimizer_and_format = cases("variant, format", BY_CLASS, FEW_CLASSES)
# those to which a matrix is as many numbers as it has, in any order; tests/test_by_rows.py has the others
every_flat_optimizer_and_format = cases(
    "variant, format",
    [(v, f) for v, f in BY_CLASS if v.cls not in table.BY_ROWS],
    [(v, f) for v, f in FEW_CLASSES if v.cls not in table.BY_ROWS],
)


@lru_cache(maxsize=2)
def expected(variant: Variant, format: str) -> list[list[bytes]]:
    """What the NumPy twin makes of the inputs."""
    isa = fastopt.get_isa()
    fastopt.set_isa("numpy")
    try:
        start, grads = inputs(format)
        params = [p.copy() for p in start]
        return table.bits(train(variant, params, grads), params)
    finally:
        fastopt.set_isa(isa)


def whole(optimizer: fastopt.Optimizer, params: Sequence[Array]) -> dict[str, bytes]:
    """Bits of all parameters, and of each of their state buffers, one after the other."""
    arrays: dict[str, list[Array]] = {"params": [p.ravel() for p in params]}
    for state in optimizer.state.values():
        for name, value in state.items():
            if name != "step" and name not in table.numbers_of(type(optimizer)):
                arrays.setdefault(name, []).append(value.ravel())
    return {name: table.bits_of(np.concatenate(parts)) for name, parts in arrays.items()}


def test_variants_reach_every_kernel() -> None:
    for row, subset, _ in table.KERNELS:
        assert (row, subset) in table.RUNS, f"no variant runs {row}_{subset}"


def test_the_inputs_are_hard() -> None:
    for format in table.FORMATS:
        values = np.concatenate([g for step in inputs(format)[1] for g in step])
        tiny = float(ml_dtypes.finfo(values.dtype).tiny)
        zero, subnormal = values == 0, np.abs(values.astype(np.float64)) < tiny
        kinds = {
            "zero": zero & ~np.signbit(values),
            "negative zero": zero & np.signbit(values),
            "subnormal": subnormal & ~zero,
            "infinity": values == np.inf,
            "negative infinity": values == -np.inf,
            "NaN": np.isnan(values),
        }
        for kind, found in kinds.items():
            assert found.sum() > 100, f"{format}: hardly any {kind}"


HARD_SIZES = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 1031]
"""Less than a vector, a loop and what it leaves over: one hard input for every kernel."""


@pytest.mark.parametrize("row", table.TABLE)
def test_every_kernel_on_a_hard_input(row: str) -> None:
    for variant, format in [(v, f) for v, f in table.BY_KERNEL if v.kernel[0] == row]:
        stored = variant.stored_as(format)
        parameter, gradient, _ = table.FORMATS[format]
        start = [table.hard_values(size, parameter, 0) for size in HARD_SIZES]
        grads = [[table.hard_values(size, gradient, 1 + k) for size in HARD_SIZES] for k in range(STEPS)]
        results = []
        for isa in fastopt.available_isas():
            fastopt.set_isa(isa)
            params = [p.copy() for p in start]
            results.append(whole(train(stored, params, grads), params))
        for isa, result in zip(table.NATIVE_ISAS, results, strict=False):
            assert result == results[-1], f"{stored}, {format}, {isa}: not the twin's bits"


@cases("variant, format", table.BY_OPTION, table.FEW_KERNELS)
def test_all_sizes_in_one_optimizer(variant: Variant, format: str) -> None:
    variant = variant.stored_as(format)
    want = expected(variant, format)
    start, grads = inputs(format)
    for isa in table.NATIVE_ISAS:
        for threads in 1, 2, 3, 5:
            fastopt.set_isa(isa)
            fastopt.set_num_threads(threads)
            params = [p.copy() for p in start]
            got = table.bits(train(variant, params, grads), params)
            wrong = [size for size, a, b in zip(SIZES, got, want, strict=True) if a != b]
            assert not wrong, f"{isa}, {threads} threads: not the twin's bits for sizes {wrong}"


@cases("variant, format", BY_CLASS, [(v, f) for v, f in FEW_CLASSES if f in table.DTYPES])
def test_each_size_alone(variant: Variant, format: str) -> None:
    variant = variant.stored_as(format)
    # where nothing depends on the other arrays
    is_known = format in table.DTYPES and not table.adds_up_all(variant.cls)
    want = expected(variant, format) if is_known else None
    start, grads = inputs(format)
    for i, size in enumerate(SIZES):

        def alone(isa: str, i: int = i) -> list[list[bytes]]:
            fastopt.set_isa(isa)
            params = [start[i].copy()]
            return table.bits(train(variant, params, [[step[i]] for step in grads]), params)

        # where nothing is rounded at random, its place is nothing to a number
        right = alone("numpy") if want is None else [want[i]]
        for isa in table.NATIVE_ISAS:
            assert alone(isa) == right, f"{isa}: not the twin's bits for one array of {size}"


# -- Where and how the elements lie ----------------------------------------------------------------

SHAPE = (131, 517)  # odd, and enough elements to run in parallel


@lru_cache(maxsize=2)
def matrices(format: str) -> tuple[Array, list[Array]]:
    """A parameter and its gradient in each step."""
    parameter, gradient, _ = table.FORMATS[format]
    size = SHAPE[0] * SHAPE[1]
    grads = [table.hard_values(size, gradient, 11 + k).reshape(SHAPE) for k in range(STEPS)]
    return table.hard_values(size, parameter, 10).reshape(SHAPE), grads


def trained_by_the_twin(variant: Variant, param: Array, grads: Sequence[Array]) -> dict[str, bytes]:
    fastopt.set_isa("numpy")
    params = [param.copy(order="K")]
    return whole(train(variant, params, [[np.ascontiguousarray(g)] for g in grads]), params)


def shifted(array: Array) -> Array:
    """A copy that begins one element after an address that is a multiple of 64 bytes."""
    room = np.empty(array.size + 64, array.dtype)
    start = -room.ctypes.data % 64 // array.itemsize + 1
    view = room[start : start + array.size].reshape(array.shape)
    view[...] = array
    assert view.ctypes.data % 64 == array.itemsize
    return view


def sliced(array: Array) -> Array:
    view = np.full((2 * array.shape[0], 3 * array.shape[1] + 1), 7, array.dtype)[::2, 1::3]
    view[...] = array
    return view


def one_byte_on(array: Array) -> Array:
    """A copy whose elements lie across the addresses where they ought to begin."""
    view = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not (view.size and view.flags.aligned)
    return view


def in_records(array: Array) -> Array:
    """A copy in a field of packed records: the other fields lie between its elements."""
    records = np.full(array.shape, 7, [("tag", "u1"), ("value", array.dtype), ("rest", "u2")])
    records["value"] = array
    return records["value"]


def in_order_of(axes: Sequence[int]) -> Callable[[Array], Array]:
    """Copies in which other axes vary fastest."""
    return lambda array: np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


GRADIENT_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda g: g,
    "one element on": shifted,
    "transposed": np.asfortranarray,
    "sliced": sliced,
    "reversed": lambda g: g[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only,
    "one row for all": lambda g: np.broadcast_to(g[:1], g.shape),
    "one column for all": lambda g: np.broadcast_to(g[:, :1], g.shape),
    "one number for all": lambda g: np.broadcast_to(g[3, 3], g.shape),
    "one byte on": one_byte_on,
    "in records": in_records,
}
PARAMETER_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": np.copy,
    "Fortran": np.asfortranarray,
    "one element on": shifted,
}


@every_flat_optimizer_and_format
def test_any_layout(variant: Variant, format: str) -> None:
    variant = variant.stored_as(format)
    start, plain = matrices(format)
    for gradient_layout, lay_out_gradient in GRADIENT_LAYOUTS.items():
        grads = [lay_out_gradient(g) for g in plain]
        before = [table.bits_of(g) for g in grads]
        want: dict[str, dict[str, bytes]] = {}
        for parameter_layout, lay_out in PARAMETER_LAYOUTS.items():
            # random bits go by where an element lies in memory: only a layout of the same order has the same
            order = "F" if parameter_layout == "Fortran" and format not in table.DTYPES else "C"
            if order not in want:
                want[order] = trained_by_the_twin(variant, start.copy(order), grads)  # type: ignore[call-overload]
            for isa in table.NATIVE_ISAS:
                fastopt.set_isa(isa)
                fastopt.set_num_threads(2)
                params = [lay_out(start)]
                got = whole(train(variant, params, [[g] for g in grads]), params)
                where = f"{isa}, gradient {gradient_layout}, parameter {parameter_layout}"
                assert got == want[order], f"{where}: not the twin's bits"
        assert [table.bits_of(g) for g in grads] == before, f"{gradient_layout}: a step wrote to its gradients"


BLOCKS = [(2, 3, 4), (1, 5, 1), (7, 1, 9), (3, 0, 2), (20, 21, 22), (4, 2, 3, 5)]
LAYOUTS_OF_BLOCKS: dict[str, Callable[[Array], Array]] = {
    **{f"axes {axes}": in_order_of(axes) for axes in itertools.permutations(range(3))},
    "reversed": lambda g: g[::-1, :, ::-1].copy()[::-1, :, ::-1],
    "within another": lambda g: np.pad(g, 1)[(slice(1, -1),) * g.ndim],
    "every other row": lambda g: np.repeat(g, 2, axis=1)[:, ::2],
    "one byte on": one_byte_on,
    "in records": in_records,
    "one for all": lambda g: np.broadcast_to(g[:1, :, :1], g.shape),
}


@every_flat_optimizer_and_format
def test_layouts_of_more_dimensions(variant: Variant, format: str) -> None:
    variant = variant.stored_as(format)
    parameter, gradient, _ = table.FORMATS[format]
    start: list[Array] = []
    grads: list[list[Array]] = [[] for _ in range(STEPS)]
    for shape, (name, lay_out), order in itertools.product(BLOCKS, LAYOUTS_OF_BLOCKS.items(), "CF"):
        if len(shape) > 3 and name.startswith("axes"):
            lay_out = in_order_of((2, 0, 3, 1))
        size = math.prod(shape)
        start.append(table.hard_values(size, parameter, 30).reshape(shape).copy(order))
        for k in range(STEPS):
            grads[k].append(lay_out(table.hard_values(size, gradient, 31 + k).reshape(shape)))
    # random bits go by where an element lies in memory: so the twin has the parameters' layouts too
    fastopt.set_isa("numpy")
    params = [p.copy("K") for p in start]
    want = table.bits(train(variant, params, [[g.copy("C") for g in step] for step in grads]), params)
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        params = [p.copy("K") for p in start]
        got = table.bits(train(variant, params, grads), params)
        wrong = [params[i].shape for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b]
        assert not wrong, f"{isa}: not the bits of contiguous gradients for {wrong}"


def elementwise(pairs: list[tuple[Variant, str]]) -> list[tuple[Variant, str]]:
    """Without the optimizers that add up over a tensor: for them it matters how a model is cut into tensors."""
    return [(variant, format) for variant, format in pairs if not table.needs_sums(variant.cls, variant.hyper)]


@cases("variant, format", elementwise(BY_CLASS), elementwise(FEW_CLASSES))
def test_one_array_or_many(variant: Variant, format: str) -> None:
    variant = variant.stored_as(format)
    start, grads = matrices(format)
    want = trained_by_the_twin(variant, start, grads)
    fastopt.set_num_threads(3)
    for cuts in [[1], [1, 2, 5, 68, 1005, 16389, 40000, 40000, 67726], list(range(0, 67000, 333))]:
        for isa in table.NATIVE_ISAS:
            fastopt.set_isa(isa)
            flat = start.flatten()
            params = np.split(flat, cuts)
            got = whole(train(variant, params, [np.split(g.ravel(), cuts) for g in grads]), params)
            assert got == want, f"{isa}, cut into {len(params)}: not the twin's bits"


ROWS = [(row, format) for row in table.ROWS for format in table.FORMATS]


@cases("row, format", ROWS, [(row, f) for row, f in ROWS if row in table.KINDS and f in table.DTYPES])
def test_states_go_out_of_use_and_come_back(row: str, format: str) -> None:
    """One optimizer runs every kernel of its row, with the states of all of them there."""
    forms = [v.stored_as(format) for key, v in sorted(table.RUNS.items()) if key[0] == row]
    start, grads = inputs(format)
    results = []
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        params = [p.copy() for p in start[::9]]
        optimizer = forms[-1].make(params)
        for form, step in zip([forms[-1], *forms, *reversed(forms)], itertools.cycle(grads), strict=False):
            optimizer.param_groups[0].update(form.hyper)
            optimizer.step(step[::9])
        results.append(table.bits(optimizer, params))
    assert all(result == results[-1] for result in results)


# -- What no option selects ------------------------------------------------------------------------

looking_ahead = [v for v in table.BASES if hasattr(v.cls, "lookahead")]


@pytest.mark.parametrize("format", table.FORMATS)
@pytest.mark.parametrize("variant", looking_ahead, ids=str)
def test_lookahead(variant: Variant, format: str) -> None:
    variant = variant.stored_as(format)
    start, grads = inputs(format)
    results = []
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        fastopt.set_num_threads(2)
        params, others = [p.copy() for p in start], [p.copy() for p in start]
        optimizer, other = variant.make(params), variant.cls(**variant.options)
        for k, step in enumerate(grads):
            # every third parameter has no gradient, and goes back to where it was
            given = [None if i % 3 == k else g for i, g in enumerate(step)]
            optimizer.lookahead()  # type: ignore[attr-defined]
            optimizer.step(given)
            other.lookahead(others)  # type: ignore[attr-defined]
            other.update(others, given)
        results += [table.bits(optimizer, params), table.bits(other, others)]
    assert all(result == results[-1] for result in results)
