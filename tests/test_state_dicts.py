"""State dicts that have been elsewhere: with users, torch and its schedulers, in JSON and NumPy's files."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array

import fastopt

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = [(3, 4), (5,), (), (0, 2)]


def parameters(dtype: Any = np.float32) -> list[Array]:
    return [
        table.plain_values(int(np.prod(shape)), "float32", i).reshape(shape).astype(dtype)
        for i, shape in enumerate(SHAPES)
    ]


def gradients(step: int, dtype: Any = np.float32) -> list[Array]:
    return [
        table.plain_values(int(np.prod(shape)), "float32", 10 * step + i).reshape(shape).astype(dtype)
        for i, shape in enumerate(SHAPES)
    ]


def trained(make: Callable[..., fastopt.Optimizer], **options: Any) -> tuple[fastopt.Optimizer, list[Array]]:
    params = parameters()
    optimizer = make(params, **options)
    for step in range(3):
        optimizer.step(gradients(step))
    return optimizer, params


def go_on_alike(
    one: fastopt.Optimizer, params: list[Array], other: fastopt.Optimizer, others: list[Array]
) -> None:
    for step in range(3, 6):
        one.step(gradients(step))
        other.step(gradients(step))
    assert table.bits(one, params) == table.bits(other, others)


@pytest.mark.parametrize("isa", ["numpy", fastopt.available_isas()[0]])
@pytest.mark.parametrize("cls", table.ALL, ids=lambda cls: cls.__name__)
def test_every_array_of_a_state_may_be_written_into(cls: table.Class, isa: str) -> None:
    """Written in place or loaded, the next steps are the same."""
    fastopt.set_isa(isa)
    params = parameters()[: None if cls in table.OPTIMIZERS else 1]  # the first is a matrix
    optimizer = table.base(cls).make(params)
    optimizer.step(gradients(0)[: len(params)])
    others = copy.deepcopy(params)
    other = table.base(cls).make(others)
    saved = optimizer.state_dict()
    for i, entry in saved["state"].items():
        for name, values in entry.items():
            if isinstance(values, np.ndarray):
                values *= 0.5
                optimizer.state[i][name][...] = values
    other.load_state_dict(saved)
    for step in range(1, 4):
        optimizer.step(gradients(step)[: len(params)])
        other.step(gradients(step)[: len(params)])
    assert table.bits(optimizer, params) == table.bits(other, others)


# -- Keys of the user's own ------------------------------------------------------------------------


def test_own_keys_are_kept_and_saved() -> None:
    w, b = np.ones(3), np.ones(2)
    scales = [1.0, 2.0]
    optimizer = fastopt.Adam([{"params": [w], "name": "decay", "scales": scales}, {"params": [b]}])
    optimizer.param_groups[1]["lr_scale"] = 0.1
    optimizer.step([w * 0.1, b * 0.1])
    assert optimizer.param_groups[0]["name"] == "decay"
    assert optimizer.param_groups[0]["scales"] is scales
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["scales"] == scales
    scales.append(3.0)
    assert saved["param_groups"][0]["scales"] == [1.0, 2.0], "a state dict is a copy"

    other = fastopt.Adam([{"params": [w.copy()], "name": "mine", "more": 5}, {"params": [b.copy()]}])
    other.load_state_dict(saved)
    assert other.param_groups[0]["name"] == "decay"
    assert other.param_groups[0]["more"] == 5
    assert other.param_groups[1]["lr_scale"] == 0.1
    del other.param_groups[1]["lr_scale"]
    other.step([w, b])
    assert "lr_scale" not in other.state_dict()["param_groups"][1]


MISTAKES = {
    "weigth_decay": "use weight_decay",
    "weight-decay": "use weight_decay",
    "Betas": "use betas",
    "LR": "use lr",
    "beta1": "use betas",
    "learning_rate": "use lr",
    "epsilon": "use eps",
    "param": "use params",
    "momentum": "an option of .*SGD.*, not of Adam; it has lr, betas",
    "rho": "an option of Adadelta, not of Adam",
    "fused": "leave it out",
}
OWN_KEYS = ["name", "initial_lr", "max_lr", "swa_lr", "max_momentum", "weight_decay_mult", "lr_scale", "step", ""]


@pytest.mark.parametrize("way", ["constructor", "add_param_group", "edit", "load"])
def test_keys_that_look_like_a_mistake_are_refused(way: str) -> None:
    for name, message in MISTAKES.items():
        w = np.ones(3)
        optimizer = fastopt.Adam([w])
        saved = optimizer.state_dict()
        saved["param_groups"][0][name] = 0.5
        calls: dict[str, Callable[[], Any]] = {
            "constructor": lambda name=name: fastopt.Adam([{"params": [np.ones(3)], name: 0.5}]),  # type: ignore[misc]
            "add_param_group": lambda o=optimizer, name=name: o.add_param_group(  # type: ignore[misc]
                {"params": [np.ones(3)], name: 0.5}
            ),
            "edit": lambda o=optimizer, w=w, name=name: (  # type: ignore[misc]
                o.param_groups[0].update({name: 0.5}),
                o.step([w]),
            ),
            "load": lambda o=optimizer, d=saved: o.load_state_dict(d),  # type: ignore[misc]
        }
        if name == "fused" and way == "load":
            continue  # torch's dicts have it
        with table.named(name), pytest.raises(ValueError, match=rf"group \d: {name}: .*{message}"):
            calls[way]()


@pytest.mark.parametrize("name", OWN_KEYS)
def test_other_keys_are_the_users_own(name: str) -> None:
    optimizer = fastopt.Adam([{"params": [np.ones(3)], name: 0.5}])
    optimizer.step([np.ones(3)])
    assert optimizer.param_groups[0][name] == 0.5


def test_functions_have_no_keys_of_the_users_own() -> None:
    arrays = [np.ones(3) for _ in range(4)]
    with pytest.raises(ValueError, match=r"^name: no option of Adam; it has lr, "):
        fastopt.functional.adam(*arrays, step=1, name="w")
    with pytest.raises(ValueError, match=r"^weigth_decay: .*use weight_decay"):
        fastopt.functional.adam(*arrays, step=1, weigth_decay=0.1)


# -- Callables and state_dtype ---------------------------------------------------------------------


def test_callables_win_over_saved_numbers() -> None:
    def lr(step: int) -> float:
        return 0.1 / (step + 1)

    optimizer, _ = trained(fastopt.Adam, lr=lr, betas=(lr, 0.9))
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["lr"] == lr(3)
    assert saved["param_groups"][0]["betas"] == (lr(3), 0.9)
    saved["param_groups"][0]["betas"] = [0.5, 0.7]
    other = fastopt.Adam(parameters(), lr=lr, betas=(lr, 0.9), eps=lr)
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] is lr
    assert other.param_groups[0]["eps"] is lr
    assert other.param_groups[0]["betas"] == (lr, 0.7)


@pytest.mark.parametrize("none", [True, False])
def test_a_dict_without_a_state_dtype_leaves_the_constructors(none: bool) -> None:
    optimizer, _ = trained(fastopt.Adam)
    saved = optimizer.state_dict()
    if none:
        assert saved["param_groups"][0]["state_dtype"] is None
    else:
        del saved["param_groups"][0]["state_dtype"]
    other = fastopt.Adam(parameters(), state_dtype="bfloat16")
    other.load_state_dict(saved)
    assert other.param_groups[0]["state_dtype"] == "bfloat16"
    assert other.state[0]["exp_avg"].dtype == BFLOAT16
    np.testing.assert_array_equal(other.state[0]["exp_avg"], optimizer.state[0]["exp_avg"].astype(BFLOAT16))


def test_a_dict_with_another_state_dtype_says_so() -> None:
    saved = trained(fastopt.Adam, state_dtype="bfloat16")[0].state_dict()
    other = fastopt.Adam(parameters())
    with pytest.warns(UserWarning, match="group 0: state_dtype is 'bfloat16' from now on.* was None") as caught:
        other.load_state_dict(saved)
    assert caught[0].filename == __file__
    assert other.state[0]["exp_avg"].dtype == BFLOAT16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused = fastopt.Adam(parameters())
        before = refused.state_dict()
        with pytest.raises(UserWarning):
            refused.load_state_dict(saved)
        assert repr(refused.state_dict()) == repr(before), "as an error it changes nothing"
        fastopt.Adam(parameters(), state_dtype="float32").load_state_dict(fastopt.Adam(parameters()).state_dict())


# -- JSON and NumPy's files ------------------------------------------------------------------------


def through_json(saved: Any) -> Any:
    return json.loads(json.dumps(saved, default=lambda array: array.tolist()))


@pytest.mark.parametrize("cls", table.OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_a_dict_that_came_through_json(cls: table.Class) -> None:
    optimizer, params = trained(table.base(cls).make)
    saved = through_json(optimizer.state_dict())
    assert "0" in saved["state"]
    others = [p.copy() for p in params]
    other = cls(others)
    other.load_state_dict(saved)
    go_on_alike(optimizer, params, other, others)


def test_json_makes_whole_numbers_of_some_floats() -> None:
    optimizer = fastopt.SGD([np.zeros(2)], momentum=0.9)
    saved = optimizer.state_dict()
    saved["state"] = {"0": {"step": 1, "momentum_buffer": [1, 2]}}
    optimizer.load_state_dict(saved)
    assert optimizer.state[0]["momentum_buffer"].tolist() == [1.0, 2.0]


def test_a_parameter_that_is_there_twice() -> None:
    optimizer, _ = trained(fastopt.Adam)
    saved = optimizer.state_dict()
    saved["state"]["0"] = saved["state"][0]
    with pytest.raises(ValueError, match=r"^state_dict: state: it has parameter 0 twice"):
        optimizer.load_state_dict(saved)


def through_npz(value: Any) -> Any:
    """What NumPy's files make of each number and array."""
    if isinstance(value, dict):
        return {k: through_npz(v) for k, v in value.items()}
    if isinstance(value, list) or value is None:
        return [through_npz(v) for v in value] if value is not None else None
    file = io.BytesIO()
    np.savez(file, x=value)
    file.seek(0)
    return np.load(file)["x"]


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_a_dict_that_came_through_npz(state_dtype: str | None) -> None:
    optimizer, params = trained(fastopt.Adam, state_dtype=state_dtype, amsgrad=True, lr=0.1)
    saved = optimizer.state_dict()
    keys = [group.pop("params") for group in saved["param_groups"]]
    stored = through_npz(saved)
    for group, own in zip(stored["param_groups"], keys, strict=True):
        group["params"] = own
    assert stored["state"][0]["exp_avg"].dtype == (np.dtype("V2") if state_dtype else np.float32)
    assert isinstance(stored["param_groups"][0]["lr"], np.ndarray)
    others = [p.copy() for p in params]
    other = fastopt.Adam(others, state_dtype=state_dtype)
    other.load_state_dict(stored)
    assert other.param_groups[0]["betas"] == (0.9, 0.999)
    assert other.param_groups[0]["amsgrad"] is True
    go_on_alike(optimizer, params, other, others)


