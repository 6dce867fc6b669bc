"""fastopt.torch against torch's own classes, in real trainings."""

from __future__ import annotations

import collections
import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from own_process import run

torch = pytest.importorskip("torch")

import table  # noqa: E402
from tracing import is_interrupted  # noqa: E402

import fastopt  # noqa: E402
import fastopt.torch as adaptor  # noqa: E402
from fastopt._plan import Exchange  # noqa: E402

OF_ANY_SHAPE = [name for name in adaptor.__all__ if getattr(fastopt, name) in table.OPTIMIZERS]
every_class = pytest.mark.parametrize("name", OF_ANY_SHAPE)
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True}}


class Training:
    """A small network, the same for every seed, with one optimizer."""

    def __init__(self, cls: Any, dtype: Any = torch.float64, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(32, 5, dtype=torch.float64, generator=generator).to(dtype)
        self.y = torch.randn(32, 2, dtype=torch.float64, generator=generator).to(dtype)
        self.model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(dtype)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, dtype=torch.float64, generator=generator) / 2)
        first, second = self.model[0].parameters(), self.model[2].parameters()
        options = {"lr": 0.01, **OPTIONS.get(cls.__name__, {}), **options}
        self.optimizer = cls([{"params": list(first)}, {"params": list(second), "lr": 0.02}], **options)

    def loss(self) -> Any:
        self.optimizer.zero_grad()
        loss = ((self.model(self.x) - self.y) ** 2).mean()
        loss.backward()
        return loss

    def go(self, steps: int = 5) -> None:
        for _ in range(steps):
            self.loss()
            self.optimizer.step()


def pair(name: str, **options: Any) -> tuple[Training, Training]:
    return Training(getattr(torch.optim, name), **options), Training(getattr(adaptor, name), **options)


def check(one: Training, other: Training, rtol: float = 1e-12) -> None:
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


def check_states(one: Training, other: Training) -> None:
    """Whether both state dicts have the same states, of the same dtypes and shapes."""
    states, others = (
        {
            i: {name: (x.dtype, x.shape) for name, x in sorted(entry.items()) if x is not None}
            for i, entry in training.optimizer.state_dict()["state"].items()
        }
        for training in (one, other)
    )
    assert states == others


