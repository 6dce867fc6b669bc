"""Calls of optimizers amid their training, what they leave, and what comes of the next step: for tests that
interrupt calls, or look at the optimizer from within them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import table
from table import Array

import fastopt

NAMES = ["w1", "b1", "scale", "w2"]
SHAPES = [(3, 4), (4,), (), (2, 1)]


@cache
def plain_variants(cls: table.Class) -> list[table.Variant]:
    return [v for v in table.variants(cls) if v.hyper["state_dtype"] is None]


class Scene:
    """An optimizer of two groups that has made two steps."""

    def __init__(self, cls: table.Class, named: bool = False, groups: int = 2, steps: int = 2) -> None:
        self.variant = min(plain_variants(cls), key=lambda v: v.kernel[1])
        shapes = SHAPES if groups == 2 else [(3,)] * groups
        self.params = [table.plain_values(int(np.prod(s)), "float32", i).reshape(s) for i, s in enumerate(shapes)]
        self.grads = [
            table.plain_values(p.size, "float32", 1000 + i).reshape(p.shape) for i, p in enumerate(self.params)
        ]
        given: Any = dict(zip(NAMES, self.params, strict=True)) if named else None
        if given is None and groups == 2:
            given = [{"params": self.params[:2]}, {"params": self.params[2:]}]
        elif given is None:
            given = [{"params": [p]} for p in self.params]
        self.optimizer: Any = self.variant.make(given)
        for _ in range(steps):
            self.step()
        self.saved: Any = None
        self.added = np.ones(3, np.float32)

    def step(self) -> None:
        """With a gradient for each parameter that the optimizer has."""
        grads = [*self.grads, np.full(3, 0.5, np.float32)][: len(self.optimizer.state)]
        named = isinstance(next(iter(self.optimizer.state)), str)
        self.optimizer.step(dict(zip(NAMES, grads, strict=True)) if named else grads)

    def everything(self) -> Any:
        """All that a call may change and its user can see; a state that was only made yet counts as not there."""
        optimizer = self.optimizer
        states = {}
        for key, state in optimizer.state.items():
            states[key] = [
                (name, value if name == "step" else table.bits_of(value))
                for name, value in state.items()
                if name == "step" or np.any(value)
            ]
        known = {id(array): i for i, array in enumerate(self.arrays)}
        groups = [
            [(k, [known[id(p)] for p in v] if k == "params" else repr(v)) for k, v in group.items()]
            for group in optimizer.param_groups
        ]
        return [table.bits_of(p) for p in self.arrays], states, groups

    @property
    def arrays(self) -> list[Array]:
        """Its parameters, and the one that may be added."""
        return [*self.params, self.added]


@dataclass(frozen=True)
class Case:
    """A call: how to make the scene, and what then to call."""

    prepare: Callable[[Scene], object]
    call: Callable[[Scene], object]
    follow: Callable[[Scene], object] = Scene.step
    """What must work at once after an interrupt."""
    named: bool = False
    groups: int = 2

    def scene(self, cls: table.Class) -> Scene:
        scene = Scene(cls, self.named, self.groups)
        self.prepare(scene)
        return scene


def nothing(scene: Scene) -> None: ...


def edit(**options: Any) -> Callable[[Scene], object]:
    def change(scene: Scene) -> None:
        for group in scene.optimizer.param_groups:
            group.update({k: v for k, v in options.items() if k in table.options_of(type(scene.optimizer))})

    return change


def switch_states_on(scene: Scene) -> None:
    """The options of the kernel with the most states, in every group."""
    edit(**max(plain_variants(type(scene.optimizer)), key=lambda v: v.kernel[1]).hyper)(scene)


def prepare_loading(scene: Scene) -> None:
    other = Scene(type(scene.optimizer), steps=5)
    edit(lr=0.01)(other)
    scene.saved = other.optimizer.state_dict()


def bind(scene: Scene) -> None:
    scene.optimizer.bind(scene.grads)


def step_bound_or_not(scene: Scene) -> None:
    """Which of them holds shows in the parameters."""
    try:
        scene.optimizer.step()
    except TypeError:
        for param in scene.params:
            param += 1
    scene.optimizer.bind(scene.grads)
    scene.optimizer.step()


def add(scene: Scene) -> None:
    scene.optimizer.add_param_group({"params": [scene.added], "lr": 0.5})


def look_ahead(scene: Scene) -> None:
    if hasattr(scene.optimizer, "lookahead"):
        scene.optimizer.lookahead()


def without_gradients(scene: Scene) -> None:
    scene.optimizer.step([scene.grads[0], None, scene.grads[2], None])


def function(scene: Scene) -> None:
    """The optimizer's function, on the arrays of the first parameter."""
    optimizer = scene.optimizer
    state = {name: array for name, array in optimizer.state[0].items() if name != "step"}
    options = {k: v for k, v in scene.variant.options.items() if k != "state_dtype"}
    getattr(fastopt.functional, type(optimizer).__name__.lower())(
        scene.params[0], scene.grads[0], **state, step=3, **options
    )


