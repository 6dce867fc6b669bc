"""What cannot be done is refused: with a sentence, before anything is written, and training goes on.

Every case of the tables is a wrong call. The message must name what is wrong and say what to do; after it
every byte is what it was, those between the parameters too; and the next steps are those of an optimizer
that has seen no wrong call.
"""

from __future__ import annotations

import array
import ctypes
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array

import fastopt
from fastopt import functional

NAMES = ["w1", "b1", "scale", "none", "w2"]
SHAPES = [(3, 4), (4,), (), (0,), (2, 1)]
LAST = len(SHAPES) - 1
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
GAP = 5
"""Elements before and behind every parameter, in the array of which it is a part."""

Call: TypeAlias = "Callable[[Scene], Any]"


class Scene:
    """An optimizer of two groups amid its training, and all that a refused call must leave alone."""

    def __init__(self, cls: type[fastopt.Optimizer] = fastopt.Adam, named: bool = False, steps: int = 2) -> None:
        self.bases = [np.full(math.prod(shape) + 2 * GAP, 7, np.float32) for shape in SHAPES]
        self.params = [b[GAP:-GAP].reshape(s) for b, s in zip(self.bases, SHAPES, strict=True)]
        for i, param in enumerate(self.params):
            param[...] = table.plain_values(param.size, "float32", i).reshape(param.shape)
        self.grads = [
            table.plain_values(p.size, "float32", 10 + i).reshape(p.shape) for i, p in enumerate(self.params)
        ]
        members = dict(zip(NAMES, self.params, strict=True)) if named else self.params
        groups = [{"params": members}]
        if not named:
            groups = [{"params": self.params[:2]}, {"params": self.params[2:]}]
        self.named = named
        self.optimizer = table.base(cls).make(groups)
        self.train(steps)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.step(self.with_last(self.grads[LAST]))

    def with_last(self, grad: Any) -> Any:
        """All gradients, with this one for the last parameter."""
        grads = [*self.grads[:LAST], grad, *self.grads[LAST + 1 :]]
        return dict(zip(NAMES, grads, strict=True)) if self.named else grads

    def everything(self) -> Any:
        """Every byte."""
        return (
            table.bits(self.optimizer, self.params),
            [a.tobytes() for a in (*self.bases, *self.grads)],
            [
                [(k, id(v) if k == "params" else repr(v)) for k, v in dict(group or {}).items()]
                for group in self.optimizer.param_groups or []
            ],
            table.is_bound(self.optimizer),
            fastopt.get_isa(),
            fastopt.get_num_threads(),
        )


def refused(scene: Scene, call: Call, says: str, *kinds: type[Exception]) -> str:
    """Makes a wrong call: an exception that names it, and no byte changed. Returns the message."""
    before = scene.everything()
    with pytest.raises(kinds or (TypeError, ValueError)) as caught:
        call(scene)
    message = str(caught.value)
    assert re.search(says, message), f"{message!r} does not name {says!r}"
    assert ADVICE.search(message), f"{message!r} does not say what to do"
    assert scene.everything() == before, f"{message!r}, but something has changed"
    return message


ADVICE = re.compile(
    r"\b(expected|must (be|lie|name)|needs?|it (has|takes)"
    r"|use|pass|put|choose|make|give|call|train|leave|convert)\b"
)


def goes_on(scene: Scene, like: Scene | None = None) -> None:
    """Trains it, and one that has seen nothing: they stay the same."""
    like = like or Scene(type(scene.optimizer), scene.named)
    for each in scene, like:
        each.train(2)
    assert table.bits(scene.optimizer, scene.params) == table.bits(like.optimizer, like.params)


# -- Parameters ------------------------------------------------------------------------------------


def read_only(values: Array) -> Array:
    values.flags.writeable = False
    return values


def misaligned(values: Array) -> Array:
    room = np.zeros(values.nbytes + 1, np.uint8)[1:].view(values.dtype)
    room[...] = values
    return room


def used_up(values: list[Any]) -> Iterator[Any]:
    found = iter(values)
    list(found)
    return found


def rubbish(size: int) -> dict[str, Any]:
    """What is no array that could be updated, and no gradient of a float32 array of that size."""
    ones = np.ones(size, np.float32)
    return {
        "a list": ones.tolist(),
        "a number": 3.0,
        "a string": "w",
        "bytes": b"w",
        "a function": len,
        "a class": np.ndarray,
        "a dict": {"a": ones},
        "a set": {1.0},
        "a generator": (x for x in ones),
        "a tensor": table.Tensor(),
        "a memoryview of bytes": memoryview(b"abcd"),
        "an array of array": array.array("d", [1.0] * size),
        "an array of ctypes": (ctypes.c_float * size)(),
        "masked": np.ma.masked_array(ones, mask=True),
        "float8": ones.astype(ml_dtypes.float8_e4m3fn),
        "integers of 16 bits": ones.astype(np.uint16),
        "longdouble": ones.astype(np.longdouble),
        "complex": ones.astype(np.complex64),
        "integers": ones.astype(np.int32),
        "bool": ones.astype(bool),
        "objects": ones.astype(object),
        "strings": ones.astype(str),
        "byte strings": ones.astype(bytes),
        "dates": ones.astype("M8[s]"),
        "durations": ones.astype("m8[s]"),
        "structured": np.ones(size, "f4,f4"),
        "one field": np.ones(size, [("x", "f4")]),
        "swapped": ones.astype(">f4"),
        "swapped doubles": ones.astype(">f8"),
    }


base = table.plain_values(60, "float32", 0)

WRONG_LAYOUTS = {
    "strided": base[::2],
    "reversed": base[::-1],
    "columns": base.reshape(6, 10)[:, 2:7],
    "rows reversed": base.reshape(6, 10)[::-1],
    "permuted": base.reshape(3, 4, 5).transpose(1, 0, 2),
    "broadcast": np.broadcast_to(base[:3], (4, 3)),
    "broadcast, writable": np.lib.stride_tricks.as_strided(base, (4, 3), (0, 4)),
    "overlapping itself": np.lib.stride_tricks.as_strided(base, (4, 3), (4, 4)),
    "read-only": read_only(base[:7]),
    "misaligned": misaligned(base),
    "a field of records": np.ones(4, "f4,f4")["f1"],
    "64 dimensions, strided": base[::30].reshape((2, *(1,) * 63)),
}

WRONG_MEMBERS: dict[str, tuple[list[Any], str]] = {
    **{case: ([base[:9].copy(), wrong], "^parameter 1: ") for case, wrong in rubbish(3).items()},
    **{case: ([base[:9].copy(), wrong], "^parameter 1: ") for case, wrong in WRONG_LAYOUTS.items()},
    "a dict": ([base, {}], "^params: .* arrays or groups"),
    "None": ([base, None], "^parameter 1: "),
    "twice": ([base, base], "^parameter 0 and parameter 1 share memory"),
    "a view too": ([base[:0], base, base.view()], "^parameter 1 and parameter 2 share memory"),
    "overlapping by one": ([base[:10], base[9:]], "^parameter 0 and parameter 1 share memory"),
    "one within another": ([base[4:6], base[:10]], "^parameter 0 and parameter 1 share memory"),
    "transposed too": ([base.reshape(6, 10), base.reshape(6, 10).T], "parameter 0 and parameter 1 share"),
    "as another dtype too": ([base, base.view(np.float64)], "^parameter 0 and parameter 1 share memory"),
    "as bfloat16 too": ([base[4:], base.view(BFLOAT16)[:9]], "^parameter 0 and parameter 1 share memory"),
    "float16": ([base[:9], np.ones(3, np.float16)], "^parameter 1: dtype "),
    "bfloat16, strided": ([base[:9], base[20:].view(BFLOAT16)[::2]], "^parameter 1: .* contiguous"),
    "bfloat16, read-only": ([base[:9], read_only(np.ones(3, BFLOAT16))], "^parameter 1: .* read-only"),
    "two pairs": ([base[30:], base[30:], base[:9], base[:9]], "^parameter 0 and parameter 1 share memory"),
}
"""Lists of parameters, and what is said of them."""

