"""Parameters that are handed over at each call: `update`."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array

import fastopt

SHAPES = {"w": (3, 4), "b": (4,), "scale": (), "none": (0,), "v": (2, 1)}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_text(saved: dict[str, Any]) -> str:
    """A state dict, whatever the order of the keys in its groups."""
    return repr(saved["state"]) + repr([sorted(group.items()) for group in saved["param_groups"]])


def made(seed: int, dtype: Any = np.float32, order: str = "C") -> dict[str, Array]:
    return {
        name: np.array(np.random.default_rng([seed, i]).standard_normal(shape), dtype=dtype, order=order)  # type: ignore[call-overload]
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def bits(params: dict[str, Array]) -> list[bytes]:
    return [p.tobytes() for p in params.values()]


def everything(optimizer: fastopt.Optimizer) -> Any:
    """All that an optimizer holds, in a form that can be compared."""
    states = {
        key: {name: (value if name == "step" else value.tobytes()) for name, value in state.items()}
        for key, state in optimizer.state.items()
    }
    groups = [[(k, id(v) if k == "params" else repr(v)) for k, v in g.items()] for g in optimizer.param_groups]
    return states, groups, repr(optimizer.state_dict())


@pytest.fixture(params=["list", "dict"])
def form(request: pytest.FixtureRequest) -> Any:
    """Makes of a dict by names what `update` is given."""
    return dict if request.param == "dict" else lambda arrays: list(arrays.values())


# -- The same bits as step() ---------------------------------------------------------------------------


@pytest.mark.parametrize("variant", table.VARIANTS, ids=str)
def test_every_optimizer_gives_the_bits_of_step(variant: table.Variant) -> None:
    for dtype in variant.dtypes:
        params, others = made(1, dtype), made(1, dtype)
        optimizer, other = variant.make(None), variant.make(others)
        for step in range(3):
            grads = made(2 + step, dtype)
            params = {name: param.copy() for name, param in params.items()}  # they move
            optimizer.update(params, grads)
            other.step(grads)
        assert bits(params) == bits(others)
        for key in params:
            mine, theirs = optimizer.state[key], other.state[key]
            assert mine.keys() == theirs.keys()
            assert all(np.asarray(mine[n]).tobytes() == np.asarray(theirs[n]).tobytes() for n in mine)


@pytest.mark.parametrize("isa", fastopt.available_isas())
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}, {"amsgrad": True}])
def test_lists_and_dicts(form: Any, isa: str, order: str, options: dict[str, Any]) -> None:
    fastopt.set_isa(isa)
    params, others = made(1, order=order), made(1, order=order)
    optimizer, other = fastopt.Adam(lr=0.1, **options), fastopt.Adam(others, lr=0.1, **options)
    for step in range(4):
        grads: dict[str, Any] = {**made(2 + step), "b": None if step % 2 else made(9)["b"]}
        optimizer.update(form(params), form(grads), grad_scale=0.5)
        other.step(grads, grad_scale=0.5)
    assert bits(params) == bits(others)
    assert [s["step"] for s in optimizer.state.values()] == [4, 2, 4, 4, 4]
    assert list(optimizer.state) == (list(SHAPES) if form is dict else [0, 1, 2, 3, 4])


def test_bfloat16_rounds_by_the_same_random_bits() -> None:
    params, others = made(1, BFLOAT16), made(1, BFLOAT16)
    optimizer, other = fastopt.Adam(lr=0.1), fastopt.Adam(others, lr=0.1)
    for step in range(3):
        optimizer.update(params, made(2 + step, BFLOAT16))
        other.step(made(2 + step, BFLOAT16))
    assert bits(params) == bits(others)


def test_any_iterable_and_any_mapping() -> None:
    params, others = made(1), made(1)
    optimizer, other = fastopt.Adam(lr=0.1), fastopt.Adam(list(others.values()), lr=0.1)
    for step in range(2):
        optimizer.update(iter(params.values()), tuple(made(step).values()))
        other.step(list(made(step).values()))
    assert bits(params) == bits(others)

    class Names(dict[str, Array]):
        pass

    named = fastopt.Adam(lr=0.1)
    named.update(Names(params), Names(made(0)))
    assert list(named.state) == list(SHAPES)


def test_subsets_in_any_order() -> None:
    params, others = made(1), made(1)
    optimizer = fastopt.Adam(lr=0.1)
    alone = {name: fastopt.Adam([other], lr=0.1) for name, other in others.items()}
    rng = np.random.default_rng(0)
    for step in range(30):
        names = list(rng.permutation(list(SHAPES))[: rng.integers(0, 6)])
        grads = {name: made(2 + step)[name] for name in rng.permutation(names)}
        optimizer.update({name: params[name] for name in names}, grads)
        for name in names:
            alone[name].step([grads[name]])
    assert bits(params) == bits(others)
    assert {k: s["step"] for k, s in optimizer.state.items()} == {k: a.state[0]["step"] for k, a in alone.items()}


def test_a_list_may_become_longer() -> None:
    params, others = list(made(1).values()), list(made(1).values())
    optimizer, first, second = fastopt.Adam(), fastopt.Adam(others[:2]), fastopt.Adam(others[2:])
    grads = list(made(2).values())
    optimizer.update(params[:2], grads[:2])
    first.step(grads[:2])
    for _ in range(2):
        optimizer.update(params, grads)
        first.step(grads[:2])
        second.step(grads[2:])
    assert [p.tobytes() for p in params] == [p.tobytes() for p in others]


def test_groups_by_names() -> None:
    params, others = made(1), made(1)
    optimizer = fastopt.AdamW([{"names": ["b", "scale"], "weight_decay": 0.0, "lr": 0.3}, {}], lr=0.1)
    groups = [{"params": {k: others[k] for k in ("b", "scale")}, "weight_decay": 0.0, "lr": 0.3}]
    other = fastopt.AdamW([*groups, {"params": {k: others[k] for k in ("w", "none", "v")}}], lr=0.1)
    for step in range(3):
        optimizer.update(params, made(2 + step))
        other.step(made(2 + step))
        for each in optimizer, other:
            each.param_groups[0]["lr"] *= 0.5
    assert bits(params) == bits(others)


def test_callables_are_asked_for_the_steps_of_the_call() -> None:
    asked: list[int] = []
    optimizer = fastopt.Adam(lr=lambda t: asked.append(t) or 0.1)
    params = made(1)
    for names in (["w"], ["w"], ["b"], ["w", "b"], ["b"]):
        optimizer.update({k: params[k] for k in names}, {k: params[k] * 1 for k in names})
    assert asked == [0, 1, 0, 2, 2]


def test_amsgrad_is_switched_on_between() -> None:
    params, others = made(1), made(1)
    optimizer, other = fastopt.Adam(lr=0.1), fastopt.Adam(others, lr=0.1)
    for step in range(4):
        if step == 2:
            optimizer.param_groups[0]["amsgrad"] = other.param_groups[0]["amsgrad"] = True
        optimizer.update(params, made(2 + step))
        other.step(made(2 + step))
    assert bits(params) == bits(others)
    assert "max_exp_avg_sq" in optimizer.state["w"]


# -- Who holds what ------------------------------------------------------------------------------------


def test_without_parameters_nothing_keeps_a_reference(form: Any) -> None:
    optimizer = fastopt.Adam()
    params, grads = made(1), made(2)
    before = [sys.getrefcount(a) for a in (*params.values(), *grads.values())]
    optimizer.update(form(params), form(grads))
    assert [sys.getrefcount(a) for a in (*params.values(), *grads.values())] == before
    with pytest.raises(ValueError, match="shape"):
        optimizer.update(form(params), form({**grads, "v": np.ones(7, np.float32)}))
    with pytest.raises(ValueError, match="shape"):
        fastopt.Adam().update(form(params), form({**grads, "v": np.ones(7, np.float32)}))
    assert [sys.getrefcount(a) for a in (*params.values(), *grads.values())] == before
    seen = weakref.ref(params["w"])
    del params
    gc.collect()
    assert seen() is None


def test_with_parameters_it_holds_the_new_arrays(form: Any) -> None:
    first, second, others = made(1), made(1), made(1)
    optimizer, other = fastopt.Adam(form(first)), fastopt.Adam(form(others))
    optimizer.step(form(made(2)))
    second = {name: param.copy() for name, param in first.items()}
    optimizer.update(form(second), form(made(3)))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], second.values(), strict=True))
    kept = bits(first)
    optimizer.step(form(made(4)))
    assert bits(first) == kept
    for step in (2, 3, 4):
        other.step(form(made(step)))
    assert bits(second) == bits(others)
    held = weakref.ref(first["w"])
    del first
    gc.collect()
    assert held() is None
    with pytest.raises(ValueError, match="shares memory with"):
        optimizer.step(form({**made(2), "w": second["w"]}))


def test_arrays_that_trade_places() -> None:
    a, b = np.ones(3, np.float32), np.full(3, 2, np.float32)
    optimizer, other = fastopt.Adam([a, b]), fastopt.Adam()
    c, d = a.copy(), b.copy()
    grads = [np.ones(3, np.float32), np.full(3, 3, np.float32)]
    for mine, theirs in (([a, b], [c, d]), ([b, a], [d, c]), ([b, a], [d, c])):
        optimizer.update(mine, grads)
        other.update(theirs, grads)
    assert a.tobytes() == c.tobytes()
    assert b.tobytes() == d.tobytes()


def test_a_bound_optimizer_is_bound_no_longer() -> None:
    params = list(made(1).values())
    optimizer = fastopt.Adam(params)
    optimizer.bind(list(made(2).values()))
    with pytest.raises(ValueError, match="got 1 for 5"):
        optimizer.update(params[:1], params[:1])
    optimizer.step()  # a refused call leaves it bound
    optimizer.update([p.copy() for p in params], list(made(2).values()))
    with pytest.raises(TypeError, match="needs gradients"):
        optimizer.step()


# -- What is refused ---------------------------------------------------------------------------------


def changed(arrays: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {**arrays, **others}


base = np.zeros(64, np.float32)

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "another shape": ({"v": np.ones((1, 2), np.float32)}, {}, ValueError, "shape"),
    "another dtype": ({"v": np.ones((2, 1))}, {}, ValueError, "'v': it is now float64"),
    "float16": ({"v": np.ones((2, 1), np.float16)}, {}, TypeError, "float16 cannot be updated"),
    "not writable": ({"v": np.broadcast_to(np.float32(1), (2, 1))}, {}, ValueError, "read-only"),
    "strided": ({"v": base[:4].reshape(2, 2)[:, :1]}, {}, ValueError, "contiguous"),
    "no array": ({"v": [1.0, 2.0]}, {}, TypeError, "NumPy array"),
    "overlapping": ({"v": base[:2].reshape(2, 1), "b": base[1:5]}, {}, ValueError, "share memory"),
    "new and overlapping": (
        {"v": base[:2].reshape(2, 1), "new": base[1:5]},
        {"new": base[9:13]},
        ValueError,
        "share",
    ),
    "gradient of a new one": ({"new": base[:4]}, {"new": base[3:7]}, ValueError, "shares memory"),
    "gradient of a new one, shape": ({"new": base[:4]}, {"new": base[:3]}, ValueError, "shape"),
    "new float16": ({"new": np.ones(3, np.float16)}, {"new": np.ones(3, np.float16)}, TypeError, "'new': dtype"),
    "no gradient": ({"new": base[:4]}, {}, ValueError, "no gradient for 'new'"),
    "no parameter": ({}, {"new": base[:4]}, ValueError, "unknown names 'new'"),
    "name": ({1: base[:4]}, {1: base[5:9]}, TypeError, "this optimizer knows|names must be strings"),
    "odd name": ({None: base[:4]}, {None: base[5:9]}, TypeError, "names must be strings"),
    "gradient dtype": ({}, {"w": np.ones((3, 4), np.int32)}, TypeError, "gradient has dtype int32"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("keeps", [False, True])
def test_a_refused_call_leaves_everything_as_it_was(case: str, keeps: bool) -> None:
    wrong_params, wrong_grads, kind, says = REFUSED[case]
    params, others = made(1), made(1)
    optimizer, other = fastopt.Adam(params if keeps else None), fastopt.Adam(others)
    optimizer.update(params, made(2))
    other.step(made(2))
    before, values = everything(optimizer), bits(params)
    with pytest.raises(kind, match=says):
        optimizer.update(changed(params, **{}) | wrong_params, made(3) | wrong_grads)
    assert everything(optimizer) == before
    assert bits(params) == values
    optimizer.update(params, made(3))
    other.step(made(3))
    assert bits(params) == bits(others)


def test_the_first_call_refused_joins_no_name() -> None:
    optimizer = fastopt.Adam()
    params = made(1)
    for wrong in ({"v": np.ones(3, np.float16)}, {"w": base[:3], "b": base[:3]}):
        with pytest.raises((TypeError, ValueError)):
            optimizer.update(params | wrong, made(2))
        assert dict(optimizer.state) == {}
        assert optimizer.state_dict()["state"] == {}
    optimizer.update(list(params.values()), list(made(2).values()))  # neither names nor positions held


def test_states_are_not_handed_over() -> None:
    optimizer = fastopt.Adam()
    params = made(1)
    optimizer.update(params, made(2))
    state = optimizer.state["w"]["exp_avg"]
    with pytest.raises(ValueError, match="the state 'exp_avg' of 'w'"):
        optimizer.update(params | {"w": state}, made(3))
    with pytest.raises(ValueError, match="the state 'exp_avg' of 'w'"):
        optimizer.update(params, made(3) | {"w": state})


def test_names_and_positions_are_never_mixed() -> None:
    params, grads = made(1), made(2)
    by_name, by_place = fastopt.Adam(), fastopt.Adam()
    by_name.update(params, grads)
    by_place.update(list(params.values()), list(grads.values()))
    for _ in range(2):
        with pytest.raises(TypeError, match="by names; pass dicts"):
            by_name.update([*params.values(), base], [*grads.values(), base])
        with pytest.raises(TypeError, match="by names; pass dicts"):
            by_name.update(list(params.values()), list(grads.values()))
        with pytest.raises(TypeError, match="by positions; pass lists"):
            by_place.update(params, grads)
    with pytest.raises(TypeError, match="two lists in one order, or two dicts"):
        by_name.update(params, list(grads.values()))
    with pytest.raises(TypeError, match="two lists in one order, or two dicts"):
        by_place.update(list(params.values()), grads)
    with pytest.raises(ValueError, match=r"got 4 for 5 .* all of them"):
        by_place.update(list(params.values())[:4], list(grads.values())[:4])


def test_the_advice_about_order_works() -> None:
    params, grads = made(1, order="F"), made(2)
    optimizer = fastopt.Adam()
    optimizer.update(params, grads)
    wrong = np.ascontiguousarray(params["w"])
    with pytest.raises(ValueError, match="requirements='F'"):
        optimizer.update(params | {"w": wrong}, grads)
    optimizer.update(params | {"w": np.require(wrong, requirements="F")}, grads)


def test_step_without_parameters_says_what_to_do() -> None:
    optimizer = fastopt.Adam()
    with pytest.raises(TypeError, match=r"update\(params, grads\)"):
        optimizer.step([])
    optimizer.update([np.ones(3)], [np.ones(3)])
    with pytest.raises(TypeError, match=r"update\(params, grads\)"):
        optimizer.step([np.ones(3)])
    with pytest.raises(TypeError, match=r"update\(params, grads\)"):
        optimizer.bind([np.ones(3)])
    with pytest.raises(ValueError, match="list their names instead"):
        optimizer.add_param_group({"params": [np.ones(3)]})
    optimizer.add_param_group({"names": ["w"]})


# -- States that are loaded before their names are seen -----------------------------------------------


@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}, {"amsgrad": True}])
def test_a_fresh_optimizer_resumes(form: Any, options: dict[str, Any]) -> None:
    params = made(1)
    optimizer = fastopt.Adam(lr=0.1, **options)
    for step in range(3):
        optimizer.update(form(params), form(made(2 + step)))
    saved, others = optimizer.state_dict(), {name: param.copy() for name, param in params.items()}
    resumed = fastopt.Adam(lr=0.5)
    resumed.load_state_dict(saved)
    assert as_text(resumed.state_dict()) == as_text(saved)
    for step in range(3):
        optimizer.update(form(params), form(made(5 + step)))
        resumed.update(form(others), form(made(5 + step)))
    assert bits(params) == bits(others)
    assert as_text(resumed.state_dict()) == as_text(optimizer.state_dict())


def test_some_names_take_what_waits_for_them() -> None:
    params = made(1)
    groups: Any = [{"names": ["b", "scale"], "lr": 0.3}, {}]
    optimizer = fastopt.Adam(groups, lr=0.1)
    optimizer.update(params, made(2))
    saved, others = optimizer.state_dict(), {name: param.copy() for name, param in params.items()}
    resumed = fastopt.Adam(groups)
    resumed.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"'w', .*shape"):
        resumed.update({"w": base[:4]}, {"w": base[5:9]})
    assert as_text(resumed.state_dict()) == as_text(saved)
    for names in (["scale", "w"], ["v", "b", "none"]):
        resumed.update({k: others[k] for k in names}, {k: made(3)[k] for k in names})
        half = resumed.state_dict()
        again = fastopt.Adam(groups)
        again.load_state_dict(half)
        mine = {
            n: half["state"][i]
            for g in half["param_groups"]
            for i, n in zip(g["params"], g["param_names"], strict=True)
        }
        assert mine.keys() == SHAPES.keys()
    optimizer.update(params, made(3))
    assert bits(params) == bits(others)
    resumed.load_state_dict(saved)  # when all names are known
    assert all(s["step"] == 1 for s in resumed.state.values())


# -- NAG.lookahead ------------------------------------------------------------------------------------

GROUPS: Any = [{"names": ["w", "b"], "lr": 0.2}, {}]
OTHERS = [name for name in SHAPES if name not in ("w", "b")]


def only(names: Iterable[str], arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: arrays[name] for name in names}


def nag_after_two_updates() -> tuple[fastopt.NAG, dict[str, Array]]:
    params = made(1)
    optimizer = fastopt.NAG(GROUPS, lr=0.1)
    for step in range(2):
        optimizer.update(params, made(2 + step))
    return optimizer, params


def test_parameters_that_are_handed_over_look_ahead() -> None:
    params, others = made(1), made(1)
    optimizer = fastopt.NAG(GROUPS, lr=0.1)
    kept: Any = [{"params": only(["w", "b"], others), "lr": 0.2}, {"params": only(OTHERS, others)}]
    other = fastopt.NAG(kept, lr=0.1)
    for step in range(6):
        optimizer.lookahead(params)
        other.lookahead()
        assert bits(params) == bits(others)
        params = {name: p.copy() for name, p in params.items()}  # they move
        grads: dict[str, Any] = {
            name: None if (i + step) % 3 == 0 else g for i, (name, g) in enumerate(made(2 + step).items())
        }
        optimizer.update(params, grads)
        other.step(grads)
        assert bits(params) == bits(others)
    assert repr(optimizer.state_dict()["state"]) == repr(other.state_dict()["state"])


def test_lists_look_ahead() -> None:
    params, others = made(1), made(1)
    optimizer, other = fastopt.NAG(lr=0.1), fastopt.NAG(others, lr=0.1)
    for step in range(4):
        optimizer.lookahead(iter(params.values()))
        optimizer.update(list(params.values()), list(made(2 + step).values()))
        other.lookahead()
        other.step(made(2 + step))
    assert bits(params) == bits(others)


def test_names_may_come_after_lookahead() -> None:
    """They have no velocity yet, and so would not have moved."""
    params, others = made(1), made(1)
    optimizer, other = fastopt.NAG(lr=0.1), fastopt.NAG(lr=0.1)
    for step in range(1, 6):
        names = list(SHAPES)[:step]
        optimizer.lookahead(only(names[:-1], params))
        optimizer.update(only(names, params), only(names, made(2 + step)))
        other.lookahead(only(names, others))
        other.update(only(names, others), only(names, made(2 + step)))
        assert bits(params) == bits(others)


@pytest.mark.parametrize("way", ["load", "load while ahead", "copy", "copy while ahead"])
def test_states_that_wait_look_ahead(way: str) -> None:
    optimizer, params = nag_after_two_updates()
    if "ahead" in way:
        optimizer.lookahead(params)
    others = {name: p.copy() for name, p in params.items()}
    other = fastopt.NAG(GROUPS, lr=0.1)
    if "copy" in way:
        other = copy.deepcopy(optimizer)
    else:
        other.load_state_dict(optimizer.state_dict())
    for step in range(2):
        for either, own in (optimizer, params), (other, others):
            if step or "ahead" not in way:
                either.lookahead(own)
            either.update(own, made(4 + step))
    assert bits(params) == bits(others)
    assert as_text(optimizer.state_dict()) == as_text(other.state_dict())


@pytest.mark.parametrize("waits", [False, True])
def test_all_of_a_group_looks_ahead_or_nothing(waits: bool) -> None:
    optimizer, params = nag_after_two_updates()
    if waits:
        optimizer = copy.deepcopy(optimizer)

    def refused(error: type[Exception], message: str, call: Callable[..., Any], *args: Any) -> None:
        before = everything(optimizer), bits(params)
        with pytest.raises(error, match=message):
            call(*args)
        assert (everything(optimizer), bits(params)) == before

    refused(TypeError, r"pass lookahead\(params=\.\.\.\)", optimizer.lookahead)
    refused(TypeError, "put a single array into a list", optimizer.lookahead, params["w"])
    some = only(["w", "scale", "none"], params)
    refused(
        ValueError,
        "lookahead: it lacks 'b', 'v'; pass all parameters of a group, or none",
        optimizer.lookahead,
        some,
    )
    optimizer.lookahead(only(["w", "b"], params))
    again = only(OTHERS, params)
    refused(RuntimeError, r"ahead already; call update\(\) before lookahead", optimizer.lookahead, again)
    message = r"update: it lacks ('w', )?'b', which lookahead\(\) has moved; pass all"
    for names in ["w", *OTHERS], OTHERS:
        refused(ValueError, message, optimizer.update, only(names, params), only(names, made(4)))
    names = ["w", "scale", "b"]
    optimizer.update(only(names, params), only(names, made(4)))
    optimizer.lookahead(params)


# -- What one call leaves for the next ----------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_refused_is_refused_again(kept: bool) -> None:
    block = np.ones(6, np.float32)
    optimizer = fastopt.Adam({"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)} if kept else None)
    grads = {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    optimizer.update({"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}, grads)
    for _ in range(3):
        with pytest.raises(ValueError, match="share memory"):
            optimizer.update({"a": block[:4], "b": block[2:]}, grads)
    assert block.tolist() == [1] * 6


@pytest.mark.parametrize("call", ["step", "update"])
def test_gradients_by_name_come_in_any_order(call: str) -> None:
    params, twins = made(1), made(1)
    first, second = fastopt.Adam(params if call == "step" else None), fastopt.Adam(twins)
    names = list(params)
    for step in range(8):
        # each order comes again, with the same names and with equal ones
        order = names if step < 4 else names[::-1]
        grads = {(name if step % 2 else str(bytes(name, "ascii"), "ascii")): made(step)[name] for name in order}
        if call == "step":
            first.step(grads)
        else:
            first.update(params, grads)
        second.step(list(made(step).values()))
    assert bits(params) == bits(twins)
