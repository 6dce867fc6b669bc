"""Any arguments, right and wrong: the twin's bits, or a refusal that changes nothing.

hypothesis writes short programs that make an optimizer and step it, bind, edit, add, save and load. Each
runs once with compiled code and once with the NumPy twin. Every line knows whether it is right. If it is, it
must be accepted, and leave the twin's bits; if not, it must be refused with a TypeError or ValueError, and
leave every byte as it was.

``FASTOPT_FUZZ=100000 pytest tests/test_fuzz.py`` runs so many of either kind, others every time (some minutes),
and with ``--hypothesis-seed=0`` the same; without it they are few and always the same.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
import table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table import Array, dtype_of

import fastopt
from fastopt import functional

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
pytestmark = pytest.mark.filterwarnings("ignore:.*its gradient is of float64")
EXAMPLES = int(os.environ.get("FASTOPT_FUZZ", "0"))

fuzzed = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

Line: TypeAlias = tuple[Any, ...]
"""A function and its arguments but the first, the world: it makes what a call is to be given, and returns
whether that is right, and the call."""
Made: TypeAlias = tuple[bool, Callable[[], Any]]


class World:
    """All that a program has made so far."""

    def __init__(self) -> None:
        self.optimizer: Any = None
        self.params: list[Array] = []
        self.arrays: list[Array] = []
        """Whole arrays: those of which parameters and gradients are parts too."""
        self.saved: list[Any] = []
        self.undo: Callable[[], Any] = lambda: None
        """What takes back a wrong edit, when it has been refused."""

    def keep(self, array: Array) -> Array:
        self.arrays.append(array)
        return array

    def everything(self, as_bytes: Callable[[Array], bytes] = np.ndarray.tobytes) -> Any:
        found: list[Any] = [as_bytes(a) for a in self.arrays]
        if self.optimizer is not None:
            found += [table.bits(self.optimizer, self.params), repr(self.optimizer)]
            found.append(table.is_bound(self.optimizer))
        return found


def bits_of(array: Array) -> bytes:
    """A NaN is a NaN, whatever its sign."""
    return table.bits_of(array) if array.dtype.kind == "f" else array.tobytes()


def run(program: list[Line], isa: str) -> list[Any]:
    """What each line said and left."""
    fastopt.set_isa(isa)
    world, found = World(), []
    for number, line in enumerate(program):
        world.undo = lambda: None
        right, call = line[0](world, *line[1:])
        before = world.everything()
        try:
            call()
        except (TypeError, ValueError) as error:
            assert not right, f"line {number}: refused: {error}"
            assert world.everything() == before, f"line {number}: refused, and changed: {error}"
            found.append(str(error))
            if world.optimizer is None:
                break
            world.undo()
        else:
            assert right, f"line {number}: accepted"
        found.append(world.everything(bits_of))
    return found


# -- Arrays ----------------------------------------------------------------------------------------

SHAPES = [
    *((), (0,), (1,), (3,), (7,), (64,), (2, 3), (3, 2), (4, 1), (0, 2), (2, 3, 4), (1, 1, 1), (33, 5), (1000,)),
    (300, 300),  # enough to run in parallel
]


@lru_cache(maxsize=1000)
def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    values = table.hard_values(math.prod(shape), dtype, seed).reshape(shape)
    values.flags.writeable = False
    return values


def misaligned(values: Array) -> Array:
    room = np.zeros(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.shape)
    room[...] = values
    return room


def in_records(values: Array) -> Array:
    records = np.zeros(values.shape, [("tag", "u1"), ("value", values.dtype)])
    records["value"] = values
    return records["value"]


def every_other(values: Array) -> Array:
    return (
        np.repeat(values.reshape(-1), 2)[::2].reshape(values.shape)
        if values.ndim < 2
        else np.repeat(values, 2, 0)[::2]
    )


def read_only(values: Array) -> Array:
    values = values.copy()
    values.flags.writeable = False
    return values


LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "C": np.copy,
    "F": lambda v: v.copy("F"),
    "reversed": lambda v: np.flip(np.flip(v).copy()),
    "every other": every_other,
    "one for all": lambda v: np.broadcast_to(v.reshape(-1)[:1].reshape((1,) * v.ndim), v.shape) if v.size else v,
    "read-only": read_only,
    "misaligned": misaligned,
    "records": in_records,
    "a matrix": lambda v: v.copy().view(np.matrix) if v.ndim == 2 else v.copy(),
    "a memoryview": lambda v: v.copy() if v.dtype == BFLOAT16 else memoryview(v.copy()),
}
RUBBISH: dict[str, Callable[[Array], Any]] = {
    "float8": lambda v: np.ones(v.shape, ml_dtypes.float8_e5m2),
    "longdouble": lambda v: np.ones(v.shape, np.longdouble),
    "halves of words": lambda v: np.ones(v.shape, np.uint16),
    "swapped": lambda v: np.ones(v.shape, v.dtype.newbyteorder()),
    "integers": lambda v: np.ones(v.shape, np.int32),
    "complex": lambda v: np.ones(v.shape, complex),
    "bools": lambda v: np.ones(v.shape, bool),
    "objects": lambda v: np.ones(v.shape, object),
    "dates": lambda v: np.ones(v.shape, "M8[s]"),
    "strings": lambda v: np.full(v.shape, "x"),
    "structured": lambda v: np.ones(v.shape, "f4,f4"),
    "masked": lambda v: np.ma.masked_array(np.ones(v.shape, v.dtype)),
    "a list": lambda v: v.tolist(),
    "a number": lambda v: 1,
    "text": lambda v: "x",
    "a class": lambda v: np.ndarray,
}
BENT: dict[str, Callable[[Array], Any]] = {
    "a dimension more": lambda v: v[None].copy(),
    "one more": lambda v: np.zeros((v.shape[0] + 1, *v.shape[1:]) if v.ndim else (1,), v.dtype),
    "flat": lambda v: v.reshape(-1).copy() if v.ndim != 1 else v.reshape(-1, 1).copy(),
    "nothing": lambda v: np.zeros((0, 7), v.dtype),
}


def mostly(right: Any, wrong: Any, part: int = 12) -> st.SearchStrategy[Any]:
    """Draws from the right ones, one time in so many from the wrong ones."""
    return st.integers(1, part).flatmap(lambda n: st.sampled_from(list(wrong if n == part else right)))


def overlapping(arrays: list[Array]) -> bool:
    """Of contiguous arrays."""
    return any(np.may_share_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i] if a.size and b.size)


PARAMETERS = ["own", "own F", "within gaps", "beside the last one"]
WRONG_PARAMETERS = [
    *RUBBISH,
    "float16",
    "None",
    "twice",
    "part of the last one",
    "read-only",
    "every other",
    "misaligned",
]

parameter = st.tuples(
    mostly(PARAMETERS, WRONG_PARAMETERS, 20),
    st.sampled_from(SHAPES),
    st.sampled_from([*table.DTYPES, "bfloat16"]),
    st.integers(0, 9),
)


def make_parameter(world: World, spec: tuple[str, tuple[int, ...], str, int]) -> tuple[bool, Any]:
    """Whether it is one (overlaps apart), and what it is."""
    kind, shape, dtype, seed = spec
    values = numbers(shape, dtype, seed)
    if kind == "own F":
        return True, world.keep(values.copy("F"))
    if kind == "within gaps":
        whole = world.keep(np.full(values.size + 6, 7, dtype))
        part = whole[3 : values.size + 3].reshape(shape)
        part[...] = values
        return True, part
    last = world.params[-1] if world.params else None
    if (
        kind in {"beside the last one", "part of the last one"}
        and last is not None
        and isinstance(last.base, np.ndarray)
        and last.base.dtype == last.dtype
    ):
        return True, last.base.reshape(-1)[-3:] if kind[0] == "b" else last.base.reshape(-1)[2:5]
    if kind == "twice" and last is not None:
        return True, last
    if kind == "None":
        return False, None
    if kind == "float16":
        return False, np.ones(shape, kind)
    if kind in RUBBISH:
        return False, RUBBISH[kind](values)
    if kind in {"read-only", "every other", "misaligned"}:
        array = world.keep(LAYOUTS[kind](values))
        return array.flags.writeable and array.flags.forc and array.flags.aligned, array
    return True, world.keep(values.copy())


GRADIENTS = [*LAYOUTS, *LAYOUTS, "None"]
WRONG_GRADIENTS = [*RUBBISH, *BENT, "its parameter", "another parameter", "a state", "part of a state"]

gradient = st.tuples(
    mostly(GRADIENTS, WRONG_GRADIENTS, 16),
    st.integers(0, 9),
    mostly(["the parameter's"], sorted({gradient for _, gradient, _ in table.FORMATS.values()}), 3),
)


def make_gradient(world: World, i: int, spec: tuple[str, int, str], in_step: bool = False) -> tuple[bool, Any]:
    kind, seed, dtype = spec
    param = world.params[i]
    if dtype == "the parameter's":
        dtype = param.dtype.name
    fitting = table.gradient_dtypes(param.dtype.name)
    if in_step and param.dtype == np.float32:
        fitting = fitting | {"float64"}  # it is rounded
    values = numbers(param.shape, dtype, 100 + seed)
    if kind == "None":
        return True, None
    if kind in RUBBISH or kind in BENT:
        return False, {**RUBBISH, **BENT}[kind](values)
    grad = None
    if kind == "its parameter":
        grad = param
    elif kind == "another parameter":
        grad = world.params[seed % len(world.params)]
    elif kind.endswith("state"):
        # numbers of a whole tensor are copies, which a gradient may be
        states = [s for s in world.optimizer.state[i].values() if isinstance(s, np.ndarray) and s.base is not None]
        grad = states[seed % len(states)] if states else None
        if grad is not None and kind[0] == "p" and param.ndim:
            grad = grad[::-1]
    if grad is not None:
        return grad.shape == param.shape and grad.dtype.name in fitting and not grad.size, grad
    grad = LAYOUTS.get(kind, np.copy)(values)
    world.arrays.append(np.asarray(grad))
    return dtype in fitting, grad


def fits(param: Array, grad: Any) -> bool:
    """Whether a gradient may be bound: it lies as its parameter does."""
    if grad is None:
        return True
    flags = np.asarray(grad).flags
    return flags.aligned and (flags.c_contiguous if param.flags.c_contiguous else flags.f_contiguous)


# -- Options ---------------------------------------------------------------------------------------

SCALES = [1.0, 1.0, 1.0, 0.7, -0.3, 0.0, 2, np.float32(0.5), 1e30]
NO_NUMBERS = [math.nan, math.inf, -math.inf, 10**400, "0.1", None, 1j, (0.1,), True, len]


def option(cls: type[fastopt.Optimizer]) -> st.SearchStrategy[tuple[str, Any, bool]]:
    """A name of an option, a value, and whether it is right by itself."""
    right: list[tuple[str, Any]] = []
    wrong: list[tuple[str, Any]] = [("weigth_decay", 1.0), (5, 0.1)]
    for name in table.options_of(cls):
        right += [(name, value) for value in table.right_values(cls, name)]
        wrong += [(name, value) for value in table.some_wrong_values(cls, name)]
    return mostly([(*pair, True) for pair in right], [(*pair, False) for pair in wrong], 10)


def accepted(
    cls: type[fastopt.Optimizer],
    options: dict[str, tuple[Any, bool]],
    start: dict[str, Any],
    params: Sequence[Array],
) -> bool:
    """Whether options are right, each by itself, together, and for their parameters."""
    if not all(right for _, right in options.values()):
        return False
    dtype, _ = options.get("state_dtype", (start["state_dtype"], True))
    if dtype is not None and not all(dtype in table.state_dtypes(p.dtype.name) for p in params):
        return False
    try:
        table.check_together(cls, start | {name: value for name, (value, _) in options.items()})
    except ValueError:
        return False
    return True


def rate_is_right(rate: Any) -> bool:
    return not (callable(rate) and any(rate(0) is x for x in table.WRONG_NUMBERS))


# -- Lines -----------------------------------------------------------------------------------------


def making(
    world: World, cls: Any, options: dict[str, tuple[Any, bool]], specs: list[Any], form: str, wrong_name: bool
) -> Made:
    right, members = add_members(world, specs, cls)
    given: Any = members
    if form == "dict":
        given = {(i if wrong_name else f"w{i}"): p for i, p in enumerate(members)}
        right = right and not (wrong_name and members)
    elif form == "groups":
        given = [{"params": members[:1]}, {"params": members[1:]}]
    elif form == "iterator":
        given = iter(members)
    right = right and accepted(cls, options, table.defaults_of(cls), members)

    def call() -> None:
        world.optimizer = cls(given, **{name: value for name, (value, _) in options.items()})

    return right and bool(members), call


def is_in_order(cls: table.Class, param: Array) -> bool:
    return table.takes_fortran_order(cls) or bool(param.flags.c_contiguous)


def add_members(world: World, specs: list[Any], cls: table.Class) -> tuple[bool, list[Any]]:
    """New parameters; whether they are right, each by itself and beside all others."""
    right, members = True, []
    before = list(world.params)
    for spec in specs:
        one, member = make_parameter(world, spec)
        one = one and is_in_order(cls, member)
        right = right and one
        members.append(member)
        if one:
            world.params.append(member)
    right = right and not overlapping(world.params)
    if not right:
        world.params = before
    return right, members


def stepping(world: World, specs: list[tuple[Any, ...]], scale: Any, form: str, bind: bool) -> Made:
    made = [make_gradient(world, i, specs[i % len(specs)], not bind) for i in range(len(world.params))]
    grads = [grad for _, grad in made]
    right = all(one for one, _ in made)
    if bind:
        right = right and all(fits(*pair) for pair in zip(world.params, grads, strict=True))
    given: Any = grads
    if form == "dict":
        given = dict(zip(world.optimizer.state, grads, strict=True))
    elif form == "iterator":
        given = iter(grads)
    elif form == "too few":
        given, right = grads[1:], False
    elif form == "too many":
        given, right = [*grads, None], False
    elif form == "an unknown name":
        given, right = dict(zip(world.optimizer.state, grads, strict=True)) | {"w99": None}, False
    elif form == "a name missing":
        given, right = dict(list(zip(world.optimizer.state, grads, strict=True))[1:]), False
    elif form == "an array":
        given, right = world.params[0], False
    if bind:
        return right, lambda: world.optimizer.bind(given)
    right = right and not any(scale is x for x in NO_NUMBERS)
    right = right and rates_are_right(world, grads)
    return right, lambda: world.optimizer.step(given, grad_scale=scale)


def rates_are_right(world: World, grads: list[Any]) -> bool:
    """Whether no callable gives a wrong rate to a parameter that has a gradient."""
    rates = [group["lr"] for group in world.optimizer.param_groups for _ in group["params"]]
    return all(rate_is_right(rate) for rate, grad in zip(rates, grads, strict=True) if grad is not None)


def stepping_bound(world: World) -> Made:
    bound = table.bound_gradients(world.optimizer)
    return bound is not None and rates_are_right(world, bound), lambda: world.optimizer.step()


def editing(world: World, edits: list[tuple[str, Any, bool]], specs: list[tuple[Any, ...]]) -> Made:
    """Edits the last group and steps; a wrong edit is taken back."""
    optimizer = world.optimizer
    group = optimizer.param_groups[-1]
    before = dict(group)
    options = {name: (value, right) for name, value, right in edits}
    right = accepted(type(optimizer), options, before, group["params"])
    if right and before.get("ahead"):
        right = all(
            name not in options or table.plain_value(type(optimizer), name, options[name][0]) == before[name]
            for name in ("momentum", "state_dtype")
        )
    group.update({name: value for name, (value, _) in options.items()})
    # an edit may give states a new place: what a gradient shared with one is then nobody's
    specs = [("C" if kind.endswith("state") else kind, *rest) for kind, *rest in specs]
    steps_rightly, call = stepping(world, specs, 1.0, "list", False)
    if right and steps_rightly:
        return True, call
    if right:  # the edit holds, whatever comes of the step
        table.take_edits(optimizer)
        return False, call
    world.undo = lambda: (group.clear(), group.update(before))
    return False, call


def adding(world: World, specs: list[Any], edits: list[tuple[str, Any, bool]]) -> Made:
    optimizer, before = world.optimizer, list(world.params)
    options = {name: (value, right) for name, value, right in edits}
    right, members = add_members(world, specs, type(optimizer))
    if not right or not accepted(type(optimizer), options, optimizer.defaults, members):
        right, world.params = False, before
    group = {"params": members, **{name: value for name, (value, _) in options.items()}}
    # what is new is looked at after the call
    after, world.params = world.params, before

    def call() -> None:
        optimizer.add_param_group(group)
        world.params = after

    return right, call


def rates_are_all_right(world: World) -> bool:
    return all(rate_is_right(group["lr"]) for group in world.optimizer.param_groups)


def saving(world: World) -> Made:
    return rates_are_all_right(world), lambda: world.saved.append(world.optimizer.state_dict())


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no state": lambda d: d.pop("state"),
    "no groups": lambda d: d.pop("param_groups"),
    "a group more": lambda d: d["param_groups"].append({"params": []}),
    "a parameter more": lambda d: d["param_groups"][-1]["params"].append(77),
    "a parameter twice": lambda d: d["param_groups"][-1].update(params=[0] * len(d["state"])),
    "an unknown parameter": lambda d: d["state"].update({99: {}}),
    "a misspelt option": lambda d: d["param_groups"][-1].update(weigth_decay=1.0),
    "a wrong option": lambda d: d["param_groups"][-1].update(weight_decay=-1.0),
    "an unknown state": lambda d: d["state"][0].update(speed=np.ones(3)),
    "steps below 0": lambda d: d["state"][0].update(step=-1),
    "no whole step": lambda d: d["state"][0].update(step=0.5),
    "a state that is none": lambda d: d["state"].update({0: None}),
    "nothing": lambda d: d.clear(),
}


def loading(world: World, spoiled: str | None) -> Made:
    if not world.saved:
        return True, lambda: None
    saved = copy.deepcopy(world.saved[-1])
    now = world.optimizer.param_groups
    right = [len(g["params"]) for g in saved["param_groups"]] == [len(g["params"]) for g in now]
    if spoiled == "a parameter twice" and len(saved["state"]) == 1:
        return True, lambda: None
    if spoiled is not None:
        SPOILED[spoiled](saved)

    def call() -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "group .*: state_dtype is")
            world.optimizer.load_state_dict(saved)

    return right and spoiled is None, call


def looking_ahead(world: World) -> Made:
    optimizer = world.optimizer
    if not hasattr(optimizer, "lookahead") or optimizer.param_groups[0]["ahead"]:
        return True, lambda: None
    return all(rate_is_right(group["lr"]) for group in optimizer.param_groups), optimizer.lookahead


# -- Programs --------------------------------------------------------------------------------------

FORMS = ["list", "list", "dict", "iterator"]
WRONG_FORMS = ["too few", "too many", "an unknown name", "a name missing", "an array"]

gradients = st.lists(gradient, min_size=1, max_size=4)
scale = mostly(SCALES, NO_NUMBERS, 20)


def options(cls: Any, most: int) -> st.SearchStrategy[list[tuple[str, Any, bool]]]:
    return st.lists(option(cls), max_size=most)


@lru_cache
def lines(cls: Any) -> st.SearchStrategy[Line]:
    step = st.tuples(st.just(stepping), gradients, scale, mostly(FORMS, WRONG_FORMS, 12), st.just(False))
    return st.one_of(
        step,
        step,
        step,
        st.tuples(st.just(stepping), gradients, st.just(1.0), mostly(FORMS, WRONG_FORMS, 12), st.just(True)),
        st.just((stepping_bound,)),
        st.tuples(st.just(editing), options(cls, 3), gradients),
        st.tuples(st.just(adding), st.lists(parameter, min_size=1, max_size=2), options(cls, 2)),
        st.just((saving,)),
        st.tuples(st.just(loading), mostly([None], SPOILED, 3)),
        st.just((looking_ahead,)),
    )


@lru_cache
def programs(cls: Any) -> st.SearchStrategy[list[Line]]:
    chosen = options(cls, 2).map(lambda found: {name: (value, right) for name, value, right in found})
    forms = st.sampled_from(["list", "dict", "groups", "iterator"])
    make = st.tuples(
        st.just(making),
        st.just(cls),
        chosen,
        st.lists(parameter, min_size=1, max_size=4),
        forms,
        mostly([False], [True], 40),
    )
    return st.tuples(make, st.lists(lines(cls), min_size=1, max_size=8)).map(lambda found: [found[0], *found[1]])


@fuzzed
@given(program=st.sampled_from(table.OPTIMIZERS).flatmap(programs), isa=st.sampled_from(table.NATIVE_ISAS))
def test_any_program(program: list[Line], isa: str) -> None:
    fastopt.set_num_threads(2)
    assert run(program, isa) == run(program, "numpy")


STEPS = mostly([1, 2, 1000, np.int64(3), 2**40], [0, -1, 2**63, 1.0, "1", None, True, np.float64(1)], 20)
MOST_STATES = max(len(table.states_of(cls)) for cls in table.OPTIMIZERS)
STATE_LAYOUTS = mostly(
    ["C"], ["F", "every other", "reversed", "misaligned", "read-only", "None", *RUBBISH, *BENT], 16
)


@fuzzed
@given(
    found=st.sampled_from(table.OPTIMIZERS).flatmap(lambda cls: st.tuples(st.just(cls), options(cls, 3))),
    spec=parameter,
    grad_spec=gradient,
    states=st.lists(STATE_LAYOUTS, min_size=MOST_STATES, max_size=MOST_STATES),
    state_dtype=mostly(["the parameter's"], ["float32", "float64", "bfloat16", "float16"], 2),
    step=STEPS,
    grad_scale=scale,
    isa=st.sampled_from(table.NATIVE_ISAS),
)
def test_any_call_of_a_function(
    found: Any,
    spec: Any,
    grad_spec: Any,
    states: list[str],
    state_dtype: str,
    step: Any,
    grad_scale: Any,
    isa: str,
) -> None:
    cls, edits = found
    chosen = {name: (value, right) for name, value, right in edits}

    def line(world: World) -> Made:
        world.optimizer = None
        right, param = make_parameter(world, spec)
        values = numbers(spec[1], spec[2], 0)
        world.params = [param if right else world.keep(values.copy())]
        h = {name: value for name, (value, _) in chosen.items()}
        right = right and is_in_order(cls, param) and accepted(cls, chosen, table.defaults_of(cls), [])
        right = right and "state_dtype" not in h and rate_is_right(h.get("lr"))
        right = right and not isinstance(step, bool) and isinstance(step, int | np.integer) and 1 <= step < 2**62
        right = right and not any(grad_scale is x for x in NO_NUMBERS)
        if grad_spec[0].endswith("state"):
            grad_right, grad = False, [1.0]
        else:
            grad_right, grad = make_gradient(world, 0, grad_spec)
        right = right and grad_right and grad is not None
        dtype = world.params[0].dtype.name if state_dtype == "the parameter's" else state_dtype
        names = table.states_of(cls)
        shape = world.params[0].shape
        needed = table.states_in_use(cls, table.defaults_of(cls) | h, shape) if right else [*names.values()]
        # those that Python computes with
        own_shapes = dict.fromkeys(table.numbers_of(cls), ()) | table.states_of_shape(cls, shape)
        arrays = {}
        for name, kind in zip(names.values(), states, strict=False):
            is_number = name in own_shapes
            state: Any = np.array(
                np.abs(numbers(own_shapes.get(name, spec[1]), "float64" if is_number else dtype, 50))
            )
            if is_number and kind == "C":
                pass
            elif kind == "C":
                state = np.zeros_like(world.params[0], dtype=dtype_of(dtype), subok=False)
                state[...] = np.abs(numbers(spec[1], dtype, 50))
            elif kind == "None":
                state = None
            else:
                state = {**LAYOUTS, **RUBBISH, **BENT}[kind](state)
            if isinstance(state, np.ndarray):
                world.keep(state)
            if is_number and right:  # it may lie anywhere
                right = isinstance(state, np.ndarray) and not isinstance(state, np.ma.MaskedArray)
                right = right and state.dtype == np.float64 and state.shape == own_shapes[name]
                right = right and state.flags.writeable
            elif name in needed and right:
                right = is_state(state, dtype, world.params[0])
            arrays[name] = state
        function = getattr(functional, cls.__name__.lower())
        return right, lambda: function(param, grad, **arrays, step=step, grad_scale=grad_scale, **h)

    assert run([(line,)], isa) == run([(line,)], "numpy")


def is_state(state: Any, dtype: str, param: Array) -> bool:
    if not isinstance(state, np.ndarray) or isinstance(state, np.ma.MaskedArray):
        return False
    if state.dtype != dtype_of(dtype) or dtype not in table.state_dtypes(param.dtype.name):
        return False
    return state.shape == param.shape and state.flags.writeable and fits(param, state)