WRONG_PARAMS: dict[str, tuple[Any, str]] = {
    **WRONG_MEMBERS,
    "an array alone": (base, "^params: .* into a list"),
    "no iterable": (3, "^params: "),
    "text": ("w", "^params: "),
    "none": ([], "^params: .* at least one"),
    "no names": ({}, "^params: .* at least one"),
    "a generator that was read": (used_up([base]), "^params: .* at least one"),
    "a generator of rubbish": ((x for x in [base, 3]), "^parameter 1: "),
    "named rubbish": ({"w1": np.ones(3, np.float16)}, "^'w1': dtype float16"),
    "named twice": ({"w1": base, "b1": base}, "^'w1' and 'b1' share memory"),
    "names that are no strings": ({1: base}, "^params: .* names .* 1 "),
    "a name in two groups": ([{"params": {"w": base[:3]}}, {"params": {"w": base[3:]}}], "^'w': .* its own"),
    "in two groups": ([{"params": [base]}, {"params": [base]}], "^parameter 0 and parameter 1 share memory"),
    "overlapping in two groups": (
        [{"params": {"w1": base[:9]}}, {"params": {"b1": base[3:]}}],
        "^'w1' and 'b1' share memory",
    ),
    "a number in a group": ([{"params": 3}], "^params: "),
    "a string in a group": ([{"params": "w1"}], "^params: "),
    "None in a group": ([{"params": None}], "^params: "),
    "a group without params": ([{"lr": 1.0}], "^params: missing"),
    "groups of nothing": ([{"params": []}, {"params": {}}], "^params: "),
    "an unknown option": (
        [{"params": [base[:3]]}, {"params": [base[3:]], "weigth_decay": 1}],
        "^group 1: weigth_decay: .* use weight_decay",
    ),
    "an option that is no string": ([{"params": [base], 1: 1}], "^group 0: 1: "),
}


def test_wrong_parameters() -> None:
    before = base.tobytes()
    for case, (params, message) in WRONG_PARAMS.items():
        with table.named(case):
            refused(Scene(), lambda _, params=params: fastopt.Adam(params), message)
            assert base.tobytes() == before


WRONG_GROUPS: dict[str, tuple[Callable[[Scene], Any], str]] = {
    **{
        case: (lambda _, wrong=wrong: {"params": wrong}, named.replace("0", "5").replace("1", "6"))
        for case, (wrong, named) in WRONG_MEMBERS.items()
        if case not in {"a dict", "a view too"}
    },
    "a list": (lambda _: [base], "^params: a group must be a dict"),
    "no params": (lambda _: {"lr": 1.0}, "^params: missing"),
    "a parameter again": (lambda s: {"params": s.params[1]}, "^parameter 1 and parameter 5 share memory"),
    "part of a parameter": (lambda s: {"params": [s.bases[0][:7]]}, "^parameter 0 and parameter 5 share memory"),
    "a state": (
        lambda s: {"params": [s.optimizer.state[0]["exp_avg"]]},
        "^the state 'exp_avg' of parameter 0 and parameter 5 share memory",
    ),
    "an option": (lambda _: {"params": [base], "betas": 0.9}, "^group 2: betas: "),
}


def test_wrong_groups() -> None:
    before = base.tobytes()
    for case, (group, message) in WRONG_GROUPS.items():
        with table.named(case):
            scene = Scene()
            refused(scene, lambda s, group=group: s.optimizer.add_param_group(group(s)), message)
            assert base.tobytes() == before
            goes_on(scene)


# -- Gradients -------------------------------------------------------------------------------------

WRONG_GRADIENTS: dict[str, tuple[Callable[[Scene], Any], str]] = {
    **{
        case: (lambda _, wrong=wrong: wrong.reshape(2, 1) if isinstance(wrong, np.ndarray) else wrong, "gradient")
        for case, wrong in rubbish(2).items()
    },
    "a list that fits": (lambda s: s.grads[LAST].tolist(), "gradient must be a NumPy array"),
    "None, but an array of it": (lambda _: np.array([[None], [None]]), "gradient .* dtype"),
    "a scalar": (lambda _: np.float32(1), r"gradient (has shape \(\)|is a number)"),
    "transposed": (lambda s: s.grads[LAST].T, r"gradient has shape \(1, 2\), the parameter \(2, 1\)"),
    "flat": (lambda s: s.grads[LAST].ravel(), r"gradient has shape \(2,\)"),
    "longer": (lambda _: np.ones((3, 1), np.float32), "gradient has shape"),
    "empty": (lambda _: np.ones((0, 1), np.float32), "gradient has shape"),
    "a dimension more": (lambda _: np.ones((1, 2, 1), np.float32), "gradient has shape"),
    "64 dimensions": (lambda _: np.ones((2, *(1,) * 63), np.float32), "gradient has shape"),
    "huge": (lambda _: np.broadcast_to(np.float32(1), (2**30, 2**30)), "gradient has shape"),
    "its parameter": (lambda s: s.params[LAST], "shares memory with {last};"),
    "its parameter, read-only": (lambda s: read_only(s.params[LAST].view()), "shares memory with {last};"),
    "its parameter reversed": (lambda s: s.params[LAST][::-1], "shares memory with {last};"),
    "its parameter broadcast": (
        lambda s: np.broadcast_to(s.params[LAST][:1], (2, 1)),
        "shares memory with {last};",
    ),
    "another parameter": (lambda s: s.params[0].ravel()[6:8].reshape(2, 1), "shares memory with {first};"),
    "another parameter by strides": (lambda s: s.params[0][::2, 1:2], "shares memory with {first};"),
    "another parameter's last element": (
        lambda s: s.bases[0][-GAP - 1 :][:2].reshape(2, 1),
        "shares memory with {first};",
    ),
    "another parameter's first element": (
        lambda s: s.bases[0][GAP::-1][:2].reshape(2, 1),
        "shares memory with {first};",
    ),
    "a state": (lambda s: s.optimizer.state[LAST]["exp_avg"], "shares memory with the state 'exp_avg' of {last};"),
    "another state": (
        lambda s: s.optimizer.state[0]["exp_avg_sq"].ravel()[4:6].reshape(2, 1),
        "shares memory with the state 'exp_avg_sq' of {first};",
    ),
    "another state by strides": (
        lambda s: s.optimizer.state[0]["exp_avg"][::-2, 2:3],
        "shares memory with the state 'exp_avg' of {first};",
    ),
}
"""Gradients of the last parameter; all others are right."""


def name_of(named: bool, i: int) -> str:
    return repr(NAMES[i]) if named else f"parameter {i}"


@pytest.mark.parametrize("way", ["list", "dict", "bind", "bind again", "list while bound"])
def test_wrong_gradients(way: str) -> None:
    for case, (wrong, message) in WRONG_GRADIENTS.items():
        with table.named(case):
            gradient_is_refused(wrong, message, way)


def gradient_is_refused(wrong: Callable[[Scene], Any], message: str, way: str) -> None:
    scene = Scene(named=way == "dict")
    last, first = (name_of(scene.named, i) for i in (LAST, 0))
    message = f"^{last}: .*{message.format(last=last, first=first)}"
    bound = way in {"bind again", "list while bound"}
    if bound:
        scene.optimizer.bind(scene.grads)
    if way.startswith("b"):
        refused(scene, lambda s: s.optimizer.bind(s.with_last(wrong(s))), message)
    else:
        refused(scene, lambda s: s.optimizer.step(s.with_last(wrong(s)), grad_scale=2.0), message)
    if bound:
        scene.optimizer.step()  # with what was bound before
        scene.optimizer.bind(None)
        goes_on(scene, Scene(steps=3))
    else:
        goes_on(scene)