def info_of(name: str) -> Any:
    """A class's entry in torch's own test database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        database = pytest.importorskip("torch.testing._internal.common_optimizers").optim_db
    (info,) = [entry for entry in database if entry.optim_cls.__name__ == name]
    return info


@every_class
@pytest.mark.usefixtures("counters_in_float64")
def test_the_same_training_and_state_dicts_both_ways(name: str) -> None:
    theirs, ours = pair(name)
    theirs.go()
    ours.go()
    check(theirs, ours)
    saved, own = copy.deepcopy(theirs.optimizer.state_dict()), copy.deepcopy(ours.optimizer.state_dict())
    check_states(theirs, ours)
    theirs.optimizer.load_state_dict(own)
    ours.optimizer.load_state_dict(saved)
    theirs.go()
    ours.go()
    check(theirs, ours)


@every_class
@pytest.mark.usefixtures("counters_in_float64")
def test_torchs_own_inputs(name: str) -> None:
    inputs = info_of(name).optim_inputs_func(device="cpu")
    assert inputs
    for entry in inputs:
        options = {key: value for key, value in entry.kwargs.items() if key != "params"}
        theirs, ours = pair(name, **options)
        if options.get("capturable") or options.get("differentiable"):
            ours.loss()
            with pytest.raises(ValueError, match="capturable, differentiable"):
                ours.optimizer.step()
            continue
        theirs.go()
        ours.go()
        check(theirs, ours)
        check_states(theirs, ours)


@pytest.mark.parametrize("name", adaptor.__all__)
def test_torchs_own_wrong_inputs(name: str) -> None:
    """Complex numbers, which Adafactor and Muon of torch refuse too, are a wrong type here."""
    for entry in info_of(name).optim_error_inputs_func(device="cpu", dtype=torch.float32):
        of = entry.optimizer_error_input
        if issubclass(entry.error_type, Warning):
            with pytest.warns(entry.error_type, match=entry.error_regex):
                getattr(adaptor, name)(of.params, **of.kwargs)
            continue
        is_complex = "complex" in of.desc
        with pytest.raises(
            TypeError if is_complex else entry.error_type, match="complex64" if is_complex else entry.error_regex
        ):
            getattr(adaptor, name)(of.params, **of.kwargs).step()


@every_class
@pytest.mark.usefixtures("counters_in_float64")
def test_the_protocols_of_torchs_own_tests(name: str) -> None:
    """Named, scalar and empty parameters, steps without a gradient and with zeros, state dicts of older releases and
    with numbers of steps that are no tensors, files read with weights_only, and hooks of state dicts."""
    found = []
    for cls in getattr(torch.optim, name), getattr(adaptor, name):
        generator = torch.Generator().manual_seed(0)
        shapes = [(3, 2), ()] if name == "Adafactor" else [(3, 2), (), (0, 3)]  # torch's divides by the size
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        named = [(f"p{k}", p) for k, p in enumerate(params)]

        def step(optimizer: Any, of: Any = params, generator: Any = generator) -> None:
            for p in of:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

        optimizer = cls(named, lr=0.01)
        assert name in repr(optimizer)
        optimizer.step()
        for _ in range(3):
            step(optimizer)
        saved = copy.deepcopy(optimizer.state_dict())
        if name != "Adafactor":  # torch's has no older releases
            for group in saved["param_groups"]:
                for option in "maximize", "foreach", "fused", "capturable", "differentiable":
                    group.pop(option, None)
        for state in saved["state"].values():
            if "step" in state:
                state["step"] = float(state["step"])
        optimizer.load_state_dict(saved)
        step(optimizer)
        assert {*vars(copy.deepcopy(optimizer))} >= {key for key in vars(optimizer) if not key.startswith("_")}

        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other, calls = cls(named, lr=0.5), []
        for register in (
            other.register_state_dict_pre_hook,
            other.register_state_dict_post_hook,
            other.register_load_state_dict_pre_hook,
            other.register_load_state_dict_post_hook,
        ):
            register(lambda *_, hook=register.__name__, calls=calls: calls.append(hook))
        other.load_state_dict(torch.load(file, weights_only=True))
        step(other)
        for gradient in torch.zeros_like, lambda _: None:
            for p in params:
                p.grad = gradient(p)
            other.step()
        found.append((params, other.state_dict(), calls))
    (theirs, their_dict, their_calls), (ours, our_dict, our_calls) = found
    assert their_calls == our_calls
    assert their_dict["param_groups"] == our_dict["param_groups"]
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for index, state in their_dict["state"].items():
        assert {*state} == {*our_dict["state"][index]}
        for key, value in state.items():
            torch.testing.assert_close(
                value, our_dict["state"][index][key], rtol=1e-5, atol=1e-6, check_dtype=False
            )


def schedules(optimizer: Any) -> list[Any]:
    return [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20),
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    ]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_schedulers_clipping_hooks_and_closures(name: str, which: int) -> None:
    calls: list[str] = []
    both = pair(name)
    for training in both:
        optimizer = training.optimizer
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        schedule = schedules(optimizer)[which]
        for _ in range(8):
            training.loss()
            torch.nn.utils.clip_grad_norm_(training.model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
        assert optimizer.step(training.loss) is not None
    assert calls == ["before", "after"] * 18
    check(*both)


def test_grad_scaler() -> None:
    both = pair("Adam", fused=True)
    for training in both:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for iteration in range(4):
            training.optimizer.zero_grad()
            loss = ((training.model(training.x) - training.y) ** 2).mean()
            scaler.scale(loss * (float("inf") if iteration == 1 else 1.0)).backward()
            scaler.step(training.optimizer)
            scaler.update()
    check(*both)


def test_swa() -> None:
    both = pair("SGD")
    averages = []
    for training in both:
        average = torch.optim.swa_utils.AveragedModel(training.model)
        schedule = torch.optim.swa_utils.SWALR(training.optimizer, swa_lr=0.05)
        for _ in range(5):
            training.go(1)
            average.update_parameters(training.model)
            schedule.step()
        averages.append(list(average.parameters()))
    for a, b in zip(*averages, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_class
def test_a_pickle_goes_on_with_the_same_bits(name: str) -> None:
    straight, broken = (Training(getattr(adaptor, name)) for _ in range(2))
    straight.go(6)
    broken.go(3)
    broken = pickle.loads(pickle.dumps(broken))
    broken.go(3)
    for a, b in zip(straight.model.parameters(), broken.model.parameters(), strict=True):
        assert torch.equal(a, b)


RESUME = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_torch_adaptor import Training, adaptor
training = Training(adaptor.Adam)
saved = torch.load({path!r})
training.model.load_state_dict(saved["model"])
training.optimizer.load_state_dict(saved["optimizer"])
training.go(3)
torch.save(training.model.state_dict(), {path!r} + ".end")
"""


