"""Options as attributes of the optimizer: `opt.lr`, and what steps use of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from fastopt import options
from fastopt._turns import exclusive, reading
from fastopt.arrays import within
from fastopt.option_names import similar

if TYPE_CHECKING:
    from fastopt._plan import Change, Plan
    from fastopt.algorithm import Algorithm, Hyper

INSTANCE_ATTRIBUTES = frozenset({"defaults", "param_groups"})
"""Attributes of an optimizer besides those of its class; names that begin with an underscore may be set too."""

ADVICE = {
    "state": "write into its arrays (opt.state[0]['exp_avg'][...] = x), or use reset() or load_state_dict()",
    "threads": "use fastopt.set_num_threads",
    "params": "use add_param_group, or pass the arrays at each step: update(params, grads)",
}
"""Advice for attributes that cannot be set."""


class Settings:
    """The part of `Optimizer` that reads and sets options as attributes."""

    if TYPE_CHECKING:
        algorithm: ClassVar[type[Algorithm]]
        param_groups: list[Hyper]
        _plan: Plan

        def _edits(self) -> Change: ...
        def _with_flags(self, index: int, group: Hyper) -> Hyper: ...

    def __getattr__(self, name: str) -> Any:
        # only for what is not found otherwise: the options
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if name not in options.settable(type(self)):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{_meant(type(self), name)}")
        default = options.GROUP_DEFAULTS.get(name)
        values = [group.get(name, default) for group in self.param_groups]
        if not values:
            raise AttributeError(f"{name}: there are no groups yet")
        if any(value is not values[0] and value != values[0] for value in values):
            raise AttributeError(
                f"{name}: the groups have different ones, {options.shown(values)}; read param_groups[i][{name!r}]"
            )
        return values[0]

    def __setattr__(self, name: str, value: Any) -> None:
        cls = type(self)
        if name.startswith("_") or name in INSTANCE_ATTRIBUTES:
            object.__setattr__(self, name, value)
        elif name in options.settable(cls):
            self._set_option(name, value)
        elif name in ADVICE:
            raise AttributeError(f"{name}: it cannot be set; {ADVICE[name]}")
        elif hasattr(cls, name):
            object.__setattr__(self, name, value)
        else:
            raise AttributeError(
                f"{cls.__name__} has no attribute {name!r}{_meant(cls, name)}; what belongs to your "
                f"program, keep in a "
                "variable of its own"
            )

    @exclusive
    def _set_option(self, name: str, value: Any) -> None:
        """Sets an option in every group, or in none."""
        value = options.settable(type(self))[name].check(value)
        for index, group in enumerate(self.param_groups):
            h = self._with_flags(index, {**group, name: value})
            with within(f"group {index}"):
                self.algorithm.check(h)
                self.algorithm.check_edit(h, self._plan.groups[index].h)
        for group in self.param_groups:
            group[name] = value

    @reading
    def current(self, name: str) -> list[Any]:
        """The value of an option in the next step: a number (of ``betas`` a tuple) for each group.

        Callables are asked as in the step: for the largest number of steps that any parameter has made. ``lr`` is
        multiplied by the group's ``lr_factor``. Raises ValueError for a name that is no option.
        """
        known = options.settable(type(self))
        if name not in known:
            raise ValueError(
                f"{options.shown(name)}: no option of {type(self).__name__}{_meant(type(self), name)}"
            )
        groups = list(self._plan.groups)
        for index, _, _, group in self._edits().groups:
            groups[index] = group
        most = max((tensor.steps for tensor in self._plan.tensors), default=0)
        default = options.GROUP_DEFAULTS.get(name)
        return [group.in_step_after(most).get(name, default) for group in groups]

    @property
    def threads(self) -> int:
        """The number of threads that steps use now: what was set, or found out; 1 for small models."""
        elements = sum(math.prod(tensor.shape) for tensor in self._plan.tensors)
        return int(self._plan.work.threads(elements))


def _meant(cls: type, name: str) -> str:
    """The attribute that somebody may have meant by one that is not there, for a message."""
    return _advice(name, options.settable(cls), [x for x in dir(cls) if not x.startswith("_")])


def _advice(name: str, own: Iterable[str], others: Iterable[str] = ()) -> str:
    found = similar(name, [*own, *others])
    return f"; did you mean {found[0]}?" if found else f"; its options are {', '.join(own)}"


def refuse_keyword(cls: type, name: str) -> NoReturn:
    """Refuses an argument that the constructor does not have."""
    advice = _advice(name, ["params", *options.options_of(cls)])
    raise TypeError(f"{cls.__name__}: {name}: it takes no such argument{advice}")


def with_advice(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that says what is meant by an argument which it does not have."""
    if init.__code__.co_flags & inspect.CO_VARKEYWORDS:
        return init
    known = {*init.__code__.co_varnames[: init.__code__.co_argcount + init.__code__.co_kwonlyargcount]}

    @wraps(init)
    def __init__(self: Settings, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                refuse_keyword(type(self), name)
        init(self, *args, **kwargs)

    return __init__