def test_a_number_cannot_be_bound() -> None:
    optimizer = fastopt.SGD([np.zeros(()), np.zeros(2)], lr=1.0)
    with pytest.raises(TypeError, match=r"^parameter 0: .*nothing can overwrite; pass an array, np.zeros\(\(\)\)"):
        optimizer.bind([np.float64(1.0), np.ones(2)])
    advised = np.zeros(())
    optimizer.bind([advised, np.ones(2)])
    advised[...] = 2.0
    optimizer.step()
    optimizer.bind(None)
    optimizer.step([np.float64(1.0), np.ones(2)])
    assert optimizer.param_groups[0]["params"][0] == -3.0


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_bound_gradients_lie_as_their_parameters(layout: str) -> None:
    params = [table.plain_values(12, "float32", 0).reshape(3, 4)]
    optimizer = fastopt.Adam(params)
    grad = np.ones((4, 3), np.float32).T if layout == "transposed" else np.ones((3, 8), np.float32)[:, ::2]
    with pytest.raises(ValueError, match=r"^parameter 0: a bound gradient must lie .*empty_like"):
        optimizer.bind([grad])
    with pytest.raises(TypeError, match="needs gradients"):
        optimizer.step()


ALL_WRONG_GRADIENTS: dict[str, tuple[Callable[[list[Array]], Any], str]] = {
    "an array": (lambda g: g[0], "^gradients: .* into a list"),
    "a number": (lambda _: 1.0, "^gradients: "),
    "a string": (lambda _: "grads", "^gradients: "),
    "a tensor": (lambda _: table.Tensor(), "^gradients: "),
    "none": (lambda _: [], "^gradients: got 0 for 5"),
    "too few": (lambda g: g[:-1], "^gradients: got 4 for 5"),
    "too many": (lambda g: [*g, g[0]], "^gradients: got 6 for 5"),
    "a generator that was read": (used_up, "^gradients: the iterator"),
    "missing names": (lambda g: {0: g[0], 1: g[1]}, "^no gradient for parameter 2, parameter 3, parameter 4;"),
    "unknown names": (lambda g: {**dict(enumerate(g)), "w9": g[0]}, "unknown names 'w9';"),
    "names of nothing": (lambda _: {}, "^no gradient for parameter 0"),
}


@pytest.mark.parametrize("way", ["step", "bind"])
@pytest.mark.parametrize("case", ALL_WRONG_GRADIENTS)
def test_all_wrong_gradients(case: str, way: str) -> None:
    wrong, named = ALL_WRONG_GRADIENTS[case]
    scene = Scene()
    refused(scene, lambda s: getattr(s.optimizer, way)(wrong(s.grads)), named)
    if way == "step":
        refused(scene, lambda s: s.optimizer.step(None), r"needs gradients: .* bind\(\)")
        refused(scene, lambda s: s.optimizer.step(), r"needs gradients: .* bind\(\)")
    goes_on(scene)


def test_a_generator_gives_its_gradients_once() -> None:
    scene = Scene()
    grads = (g for g in scene.grads)
    scene.optimizer.step(grads)
    refused(scene, lambda s: s.optimizer.step(grads), "^gradients: the iterator has no more")
    goes_on(scene, Scene(steps=3))


def test_messages_about_many_parameters_are_short() -> None:
    params = {f"w{i}": np.ones(2) for i in range(1000)}
    optimizer = fastopt.SGD(params)
    for wrong in {}, {**params, "w": np.ones(2)}, dict.fromkeys([*params, *map(str, range(1000))]):
        with pytest.raises(ValueError, match="more") as caught:
            optimizer.step(wrong)
        assert len(str(caught.value)) < 300


def test_float64_gradients_of_float32_are_rounded_with_one_warning() -> None:
    for named in False, True:
        scene, plain = Scene(named=named), Scene(named=named)
        wide = scene.grads[LAST].astype(np.float64) * (1 + 2.0**-30)
        with pytest.warns(
            UserWarning, match=f"^{name_of(named, LAST)}: its gradient is of float64, .* astype"
        ) as caught:
            for _ in range(3):
                scene.optimizer.step(scene.with_last(wide))
                scene.optimizer.step(scene.with_last(np.repeat(wide, 2, axis=1)[:, ::2]))
        assert len(caught) == 1
        assert caught[0].filename == __file__
        for _ in range(6):
            plain.optimizer.step(plain.with_last(wide.astype(np.float32)))
        assert table.bits(scene.optimizer, scene.params) == table.bits(plain.optimizer, plain.params)
    scene = Scene()
    wrong = scene.grads[LAST].astype(np.float64)
    message = "^parameter 4: its gradient has dtype float64, the parameter float32.* astype"
    refused(scene, lambda s: s.optimizer.bind(s.with_last(wrong)), message)
    refused(scene, lambda s: s.optimizer.step(s.with_last(np.broadcast_to(1.0, (2**29, 2**29)))), "has shape")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="float64"):  # before the first write
            scene.optimizer.step(scene.with_last(wrong))
    goes_on(scene)


def test_empty_gradients_share_no_memory() -> None:
    scene = Scene()
    nothing = scene.bases[0][GAP + 3 :][:0]
    scene.optimizer.step([*scene.grads[:3], nothing, scene.grads[LAST]])
    goes_on(scene, Scene(steps=3))


@pytest.mark.parametrize("way", ["step", "bind"])
def test_the_last_of_a_thousand_gradients_is_wrong(way: str) -> None:
    params = [np.ones(8, np.float32) for _ in range(1000)]
    grads = [np.full(8, 0.5, np.float32) for _ in params]
    optimizer = fastopt.Adam(params)
    optimizer.step(grads)
    before = table.bits(optimizer, params)
    for wrong in np.ones(9, np.float32), np.ones(8, np.int32), params[0], optimizer.state[500]["exp_avg"]:
        with pytest.raises((TypeError, ValueError), match=r"^parameter 999: "):
            getattr(optimizer, way)([*grads[:-1], wrong])
        assert table.bits(optimizer, params) == before


# -- Options ---------------------------------------------------------------------------------------

OPTIONS = [(cls, name) for cls in table.OPTIMIZERS for name in table.options_of(cls)]
ONE_OF_A_KIND = [*{table.kind_of_option(cls, name): (cls, name) for cls, name in reversed(OPTIONS)}.values()]
each_option = table.cases(
    "cls, name", OPTIONS, ONE_OF_A_KIND, ids=lambda x: x if isinstance(x, str) else x.__name__
)


