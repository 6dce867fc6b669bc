"""Programs of random calls: torch's optimizers and fastopt's do the same in each."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch

import fastopt.torch as adaptor

pytestmark = [
    pytest.mark.usefixtures("counters_in_float64"),
    pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.1}],
    "Adam": [{}, {"amsgrad": True}, {"weight_decay": 0.1}, {"decoupled_weight_decay": True, "weight_decay": 0.1}],
    "AdamW": [{}, {"amsgrad": True}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}],
    "Adagrad": [{"lr_decay": 0.1}, {"initial_accumulator_value": 0.5}],
    "Adadelta": [{"rho": 0.5}],
    "NAdam": [{}, {"decoupled_weight_decay": True, "weight_decay": 0.1}],
    "RAdam": [{}, {"weight_decay": 0.1}],
    "Adamax": [{}],
    "Rprop": [{}],
    "ASGD": [{"t0": 2}],
    "Adafactor": [{}, {"weight_decay": 0.1}],
}
SHAPES: list[tuple[int, ...]] = [(3,), (4, 5), (2, 3, 2), (), (0,), (70,)]


class Program:
    """Parameters, an optimizer, and what a program does with them; two of the same seed get the same calls."""

    def __init__(self, cls: Any, options: dict[str, Any]) -> None:
        self.cls, self.options = cls, options
        numbers = torch.Generator().manual_seed(0)
        shapes = [
            shape for shape in SHAPES if 0 not in shape or cls.__name__ != "Adafactor"
        ]  # torch's divides by 0
        self.params = [torch.nn.Parameter(torch.randn(shape, generator=numbers)) for shape in shapes]
        self.optimizer = cls([{"params": self.params[:2]}, {"params": self.params[2:], "lr": 0.05}], **options)
        self.scheduler: Any = None

    @property
    def groups(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.optimizer.param_groups
        return found

    def call(self, name: str, seed: int) -> None:
        self.choose, self.numbers = random.Random(seed), torch.Generator().manual_seed(seed)
        self.one = self.choose.choice([p for group in self.groups for p in group["params"]])
        CALLS[name](self)

    def loss(self) -> Any:
        self.optimizer.zero_grad(set_to_none=self.choose.random() < 0.5)
        loss = sum((p * p + p).sum() for p in self.params)
        loss.backward()
        return loss

    def tensors(self) -> tuple[list[Any], dict[int, dict[str, Any]]]:
        """The parameters, and the states by parameter and name."""
        states = self.optimizer.state_dict()["state"]
        return [p.detach() for p in self.params], {
            i: {name: value for name, value in state.items() if value is not None} for i, state in states.items()
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on with a new optimizer, and a state."""
        self.scheduler = None
        self.optimizer = self.cls([{"params": group["params"]} for group in self.groups], **self.options)
        self.optimizer.load_state_dict(state)


def step(program: Program) -> None:
    choose = program.choose
    for p in program.params:
        grad = torch.randn(p.shape, generator=program.numbers)
        if choose.random() < 0.2:
            grad = torch.stack([grad, grad], dim=-1)[..., 0]
        if p.dim() >= 2 and choose.random() < 0.2:
            grad = grad.transpose(0, -1).contiguous().transpose(0, -1)
        p.grad = None if choose.random() < 0.15 else grad
    program.optimizer.step()


def step_again(program: Program) -> None:
    for p in program.params:
        if p.grad is not None:
            p.grad.mul_(0.7)
    program.optimizer.step()


def train(program: Program) -> None:
    program.loss()
    program.optimizer.step()


def train_by_closure(program: Program) -> None:
    program.optimizer.step(program.loss)


def edit_lr(program: Program) -> None:
    program.choose.choice(program.groups)["lr"] = program.choose.choice([0.1, 0.01, 0.003])


def multiply_lr(program: Program) -> None:
    program.groups[0]["lr"] *= 0.9


def edit_decay(program: Program) -> None:
    program.groups[-1]["weight_decay"] = program.choose.choice([0, 0.1, 0.01])


def edit_momentum(program: Program) -> None:
    for group in program.groups:
        if "betas" in group:
            group["betas"] = program.choose.choice([0.8, 0.9]), program.choose.choice([0.95, 0.99])
        if group.get("momentum"):
            group["momentum"] = program.choose.choice([0.8, 0.7])


def turn_round(program: Program) -> None:
    program.groups[0]["maximize"] = not program.groups[0]["maximize"]


