"""What all optimizers share: parameter groups, state, step, state_dict."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt import _kernels
from fastopt.choice import Choices

Array: TypeAlias = npt.NDArray[Any]
Hyper: TypeAlias = dict[str, Any]
Params: TypeAlias = Iterable[Array] | Mapping[str, Array] | Iterable[Mapping[str, Any]]
Grads: TypeAlias = Sequence[Array | None] | Mapping[str, Array | None]
LearningRate: TypeAlias = float | Callable[[int], float]

ALIGNMENT = 64
"""Bytes: every state array begins at a multiple of it."""

PAGE = 4096
"""Bytes: addresses that agree modulo it may be taken for the same."""

HIGHEST = {"alpha": 1.0, "betas": math.nextafter(1.0, 0.0), "dampening": 1.0, "rho": 1.0}
"""The highest value of hyper-parameters that are the weight of an average; no other has one."""


def check_number(name: str, value: Any, high: float = math.inf) -> float:
    """A hyper-parameter as a float; refuses what is no number, negative, not finite or above ``high``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not 0 <= number <= high or not math.isfinite(number):
        limit = "finite" if math.isinf(high) else "at most 1" if high == 1 else "below 1"
        raise ValueError(f"{name}: {number} is out of range; it must be {limit} and not negative")
    return number


def check_hyper(name: str, value: Any, default: Any) -> Any:
    """A hyper-parameter as the kernels take it; what it may be follows from its name and default."""
    if name == "lr" and callable(value):
        return value
    if isinstance(default, bool):
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}: expected True or False, got {value!r} ({type(value).__name__})")
        return bool(value)
    high = HIGHEST.get(name, math.inf)
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(default):
            raise TypeError(f"{name}: expected {len(default)} numbers, got {value!r}")
        return tuple(check_number(f"{name}[{i}]", v, high) for i, v in enumerate(value))
    return check_number(name, value, high)