@pytest.mark.parametrize("cls", table.OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_wrong_options_of_every_class(cls: type[fastopt.Optimizer]) -> None:
    for name in table.options_of(cls):
        for wrong in table.wrong_values(cls, name)[::7]:
            with pytest.raises((TypeError, ValueError), match=rf"^{name}\b") as caught:
                cls([base], **{name: wrong})  # type: ignore[call-arg]
            assert ADVICE.search(str(caught.value)), f"{caught.value} does not say what to do"


@each_option
def test_wrong_options(cls: type[fastopt.Optimizer], name: str) -> None:
    scene, more = Scene(cls), np.ones(3, np.float32)
    for wrong in table.wrong_values(cls, name):
        option = {name: wrong}
        groups = [{"params": scene.params[:2]}, {"params": scene.params[2:], **option}]
        refused(scene, lambda s, option=option: cls(s.params, **option), rf"^{name}\b")
        refused(scene, lambda s, groups=groups: cls(groups), rf"^group 1: {name}\b")
        group = {"params": [more], **option}
        refused(scene, lambda s, group=group: s.optimizer.add_param_group(group), rf"^group 2: {name}\b")
    goes_on(scene)


@each_option
def test_wrong_options_that_were_edited_in(cls: type[fastopt.Optimizer], name: str) -> None:
    scene = Scene(cls)
    first, last = scene.optimizer.param_groups
    right = last[name]
    lr = first["lr"]
    for wrong in table.wrong_values(cls, name):
        first["lr"] = lr / 2  # a right edit, before the wrong one
        last[name] = wrong
        refused(scene, lambda s: s.optimizer.step(s.grads), rf"^group 1: {name}\b")
        first["lr"], last[name] = lr, right
    goes_on(scene)


@each_option
def test_wrong_options_in_a_state_dict(cls: type[fastopt.Optimizer], name: str) -> None:
    scene, other = Scene(cls), Scene(cls, steps=5)
    for wrong in table.wrong_values(cls, name):
        if isinstance(wrong, np.ndarray) and wrong.dtype == bool:
            continue  # as it came through .npz
        saved = other.optimizer.state_dict()
        saved["param_groups"][0]["lr"] = 0.01
        saved["param_groups"][1][name] = wrong
        refused(scene, lambda s, d=saved: s.optimizer.load_state_dict(d), rf"^state_dict: group 1: {name}\b")
    goes_on(scene)


TOGETHER: list[tuple[type[fastopt.Optimizer], dict[str, Any], str]] = [
    (fastopt.SGD, {"nesterov": True, "momentum": 0.0}, "nesterov"),
    (fastopt.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov"),
    (fastopt.SGD, {"nesterov": True, "momentum": np.ones(2)}, "momentum"),
    (fastopt.Signum, {"momentum": 1.5}, "momentum"),
    (fastopt.Adam, {"eps": "x", "eps_hat": True}, "eps"),
    (fastopt.Adam, {"eps": -1.0, "eps_hat": np.True_}, "eps"),
]


@pytest.mark.parametrize(("cls", "options", "name"), TOGETHER)
def test_options_that_do_not_go_together(cls: type[fastopt.Optimizer], options: dict[str, Any], name: str) -> None:
    scene = Scene(cls)
    refused(scene, lambda s: cls(s.params, **options), rf"^{name}\b")
    last = scene.optimizer.param_groups[1]
    right = dict(last)
    last |= options
    refused(scene, lambda s: s.optimizer.step(s.grads), rf"^group 1: {name}\b")
    last |= right
    goes_on(scene)


RUBBISH_RATES = [*table.wrong_numbers(*table.kinds(fastopt.Adam, "lr")), len, {}, table.Tensor]


@pytest.mark.parametrize("way", ["step", "state_dict"])
def test_wrong_learning_rates_from_a_callable(way: str) -> None:
    scene = Scene()
    lr = scene.optimizer.param_groups[1]["lr"]
    for wrong in RUBBISH_RATES:
        scene.optimizer.param_groups[1]["lr"] = lambda t, wrong=wrong: wrong
        refused(
            scene, lambda s: getattr(s.optimizer, way)(*[s.grads][: way == "step"]), "^group 1: lr, as its call"
        )
    scene.optimizer.param_groups[1]["lr"] = lr
    goes_on(scene)


GRAD_SCALES = [*table.NO_NUMBERS, *(np.nan, np.inf, -np.inf, 10**400, np.float32("inf")), True, np.True_, len]


def test_wrong_grad_scale() -> None:
    scene = Scene()
    for wrong in GRAD_SCALES:
        refused(scene, lambda s, x=wrong: s.optimizer.step(s.grads, grad_scale=x), "^grad_scale: ")
    goes_on(scene)


# -- Edits of the groups themselves ----------------------------------------------------------------

WRONG_EDITS: dict[str, tuple[Callable[[Scene], Any], str]] = {
    "an option removed": (lambda s: s.optimizer.param_groups[1].pop("lr"), "^group 1: lr: missing"),
    "an unknown option": (
        lambda s: s.optimizer.param_groups[1].update(weigth_decay=1),
        "^group 1: weigth_decay: .* use weight_decay",
    ),
    "an option renamed": (
        lambda s: s.optimizer.param_groups[1].update(Eps=s.optimizer.param_groups[1].pop("eps")),
        "^group 1: Eps: ",
    ),
    "a number for an option": (lambda s: s.optimizer.param_groups[1].update({3: 1.0}), "^group 1: 3: "),
    "everything removed": (lambda s: s.optimizer.param_groups[1].clear(), "^group 1: its params"),
    "params removed": (lambda s: s.optimizer.param_groups[1].pop("params"), "^group 1: its params"),
    "params replaced": (lambda s: s.optimizer.param_groups[1].update(params=s.params[2:]), "^group 1: its params"),
    "no params": (lambda s: s.optimizer.param_groups[1].update(params=None), "^group 1: its params"),
    "a group replaced": (lambda s: s.optimizer.param_groups.__setitem__(1, None), "^group 1: expected a dict"),
    "a group as pairs": (
        lambda s: s.optimizer.param_groups.__setitem__(1, [*s.optimizer.param_groups[1].items()]),
        "^group 1: expected a dict",
    ),
    "a group removed": (lambda s: s.optimizer.param_groups.pop(), "^param_groups: .* add_param_group"),
    "a group added": (
        lambda s: s.optimizer.param_groups.append({"params": (base,)}),
        "^param_groups: .* add_param_group",
    ),
    "a group twice": (
        lambda s: s.optimizer.param_groups.__setitem__(1, s.optimizer.param_groups[0]),
        "^group 1: its params",
    ),
    "groups reversed": (lambda s: s.optimizer.param_groups.reverse(), "^group 0: its params"),
    "no groups": (lambda s: setattr(s.optimizer, "param_groups", None), "^param_groups: "),
    "a tuple of groups": (
        lambda s: setattr(s.optimizer, "param_groups", tuple(s.optimizer.param_groups)),
        "^param_groups: ",
    ),
}


@pytest.mark.parametrize("case", WRONG_EDITS)
def test_wrong_edits_of_groups(case: str) -> None:
    edit, named = WRONG_EDITS[case]
    scene = Scene()
    groups = scene.optimizer.param_groups
    right = [dict(group) for group in groups]
    edit(scene)
    for call in (
        lambda s: s.optimizer.step(s.grads),
        lambda s: s.optimizer.state_dict(),
        lambda s: s.optimizer.add_param_group({"params": [np.ones(3)]}),
    ):
        refused(scene, call, named)
    scene.optimizer.param_groups = right
    goes_on(scene)


def test_flags_are_no_options() -> None:
    scene, plain = (Scene(fastopt.NAG) for _ in range(2))
    for ahead in True, False:
        scene.optimizer.param_groups[1]["ahead"] = ahead
        goes_on(scene, plain)
        scene.optimizer.lookahead()
        plain.optimizer.lookahead()
    new = fastopt.NAG([{"params": [np.ones(3)], "ahead": True}])
    assert new.param_groups[0]["ahead"] is False


def test_an_edit_that_needs_state_and_a_wrong_gradient() -> None:
    scene = Scene()
    scene.optimizer.param_groups[1]["amsgrad"] = True
    before = scene.everything()
    with pytest.raises(ValueError, match=r"^parameter 4: "):
        scene.optimizer.step([*scene.grads[:LAST], np.ones(3, np.float32)])
    # the edit is right, and so it holds: its state is there, of zeros; all else is what it was
    for i in range(2, LAST + 1):
        assert not scene.optimizer.state[i]["max_exp_avg_sq"].any()
    without = [
        [x for x, name in zip(found, ["p", *scene.optimizer.state[i]], strict=True) if name != "max_exp_avg_sq"]
        for i, found in enumerate(table.bits(scene.optimizer, scene.params))
    ]
    assert [without, *scene.everything()[1:]] == [*before]
    other = Scene()
    other.optimizer.param_groups[1]["amsgrad"] = True
    goes_on(scene, other)


def test_state_for_which_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    scene = Scene()
    saved = scene.optimizer.state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(table.ARENA, fails)
        for way in "step", "load_state_dict", "add_param_group":
            group = scene.optimizer.param_groups[1]
            group["amsgrad"] = way == "step"
            arguments = {
                "step": scene.grads,
                "load_state_dict": saved,
                "add_param_group": {"params": [base.copy()]},
            }
            before = scene.everything()
            for _ in range(2):
                with pytest.raises(MemoryError):
                    getattr(scene.optimizer, way)(arguments[way])
                assert scene.everything() == before
    goes_on(scene)


def test_nag_refuses_to_look_ahead_twice() -> None:
    scene = Scene(fastopt.NAG)
    scene.optimizer.lookahead()
    refused(scene, lambda s: s.optimizer.lookahead(), "ahead already; call step", RuntimeError)


@pytest.mark.parametrize(("name", "other"), [("momentum", 0.5), ("state_dtype", "bfloat16")])
def test_nag_refuses_edits_while_it_is_ahead(name: str, other: Any) -> None:
    scene, plain = (Scene(fastopt.NAG) for _ in range(2))
    for each in scene, plain:
        goes_on(each)
        each.optimizer.lookahead()
    group = scene.optimizer.param_groups[1]
    group[name], right = other, group[name]
    for call in (lambda s: s.optimizer.step(s.grads), lambda s: s.optimizer.state_dict()):
        refused(scene, call, f"group 1: {name}: the parameters are ahead by .*; put {right!r} back")
    group[name] = right
    goes_on(scene, plain)
    for each in scene, plain:
        groups_of(each)[1][name] = other
    goes_on(scene, plain)


# -- State dicts -----------------------------------------------------------------------------------

REMOVED = object()


def put(*path: Any, value: Any = REMOVED) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        place: Any = saved
        for key in path[:-1]:
            place = place[key]
        if value is REMOVED:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


class Untouchable:
    """Cannot even be looked at."""

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


WRONG_STATE_DICTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no state": (put("state"), "'state'"),
    "no groups": (put("param_groups"), "'param_groups'"),
    "a list of states": (put("state", value=[{}] * 5), "state: expected a dict"),
    "None for the states": (put("state", value=None), "state: expected a dict"),
    "a number of groups": (put("param_groups", value=2), "param_groups: expected a list"),
    "a string of groups": (put("param_groups", value="ab"), "param_groups: expected a list"),
    "no group": (put("param_groups", value=[]), "0 parameter groups, the optimizer 2"),
    "a group missing": (put("param_groups", 1), "1 parameter groups, the optimizer 2"),
    "a group that is none": (put("param_groups", 1, value=3), "group 1: expected a dict"),
    "a group without params": (put("param_groups", 1, "params"), "group 1: it has 0 parameters"),
    "params that are a number": (put("param_groups", 1, "params", value=3), "group 1: params: expected a list"),
    "params that are an array": (
        put("param_groups", 1, "params", value=np.arange(2, 5)),
        "group 1: params: expected a list",
    ),
    "a parameter too few": (put("param_groups", 1, "params", value=[2, 3]), "group 1: it has 2 parameters"),
    "a parameter too many": (put("param_groups", 1, "params", value=[2, 3, 4, 5]), "group 1: it has 4 parameters"),
    "a parameter twice": (put("param_groups", 1, "params", value=[2, 3, 3]), "param_groups: two parameters"),
    "parameters for numbers": (put("param_groups", 1, "params", value=[2, 3, [4]]), "group 1: params: .* numbers"),
    "names for parameters": (
        put("param_groups", 1, "params", value=["a", "b", "c"]),
        "group 1: params: .* numbers",
    ),
    "names that are a number": (put("param_groups", 1, "param_names", value=1), "group 1: param_names: .* list"),
    "an unknown parameter": (put("state", 9, value={}), "unknown parameters .*9"),
    "unknown parameters of all kinds": (
        lambda d: d["state"].update({"a": {}, (): {}, None: {}}),
        "unknown parameters",
    ),
    "no state of a parameter, but an unknown one": (
        lambda d: d["state"].update({7: d["state"].pop(4)}),
        "unknown parameters .*7",
    ),
    "an option misspelt": (put("param_groups", 1, "weigth_decay", value=1.0), "group 1: weigth_decay: "),
    "an option of another optimizer": (put("param_groups", 1, "momentum", value=1.0), "group 1: momentum: .*SGD"),
    "a parameter by its number and as a string": (put("state", "4", value={}), "state: it has parameter 4 twice"),
    "an option that is no string": (put("param_groups", 1, 5, value=1.0), "group 1: 5: "),
    "a parameter's state": (put("state", 4, value=[]), "parameter 4: expected a dict"),
    "None for a parameter's state": (put("state", 4, value=None), "parameter 4: expected a dict"),
    "an unknown state": (put("state", 4, "speed", value=np.ones((2, 1))), "parameter 4: speed: "),
    "a state missing": (put("state", 4, "exp_avg"), "parameter 4: exp_avg: missing"),
    "None for a state": (put("state", 4, "exp_avg", value=None), "parameter 4: exp_avg: missing"),
    **{
        f"a state of another shape, {shape}": (
            put("state", 4, "exp_avg_sq", value=np.ones(shape)),
            "parameter 4: exp_avg_sq: .* shape",
        )
        for shape in [(1, 2), (2,), (), (2, 1, 1), (0,), (2, 2)]
    },
    **{
        f"a state of {case}": (
            put("state", 4, "exp_avg_sq", value=value),
            "parameter 4: exp_avg_sq: .*(dtype|array)",
        )
        for case, value in {
            "a string": "x",
            "a list of lists": [[1], [1, 2]],
            "integers": np.ones((2, 1), int),
            "bools": np.ones((2, 1), bool),
            "complex": np.ones((2, 1), complex),
            "objects": np.ones((2, 1), object),
            "dates": np.ones((2, 1), "M8[s]"),
            "structured": np.ones((2, 1), "f4,f4"),
            "what cannot be read": Untouchable(),
        }.items()
    },
    **{
        f"{value!r} steps": (put("state", 4, "step", value=value), "parameter 4: step: ")
        for value in [
            *(-1, 1.5, np.nan, np.inf, -np.inf, 2**62 + 1, 2**64, 10**400, 1e300, "3", b"3", "", True, 1j, {}, []),
            *([1, 2], np.ones(2), np.array(-3), np.array([[1.5]]), np.bool_(True), np.datetime64(1, "s"), len),
        ]
    },
    "steps that cannot be read": (put("state", 4, "step", value=Untouchable()), "parameter 4: step: "),
}


@pytest.mark.parametrize("bound", [False, True])
def test_wrong_state_dicts(bound: bool) -> None:
    for case, (change, message) in WRONG_STATE_DICTS.items():
        with table.named(case):
            state_dict_is_refused(change, message, bound)


def state_dict_is_refused(change: Callable[[dict[str, Any]], None], message: str, bound: bool) -> None:
    scene = Scene()
    if bound:
        scene.optimizer.bind(scene.grads)
    saved = Scene(steps=5).optimizer.state_dict()  # all of it differs from what is there
    saved["param_groups"][0]["lr"] = 0.01
    change(saved)
    refused(scene, lambda s: s.optimizer.load_state_dict(saved), f"^state_dict: .*{message}")
    if bound:
        scene.optimizer.step()
        scene.optimizer.bind(None)
    goes_on(scene, Scene(steps=2 + bound))


@pytest.mark.parametrize(
    "wrong", [None, 3, "state", [], [("state", {})], Untouchable()], ids=lambda x: type(x).__name__
)
def test_what_is_no_state_dict(wrong: Any) -> None:
    scene = Scene()
    refused(scene, lambda s: s.optimizer.load_state_dict(wrong), "^state_dict: ")
    goes_on(scene)


def test_a_state_dict_of_other_names() -> None:
    scene, saved = Scene(named=True), Scene(named=True, steps=5).optimizer.state_dict()
    saved["param_groups"][0]["param_names"][0] = "w9"
    refused(scene, lambda s: s.optimizer.load_state_dict(saved), "^state_dict: group 0: .*'w9'.*'w1'")
    goes_on(scene)


def test_a_state_dict_puts_wrong_edits_right() -> None:
    scene = Scene()
    saved = scene.optimizer.state_dict()
    scene.optimizer.param_groups[1]["lr"] = "fast"
    scene.optimizer.load_state_dict(saved)
    goes_on(scene)


def test_states_beyond_the_range_of_the_dtype_are_infinite() -> None:
    scene = Scene()
    saved = scene.optimizer.state_dict()
    saved["state"][LAST]["exp_avg_sq"] = np.full((2, 1), 1e300)
    with np.errstate(all="raise"):
        scene.optimizer.load_state_dict(saved)
    assert (scene.optimizer.state[LAST]["exp_avg_sq"] == np.inf).all()


# -- Functional ------------------------------------------------------------------------------------


class Functional:
    """Arrays that somebody else owns, and a call of a function for them."""

    def __init__(self, cls: type[fastopt.Optimizer] = fastopt.Adam) -> None:
        self.variant = table.base(cls)
        names = table.states_in_use(cls, self.variant.hyper)
        self.bases = {name: np.full(4 + 2 * GAP, 0.5, np.float32) for name in ("param", "grad", *names)}
        self.arrays = {name: whole[GAP:-GAP].reshape(2, 2) for name, whole in self.bases.items()}

    def call(self, **changes: Any) -> None:
        function = getattr(functional, self.variant.cls.__name__.lower())
        function(**{"step": 3, **self.variant.options, **self.arrays, **changes})

    def everything(self) -> Any:
        return {name: whole.tobytes() for name, whole in self.bases.items()}


def squared(wrong: Any) -> Any:
    return wrong.reshape(2, 2) if isinstance(wrong, np.ndarray) else wrong


WRONG_ARGUMENTS: dict[str, tuple[Callable[[Functional], dict[str, Any]], str]] = {
    **{
        f"{name}: {case}": (lambda _, name=name, wrong=wrong: {name: squared(wrong)}, named)
        for name, named in {
            "param": "'param'",
            "grad": "'param': its gradient",
            "exp_avg_sq": "'exp_avg_sq'",
        }.items()
        for case, wrong in rubbish(4).items()
    },
    **{
        f"param: {case}": (lambda _, wrong=wrong: {"param": wrong}, "'param'")
        for case, wrong in WRONG_LAYOUTS.items()
    },
    **{
        f"exp_avg: {case}": (lambda _, wrong=wrong: {"exp_avg": wrong}, "'exp_avg' of 'param'")
        for case, wrong in {
            "reversed": np.ones((2, 2), np.float32)[::-1],
            "transposed": np.ones((2, 2), np.float32).T,
            "strided": np.ones((4, 4), np.float32)[::2, ::2],
            "misaligned": misaligned(np.ones(4, np.float32)).reshape(2, 2),
            "read-only": read_only(np.ones((2, 2), np.float32)),
            "of another shape": np.ones((4,), np.float32),
            "empty": np.ones((0, 2), np.float32),
            "float64": np.ones((2, 2)),
            "float16": np.ones((2, 2), np.float16),
        }.items()
    },
    "param: float16": (lambda _: {"param": np.ones((2, 2), np.float16)}, "'param': dtype float16"),
    "exp_avg_sq: bfloat16": (
        lambda _: {"exp_avg_sq": np.ones((2, 2), BFLOAT16)},
        "'exp_avg_sq' of 'param': .* bfloat16, .* convert it to float32 with",
    ),
    "no param": (lambda _: {"param": None}, "'param'"),
    "no grad": (lambda _: {"grad": None}, "grad: "),
    "no exp_avg": (lambda _: {"exp_avg": None}, "exp_avg: missing"),
    "no max_exp_avg_sq": (lambda _: {"amsgrad": True}, "max_exp_avg_sq: missing"),
    "grad of another shape": (lambda _: {"grad": np.ones(4, np.float32)}, "'param': its gradient has shape"),
    "grad is param": (lambda f: {"grad": f.arrays["param"]}, "'param': .* with 'param';"),
    "grad is within param": (lambda f: {"grad": f.bases["param"][2:6].reshape(2, 2)[::-1]}, "'param': .* shares"),
    "grad is a state": (lambda f: {"grad": f.arrays["exp_avg"]}, "'param': .* with the state 'exp_avg' of"),
    "param is a state": (
        lambda f: {"param": f.arrays["exp_avg"]},
        "'param' and the state 'exp_avg' of 'param' share",
    ),
    "one state is the other": (
        lambda f: {"exp_avg": f.arrays["exp_avg_sq"]},
        "the state 'exp_avg' of 'param' and the state 'exp_avg_sq' of 'param' share memory",
    ),
    "one state is part of the other": (
        lambda f: {"exp_avg": f.bases["exp_avg_sq"][: 1 + GAP][-4:].reshape(2, 2)},
        "the state 'exp_avg' of 'param' and the state 'exp_avg_sq' of 'param' share memory",
    ),
    **{
        f"{name} is no option": (lambda _, name=name: {name: 1}, f"{name}: ")
        for name in ("speed", "params", "name", "state_dtype")
    },
    **{
        f"step {step!r}": (lambda _, step=step: {"step": step}, "step: ")
        for step in (
            0,
            -1,
            1.0,
            "1",
            None,
            True,
            [1],
            np.array(1),
            np.array([1]),
            np.float32(1),
            2**62 + 1,
            10**400,
        )
    },
    **{
        f"grad_scale {scale!r:.30}": (lambda _, scale=scale: {"grad_scale": scale}, "grad_scale: ")
        for scale in GRAD_SCALES
    },
    **{
        f"an lr of {rate!r:.30} from a callable": (
            lambda _, rate=rate: {"lr": lambda t: rate},
            "lr, as its callable",
        )
        for rate in RUBBISH_RATES
    },
}


def test_wrong_arguments_of_a_function() -> None:
    before = base.tobytes()
    for case, (changes, message) in WRONG_ARGUMENTS.items():
        with table.named(case):
            call = Functional()
            refused(call, lambda f, changes=changes: f.call(**changes(f)), rf"^(the state )?{message}")
            assert base.tobytes() == before
            other = Functional()
            call.call()
            other.call()
            assert call.everything() == other.everything()


@each_option
def test_wrong_options_of_a_function(cls: type[fastopt.Optimizer], name: str) -> None:
    for wrong in table.wrong_values(cls, name):
        refused(Functional(cls), lambda f, x=wrong: f.call(**{name: x}), rf"^{name}\b")


def test_a_function_takes_no_more_states_than_it_has() -> None:
    arrays = [np.ones(3) for _ in range(3)]
    with pytest.raises(TypeError, match=r"^sgd: got 2 states, it takes momentum_buffer"):
        functional.sgd(arrays[0], arrays[1], arrays[2], np.ones(3), step=1)


# -- Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [0, -1, 1.5, 2.0, 4097, 10**30, "2", "", b"2", True, False, [1], np.ones(1), np.nan]
)
def test_wrong_numbers_of_threads(wrong: Any) -> None:
    fastopt.set_num_threads(3)
    refused(Scene(), lambda _: fastopt.set_num_threads(wrong), "^n: ")


