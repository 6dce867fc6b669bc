"""Options as attributes, `current`, `threads`, `reset`, `lr_factor`, and writing to `opt.state`."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import table
from table import Array
from tracing import traced

import fastopt


def params(seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 2), (4,), ())]


def grads(step: int) -> list[Array]:
    return params(100 + step)


def same(optimizer: fastopt.Optimizer, mine: list[Array], other: fastopt.Optimizer, theirs: list[Array]) -> bool:
    return table.bits(optimizer, mine) == table.bits(other, theirs)


# -- Attributes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", table.OPTIMIZERS)
def test_every_option_is_set_in_every_group(cls: type[fastopt.Optimizer]) -> None:
    start = table.base(cls)
    for variant in table.one_option_changed(start):
        name = variant.changed
        if (
            name is None
            or not table.accepted(variant)
            or any(n != name for n in variant.options if n not in start.options)
        ):
            continue
        mine, theirs = params(), params()
        optimizer = start.make([{"params": mine[:1]}, {"params": mine[1:]}])
        other = start.make([{"params": theirs[:1]}, {"params": theirs[1:]}])
        setattr(optimizer, name, variant.options[name])
        for group in other.param_groups:
            group[name] = variant.options[name]
        assert getattr(optimizer, name) == table.plain_value(cls, name, variant.options[name])
        assert [g[name] for g in optimizer.param_groups] == [getattr(optimizer, name)] * 2
        for step in range(2):
            optimizer.step(grads(step))
            other.step(grads(step))
        assert same(optimizer, mine, other, theirs)


@pytest.mark.parametrize(
    ("name", "first", "second", "is_short"),
    [
        ("lr", 0.1, 0.2, True),
        ("weight_decay", 0.1, 0.2, True),
        ("betas", (0.8, 0.95), (0.85, 0.9), True),
        ("betas", (0.8, 0.9), (0, 0.5), False),
    ],
)
def test_edits_of_numbers_before_every_step(name: str, first: Any, second: Any, is_short: bool) -> None:
    """Most schedules edit floats, which a step takes by a shorter way than what has to be checked."""
    edited, mine, theirs = [], params(), params()
    optimizer, other = fastopt.Adam(mine, weight_decay=0.5), fastopt.Adam(theirs, weight_decay=0.5)
    for step in range(8):
        value = second if step % 2 else first
        optimizer.param_groups[0][name] = value
        operations = traced(lambda step=step: optimizer.step(grads(step)))  # type: ignore[misc]
        edited.append(operations - traced(lambda step=step: grads(step)))  # type: ignore[misc]
        state = other.state_dict()
        other = fastopt.Adam(theirs, **{"weight_decay": 0.5, name: value})
        state["param_groups"] = other.state_dict()["param_groups"]
        other.load_state_dict(state)
        other.step(grads(step))
        assert same(optimizer, mine, other, theirs)
    assert (max(edited[2:]) < 200) == is_short
    optimizer.param_groups[0]["betas"] = (0.9, 1.0)
    with pytest.raises(ValueError, match=r"betas\[1\]: 1.0 is out of range"):
        optimizer.step(grads(9))


def test_reading_gives_the_common_value_or_raises() -> None:
    p = params()
    optimizer = fastopt.Adam([{"params": p[:1], "lr": 0.5}, {"params": p[1:]}])
    assert optimizer.betas == (0.9, 0.999)
    with pytest.raises(AttributeError, match=r"the groups have different ones.*param_groups\[i\]\['lr'\]"):
        _ = optimizer.lr
    optimizer.lr = 0.25
    assert optimizer.lr == 0.25


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("learning_rate", "did you mean lr"),
        ("weigth_decay", "did you mean weight_decay"),
        ("beta1", "did you mean betas"),
        ("momentum", "its options are lr, betas"),
        ("colour", "its options are lr, betas"),
        ("state", r"reset\(\) or load_state_dict"),
        ("threads", "set_num_threads"),
        ("params", "add_param_group"),
    ],
)
def test_what_is_not_there_cannot_be_set(name: str, says: str) -> None:
    optimizer = fastopt.Adam(params())
    with pytest.raises(AttributeError, match=says):
        setattr(optimizer, name, 0.1)
    assert name in ("state", "threads") or not hasattr(optimizer, name)


def test_a_wrong_value_is_set_nowhere() -> None:
    p = params()
    optimizer = fastopt.SGD([{"params": p[:1], "momentum": 0.9}, {"params": p[1:]}], lr=0.1)
    for name, value, kind in (("lr", -1.0, ValueError), ("lr", "x", TypeError), ("nesterov", True, ValueError)):
        before = repr(optimizer.param_groups)
        with pytest.raises(kind):
            setattr(optimizer, name, value)
        assert repr(optimizer.param_groups) == before
    optimizer.step(grads(0))


def test_constructors_say_what_is_meant() -> None:
    for wrong, meant in {
        "beta1": "betas", "learning_rate": "lr", "weigth_decay": "weight_decay", "amsgard": "amsgrad",
    }.items():  # fmt: skip
        with pytest.raises(TypeError, match=rf"^Adam: {wrong}: .*did you mean {meant}\?"):
            fastopt.Adam(params(), **{wrong: 0.5})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Adam: colour: .*its options are params, lr, betas") as refused:
        fastopt.Adam(params(), colour=1)  # type: ignore[call-arg]
    named = str(refused.value).partition("its options are ")[2].split(", ")
    assert named == list(inspect.signature(fastopt.Adam).parameters)  # each can be passed


# -- The next step ---------------------------------------------------------------------------------------


def test_current_gives_the_numbers_of_the_next_step() -> None:
    p = params()
    groups = [{"params": p[:1], "lr_factor": 0.5}, {"params": p[1:], "betas": (0.5, lambda t: t / 10)}]
    optimizer = fastopt.Adam(groups, lr=lambda t: 1.0 + t)
    assert optimizer.current("lr") == [0.5, 1.0]
    optimizer.step(grads(0))
    assert optimizer.current("lr") == [1.0, 2.0]
    assert optimizer.current("betas") == [(0.9, 0.999), (0.5, 0.1)]
    optimizer.param_groups[1]["lr"] = 7.0
    assert optimizer.current("lr") == [1.0, 7.0]
    assert optimizer.current("lr_factor") == [0.5, 1.0]
    with pytest.raises(ValueError, match="did you mean lr"):
        optimizer.current("learning_rate")


def test_threads() -> None:
    small, large = fastopt.Adam(params()), fastopt.Adam([np.zeros(2**20, np.float32)])
    fastopt.set_num_threads(2)
    try:
        assert small.threads == 1
        assert large.threads == (2 if table.OPENMP else 1)
        fastopt.set_isa("numpy")
        assert large.threads == 1
    finally:
        fastopt.set_num_threads(None)


# -- lr_factor -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", table.BASES, ids=str)
@pytest.mark.parametrize("is_callable", [False, True])
def test_lr_factor_multiplies_the_learning_rate(variant: table.Variant, is_callable: bool) -> None:
    mine, theirs = params(), params()
    lr = variant.hyper["lr"]
    options = {**variant.options, "lr": (lambda t: lr) if is_callable else lr}
    optimizer = variant.cls([{"params": mine[:1], "lr_factor": 0.5}, {"params": mine[1:]}], **options)  # type: ignore[call-arg]
    other = variant.cls([{"params": theirs[:1], "lr": 0.5 * lr}, {"params": theirs[1:]}], **variant.options)  # type: ignore[call-arg]
    for step in range(3):
        if step == 2:
            optimizer.param_groups[1]["lr_factor"] = 3.0  # there was none
            other.param_groups[1]["lr"] = 3.0 * lr
        optimizer.step(grads(step))
        other.step(grads(step))
    assert [p.tobytes() for p in mine] == [p.tobytes() for p in theirs]


def test_lr_factor_is_saved_and_checked() -> None:
    p = params()
    optimizer = fastopt.AdamW([{"params": p[:1], "lr_factor": 0.5}, {"params": p[1:]}])
    saved = optimizer.state_dict()
    assert [g.get("lr_factor", 1.0) for g in saved["param_groups"]] == [0.5, 1.0]
    assert [g["lr"] for g in saved["param_groups"]] == [1e-3, 1e-3]
    other = fastopt.AdamW([{"params": p[:1]}, {"params": p[1:]}])
    other.load_state_dict(saved)
    assert other.current("lr") == [0.5e-3, 1e-3]
    for wrong in (-1.0, np.nan, "x", None):
        with pytest.raises((TypeError, ValueError), match="lr_factor"):
            fastopt.AdamW([{"params": p, "lr_factor": wrong}])
        optimizer.param_groups[0]["lr_factor"] = wrong
        with pytest.raises((TypeError, ValueError), match="lr_factor"):
            optimizer.step(grads(0))
        optimizer.param_groups[0]["lr_factor"] = 0.5
    optimizer.lr_factor = 0.25
    assert optimizer.current("lr") == [0.25e-3, 0.25e-3]


# -- Anew ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", table.VARIANTS, ids=str)
def test_reset_starts_anew(variant: table.Variant) -> None:
    mine = params()
    optimizer = variant.make(mine)
    for step in range(3):
        optimizer.step(grads(step))
    theirs = [p.copy() for p in mine]
    optimizer.reset()
    other = variant.make(theirs)
    assert repr(optimizer.state_dict()) == repr(other.state_dict())
    for step in range(3):
        optimizer.step(grads(step))
        other.step(grads(step))
    assert same(optimizer, mine, other, theirs)


def test_reset_begins_schedules_again_and_drops_what_waits() -> None:
    optimizer = fastopt.Adam(lr=lambda t: 1.0 + t)
    optimizer.update({"w": np.ones(3)}, {"w": np.ones(3)})
    resumed = fastopt.Adam()
    resumed.load_state_dict(optimizer.state_dict())
    for each in optimizer, resumed:
        each.reset()
    assert optimizer.current("lr") == [1.0]
    assert optimizer.state["w"]["step"] == 0
    assert resumed.state_dict()["state"] == {}


def test_reset_while_ahead_is_refused() -> None:
    optimizer = fastopt.NAG(params())
    optimizer.step(grads(0))
    optimizer.lookahead()
    with pytest.raises(RuntimeError, match=r"call step\(\) before reset"):
        optimizer.reset()
    optimizer.step(grads(1))
    optimizer.reset()


def test_writing_to_state_works_or_says_what_to_do() -> None:
    optimizer = fastopt.Adam(params())
    optimizer.step(grads(0))
    before = repr(optimizer.state_dict())
    state: Any = optimizer.state

    def delete(mapping: Any, key: Any) -> None:
        del mapping[key]

    for write in (
        lambda: state.clear(),
        lambda: state.__setitem__(0, {}),
        lambda: delete(state, 0),
        lambda: state.pop(0),
        lambda: state.update({}),
        lambda: state[0].__setitem__("step", 0),
        lambda: state[0].__setitem__("exp_avg", np.zeros((3, 2))),
        lambda: state[0].clear(),
        lambda: state[0].update(step=0),
        lambda: state[0].pop("step"),
        lambda: delete(state[0], "step"),
    ):
        with pytest.raises(TypeError, match=r"reset\(\)") as caught:
            write()
        assert re.search(r"\[\.\.\.\] = ", str(caught.value))
        assert repr(optimizer.state_dict()) == before
    state[0]["exp_avg"][...] = 0.0  # the advice
    assert not optimizer.state_dict()["state"][0]["exp_avg"].any()
    assert dict(state[0]).keys() == {"step", "exp_avg", "exp_avg_sq"}