class Optimizer:
    """Updates parameters in place; each subclass is one algorithm.

    params: arrays, float32 or float64, native, writable, C- or Fortran-contiguous: a list, a dict by
    names, or a list of groups, dicts with ``"params"`` and hyper-parameters that differ from the
    defaults. Raises TypeError or ValueError, naming the parameter or the option, for all that cannot be
    updated. An optimizer takes one call at a time: another one, from another thread, raises RuntimeError
    and changes nothing.
    """

    kernel: ClassVar[str]
    """The row of src_c/optimizers.def."""
    state_names: ClassVar[dict[str, str]]
    """What users (and torch) call the state buffers, by the formula's letters."""

    flags: ClassVar[Hyper] = {}
    """What a parameter group has besides the options of the class, with their first values."""

    param_groups: list[Hyper]
    """Dicts with ``"params"`` and the hyper-parameters, which may be edited between steps."""

    def __init__(self, params: Params, hyper: Mapping[str, Any]) -> None:
        # `hyper` is locals() of the subclass's __init__, so that its signature is the one list of options
        self.defaults = {
            name: value for name, value in hyper.items() if name not in {"self", "params", "__class__"}
        } | self.flags
        self._check(self.defaults, self.defaults_of())
        self.param_groups = []
        self._keys: list[int | str] = []
        self._params: list[Array] = []
        self._group_of: list[int] = []
        self._steps = np.zeros(0, np.int64)
        self._members: list[tuple[Array, ...]] = []
        self._plan = _kernels.Plan(self.kernel, [], [], [], [], self._steps)
        self._choices = Choices()
        with self._alone():
            self._add_groups(_as_groups(params))

    # -- What a subclass says --

    @staticmethod
    def coefficients(h: Hyper, lr: float, t: int) -> dict[str, float]:
        """The row's SCALARS, in double precision, for hyper-parameters ``h`` and step ``t`` (1 first)."""
        raise NotImplementedError

    @staticmethod
    def optional_states(h: Hyper) -> set[str]:
        """The letters of the optional state buffers that ``h`` needs."""
        return set()

    @staticmethod
    def initial_states(h: Hyper) -> dict[str, float]:
        """What state buffers are filled with when they are made, where not 0."""
        return {}

    @staticmethod
    def check(h: Hyper) -> None:
        """Refuses hyper-parameters that do not go together; may put one form of an option for another."""

    # -- The public face --

    def step(
        self,
        grads: Grads | None = None,
        *,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        """Updates every parameter that has a gradient, in place; all of them or, on an error, none.

        grads: for each parameter an array of its shape and dtype in any layout, or None to leave the
        parameter, its state and its step alone: a list in the parameters' order or a dict by their
        names; omitted after `bind`. grad_scale: every gradient is multiplied by it. max_norm and
        skip_nonfinite are not there yet.
        """
        if max_norm is not None or skip_nonfinite:
            raise NotImplementedError("max_norm and skip_nonfinite are not there yet; leave them out")
        if grad_scale != 1.0:
            grad_scale = check_grad_scale(grad_scale)
        if not _kernels.unedited(self.param_groups, self._seen):
            with self._alone():
                self._take_edits()
        self._plan.step(grads, grad_scale, self._scalars, self._choices)

    def bind(self, grads: Grads | None) -> None:
        """Names gradient buffers that are filled in place: from now on ``step()`` takes none.

        grads: as for `step`, each contiguous in its parameter's order; None lets go of them.
        """
        self._plan.bind(grads)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters, with their own hyper-parameters: a dict as in ``params``."""
        with self._alone():
            self._take_edits()
            self._add_groups([group])

    @property
    def state(self) -> dict[int | str, dict[str, Any]]:
        """For each parameter (by number or name) its ``"step"`` and its state arrays.

        The arrays are views of what the next step reads and writes; the rest is a copy.
        """
        return _State(
            (key, {"step": int(t), **{self.state_names[letter]: a for letter, a in arrays.items()}})
            for key, t, arrays in zip(self._keys, self._steps, self._plan.states, strict=True)
        )

    def state_dict(self) -> dict[str, Any]:
        """A copy of all but the parameters, shaped as in torch: plain dicts, numbers and arrays."""
        with self._alone():
            self._take_edits()
            groups = []
            for index, group in enumerate(self.param_groups):
                members = [i for i, g in enumerate(self._group_of) if g == index]
                saved = {name: value for name, value in group.items() if name != "params"}
                saved["lr"] = self._learning_rate(group)
                saved["params"] = members
                if any(isinstance(self._keys[i], str) for i in members):
                    saved["param_names"] = [self._keys[i] for i in members]
                groups.append(saved)
            state = {
                i: {name: np.copy(v) if isinstance(v, np.ndarray) else v for name, v in entry.items()}
                for i, entry in enumerate(self.state.values())
            }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts in place what `state_dict` returned, or torch's does (as arrays); on an error nothing.

        An ``lr`` that is a callable here stays. Options that a dict from torch does not have stay, and
        its options that only choose an implementation are passed over.
        """
        with self._alone():
            groups, states, steps = _read_state_dict(self, state_dict)
            for mine, new in zip(self.param_groups, groups, strict=True):
                mine.update(new)
            self._steps = steps
            self._lay_out(states)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"  group {index}: {len(group['params'])} parameters")
            lines += [f"    {k}: {v!r}" for k, v in group.items() if k != "params"]
        return "\n".join([*lines, ")"])

    # -- Inside --

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other threads, and callables of the optimizer's own, out of all that steps or replaces state."""
        self._plan.enter()
        try:
            yield
        finally:
            self._plan.leave()

    @classmethod
    def defaults_of(cls) -> Hyper:
        """The hyper-parameters of the class and their defaults, from its signature."""
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in parameters if p.name != "params"} | cls.flags

    @classmethod
    def _check(cls, h: Hyper, defaults: Hyper) -> None:
        """Checks every hyper-parameter of ``h`` and puts it into its plain form."""
        for name in h:
            if name not in defaults and name != "params":
                raise ValueError(f"{name}: no option of {cls.__name__}; it has {', '.join(defaults)}")
        for name in defaults:
            if name not in h:
                raise ValueError(f"{name}: missing from the parameter group; put it back")
        cls.check(h)
        for name, default in defaults.items():
            value = check_hyper(name, h[name], default)
            if value is not h[name]:
                h[name] = value

    @classmethod
    def scalars(cls, h: Hyper, lr: float, t: int, grad_scale: float) -> dict[str, float]:
        """All scalars of the kernel, in its order: its own, then those that every optimizer has."""
        weight_decay, decay = h["weight_decay"], 1.0
        if weight_decay and h.get("decoupled_weight_decay"):
            weight_decay, decay = 0.0, 1.0 - lr * weight_decay
        scalars = cls.coefficients(h, lr, t)
        scalars["grad_scale"] = -grad_scale if h["maximize"] else grad_scale
        scalars["weight_decay"] = weight_decay
        scalars["decay"] = decay
        return scalars

    @classmethod
    def subset(cls, h: Hyper) -> int:
        """The optional state buffers in use, as the bits that number the row's kernels."""
        needed = cls.optional_states(h)
        return sum(
            1 << bit for bit, letter in enumerate(_kernels.TABLE[cls.kernel]["optional"]) if letter in needed
        )

    @classmethod
    def letters(cls, h: Hyper) -> list[str]:
        """All state buffers that ``h`` needs."""
        row = _kernels.TABLE[cls.kernel]
        needed = cls.optional_states(h)
        return [*row["state"], *(letter for letter in row["optional"] if letter in needed)]

    def _scalars(self, index: int, t: int, grad_scale: float) -> tuple[int, dict[str, float]]:
        """What the plan asks for each group and step that occurs."""
        group = self.param_groups[index]
        lr = group["lr"]
        if callable(lr):
            lr = self._learning_rate(group)
        return self._subsets[index], self.scalars(group, lr, t, grad_scale)

    def _learning_rate(self, group: Hyper) -> float:
        lr = group["lr"]
        if callable(lr):
            # the schedule's clock is the furthest parameter's: it needs no counter of its own
            lr = check_number("lr, as its callable returned it", lr(int(self._steps.max())))
        return lr  # type: ignore[no-any-return]

    def _add_groups(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Appends groups; on an error nothing has changed."""
        new_groups: list[Hyper] = []
        keys, params, group_of = list(self._keys), list(self._params), list(self._group_of)
        known = set(keys)
        for group in groups:
            if not isinstance(group, Mapping):
                raise TypeError(f"params: a group must be a dict, got {type(group).__name__}")
            h = {**self.defaults, **group}
            if "params" not in h:
                raise ValueError('params: missing from a parameter group; pass {"params": [...], ...}')
            names, members = _as_params(h["params"], len(keys))
            h["params"] = tuple(members)
            self._check(h, self.defaults)
            for name in names:
                if name in known:
                    raise ValueError(f"{name!r}: the name of two parameters; give each its own")
                known.add(name)
            keys += names
            params += members
            group_of += [len(self.param_groups) + len(new_groups)] * len(members)
            new_groups.append(h)
        if not params:
            raise ValueError("params: there is nothing to update; pass at least one array")
        # a plan for nothing but its checks, before anything changes
        _kernels.Plan(self.kernel, params, keys, group_of, [{}] * len(params), np.zeros(len(params), np.int64))
        self.param_groups = self.param_groups + new_groups
        self._members = [group["params"] for group in self.param_groups]
        self._keys, self._params, self._group_of = keys, params, group_of
        self._steps = np.append(self._steps, np.zeros(len(params) - len(self._steps), np.int64))
        states = self._plan.states
        self._lay_out([*states, *({} for _ in params[len(states) :])])

    def _take_edits(self) -> None:
        """Checks groups that were edited and makes the state that they newly need."""
        if len(self.param_groups) != len(self._members):
            raise ValueError("param_groups: groups cannot be added or removed by hand; use add_param_group")
        for index, (group, members) in enumerate(zip(self.param_groups, self._members, strict=True)):
            if group.get("params") is not members:
                raise ValueError(
                    f"group {index}: its params are fixed; make a new optimizer or use add_param_group"
                )
        edited = [dict(group) for group in self.param_groups]
        for index, group in enumerate(edited):
            try:
                self._check(group, self.defaults)
            except (TypeError, ValueError) as error:
                raise type(error)(f"group {index}: {error}") from None
        for group, checked in zip(self.param_groups, edited, strict=True):
            group.update(checked)
        self._lay_out(self._plan.states)

    def _remember(self) -> None:
        """Takes the groups as they are for checked."""
        self._seen = [list(group.values()) for group in self.param_groups]

    def _lay_out(self, states: Sequence[Mapping[str, Array]]) -> None:
        """Puts every state array into one arena, makes those that are missing, and binds a new plan.

        Arrays that are there already stay, unless one has to be made.
        """
        self._subsets = [self.subset(group) for group in self.param_groups]
        self._remember()
        needed = [
            [*have, *(x for x in self.letters(self.param_groups[g]) if x not in have)]
            for have, g in zip(states, self._group_of, strict=True)
        ]
        in_place = states is self._plan.states
        if in_place and all(len(have) == len(need) for have, need in zip(states, needed, strict=True)):
            return
        made = _arena(self._params, needed)
        for arrays, have, g in zip(made, states, self._group_of, strict=True):
            fill = self.initial_states(self.param_groups[g])
            for letter, array in arrays.items():
                value = have[letter] if letter in have else fill.get(letter, 0.0)
                if letter in have or value:
                    array[...] = value
        bound = self._plan.bound
        plan = _kernels.Plan(self.kernel, self._params, self._keys, self._group_of, made, self._steps)
        if bound is not None:
            plan.bind(bound)
        plan.enter()  # and nobody leaves the old one: a thread that still holds it is refused
        self._plan = plan


def _arena(params: Sequence[Array], letters: Sequence[Sequence[str]]) -> list[dict[str, Array]]:
    """Zeros for the state of every parameter, in its shape, dtype and order, in one piece of memory.

    Every array begins at a multiple of ALIGNMENT. A processor takes a load for one that depends on a store
    a little before it when their addresses agree modulo a page, and waits: so arrays of a page or more begin
    a quarter of a page apart from each other, and half a page from their parameter.
    """
    rooms = [(-(-p.nbytes // ALIGNMENT) * ALIGNMENT + PAGE * (p.nbytes >= PAGE)) for p in params]
    memory = np.zeros(sum(room * len(x) for room, x in zip(rooms, letters, strict=True)) + ALIGNMENT, np.uint8)
    start = memory.ctypes.data
    at = -start % ALIGNMENT
    made = []
    for param, room, names in zip(params, rooms, letters, strict=True):
        arrays = {}
        for k, name in enumerate(names):
            begin = at
            if param.nbytes >= PAGE:
                apart = param.ctypes.data // ALIGNMENT * ALIGNMENT + PAGE // 2 + k * PAGE // 4
                begin += (apart - start - at) % PAGE
            flat = memory[begin : begin + param.nbytes].view(param.dtype)
            arrays[name] = flat.reshape(param.shape, order="C" if param.flags.c_contiguous else "F")
            at += room
        made.append(arrays)
    return made


class _State(dict[int | str, dict[str, Any]]):
    """The state of every parameter; one that has a name is also found by its number."""

    def __missing__(self, key: int | str) -> dict[str, Any]:
        if isinstance(key, int) and -len(self) <= key < len(self):
            return list(self.values())[key]
        raise KeyError(key)


def check_grad_scale(value: Any) -> float:
    """The factor of all gradients as a float; refuses what is no number or not finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"grad_scale: expected a number, got {value!r} ({type(value).__name__})")
    if not math.isfinite(value):
        raise ValueError(f"grad_scale: {value} is not finite")
    return float(value)