def make_another(scene: Scene) -> None:
    params = [{"params": [scene.added]}]
    scene.variant.make(params)
    assert params == [{"params": [scene.added]}] and params[0].keys() == {"params"}


CASES: dict[str, Case] = {
    "step with a list": Case(nothing, Scene.step),
    "step with a dict": Case(nothing, Scene.step, named=True),
    "step with an iterator": Case(nothing, lambda s: s.optimizer.step(iter(s.grads))),
    "step with some gradients": Case(nothing, without_gradients),
    "step with a grad_scale": Case(nothing, lambda s: s.optimizer.step(s.grads, grad_scale=0.5)),
    "step with what is bound": Case(bind, lambda s: s.optimizer.step(), lambda s: s.optimizer.step()),
    "step after an edit of numbers": Case(edit(lr=0.05, weight_decay=0.3), Scene.step),
    "step after an edit to a callable": Case(edit(lr=lambda t: 0.1 / (t + 1)), Scene.step),
    "step after an edit of state_dtype": Case(edit(state_dtype="bfloat16"), Scene.step),
    "step after an edit that needs states": Case(switch_states_on, Scene.step),
    "step after edits of 100 groups that need states": Case(switch_states_on, Scene.step, groups=100),
    "bound step after an edit that needs states": Case(
        lambda s: (bind(s), switch_states_on(s)), lambda s: s.optimizer.step(), lambda s: s.optimizer.step()
    ),
    "bind": Case(nothing, bind, step_bound_or_not),
    "unbind": Case(bind, lambda s: s.optimizer.bind(None), step_bound_or_not),
    "add_param_group": Case(nothing, add),
    "add_param_group after an edit that needs states": Case(switch_states_on, add),
    "load_state_dict": Case(prepare_loading, lambda s: s.optimizer.load_state_dict(s.saved)),
    "state_dict": Case(nothing, lambda s: s.optimizer.state_dict()),
    "state_dict after an edit that needs states": Case(switch_states_on, lambda s: s.optimizer.state_dict()),
    "state": Case(nothing, lambda s: [*s.optimizer.state.items()]),
    "repr": Case(nothing, lambda s: repr(s.optimizer)),
    "a function": Case(nothing, function),
    "another optimizer": Case(nothing, make_another),
    "lookahead": Case(nothing, look_ahead),
    "step after lookahead": Case(look_ahead, Scene.step),
    "step with some gradients after lookahead": Case(look_ahead, without_gradients),
    "load_state_dict after lookahead": Case(
        lambda s: (prepare_loading(s), look_ahead(s)), lambda s: s.optimizer.load_state_dict(s.saved)
    ),
}
OF_LOOKAHEAD = [name for name in CASES if "lookahead" in name]


def cases_of(cls: table.Class) -> list[str]:
    return [name for name in CASES if name not in OF_LOOKAHEAD or hasattr(cls, "lookahead")]


def outcomes(case: Case, cls: table.Class) -> dict[str, tuple[Any, Any]]:
    """By name what the call may leave, and what is then left by the call that follows."""
    found = {}
    for name in "not made", "edits taken", "made":
        scene = case.scene(cls)
        if name == "edits taken":
            table.take_edits(scene.optimizer)
        elif name == "made":
            case.call(scene)
        left = scene.everything()
        case.follow(scene)
        found[name] = left, scene.everything()
    return found