@pytest.mark.parametrize(
    "wrong", ["mmx", "", "AVX2", 0, 1.0, True, [], ["baseline"], np.array(["a", "b"]), b"numpy"]
)
def test_wrong_instruction_sets(wrong: Any) -> None:
    fastopt.set_isa("baseline")
    refused(Scene(), lambda _: fastopt.set_isa(wrong), "^isa: .* choose")


# -- Code of the caller's, in the middle of a call ---------------------------------------------------


class Mine(Exception):
    """What the caller's own code raises."""


class Watched(Mapping[Any, Any]):
    """A mapping that lets somebody act whenever it is asked."""

    def __init__(self, values: Mapping[Any, Any], act: Callable[[], Any]) -> None:
        self.values_of, self.act = values, act

    def __getitem__(self, key: Any) -> Any:
        self.act()
        return self.values_of[key]

    def __iter__(self) -> Iterator[Any]:
        for key in self.values_of:
            self.act()
            yield key

    def __len__(self) -> int:
        self.act()
        return len(self.values_of)


class WatchedArray:
    """An array that lets somebody act when it is read."""

    def __init__(self, values: Array, act: Callable[[], Any]) -> None:
        self.values_of, self.act = values, act

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        self.act()
        return self.values_of


class WatchedNumber(float):
    """A number that lets somebody act when it is read."""

    act: Callable[[], Any]

    def __float__(self) -> float:
        self.act()
        return float.__float__(self)