def _as_groups(params: Any) -> list[Mapping[str, Any]]:
    if isinstance(params, Mapping):
        return [{"params": params}]
    if isinstance(params, np.ndarray | str) or not isinstance(params, Iterable):
        raise TypeError(
            "params: expected a list or dict of arrays, or a list of groups, got "
            f"{type(params).__name__}; put a single array into a list"
        )
    params = list(params)
    if any(isinstance(p, Mapping) for p in params):
        return list(params)
    return [{"params": params}]


def _as_params(params: Any, count: int) -> tuple[list[int | str], list[Array]]:
    """Names or numbers of a group's parameters, and the parameters."""
    if isinstance(params, Mapping):
        for name in params:
            if not isinstance(name, str):
                raise TypeError(f"params: the names must be strings, got {name!r}")
        return list(params), list(params.values())
    if isinstance(params, str) or not isinstance(params, Iterable):
        raise TypeError(f"params: expected a list or dict of arrays, got {type(params).__name__}")
    members = [params] if isinstance(params, np.ndarray) else list(params)
    return list(range(count, count + len(members))), members


IMPLEMENTATION_OPTIONS = {"foreach", "fused", "capturable", "differentiable", "initial_lr"}
"""What torch's param_groups have besides hyper-parameters."""


def _read_state_dict(
    optimizer: Optimizer, state_dict: Mapping[str, Any]
) -> tuple[list[Hyper], list[dict[str, Array]], npt.NDArray[np.int64]]:
    """Hyper-parameters by group, states by parameter and steps; refuses what does not fit."""
    try:
        saved_groups, saved_states = state_dict["param_groups"], dict(state_dict["state"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError("state_dict: expected a dict with 'state' and 'param_groups'") from error
    if len(saved_groups) != len(optimizer.param_groups):
        raise ValueError(
            f"state_dict: it has {len(saved_groups)} parameter groups, the optimizer {len(optimizer.param_groups)}"
        )
    groups = []
    numbers_of: list[Any] = []
    for index, (saved, mine) in enumerate(zip(saved_groups, optimizer.param_groups, strict=True)):
        if len(saved["params"]) != len(mine["params"]):
            raise ValueError(
                f"state_dict: group {index} has {len(saved['params'])} parameters, the optimizer's "
                f"{len(mine['params'])}"
            )
        numbers_of += saved["params"]
        names = saved.get("param_names")
        keys = [k for k, g in zip(optimizer._keys, optimizer._group_of, strict=True) if g == index]
        if names is not None and isinstance(keys[0], str) and list(names) != keys:
            raise ValueError(f"state_dict: group {index} names {list(names)}, the optimizer {keys}")
        skipped = {"params", "param_names"} | IMPLEMENTATION_OPTIONS
        new = {name: value for name, value in saved.items() if name not in skipped}
        if callable(mine["lr"]):
            new.pop("lr", None)
        merged = {**mine, **new}
        optimizer._check(merged, optimizer.defaults)
        groups.append(merged)
    letters = {name: letter for letter, name in optimizer.state_names.items()}
    states: list[dict[str, Array]] = []
    steps = np.zeros(len(numbers_of), np.int64)
    for i, number in enumerate(numbers_of):
        label, param = optimizer._plan.labels[i], optimizer._params[i]
        entry = {name: value for name, value in saved_states.pop(number, {}).items() if value is not None}
        default_step = 1 if entry else 0  # torch's SGD counts no steps
        step = np.asarray(entry.pop("step", default_step))
        if step.size != 1 or step != np.floor(step) or step < 0:
            raise ValueError(f"state_dict: {label}: step {step} is not a count")
        steps[i] = int(step)
        arrays = {}
        for name, value in entry.items():
            if name not in letters:
                raise ValueError(f"state_dict: {label}: unknown state {name!r}")
            array = np.asarray(value)
            if array.dtype.kind != "f":
                raise TypeError(f"state_dict: {label}: {name} has dtype {array.dtype}, not a float's")
            if array.shape != param.shape:
                raise ValueError(
                    f"state_dict: {label}: {name} has shape {array.shape}, the parameter {param.shape}"
                )
            arrays[letters[name]] = array
        group = groups[optimizer._group_of[i]]
        missing = [x for x in optimizer.letters(group) if x not in arrays] if steps[i] else []
        if missing:
            name = optimizer.state_names[missing[0]]
            raise ValueError(f"state_dict: {label}: {name} is missing")
        states.append(arrays)
    if saved_states:
        raise ValueError(f"state_dict: state for unknown parameters {sorted(saved_states, key=str)}")
    return groups, states, steps
