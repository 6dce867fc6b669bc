"""The same kernels on arrays that the caller owns: one function for each optimizer.

``adam(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq=None, *, step, lr=1e-3, …)`` makes one update in
place. ``step`` counts from 1; the options and their defaults are those of the class, and a state that only
an option needs may be left out without it. ``grad_scale`` multiplies the gradient. Raises as the classes.

States may be bfloat16 arrays, and so may parameters and gradients, in the combinations that the classes take.
Each call numbers its elements from 0: give every array a ``seed`` of its own, so that they are not rounded by
the same random bits.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt import arrays, optimizers
from fastopt._kernels import TABLE
from fastopt._plan import Change, Function, Group, Plan, Tensor, as_function
from fastopt._turns import Turns
from fastopt.algorithm import Hyper
from fastopt.checkpoint import MOST_STEPS
from fastopt.optimizer import Optimizer
from fastopt.option_names import check_all
from fastopt.options import options_of, refuse_lost, shown
from fastopt.thread_tuner import ThreadTuners


class _Thread(threading.local):
    """The data that each Python thread has of its own."""

    def __init__(self) -> None:
        self.tuners = ThreadTuners()


_thread = _Thread()


def thread_tuners() -> ThreadTuners:
    """The tuners of the number of threads for calls of this Python thread that no optimizer makes."""
    return _thread.tuners


def _defaults_of(cls: type[Optimizer]) -> Hyper:
    """The options of the class but one: here the states have the dtype that they have."""
    return {name: option.default for name, option in options_of(cls).items() if name != "state_dtype"}


def _group(cls: type[Optimizer], options: Hyper) -> Group:
    """The group for options that were given by name."""
    if "state_dtype" in options:
        raise ValueError(
            "state_dtype: no option of a function, whose states have the dtype of their arrays; leave it out"
        )
    h = check_all(cls, {**_defaults_of(cls), "state_dtype": None, **options}) | cls.algorithm.flags
    cls.algorithm.check(h)
    return cls._group_of("", h)


def _slow(cls: type[Optimizer], name: str, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Hyper) -> None:
    """A call by way of a plan: for everything that is not the usual case, and to say what is wrong with a call."""
    if len(args) > len(names):
        raise TypeError(f"{name}: got {len(args) - 2} states, it takes {', '.join(names[2:]) or 'none'}")
    options = dict(kwargs)
    given: dict[str, Any] = dict(zip(names, args, strict=False))
    for other in names[len(args) :]:
        given[other] = options.pop(other, None)
    for array in names[len(args) : 2]:
        if array not in kwargs:
            raise TypeError(f"{array}: missing; pass it first, or by its name")
    if "step" not in options:
        raise TypeError(f"{name}: step is missing; pass the number of this step, 1 for the first")
    step, grad_scale = options.pop("step"), options.pop("grad_scale", 1.0)
    group = _group(cls, options)
    if isinstance(step, bool) or not isinstance(step, int | np.integer):
        raise TypeError(f"step: expected a whole number, 1 for the first step, got {shown(step)}")
    if not 1 <= step <= MOST_STEPS:
        raise ValueError(f"step: {shown(step)} is out of range; it must be 1 for the first step, then 2")
    if given["grad"] is None:
        raise TypeError("grad: expected an array, got None; without a gradient there is no step to make")
    algorithm = cls.algorithm
    needed: dict[str, Any] = {}
    numbers = TABLE[algorithm.formula]["numbers"]
    shape = arrays.plain(arrays.label_of("param"), given["param"]).shape
    vectors = algorithm.vectors(shape)
    for letter in (*algorithm.letters(group.h, shape), *numbers, *vectors):
        array = given[algorithm.states[letter]]
        if array is None:
            array_of = "an array of param's shape and dtype"
            if letter in numbers:
                array_of = "a 0-d float64 array"
            elif letter in vectors:
                array_of = f"a float64 array of shape {vectors[letter]}"
            first = algorithm.initial_states(group.h).get(letter, 0.0)
            at_first = f"at first filled with {first!r}" if first else "at first zeros"
            raise TypeError(f"{algorithm.states[letter]}: missing; pass {array_of}, {at_first}")
        needed[letter] = array
    owned = {
        letter: _owned_numbers(algorithm.states[letter], needed.pop(letter), vectors.get(letter, ()))
        for letter in (*numbers, *vectors)
    }
    tensor = Tensor(algorithm, 0, "param", given["param"], 0, 0)
    refuse_lost("", group, [tensor])
    found = arrays.checked_states(tensor.label, tensor.param, needed, algorithm.states)
    for name, number in owned.items():
        besides = {
            algorithm.states[letter]: array for letter, array in {**found, **owned}.items() if letter != name
        }
        for other, array in {"param": tensor.param, "grad": given["grad"], **besides}.items():
            if isinstance(array, np.ndarray) and np.may_share_memory(number, array):
                raise ValueError(f"{algorithm.states[name]} and {other} share memory; pass an array of its own")
    owner = _Owner()
    plan = Plan(algorithm, Turns(), _thread.tuners, is_function=True)
    change = Change()
    change.added_groups, change.added_tensors = [(group.h, group)], [tensor]
    change.numbers = [(tensor, {letter: float(owned[letter]) for letter in numbers})]
    change.copies = [(tensor.vectors[letter], owned[letter]) for letter in vectors]
    change.states, change.steps = [(tensor, found)], [(tensor, int(step) - 1)]
    written = [(tensor, 0, tensor.param)]
    written += [(tensor, 2 + tensor.letters.index(letter), array) for letter, array in found.items()]
    change.intervals = plan.intervals.with_arrays([tensor], written)
    plan.commit(owner.param_groups, change)
    plan.step(owner, [given["grad"]], {"grad_scale": grad_scale})
    for letter, value in (tensor.numbers_by_letter() | tensor.vectors).items():
        owned[letter][...] = value


def _owned_numbers(name: str, array: Any, shape: tuple[int, ...]) -> Any:
    """A state that Python computes with, in a float64 array of the caller's."""
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float64:
        kind = f"float64 array of shape {shape}" if shape else "0-d float64 array"
        raise TypeError(f"{name}: expected a {kind}, which is updated in place; make it with numpy.zeros({shape})")
    array = arrays.plain(name, array)
    if not array.flags.writeable:
        arrays.refuse_read_only(name)
    return array