def watched(values: Any, act: Callable[[], Any]) -> Iterator[Any]:
    for value in values:
        act()
        yield value
    act()


def step_at(scene: Scene, lr: Any) -> None:
    scene.optimizer.param_groups[1]["lr"] = lr
    try:
        scene.optimizer.step(scene.grads)
    finally:
        scene.optimizer.param_groups[1]["lr"] = 0.1


def at_rate(scene: Scene, act: Callable[[], Any]) -> None:
    def lr(step: int) -> float:
        act()
        return 0.05

    step_at(scene, lr)


def at_number(scene: Scene, act: Callable[[], Any]) -> None:
    number = WatchedNumber(0.05)
    number.act = act
    step_at(scene, number)


def at_binding(scene: Scene, act: Callable[[], Any]) -> None:
    scene.optimizer.bind(watched(scene.grads, act))
    scene.optimizer.step()
    scene.optimizer.bind(None)


def at_loading(scene: Scene, act: Callable[[], Any]) -> None:
    saved = Scene(steps=5).optimizer.state_dict()
    saved["state"] = {i: Watched(state, act) for i, state in saved["state"].items()}
    scene.optimizer.load_state_dict(Watched(saved, act))


def at_loading_an_array(scene: Scene, act: Callable[[], Any]) -> None:
    saved = Scene(steps=5).optimizer.state_dict()
    saved["state"][LAST]["exp_avg_sq"] = WatchedArray(saved["state"][LAST]["exp_avg_sq"], act)
    scene.optimizer.load_state_dict(saved)