def add_a_group(program: Program) -> None:
    if len(program.params) < 9:
        program.params.append(torch.nn.Parameter(torch.randn(3, 2, generator=program.numbers)))
        program.optimizer.add_param_group({"params": program.params[-1:], "lr": 0.02})


def drop_a_parameter(program: Program) -> None:
    if len(program.groups[-1]["params"]) > 2:
        program.optimizer.state.pop(program.groups[-1]["params"].pop(), None)


def reverse_a_group(program: Program) -> None:
    program.groups[-1]["params"].reverse()


def reverse_the_groups(program: Program) -> None:
    program.groups.reverse()


def forget_all(program: Program) -> None:
    program.optimizer.state.clear()


def forget_one(program: Program) -> None:
    program.optimizer.state.pop(program.one, None)


def states_of_one(program: Program) -> Iterator[tuple[str, Any]]:
    state = program.optimizer.state
    for name, value in list(state[program.one].items()) if program.one in state else []:
        if torch.is_tensor(value) and name != "step":
            yield name, value


def change_a_state(program: Program) -> None:
    for _, value in states_of_one(program):
        value.mul_(0.5)


def replace_a_state(program: Program) -> None:
    for name, value in states_of_one(program):
        program.optimizer.state[program.one][name] = value.clone()


def edit_the_step(program: Program) -> None:
    state = program.optimizer.state
    if program.one in state and "step" in state[program.one]:
        state[program.one]["step"].fill_(7.0)


def move_a_parameter(program: Program) -> None:
    program.one.data = program.one.data.clone()


def transpose_a_parameter(program: Program) -> None:
    if program.one.dim() >= 2:
        program.one.data = program.one.data.transpose(0, -1).contiguous().transpose(0, -1)


def shrink_parameters(program: Program) -> None:
    with torch.no_grad():
        for p in program.params:
            p.mul_(0.99)


def freeze_one(program: Program) -> None:
    program.one.requires_grad_(False)
    program.one.grad = None


def thaw_all(program: Program) -> None:
    for p in program.params:
        p.requires_grad_(True)


def make_a_scheduler(program: Program) -> None:
    program.scheduler = torch.optim.lr_scheduler.StepLR(program.optimizer, 1, 0.9)


def step_the_scheduler(program: Program) -> None:
    if program.scheduler is not None:
        program.scheduler.step()


def go_on_with_a_copy(program: Program) -> None:
    program.params, program.optimizer = copy.deepcopy((program.params, program.optimizer))
    program.scheduler = None


def go_on_with_a_pickle(program: Program) -> None:
    program.params, program.optimizer = pickle.loads(pickle.dumps((program.params, program.optimizer)))
    program.scheduler = None


def save_and_load(program: Program) -> None:
    program.load(copy.deepcopy(program.optimizer.state_dict()))


CALLS: dict[str, Callable[[Program], None]] = {
    call.__name__: call
    for call in (
        step, step_again, train, train_by_closure, edit_lr, multiply_lr, edit_decay, edit_momentum, turn_round,
        add_a_group, drop_a_parameter, reverse_a_group, reverse_the_groups, forget_all, forget_one, change_a_state,
        replace_a_state, edit_the_step, move_a_parameter, transpose_a_parameter, shrink_parameters, freeze_one, thaw_all,
        make_a_scheduler, step_the_scheduler, go_on_with_a_copy, go_on_with_a_pickle, save_and_load,
    )
}  # fmt: skip
LOAD_THE_OTHERS = "load what the other has saved"


def check(theirs: Program, ours: Program) -> None:
    assert ours.optimizer.state_dict()["param_groups"] == theirs.optimizer.state_dict()["param_groups"]
    torch.testing.assert_close(ours.tensors(), theirs.tensors(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", OPTIONS)
def test_random_programs(name: str, seed: int) -> None:
    choose = random.Random(seed)
    for options in OPTIONS[name]:
        theirs = Program(getattr(torch.optim, name), options)
        ours = Program(getattr(adaptor, name), options)
        calls = choose.choices([*CALLS, LOAD_THE_OTHERS, *["step", "train"] * 5], k=40)
        for place, call in enumerate(calls):
            if call == LOAD_THE_OTHERS:
                saved = [copy.deepcopy(program.optimizer.state_dict()) for program in (theirs, ours)]
                ours.load(saved[0])
                theirs.load(saved[1])
            else:
                theirs.call(call, place)
                ours.call(call, place)
            try:
                check(theirs, ours)
            except AssertionError as error:
                raise AssertionError(f"{name}({options}) after {calls[: place + 1]}") from error