def test_a_checkpoint_resumes_in_a_new_process_with_the_same_bits(tmp_path: Any) -> None:
    training, path = Training(adaptor.Adam), str(tmp_path / "checkpoint.pt")
    training.go(3)
    torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, path)
    training.go(3)
    run(RESUME.format(tests=__file__.rpartition("/")[0], path=path))
    for key, value in torch.load(path + ".end").items():
        assert torch.equal(value, training.model.state_dict()[key])


@pytest.mark.parametrize(("name", "before"), [("Adam", 0), ("Adam", 2), ("NAdam", 2), ("SGD", 2)])
def test_after_an_interrupt_at_any_place_a_step_was_made_or_not_made(name: str, before: int) -> None:
    """NAdam has a number of each tensor besides, and torch's SGD counts no steps. before: steps made before."""

    class Scene:
        def __init__(self) -> None:
            # the second has gaps, and the third no gradient
            self.params = [torch.nn.Parameter(p) for p in (torch.ones(3), torch.ones(3, 4)[:, ::2], torch.ones(2))]
            self.optimizer = getattr(adaptor, name)(self.params, lr=0.1, **OPTIONS.get(name, {}))
            for p in self.params[:2]:
                p.grad = torch.full_like(p, 0.5)

        def look(self) -> Any:
            state = self.optimizer.state_dict()["state"]
            tensors = [value for _, of in sorted(state.items()) for _, value in sorted(of.items())]
            keys = tuple((i, *sorted(of)) for i, of in sorted(state.items()))
            return keys, tuple(tensor.detach().numpy().tobytes() for tensor in self.params + tensors)

        def go(self, steps: int) -> Scene:
            for _ in range(steps):
                self.optimizer.step()
            return self

    made, not_made = (Scene().go(steps).look() for steps in (before + 3, before + 2))
    assert made != not_made
    seen = set()
    for place in itertools.count():
        scene = Scene().go(before)
        was_there = is_interrupted(scene.optimizer.step, place, table.of_a_torch_step())
        found = scene.go(2).look()
        assert found in (made, not_made), place
        seen.add(found)
        if not was_there:
            break
    assert seen == {made, not_made}
    assert place > 100


def test_autograd_notices_a_step() -> None:
    w = torch.ones(3, requires_grad=True)
    optimizer = adaptor.SGD([w], lr=0.1)
    loss = (w * w).sum()
    w.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("layout", ["transposed", "with gaps", "channels last"])