def at_adding(scene: Scene, act: Callable[[], Any]) -> None:
    scene.params.append(np.ones(3, np.float32))
    scene.grads.append(np.ones(3, np.float32))
    try:
        scene.optimizer.add_param_group(Watched({"params": watched(scene.params[-1:], act)}, act))
    except BaseException:
        scene.params.pop()
        scene.grads.pop()
        raise


PLACES: dict[str, Callable[[Scene, Callable[[], Any]], None]] = {
    "a learning rate": at_rate,
    "a number among the options": at_number,
    "a dict of gradients": lambda s, act: s.optimizer.step(Watched(dict(enumerate(s.grads)), act)),
    "an iterator of gradients": lambda s, act: s.optimizer.step(watched(s.grads, act)),
    "an iterator of bound gradients": at_binding,
    "a state dict": at_loading,
    "an array of a state dict": at_loading_an_array,
    "a group that is added": at_adding,
}
"""Calls that run code of the caller's in their middle."""

READING: dict[str, Call] = {
    "state_dict": lambda s: [
        {k: np.asarray(v).tobytes() for k, v in one.items()} for one in s.optimizer.state_dict()["state"].values()
    ],
    "state": lambda s: [
        {k: np.asarray(v).tobytes() for k, v in one.items()} for one in s.optimizer.state.values()
    ],
    "repr": lambda s: repr(s.optimizer),
}
"""Calls that succeed inside any other."""

RE_ENTERING: dict[str, Call] = {
    "step": lambda s: s.optimizer.step(s.grads),
    "step with what is bound": lambda s: s.optimizer.step(),
    "bind": lambda s: s.optimizer.bind(s.grads),
    "unbind": lambda s: s.optimizer.bind(None),
    "load_state_dict": lambda s: s.optimizer.load_state_dict(SAVED),
    "add_param_group": lambda s: s.optimizer.add_param_group({"params": [np.ones(2)]}),
}
SAVED = Scene(steps=7).optimizer.state_dict()


def all_of(scene: Scene) -> Any:
    return table.bits(scene.optimizer, scene.params), repr(scene.optimizer)


@pytest.mark.parametrize("place", PLACES)
def test_a_call_within_a_call(place: str) -> None:
    for way in RE_ENTERING:
        with table.named(way):
            call_within_a_call_is_refused(place, way)


def call_within_a_call_is_refused(place: str, way: str) -> None:
    scene, plain = Scene(), Scene()
    refusals = []

    def act() -> None:
        with pytest.raises(RuntimeError, match=r"^this optimizer is inside another call .* make this") as caught:
            RE_ENTERING[way](scene)
        refusals.append(caught.value)

    def act_and_fail() -> None:
        act()
        raise refusals[-1]

    with pytest.raises((RuntimeError, TypeError)) as caught:
        PLACES[place](scene, act_and_fail)
    assert refusals[-1] in {caught.value, caught.value.__cause__}
    assert all_of(scene) == all_of(plain), "a refused call has changed something"
    PLACES[place](scene, act)
    PLACES[place](plain, lambda: None)
    assert all_of(scene) == all_of(plain)
    goes_on(scene, plain)


@pytest.mark.parametrize("way", READING)
@pytest.mark.parametrize("place", PLACES)
def test_reading_within_a_call(place: str, way: str) -> None:
    scene, plain = Scene(), Scene()
    before, found = READING[way](scene), []

    def act() -> None:
        if not found:  # a state dict asks the learning rate's callable too
            found.append(None)
            found.append(READING[way](scene))

    PLACES[place](scene, act)
    assert found[1] == before or way == "repr"  # which shows the learning rate that the test puts there
    PLACES[place](plain, lambda: None)
    assert all_of(scene) == all_of(plain)
    goes_on(scene, plain)


@pytest.mark.parametrize("place", PLACES)
def test_code_of_the_callers_that_raises(place: str) -> None:
    scene, plain = Scene(), Scene()
    for number in range(1000):
        calls = iter(range(number))

        def act(calls: Iterator[int] = calls) -> None:
            if next(calls, None) is None:
                raise Mine

        before = scene.everything()
        try:
            PLACES[place](scene, act)
        except (Mine, TypeError) as error:
            assert isinstance(error, Mine) or isinstance(error.__cause__, Mine)
            assert scene.everything() == before, f"changed, when call {number} raised"
        else:
            assert number > 0
            break
    PLACES[place](plain, lambda: None)
    goes_on(scene, plain)