def test_flags_of_a_dict_are_checked() -> None:
    optimizer = fastopt.NAG(parameters())
    saved = optimizer.state_dict()
    saved["param_groups"][0]["ahead"] = "yes"
    with pytest.raises(TypeError, match=r"^state_dict: group 0: ahead: expected True or False"):
        optimizer.load_state_dict(saved)


# -- torch -----------------------------------------------------------------------------------------


def in_torch(name: str, options: dict[str, Any], named: bool = False) -> tuple[Any, list[Any]]:
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(p).requires_grad_() for p in parameters(np.float64)]
    members = [(f"w{i}", t) for i, t in enumerate(tensors)] if named else tensors
    return getattr(torch.optim, name)([{"params": members, "name": "all"}], **options), tensors


def step_in_torch(optimizer: Any, tensors: list[Any], step: int) -> None:
    import torch

    for tensor, grad in zip(tensors, gradients(step, np.float64), strict=True):
        tensor.grad = torch.from_numpy(grad)
    optimizer.step()


def schedulers(torch: Any) -> dict[str, Callable[[Any], Any]]:
    from torch.optim import lr_scheduler, swa_utils

    return {
        "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
        "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
        "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
        "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=5),
        "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o),
    }


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize(
    "scheduler", ["OneCycleLR", "CyclicLR", "StepLR", "CosineAnnealingLR", "SWALR", "ReduceLROnPlateau"]
)
def test_what_schedulers_left_in_a_dict_loads(name: str, scheduler: str) -> None:
    torch = pytest.importorskip("torch")
    options = {"lr": 0.01} if name == "Adam" else {"lr": 0.01, "momentum": 0.9}
    theirs, tensors = in_torch(name, options, named=True)
    schedule = schedulers(torch)[scheduler](theirs)
    for step in range(3):
        step_in_torch(theirs, tensors, step)
        schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
    saved = copy.deepcopy(theirs.state_dict())
    params = [t.detach().numpy().copy() for t in tensors]
    ours = getattr(fastopt, name)(params)
    ours.load_state_dict(saved)
    group = ours.param_groups[0]
    assert group["lr"] == saved["param_groups"][0]["lr"]
    for key in {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"} & set(
        saved["param_groups"][0]
    ):
        assert group[key] == saved["param_groups"][0][key]
        assert ours.state_dict()["param_groups"][0][key] == group[key]
    assert group["name"] == "all"
    for step in range(3, 6):
        step_in_torch(theirs, tensors, step)
        ours.step(gradients(step, np.float64))
    for param, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12)


