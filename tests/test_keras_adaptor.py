"""fastopt.keras against Keras' own classes on the torch backend, in real trainings."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_process import run

for needed in ("torch", "keras"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed", allow_module_level=True)
if os.environ.setdefault("KERAS_BACKEND", "torch") != "torch":
    pytest.skip("KERAS_BACKEND is set to another backend", allow_module_level=True)

import keras  # noqa: E402
import table  # noqa: E402
import torch  # noqa: E402

import fastopt.keras as adaptor  # noqa: E402

# Keras' variables do not know NumPy's copy argument
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MORE: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    "RMSprop": [{"momentum": 0.9}, {"centered": True}, {"momentum": 0.9, "centered": True}],
    "Adam": [{"amsgrad": True}],
}
CASES = [(name, options) for name in adaptor.__all__ for options in ({}, *MORE.get(name, []))]
COMMON: dict[str, dict[str, Any]] = {
    "clipnorm": {"clipnorm": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.01},
    "weight_decay": {"weight_decay": 0.1},
    "averages": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    "accumulation": {"gradient_accumulation_steps": 2},
    "loss scale": {"loss_scale_factor": 1024.0},
    "schedule": {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.02, 3, 0.5)},
}


def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 5)), rng.normal(size=(64, 2))


def network(optimizer: Any, dtype: Any = "float64", frozen: bool = False, last: str = "glorot_uniform") -> Any:
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Input((5,)),
        keras.layers.Dense(8, activation="tanh", dtype=dtype),
        keras.layers.Dense(6, dtype=dtype, trainable=not frozen),
        keras.layers.Dense(2, dtype=dtype, kernel_initializer=last, kernel_constraint="max_norm"),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer, loss="mse")
    return model


def train(model: Any, epochs: int = 3) -> list[float]:
    x, y = data()
    losses: list[float] = model.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history["loss"]
    return losses


def values(model: Any) -> list[Any]:
    """All that a training changes: the weights, and the optimizer's variables."""
    found = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable).copy() for variable in found]


def check(one: Any, other: Any, rtol: float = 1e-12) -> None:
    for a, b in zip(values(one), values(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def pair(name: str, options: dict[str, Any], **network_options: Any) -> tuple[Any, Any]:
    options = {"learning_rate": 0.01, **options}
    theirs, ours = getattr(keras.optimizers, name), getattr(adaptor, name)
    return network(theirs(**options), **network_options), network(ours(**options), **network_options)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_same_training_and_the_same_state(name: str, options: dict[str, Any]) -> None:
    theirs, ours = pair(name, options)
    assert train(ours) == pytest.approx(train(theirs), rel=1e-12)
    check(theirs, ours)


@pytest.mark.parametrize("name", adaptor.__all__)
def test_a_weight_that_is_not_contiguous(name: str) -> None:
    """As the initializer "orthogonal" makes it. Keras multiplies in float32, whose rounding depends on the layout."""
    theirs, ours = pair(name, {}, last="orthogonal")
    assert train(ours) == pytest.approx(train(theirs), rel=1e-6)
    check(theirs, ours, rtol=1e-5)


@pytest.mark.parametrize("case", COMMON)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_what_keras_does_around_the_update(name: str, case: str) -> None:
    theirs, ours = pair(name, COMMON[case])
    plain = network(getattr(adaptor, name)(0.01))
    for model in theirs, ours, plain:
        train(model)
    check(theirs, ours)
    assert not np.allclose(ours.get_weights()[0], plain.get_weights()[0]) or case == "loss scale"


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_layers_that_are_frozen_before_and_in_the_middle(name: str) -> None:
    theirs, ours = pair(name, {}, frozen=True)
    before = ours.layers[1].get_weights()[0]
    for model in theirs, ours:
        train(model)
    check(theirs, ours)
    np.testing.assert_array_equal(ours.layers[1].get_weights()[0], before)
    first = ours.layers[0].get_weights()[0]
    for model in theirs, ours:
        model.layers[0].trainable = False  # the optimizer still has its variables
        train(model)
    check(theirs, ours)
    np.testing.assert_array_equal(ours.layers[0].get_weights()[0], first)


GOES_ON = """
import keras, numpy, fastopt, test_keras_adaptor as t
fastopt.set_num_threads({threads})
model = keras.saving.load_model({path!r})
assert type(model.optimizer).__module__ == {module!r}
t.train(model)
numpy.savez({result!r}, *t.values(model))
"""


@table.cases("name, options", CASES, [("Adam", {"amsgrad": True}), ("SGD", {"momentum": 0.9, "nesterov": True})])
def test_a_saved_model_goes_on_in_a_new_process_with_the_same_bits(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = network(getattr(adaptor, name)(learning_rate=0.01, use_ema=True, **options), "float32")
    train(model)
    path, result = str(tmp_path / "model.keras"), str(tmp_path / "result.npz")
    model.save(path)
    train(model)
    code = GOES_ON.format(path=path, module=adaptor.__name__, result=result, threads=2)
    run(code, environment={"FASTOPT_ISA": "numpy", "KERAS_BACKEND": "torch"}, seconds=300)
    with np.load(result) as found:
        for mine, file in zip(values(model), found.files, strict=True):
            np.testing.assert_array_equal(mine, found[file])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_state_goes_on_in_keras_own_class_and_back(name: str, options: dict[str, Any]) -> None:
    reference, ours = pair(name, options)
    train(reference)
    train(ours)
    theirs, back = pair(name, options)
    for source, target in (ours, theirs), (theirs, back):
        target.optimizer.build(target.trainable_variables)
        for variable, value in zip(target.variables, values(source), strict=False):
            variable.assign(value)
        store: dict[str, Any] = {}
        source.optimizer.save_own_variables(store)
        target.optimizer.load_own_variables(store)
        train(target)
        train(reference)
        check(reference, target)


def test_bfloat16_and_a_mixed_policy() -> None:
    for dtype in "bfloat16", "mixed_bfloat16":
        losses = train(network(adaptor.Adam(0.02), dtype), 20)
        assert losses[-1] < 0.9 * losses[0]


def test_a_weight_that_was_changed_between_forward_and_backward_is_noticed() -> None:
    model = network(adaptor.SGD(0.1), "float32")
    variables = model.trainable_variables
    loss = (model(torch.ones(4, 5)) ** 2).sum()
    model.optimizer.apply([torch.ones(*v.shape) for v in variables], variables)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_fastopt_cannot_update_is_refused_before_any_change() -> None:
    model = network(adaptor.Adam(0.1), "float32")
    half = keras.Variable(np.ones(3), dtype="float16")
    variables = [*model.trainable_variables, half]
    before = [keras.ops.convert_to_numpy(v).copy() for v in variables]
    with pytest.raises(TypeError, match=r"parameter 6: .*float16"):
        model.optimizer.apply([torch.ones(*v.shape, dtype=v.value.dtype) for v in variables], variables)
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_other_backends_are_refused() -> None:
    pytest.importorskip("jax")
    code = """
try:
    import fastopt.keras
except ImportError as error:
    print(error)
"""
    printed = run(code, environment={"KERAS_BACKEND": "jax"}, seconds=120)
    assert "backend 'jax'" in printed and "KERAS_BACKEND=torch" in printed