def test_layouts(layout: str) -> None:
    base = torch.arange(48, dtype=torch.float64).reshape(2, 3, 2, 4) / 7
    param = {
        "transposed": base[0, 0].t(),
        "with gaps": base[:, :, :, ::2],
        "channels last": base.contiguous(memory_format=torch.channels_last),
    }[layout]
    found = []
    for cls in torch.optim.Adam, adaptor.Adam:
        p = (
            param.clone(memory_format=torch.preserve_format)
            if layout != "with gaps"
            else base.clone()[:, :, :, ::2]
        )
        p.requires_grad_()
        optimizer = cls([p], lr=0.1)
        for step in range(3):
            p.grad = torch.full(p.shape, 0.5 + step, dtype=p.dtype).flip(0) * param
            optimizer.step()
        found.append((p, optimizer.state[p]["exp_avg"]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_of_none_and_groups_that_come_later() -> None:
    both = pair("Adam")
    for training in both:
        late = torch.ones(3, dtype=torch.float64, requires_grad=True)
        training.go(2)
        training.optimizer.add_param_group({"params": [late], "lr": 0.5})
        training.go(2)
        late.grad = torch.ones(3, dtype=torch.float64)
        training.optimizer.step()
        assert training.optimizer.state[late]["step"] == 1
        assert torch.allclose(late.detach(), torch.full((3,), 0.5, dtype=torch.float64))
    check(*both)


def test_a_model_that_becomes_double() -> None:
    ours = Training(adaptor.Adam, torch.float32)
    ours.go(3)
    ours.model.double()
    ours.x, ours.y = ours.x.double(), ours.y.double()
    ours.go(3)
    entry = ours.optimizer.state[ours.model[0].weight]
    assert entry["step"] == 6 and entry["exp_avg"].dtype == torch.float64


def test_states_that_the_user_replaces_take_effect() -> None:
    both = pair("Adam")
    for training in both:
        training.go(3)
        training.optimizer.state[training.model[0].weight]["step"].fill_(10)
        entry = training.optimizer.state[training.model[2].weight]
        entry["exp_avg"] = torch.zeros_like(entry["exp_avg"])
        training.go(2)
    check(*both)


def test_bfloat16_parameters() -> None:
    pytest.importorskip("ml_dtypes")
    ours = Training(adaptor.Adam, torch.bfloat16)
    before = ours.loss().item()
    ours.go(50)
    assert ours.loss().item() < before
    stream = io.BytesIO()
    torch.save(ours.optimizer.state_dict(), stream)
    stream.seek(0)
    ours.optimizer.load_state_dict(torch.load(stream))
    ours.go(1)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_do_as_in_torch() -> None:
    found = []
    for module in torch.optim, adaptor:
        embedding = torch.nn.Embedding(5, 3, sparse=True, _weight=torch.ones(5, 3))
        optimizer = module.Adagrad(embedding.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            embedding(torch.tensor([1, 3])).sum().backward()
            optimizer.step()
        found.append(embedding.weight)
        optimizer = module.Adam(embedding.parameters())
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
    assert torch.equal(*found)


def zero_redundancy(training: Training, cls: Any) -> Callable[[], None]:
    """Gives a training to two processes; returns what is to happen in the middle."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    training.model = torch.nn.parallel.DistributedDataParallel(training.model)
    training.optimizer = ZeroRedundancyOptimizer(training.model.parameters(), optimizer_class=cls, lr=0.01)
    return lambda: None


def fully_sharded(training: Training, cls: Any) -> Callable[[], None]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(training.model, mesh=init_device_mesh("cpu", (2,)))
    params = list(training.model.parameters())
    training.optimizer = cls(params, lr=0.01, weight_decay=0.1)

    def swap() -> None:
        """Goes on with a state dict of the other class."""
        state = training.optimizer.state_dict()
        assert all(type(one["exp_avg"]) is type(p) for one, p in zip(state["state"].values(), params, strict=True))
        other = adaptor.Adam if cls is torch.optim.Adam else torch.optim.Adam
        training.optimizer = other(params)
        training.optimizer.load_state_dict(state)

    with pytest.raises(TypeError, match="Muon needs whole matrices"):
        muon = adaptor.Muon([p for p in params if p.dim() == 2])
        for p in params:
            p.grad = p.detach()
        muon.step()
    return swap


def two_processes(rank: int, meeting: str, name: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = []
    for cls in torch.optim.Adam, adaptor.Adam:
        training = Training(cls)
        in_the_middle = globals()[name](training, cls)
        training.go(4)
        in_the_middle()
        training.go(4)
        found.append(list(training.model.parameters()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["zero_redundancy", "fully_sharded"])
def test_two_processes(tmp_path: Any, name: str) -> None:
    start = "start_processes(module.two_processes, {!r}, nprocs=2, start_method='fork')"
    arguments = (str(tmp_path / "meeting"), name)
    run(f"import torch.multiprocessing as mp, test_torch_adaptor as module; mp.{start.format(arguments)}")


def test_hooks_run_once_where_torch_makes_the_step() -> None:
    calls: list[str] = []
    torch.optim.SGD([torch.ones(1)])  # torch wraps the step of a class when it is first made
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = adaptor.SGD(embedding.parameters())
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    embedding(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert calls == ["before"]


def test_global_hooks_and_profilers_see_a_step() -> None:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer, calls = fastopt.torch.Adam([p]), []
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append(1))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert calls == [1]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.zero_grad()
    events = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#Adam.step", "Optimizer.zero_grad#Adam.zero_grad"} <= events
    assert optimizer.state[p]["step"] == 3
    for set_to_none in False, True:
        p.grad = torch.ones(3)
        optimizer.zero_grad(set_to_none)
        assert p.grad is None if set_to_none else torch.equal(p.grad, torch.zeros(3))


def test_states_that_come_and_go_take_effect() -> None:
    def optimizer_and_params() -> Any:
        params = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
        return params, fastopt.torch.Adam(params), torch.optim.Adam

    params, ours, theirs_of = optimizer_and_params()
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    theirs = theirs_of(copies)

    def steps(count: int, gradients: Any = (1.0, -2.0)) -> None:
        for _ in range(count):
            for of in params, copies:
                for p, value in zip(of, gradients, strict=True):
                    p.grad = None if value is None else torch.full_like(p, value)
            ours.step()
            theirs.step()
            for a, b in zip(params, copies, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    steps(2, (1.0, None))  # the second has no state yet
    _ = ours.state[params[1]], theirs.state[copies[1]]  # nor when it is looked at
    steps(2, (1.0, None))
    steps(2)
    for optimizer, p in (ours, params[0]), (theirs, copies[0]):
        del optimizer.state[p]  # it begins anew
    steps(3)
    for optimizer, p in (ours, params[1]), (theirs, copies[1]):
        optimizer.state[p]["exp_avg"] = torch.full_like(p, 5.0)
        optimizer.state[p]["of the user"] = "kept"
    steps(3)
    assert ours.state[params[1]]["of the user"] == "kept"


@pytest.mark.parametrize("change", ["transposed", "moved", "double"])
def test_a_parameter_whose_memory_is_seen_another_way(change: str) -> None:
    found = []
    for cls in fastopt.torch.Adam, torch.optim.Adam:
        p = torch.nn.Parameter(torch.arange(9.0).reshape(3, 3))
        optimizer = cls([p])
        for k in range(4):
            if k == 2:
                changed = {"transposed": p.data.t(), "moved": p.data.clone(), "double": p.data.double()}
                p.data = changed[change]
                p.grad = None
                if change == "double":
                    for name in "exp_avg", "exp_avg_sq":
                        optimizer.state[p][name] = optimizer.state[p][name].double()
            p.grad = torch.arange(9.0, dtype=p.dtype).reshape(3, 3) + k
            optimizer.step()
        found.append(p.detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@every_class
@pytest.mark.usefixtures("counters_in_float64")
def test_settings_that_are_changed_in_place_take_effect(name: str) -> None:
    """A tensor is the same object as before, a number another one."""
    for setting, change in (
        (torch.tensor(0.01, dtype=torch.float64), lambda group: group["lr"].fill_(0.3)),
        (0.01, lambda group: group.update(lr=0.3)),
    ):
        found = []
        for cls in getattr(torch.optim, name), getattr(adaptor, name):
            training = Training(cls)
            group = training.optimizer.param_groups[0]
            group["lr"] = copy.deepcopy(setting)
            training.go(3)
            before = training.model[0].weight.detach().clone()
            change(group)
            training.go(3)
            found.append(training)
        check(*found)
        assert not torch.equal(before, found[0].model[0].weight)


def test_betas_in_a_list_may_be_edited() -> None:
    both = pair("Adam")
    for training in both:
        training.optimizer.param_groups[1]["betas"] = betas = [0.9, 0.999]
        training.go(3)
        betas[0] = 0.5
        training.go(3)
    check(*both)
    other = Training(adaptor.Adam)
    other.go(6)
    assert not torch.equal(other.model[2].weight, both[0].model[2].weight)


def test_groups_may_be_other_dicts_and_be_replaced() -> None:
    """torch keeps the very dict that it was given."""
    found = []
    for cls in torch.optim.SGD, adaptor.SGD:
        p = torch.nn.Parameter(torch.ones(3))
        group = collections.OrderedDict(params=[p], lr=0.5)
        optimizer = cls([group])
        for k in range(6):
            p.grad = torch.full((3,), 1.0)
            optimizer.step()
            if k == 1:
                group["lr"] = 0.25
            elif k == 3:
                optimizer.param_groups = [{**group, "lr": 0.125}]
        found.append(p.detach())
    assert torch.equal(*found)
    assert found[0].tolist() == [1 - 2 * (0.5 + 0.25 + 0.125)] * 3


def test_capturable_is_refused_when_it_is_set_later() -> None:
    ours = Training(adaptor.Adam)
    ours.go(2)
    ours.optimizer.param_groups[1]["capturable"] = True
    with pytest.raises(ValueError, match="capturable"):
        ours.go(1)
    ours.optimizer.param_groups[1]["capturable"] = False
    ours.go(1)


def gradients() -> list[tuple[str, Any, bool]]:
    """Gradients of about six numbers that torch can hold in many ways; whether their memory can be read as it is."""
    six = torch.arange(6.0) - 2.5
    negative = torch.complex(-six, -six).conj().imag  # torch negates it when it is read
    assert negative.is_neg() and torch.equal(negative, six)
    return [
        ("plain", six, True),
        ("float64", six.double(), True),
        ("a slice", torch.stack([six, six], dim=1)[:, 1], True),
        ("part of a larger one", torch.cat([six, six])[6:], True),
        ("broadcast", six[:1].expand(6), True),
        ("reversed in memory", six.flip(0).reshape(2, 3).t().flip(0), True),
        ("a scalar", six[1].clone(), True),
        ("empty", six[:0], True),
        ("with a history", torch.nn.Parameter(six) * 1, True),
        ("a negative view", negative, True),
        ("bfloat16", six.bfloat16(), False),
        ("whole numbers", six.int(), False),
        ("sparse", six.to_sparse(), False),
        ("on no device", six.to("meta"), False),
        ("without memory", torch._efficientzerotensor(6), False),
        ("of a subclass", torch.nn.Parameter(six), False),
    ]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_arrays_on_the_memory_of_tensors() -> None:
    exchange = adaptor.EXCHANGE
    for name, tensor, can_be_read in gradients():
        with table.named(name):
            arrays = exchange.arrays([tensor, tensor])
            assert (arrays is not None) == can_be_read
            if arrays is None:
                continue
            plain = tensor.detach()
            expected = (-plain.resolve_neg() if plain.is_neg() else plain).numpy()
            for array in arrays:
                assert (array.dtype, array.shape, array.strides) == (
                    expected.dtype, expected.shape, plain.numpy().strides if not plain.is_neg() else (8,)
                )  # fmt: skip
                assert array.tobytes() == expected.tobytes()
                assert not array.size or array.ctypes.data == tensor.data_ptr()
    made = exchange.arrays([torch.arange(100_000.0)])[0]  # nothing but the array refers to the tensor
    other = torch.zeros(100_000)
    assert made[99_999] == 99_999.0 and other.sum() == 0.0


@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:.*grad attribute")
def test_a_step_reads_every_kind_of_gradient_as_torch_does_or_refuses_it() -> None:
    for name, tensor, _ in gradients():
        with table.named(name):
            found = []
            for cls in torch.optim.SGD, adaptor.SGD:
                p = torch.nn.Parameter(
                    torch.ones(tensor.shape, dtype=tensor.dtype if tensor.is_floating_point() else None)
                )
                optimizer = cls([p], lr=0.5)
                try:
                    for _ in range(3):
                        p.grad = tensor
                        optimizer.step()
                    found.append(p.detach().to_dense())
                except (TypeError, ValueError, RuntimeError) as error:
                    found.append(None)
                    message = str(error)
            if found[1] is None:
                assert name in (
                    "a negative view",
                    "bfloat16",
                    "whole numbers",
                    "on no device",
                    "without memory",
                ), message
            else:
                torch.testing.assert_close(
                    found[0], found[1], rtol=1e-6 if tensor.dtype != torch.bfloat16 else 0.02, atol=1e-6
                )


class CannotRead:
    """Stands for the interface where it can read no tensor."""

    def places(self, tensors: list[Any]) -> None:
        pass

    arrays = places


def test_a_torch_without_the_interface_trains_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface is in torch since 2.10."""
    for name in "Adam", "SGD":
        one = Training(getattr(adaptor, name))
        one.go()
        for exchange in None, CannotRead():
            with monkeypatch.context() as patched:
                patched.setattr(adaptor, "EXCHANGE", exchange)
                other = Training(getattr(adaptor, name))
                other.go(3)
                weight = other.model[0].weight
                weight.data = weight.data.clone()
                other.go(2)
            check(one, other, rtol=0.0)


def test_places_differ_when_a_tensor_is_seen_another_way() -> None:
    exchange = adaptor.EXCHANGE
    square = torch.arange(16.0).reshape(4, 4)
    ways = [
        square,
        square.t(),
        square[:3],
        square.reshape(2, 8),
        square.reshape(16),
        square[1:],
        square.clone(),
        square.view(torch.int32),
    ]
    places = [exchange.places([way]) for way in ways]
    assert None not in places and len(set(places)) == len(ways)
    assert exchange.places([square, ways[2]]) == exchange.places([square.detach(), ways[2]])
    assert exchange.places([square, "no tensor"]) is None
    assert exchange.places([]) == b""


def test_a_class_without_the_interface_is_refused() -> None:
    with pytest.raises(AttributeError):
        Exchange(np.ndarray)


def test_what_cannot_be_updated_is_refused_by_name() -> None:
    for tensor, error, words in [
        (torch.ones(2, device="meta"), ValueError, "parameter 0: on meta"),
        (torch.ones(2, dtype=torch.float16), TypeError, "parameter 0: torch.float16"),
        (torch.ones(2, dtype=torch.complex64), TypeError, "parameter 0: torch.complex64"),
    ]:
        optimizer = adaptor.Adam([tensor.requires_grad_()])
        with pytest.raises(error, match=words):
            optimizer.step()
