"""The numbers of torch.optim, to 1e-12 in float64; and what torch does not have, against its definition."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import table
from table import Array

import fastopt

TOLERANCE = 1e-12
pytestmark = pytest.mark.usefixtures("counters_in_float64")
SIZES = [1, 7, 64, 1025]


def close(ours: Array, theirs: Array) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * np.abs(theirs).max(initial=0))


def gradients(step: int) -> list[Array]:
    return [table.plain_values(size, "float64", 100 + step) for size in SIZES]


def parameters() -> list[Array]:
    return [table.plain_values(size, "float64", 1) for size in SIZES]


# -- torch -----------------------------------------------------------------------------------------


def torch_class(cls: type[fastopt.Optimizer]) -> Any:
    torch = pytest.importorskip("torch")
    found = getattr(torch.optim, cls.__name__, None)
    if found is None:
        pytest.skip(f"torch has no {cls.__name__}")
    return found


def shared(variant: table.Variant) -> table.Variant:
    """With the options that torch has too; skips where the variant changes one that it has not."""
    theirs = inspect.signature(torch_class(variant.cls)).parameters
    if variant.changed and variant.changed not in theirs:
        pytest.skip(f"torch's {variant.cls.__name__} has no {variant.changed}")
    return table.Variant(variant.cls, {name: value for name, value in variant.options.items() if name in theirs})


def in_torch(variant: table.Variant, params: list[Array]) -> tuple[Any, list[Any]]:
    options = shared(variant).options
    import torch

    tensors = [torch.from_numpy(p.copy()).requires_grad_() for p in params]
    plain = {"foreach": False}
    if "fused" in inspect.signature(torch_class(variant.cls)).parameters:
        plain["fused"] = False
    return torch_class(variant.cls)(tensors, **options, **plain), tensors


def step_in_torch(optimizer: Any, tensors: list[Any], grads: list[Array | None]) -> None:
    import torch

    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = None if grad is None else torch.from_numpy(grad.copy())
    optimizer.step()


def compare(ours: fastopt.Optimizer, params: list[Array], theirs: Any, tensors: list[Any]) -> None:
    for i, (param, tensor) in enumerate(zip(params, tensors, strict=True)):
        close(param, tensor.detach().numpy())
        state = ours.state[i]
        for name, value in theirs.state[tensor].items():
            if name == "step":
                assert state["step"] == int(value)
            elif value is not None:
                close(state[name], value.numpy())


@pytest.mark.parametrize("variant", table.VARIANTS, ids=str)
def test_ten_steps_as_torch(variant: table.Variant) -> None:
    params = parameters()
    theirs, tensors = in_torch(variant, params)
    ours = shared(variant).make(params)
    for step in range(10):
        grads: list[Array | None] = list(gradients(step))
        if step == 4:
            grads[1] = None
        if step == 7:  # a change between steps
            for group in (*ours.param_groups, *theirs.param_groups):
                group["lr"] *= 0.5
        step_in_torch(theirs, tensors, grads)
        ours.step(grads)
        compare(ours, params, theirs, tensors)


@pytest.mark.parametrize("cls", table.OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_a_hundred_steps_with_defaults_as_torch(cls: type[fastopt.Optimizer]) -> None:
    params = parameters()
    theirs, tensors = in_torch(table.Variant(cls, {}), params)
    ours = table.Variant(cls, {}).make(params)
    for step in range(100):
        grads: list[Array | None] = list(gradients(step))
        if step % 9 == 4:
            grads[step % 4] = None
        step_in_torch(theirs, tensors, grads)
        ours.step(grads)
    compare(ours, params, theirs, tensors)


@pytest.mark.parametrize("variant", table.BASES, ids=str)
def test_a_state_dict_of_torch_goes_on(variant: table.Variant) -> None:
    params = parameters()
    theirs, tensors = in_torch(variant, params)
    for step in range(3):
        step_in_torch(theirs, tensors, list(gradients(step)))
    saved = copy.deepcopy(theirs.state_dict())
    for entry in saved["state"].values():
        for name, value in entry.items():
            entry[name] = value.numpy() if hasattr(value, "numpy") else value
    params = [tensor.detach().numpy().copy() for tensor in tensors]
    ours = shared(variant).make(params)
    ours.load_state_dict(saved)
    for step in range(3, 6):
        step_in_torch(theirs, tensors, list(gradients(step)))
        ours.step(gradients(step))
    for param, tensor in zip(params, tensors, strict=True):
        close(param, tensor.detach().numpy())


# -- Options ---------------------------------------------------------------------------------------


def after(variant: table.Variant, dtype: str, steps: int = 30) -> list[Array]:
    params = [p.astype(dtype) for p in parameters()]
    optimizer = variant.make(params)
    for step in range(steps):
        optimizer.step([g.astype(dtype) for g in gradients(step)])
    return [
        *params,
        *(x for state in optimizer.state.values() for x in state.values() if isinstance(x, np.ndarray)),
    ]


def changed_from(variant: table.Variant) -> table.Variant:
    options = dict(variant.options)
    default = table.base(variant.cls).options.get(
        str(variant.changed), table.defaults_of(variant.cls)[str(variant.changed)]
    )
    options[str(variant.changed)] = default
    return table.Variant(variant.cls, options)


ENABLED = [
    v
    for v in table.VARIANTS
    if v.changed
    and all(
        v.options.get(k, 1) != 0 or k in (v.changed, *table.NEEDED.get(v.changed, ())) for k in table.EFFECTIVE
    )
]


@pytest.mark.parametrize("variant", ENABLED, ids=lambda v: f"{v.cls.__name__}-{v.changed}")
def test_every_option_changes_the_result(variant: table.Variant) -> None:
    dtype = variant.dtypes[-1]
    pairs = zip(after(variant, dtype), after(changed_from(variant), dtype), strict=False)
    assert any(not np.array_equal(p, q) for p, q in pairs)


def test_every_option_is_among_those() -> None:
    for cls in table.OPTIMIZERS:
        tried = {v.changed for v in ENABLED if v.cls is cls}
        assert tried == set(table.options_of(cls)), cls.__name__


# -- What torch does not have, against its definition ---------------------------------------------

Update = Callable[[Array, Array, dict[str, Any], int], Array]
LR, MU = 0.1, 0.9


def sgd_lr_in_momentum(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    s["v"] = MU * s.get("v", 0.0) + LR * g
    return p - s["v"]


def sgd_decoupled(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    return p * (1 - LR * 0.1) - LR * g


def sgd_moving_average(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    s["v"] = g * (1 - MU) if t == 1 else MU * s["v"] + (1 - MU) * g
    return p - LR * s["v"]


def adagrad_eps_root(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    s["s"] = s.get("s", 0.0) + g**2
    return p - LR * g / np.sqrt(s["s"] + 1e-3)


def rmsprop_eps_root(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    s["s"] = 0.99 * s.get("s", 0.5) + 0.01 * g**2
    return p - LR * g / np.sqrt(s["s"] + 1e-3)


def rmsprop_lr_in_momentum(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    s["s"] = 0.99 * s.get("s", 0.0) + 0.01 * g**2
    s["v"] = MU * s.get("v", 0.0) + LR * g / (np.sqrt(s["s"]) + 1e-8)
    return p - s["v"]


def moments(g: Array, s: dict[str, Any]) -> tuple[Array, Array]:
    s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0.0) + 0.001 * g**2
    return s["m"], s["v"]


def adam_eps_root(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    m, v = moments(g, s)
    return p - LR * m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t) + 1e-3)


def adam_eps_hat(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    m, v = moments(g, s)
    return p - LR * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-3)


def adam_uncorrected(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    m, v = moments(g, s)
    return p - LR * m / (np.sqrt(v) + 1e-8)


def signum(p: Array, g: Array, s: dict[str, Any], t: int) -> Array:
    s["m"] = MU * s.get("m", 0.0) + (1 - MU) * g
    return p - LR * np.sign(s["m"])


DEFINITIONS: list[tuple[Callable[..., fastopt.Optimizer], dict[str, Any], Update]] = [
    (fastopt.SGD, {"momentum": MU, "lr_in_momentum": True}, sgd_lr_in_momentum),
    (fastopt.SGD, {"weight_decay": 0.1, "decoupled_weight_decay": True}, sgd_decoupled),
    (fastopt.SGD, {"lr": LR * (1 - MU), "momentum": MU}, sgd_moving_average),
    (fastopt.Adagrad, {"eps": 0.0, "eps_root": 1e-3}, adagrad_eps_root),
    (fastopt.RMSprop, {"eps": 0, "eps_root": 1e-3, "initial_accumulator_value": 0.5}, rmsprop_eps_root),
    (fastopt.RMSprop, {"momentum": MU, "lr_in_momentum": True}, rmsprop_lr_in_momentum),
    (fastopt.Adam, {"eps": 0, "eps_root": 1e-3}, adam_eps_root),
    (fastopt.Adam, {"eps": 0, "eps_hat": 1e-3}, adam_eps_hat),
    (fastopt.Adam, {"eps": 1e-3, "eps_hat": True}, adam_eps_hat),
    (fastopt.Adam, {"bias_correction": False}, adam_uncorrected),
    (fastopt.Signum, {"momentum": MU}, signum),
]


@pytest.mark.parametrize(
    ("make", "options", "update"),
    DEFINITIONS,
    ids=[f"{d[2].__name__}-{i}" for i, d in enumerate(DEFINITIONS)],
)
def test_against_its_definition(
    make: Callable[..., fastopt.Optimizer], options: dict[str, Any], update: Update
) -> None:
    params, expected = parameters(), parameters()
    optimizer = make(params, **{"lr": LR, **options})
    states: list[dict[str, Any]] = [{} for _ in params]
    for step in range(10):
        grads = gradients(step)
        optimizer.step(grads)
        expected = [update(p, g, s, step + 1) for p, g, s in zip(expected, grads, states, strict=True)]
    for param, right in zip(params, expected, strict=True):
        close(param, right)


def test_nag_takes_the_gradient_ahead() -> None:
    """v = momentum * v - lr * gradient(p + momentum * v); p = p + v, on the gradient 3 p + 1."""
    param = table.plain_values(100, "float64", 2)
    expected, velocity = param.copy(), np.zeros(100)
    optimizer = fastopt.NAG([param], lr=LR, momentum=MU)
    for _ in range(10):
        optimizer.lookahead()
        close(param, expected + MU * velocity)
        optimizer.step([3 * param + 1])
        velocity = MU * velocity - LR * (3 * (expected + MU * velocity) + 1)
        expected = expected + velocity
        close(param, expected)


@pytest.mark.parametrize("dtype", table.DTYPES)
def test_centered_rmsprop_survives_cancellation(dtype: str) -> None:
    param, grad = np.ones(100, dtype), np.linspace(0.1, 3, 100).astype(dtype)
    optimizer = fastopt.RMSprop([param], centered=True, alpha=0.9, eps=1e-3)
    for _ in range(300):
        optimizer.step([grad])
    assert np.isfinite(param).all()