class _Owner:
    """The attributes of an optimizer that a plan reads."""

    def __init__(self) -> None:
        self.param_groups: list[Hyper] = []


def _make(cls: type[Optimizer]) -> Callable[..., None]:
    row = TABLE[cls.algorithm.formula]
    names = (
        "param",
        "grad",
        *(
            cls.algorithm.states[letter]
            for letter in (*row["state"], *row["optional"], *row["numbers"], *cls.algorithm.vector_letters())
        ),
    )
    required = 2 + len(row["state"])
    defaults = _defaults_of(cls)
    name = cls.__name__.lower()
    function = as_function(
        Function(
            cls.algorithm,
            names,
            defaults["lr"],
            options_of(cls)["lr"].kind.least,
            lambda options: _group(cls, options),
            lambda args, kwargs: _slow(cls, name, names, args, kwargs),
            thread_tuners,
        )
    )
    parameter = inspect.Parameter
    either, keyword = parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(parameter(x, either) for x in names[:required]),
            *(parameter(x, either, default=None) for x in names[required:]),
            parameter("step", keyword),
            *(parameter(x, keyword, default=value) for x, value in defaults.items()),
            parameter("grad_scale", keyword, default=1.0),
        ]
    )
    function.__name__ = function.__qualname__ = name
    function.__module__ = __name__
    function.__doc__ = f"One update of one array as by `fastopt.{cls.__name__}`.\n\n{inspect.getdoc(cls)}"
    return function


_CLASSES = {name.lower(): getattr(optimizers, name) for name in optimizers.__all__}
__all__ = list(_CLASSES)


def __getattr__(name: str) -> Callable[..., None]:
    """Makes a function when it is first asked for: an import of all takes longer than most programs want to wait."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = globals()[name] = _make(_CLASSES[name])
    return function


def __dir__() -> list[str]:
    return __all__