def test_a_learning_rate_that_is_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    theirs, tensors = in_torch("Adam", {"lr": torch.tensor(0.01), "capturable": False, "foreach": False})
    torch.optim.lr_scheduler.StepLR(theirs, 2)
    step_in_torch(theirs, tensors, 0)
    saved = theirs.state_dict()
    assert isinstance(saved["param_groups"][0]["initial_lr"], torch.Tensor)
    ours = fastopt.Adam(parameters(np.float64))
    ours.load_state_dict(saved)
    assert ours.param_groups[0]["lr"] == float(np.float32(0.01))
    assert ours.param_groups[0]["initial_lr"] == float(np.float32(0.01))
    assert type(ours.param_groups[0]["initial_lr"]) is float


def test_names_of_torch_are_those_of_the_parameters() -> None:
    theirs, tensors = in_torch("Adam", {}, named=True)
    step_in_torch(theirs, tensors, 0)
    names = [f"w{i}" for i in range(len(SHAPES))]
    ours = fastopt.Adam(dict(zip(names, parameters(np.float64), strict=True)))
    ours.load_state_dict(theirs.state_dict())
    assert ours.state["w1"]["step"] == 1
    assert "param_names" not in ours.param_groups[0]
    assert ours.state_dict()["param_groups"][0]["param_names"] == names
    other = fastopt.Adam(dict(zip(reversed(names), parameters(np.float64), strict=True)))
    with pytest.raises(ValueError, match=r"^state_dict: group 0: it has the names"):
        other.load_state_dict(theirs.state_dict())


def test_a_tensor_that_numpy_cannot_read_names_the_call_that_mends_it() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    theirs = torch.optim.Adam([tensor])
    tensor.grad = torch.ones_like(tensor)
    theirs.step()
    ours = fastopt.Adam([np.ones(3, BFLOAT16)])
    with pytest.raises(TypeError, match=r"parameter 0: exp_avg: .*fastopt\.torch_state\.from_torch"):
        ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_of_torch_counts_no_steps(momentum: float) -> None:
    theirs, tensors = in_torch("SGD", {"lr": 0.1, "momentum": momentum, "dampening": 0.3})
    ours = fastopt.SGD(params := parameters(np.float64))
    ours.load_state_dict(theirs.state_dict())
    assert ours.state[0]["step"] == 0
    for step in range(2):
        if step:
            saved = copy.deepcopy(theirs.state_dict())
            for entry in saved["state"].values():
                entry.setdefault("momentum_buffer", None)
            ours.load_state_dict(saved)
        step_in_torch(theirs, tensors, step)
        ours.step(gradients(step, np.float64))
        for param, tensor in zip(params, tensors, strict=True):
            np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12)