def set_shape(array: Array, shape: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer NumPys advise against it
        array.shape = shape


def groups_of(scene: Scene) -> list[dict[str, Any]]:
    return scene.optimizer.param_groups


MEDDLING: dict[str, Callable[[Scene, list[Any]], Any]] = {
    "clears the list of gradients": lambda _, grads: grads.clear(),
    "puts others into it": lambda _, grads: grads.__setitem__(slice(None), [None] * len(grads)),
    "gives a gradient another shape": lambda _, grads: set_shape(grads[0], (12,)),
    "gives a parameter another shape": lambda s, _: set_shape(s.params[0], (2, 6)),
    "gives a state another shape": lambda s, _: set_shape([*s.optimizer.state[0].values()][1], (12,)),
    "lets go of the arrays": lambda s, grads: (s.params.clear(), s.bases.clear(), grads.clear()),
    "chooses another instruction set": lambda s, _: fastopt.set_isa(
        "numpy" if fastopt.get_isa() != "numpy" else None
    ),
    "edits options": lambda s, _: groups_of(s)[0].update(lr=0.7, betas=(0.3, 0.4), momentum=0.3, ahead=False),
    "edits options wrongly": lambda s, _: groups_of(s)[0].update(lr="fast", betas=None, momentum=None),
    "switches states on": lambda s, _: [group.update(amsgrad=True) for group in groups_of(s)],
    "removes options": lambda s, _: groups_of(s)[0].clear(),
    "removes groups": lambda s, _: groups_of(s).clear(),
    "replaces the groups": lambda s, _: setattr(s.optimizer, "param_groups", None),
}
"""What a learning rate's callable may do to the step that asks it."""


@pytest.mark.parametrize("cls", [fastopt.Adam, fastopt.NAG], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("isa", fastopt.available_isas())
def test_no_callable_meddles_with_the_step_that_asks_it(isa: str, cls: Any) -> None:
    for way in MEDDLING:
        with table.named(way):
            callable_does_not_meddle(way, isa, cls)


def callable_does_not_meddle(way: str, isa: str, cls: Any) -> None:
    fastopt.set_isa(isa)
    scene, plain = Scene(cls), Scene(cls)
    if cls is fastopt.NAG:
        scene.optimizer.lookahead()
        plain.optimizer.lookahead()
    params = list(scene.params)
    grads = [g.copy() for g in scene.grads]
    rates = iter([lambda: MEDDLING[way](scene, grads)])
    groups_of(scene)[1]["lr"] = lambda t: (next(rates, lambda: None)(), 0.05)[1]
    groups_of(plain)[1]["lr"] = 0.05
    scene.optimizer.step(grads)
    plain.optimizer.step(plain.grads)
    assert table.bits(scene.optimizer, params) == table.bits(plain.optimizer, plain.params)


def test_what_a_callable_edits_holds_from_the_next_step_on() -> None:
    scene, plain = Scene(), Scene()

    def lr(step: int) -> float:
        groups_of(scene)[0]["betas"] = [0.5, 0.5]
        return 0.05

    groups_of(scene)[1]["lr"] = lr
    groups_of(plain)[1]["lr"] = 0.05
    for _ in range(2):
        scene.train(1)
        plain.train(1)
        assert table.bits(scene.optimizer, scene.params) == table.bits(plain.optimizer, plain.params)
        groups_of(plain)[0]["betas"] = (0.5, 0.5)


@pytest.mark.parametrize("isa", fastopt.available_isas())
def test_bound_buffers_are_those_that_were_named(isa: str) -> None:
    fastopt.set_isa(isa)
    scene, grads = Scene(), [*Scene().grads]
    for bound in (grads, scene.with_last(grads[LAST])):
        scene.optimizer.bind(bound)
        first = bound[0]
        bound[0] = np.zeros((3, 4), np.float32)
        refused(
            scene, lambda s: s.optimizer.step(), "^parameter 0: its gradient in the list that was bound .* another"
        )
        bound[0] = first
        bound.append(None)
        refused(scene, lambda s: s.optimizer.step(), "^gradients: the list that was bound has other members")
        bound.pop()
        refused(scene, lambda s: s.optimizer.step(grad_scale="x"), "grad_scale")
    scene.optimizer.bind(tuple(grads))  # nobody else puts anything in there
    scene.optimizer.step()
    del grads[:]
    groups_of(scene)[0]["amsgrad"] = True  # a new plan
    scene.optimizer.step()
    plain = Scene(steps=3)
    groups_of(plain)[0]["amsgrad"] = True
    plain.train(1)
    scene.optimizer.bind(None)
    goes_on(scene, plain)


@pytest.mark.parametrize("way", ["step", "bind", "an edit that needs state"])
def test_bound_buffers_stay_when_they_get_another_shape(way: str) -> None:
    scene, plain = Scene(), Scene()
    grads = [g.copy() for g in scene.grads]
    scene.optimizer.bind(grads)
    set_shape(grads[LAST], (grads[LAST].size,))
    if way == "an edit that needs state":
        for each in scene, plain:
            groups_of(each)[0]["amsgrad"] = True
    else:
        wrong = scene.with_last(np.ones(5, np.float32))
        refused(scene, lambda s: getattr(s.optimizer, way)(wrong), r"its gradient has shape \(5,\)")
    scene.optimizer.step()
    scene.optimizer.bind(None)
    plain.train(1)
    goes_on(scene, plain)


def test_parameters_that_are_added_let_go_of_what_is_bound() -> None:
    scene = Scene()
    scene.optimizer.bind(scene.grads)
    scene.params.append(np.ones(3, np.float32))
    scene.optimizer.add_param_group({"params": scene.params[-1:]})
    refused(scene, lambda s: s.optimizer.step(), r"needs gradients: .* bind\(\)")


# -- Arrays of other classes -------------------------------------------------------------------------


class Liar(np.ndarray[Any, Any]):
    """An array that says of itself what is not so."""

    size, shape, nbytes, strides, ndim, itemsize = 10**9, (10**9,), 8 * 10**9, (8,), 1, 8  # type: ignore[assignment]
    dtype = np.dtype("M8")  # type: ignore[assignment]
    flags = ctypes = data = base = __array_interface__ = __array_struct__ = None  # type: ignore[assignment]

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    __array_ufunc__ = __array_function__ = __len__ = __getitem__ = __array__  # type: ignore[assignment]
    __iadd__ = __isub__ = __imul__ = __mul__ = __rmul__ = __array__  # type: ignore[assignment]
    copy = view = astype = reshape = ravel = __array__  # type: ignore[assignment]


def as_file(array: Array) -> Array:
    with tempfile.TemporaryFile() as file:
        whole = np.memmap(file, array.dtype, shape=array.shape)
    whole[...] = array
    return whole


CLASSES: dict[str, Callable[[Array], Any]] = {
    "a matrix": lambda a: a.view(np.matrix),
    "a file": as_file,
    "records": lambda a: a.view(np.recarray),
    "a liar": lambda a: np.ndarray.view(a, Liar),
}


@pytest.mark.parametrize("isa", fastopt.available_isas())
@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("kind", CLASSES)
def test_subclasses_are_the_arrays_that_they_hold(kind: str, layout: Any, isa: str) -> None:
    fastopt.set_isa(isa)
    made = CLASSES[kind]
    start, values = (table.plain_values(12, "float32", seed).reshape(3, 4) for seed in (0, 1))
    grad = np.array(values, order=layout)
    plain, param = start.copy(), made(start.copy())
    optimizer, other = table.base(fastopt.RMSprop).make([plain]), table.base(fastopt.RMSprop).make([param])
    for _ in range(3):
        optimizer.step([values])
        other.step([made(grad)])
    assert np.asarray(param).tobytes() == plain.tobytes()
    plain, param = start.copy(), made(start.copy())
    states, mine = ([np.zeros_like(start) for _ in range(2)] for _ in range(2))
    for step in range(1, 4):
        functional.adam(plain, values, *states, step=step)
        functional.adam(param, made(grad), *map(made, mine), step=step)
    if kind != "a file":  # each a file of its own
        assert np.asarray(param).tobytes() == plain.tobytes()
        assert [m.tobytes() for m in mine] == [s.tobytes() for s in states]


def test_what_exports_floats_is_a_gradient() -> None:
    param, other = np.ones(3), np.ones(3)
    values = np.array([1.0, 2.0, 3.0])
    fastopt.SGD([param], lr=1.0).step([array.array("d", values)])
    fastopt.SGD([other], lr=1.0).step([memoryview(values)[::1]])
    np.testing.assert_array_equal(param, 1 - values)
    np.testing.assert_array_equal(other, 1 - values)
