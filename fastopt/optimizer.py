"""What all optimizers share: parameter groups, state, step, state_dict."""

from __future__ import annotations

import inspect
import math
import numbers
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt import _kernels
from fastopt._kernels import unedited
from fastopt.choice import Choices
from fastopt.storage import storage_dtype

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

STATE_DTYPES = sorted({states for *_, states in _kernels.FORMATS.values()})


def shown(value: Any) -> str:
    """What a message says was passed: short, however long it is."""
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def as_number(name: str, value: Any) -> float:
    """A real number as a float; no bool, no string, no array."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_number(name: str, value: Any, high: float = math.inf) -> float:
    """A hyper-parameter as a float; refuses what is no number, negative, not finite or above ``high``."""
    number = as_number(name, value)
    if not 0 <= number <= high or not math.isfinite(number):
        limit = "finite" if math.isinf(high) else "at most 1" if high == 1 else "below 1"
        raise ValueError(f"{name}: {number} is out of range; it must be {limit} and not negative")
    return number


def check_grad_scale(value: Any) -> float:
    """The factor of all gradients as a float; refuses what is no number or not finite."""
    number = as_number("grad_scale", value)
    if not math.isfinite(number):
        raise ValueError(f"grad_scale: {number} is out of range; it must be finite")
    return number


def _called(lr: Callable[[int], float], place: str, made: int) -> float:
    """The learning rate after so many steps, from the user's callable."""
    return check_number(f"{place}lr, as its callable returned it", lr(made))


def check_hyper(name: str, value: Any, default: Any) -> Any:
    """A hyper-parameter as the kernels take it; what it may be follows from its name and default."""
    if name == "lr" and callable(value):
        return value
    if name == "eps_hat":  # True: it is made of eps; its default may be a bool too
        return bool(value) if isinstance(value, bool | np.bool_) else check_number(name, value)
    if isinstance(default, bool):
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}: expected True or False, got {shown(value)}")
        return bool(value)
    if name == "state_dtype":
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name}: expected the name of a dtype or None, got {shown(value)}")
        if value is not None and value not in STATE_DTYPES:
            raise ValueError(f"{name}: states cannot be of {shown(value)}; use {', '.join(STATE_DTYPES)}")
        return value
    if isinstance(default, int):
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name}: expected a whole number, got {shown(value)}")
        if not 0 <= value < 2**32:
            raise ValueError(f"{name}: {shown(value)} is out of range; it must be below 2**32 and not negative")
        return int(value)
    high = HIGHEST.get(name, math.inf)
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(default):
            raise TypeError(f"{name}: expected a tuple of {len(default)} numbers, got {shown(value)}")
        return tuple(check_number(f"{name}[{i}]", v, high) for i, v in enumerate(value))
    return check_number(name, value, high)


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Puts the place where something was found wrong before what is said of it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{place}: {error}") from error.__cause__


class Optimizer:
    """Updates parameters in place; each subclass is one algorithm.

    params: arrays, float32, float64 or bfloat16 (ml_dtypes), native, writable, C- or Fortran-contiguous: a
    list, a dict by names, or a list of groups, dicts with ``"params"`` and hyper-parameters that differ from
    the defaults. Raises TypeError or ValueError, naming the parameter or the option, for all that cannot be
    updated. An optimizer takes one call at a time: another one, from another thread, raises RuntimeError
    and changes nothing.

    state_dtype: "bfloat16" keeps the state of float32 parameters in half the memory, "float32" that of bfloat16
    parameters in twice theirs; None: the parameter's. What is stored as bfloat16 is rounded at random, right in
    the mean, by random bits that depend on ``seed``, the step and the element's number alone (Gupta et al. 2015,
    arXiv:1502.02551; Zamirai et al. 2020, arXiv:2010.06192); beyond the largest bfloat16 comes infinity.
    Gradients of float32 parameters may be float32, bfloat16 or float16, those of bfloat16 parameters bfloat16 or
    float32. bfloat16 is ml_dtypes.bfloat16: ``pip install "fastopt[bfloat16]"``.
    """

    kernel: ClassVar[str]
    """The row of src_c/optimizers.def."""
    state_names: ClassVar[dict[str, str]]
    """What users (and torch) call the state buffers, by the formula's letters."""

    flags: ClassVar[Hyper] = {}
    """What a parameter group has besides the options of the class, with their first values; nobody edits it."""

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
        self._seen: list[Hyper] = []  # what the groups were when they were last checked: steps go by it
        self._items: list[tuple[Any, ...]] = []  # as `unedited` takes it
        self._made_for: list[tuple[int, str | None]] = []  # what of the groups the states depend on
        self._groups: list[_kernels.Group] = []  # what steps take of them
        self._plan = _kernels.Plan(self.kernel, [], [], [], [], self._steps)
        self._choices = Choices()
        with self._alone():
            self._add_groups(_as_groups(params))

    # -- What a subclass says --

    @staticmethod
    def coefficients(h: Hyper, lr: float, t: int) -> tuple[float, ...]:
        """The row's SCALARS, in its order and in doubles, for hyper-parameters ``h`` and step ``t`` (1 first)."""
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
        """Refuses hyper-parameters that are right by themselves but not together."""

    @staticmethod
    def check_edit(h: Hyper, before: Hyper) -> None:
        """Refuses hyper-parameters that are right but cannot follow those ``before``."""

    commit: ClassVar[Callable[[Any, Sequence[bool]], BaseException | None] | None] = None
    """Called in every step with, for each parameter, whether it has a gradient: when nothing can be refused any
    more, and before the update. What it returns is raised after that."""

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

        grads: for each parameter an array of its shape and dtype (or of 16 bits) in any layout, or None to
        leave the parameter, its state and its step alone: a list in the parameters' order or a dict by their
        names; omitted after `bind`. grad_scale: every gradient is multiplied by it. max_norm and
        skip_nonfinite are not there yet.
        """
        if max_norm is not None or skip_nonfinite:
            raise NotImplementedError("max_norm and skip_nonfinite are not there yet; leave them out")
        if type(grad_scale) is not float or grad_scale != 1.0:
            grad_scale = check_grad_scale(grad_scale)
        if not unedited(self.param_groups, self._items):
            with self._alone():
                self._take_edits()
        self._plan.step(grads, grad_scale, self._groups, self._choices, self.commit)

    def bind(self, grads: Grads | None) -> None:
        """Names gradient buffers that are filled in place: from now on ``step()`` takes none.

        grads: as for `step`, each contiguous in its parameter's order; None lets go of them. So does a step
        that is given others, and `add_param_group`.
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
            (key, {"step": int(t), **{self.state_names[letter]: a.view() for letter, a in arrays.items()}})
            for key, t, arrays in zip(self._keys, self._steps, self._plan.states, strict=True)
        )

    def state_dict(self) -> dict[str, Any]:
        """A copy of all but the parameters, shaped as in torch: plain dicts, numbers and arrays."""
        with self._alone():
            self._take_edits()
            groups = []
            for index, group in enumerate(self._seen):
                members = [i for i, g in enumerate(self._group_of) if g == index]
                saved = {name: value for name, value in group.items() if name != "params"}
                saved["lr"] = self._groups[index].rate(int(self._steps.max()))
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
            self._lay_out(groups, self._keys, self._params, self._group_of, states, steps)

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            "an optimizer belongs to its parameters' memory and cannot be copied or pickled; make a new one and "
            "load state_dict() into it"
        )

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
    def _check(cls, h: Hyper, defaults: Hyper, *besides: str) -> None:
        """Checks every hyper-parameter of ``h`` and puts it into its plain form; lets `besides` be."""
        for name in h:
            if name not in defaults and name not in besides:
                options = ", ".join(option for option in defaults if option not in cls.flags)
                raise ValueError(f"{name}: no option of {cls.__name__}; it has {options}")
        for name in defaults:
            if name not in h:
                raise ValueError(f"{name}: missing from the parameter group; put it back")
        for name, default in defaults.items():
            value = check_hyper(name, h[name], default)
            if value is not h[name]:
                h[name] = value
        cls.check(h)

    @classmethod
    def group(cls, h: Hyper, subset: int, place: str = "") -> _kernels.Group:
        """What steps take of hyper-parameters ``h``; `place` is where messages find a wrong learning rate."""
        lr, decay = h["lr"], h["weight_decay"]
        if callable(lr):
            lr = partial(_called, lr, place)
        coupled, decoupled = (0.0, decay) if h.get("decoupled_weight_decay") else (decay, 0.0)
        sign = -1.0 if h["maximize"] else 1.0
        return _kernels.Group(cls.coefficients, h, lr, subset, h["seed"], sign, coupled, decoupled)

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

    def _add_groups(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Appends groups; on an error nothing has changed."""
        checked = list(self._seen)
        keys, params, group_of = list(self._keys), list(self._params), list(self._group_of)
        known = set(keys)
        for group in groups:
            if not isinstance(group, Mapping):
                raise TypeError(
                    f"params: a group must be a dict, got {type(group).__name__}; pass arrays or groups, not both"
                )
            h = {**self.defaults, **group, **self.flags}
            if "params" not in h:
                raise ValueError('params: missing from a parameter group; pass {"params": [...], ...}')
            names, members = _as_params(h["params"], len(keys))
            h["params"] = tuple(members)
            self._check_group(len(checked), h)
            for name in names:
                if name in known:
                    raise ValueError(f"{name!r}: the name of two parameters; give each its own")
                known.add(name)
            keys += names
            params += members
            group_of += [len(checked)] * len(members)
            checked.append(h)
        if not params:
            raise ValueError(
                "params: there is nothing to update; pass at least one array (an iterator gives them only once)"
            )
        count = len(params)
        states = [dict(have) for have in self._plan.states] + [{} for _ in params[len(self._params) :]]
        steps = np.append(self._steps, np.zeros(count - len(self._params), np.int64))
        # a plan for nothing but its checks: what follows relies on them
        _kernels.Plan(self.kernel, params, keys, group_of, states, steps, self.state_names)
        self._lay_out(checked, keys, params, group_of, states, steps)

    def _groups_now(self) -> list[Hyper]:
        """Copies of the groups as somebody may have edited them, flags apart; refuses what is no option's edit."""
        if not isinstance(self.param_groups, list) or len(self.param_groups) != len(self._seen):
            raise ValueError("param_groups: groups cannot be added or removed by hand; use add_param_group")
        for index, (group, seen) in enumerate(zip(self.param_groups, self._seen, strict=True)):
            if not isinstance(group, dict):
                raise TypeError(f"group {index}: expected a dict of options, got {shown(group)}; put it back")
            if group.get("params") is not seen["params"]:
                raise ValueError(
                    f"group {index}: its params are fixed; make a new optimizer or use add_param_group"
                )
        flags = [{name: seen[name] for name in self.flags} for seen in self._seen]
        return [{**group, **own} for group, own in zip(self.param_groups, flags, strict=True)]

    def _check_group(self, index: int, h: Hyper) -> None:
        with _within(f"group {index}"):
            self._check(h, self.defaults, "params")

    def _take_edits(self) -> None:
        """Checks groups that were edited and makes the state that they newly need."""
        groups = self._groups_now()
        for index, (group, seen) in enumerate(zip(groups, self._seen, strict=True)):
            self._check_group(index, group)
            with _within(f"group {index}"):
                self.check_edit(group, seen)
        self._lay_out(groups, self._keys, self._params, self._group_of, self._plan.states, self._steps)

    def _lay_out(
        self,
        groups: list[Hyper],
        keys: list[int | str],
        params: list[Array],
        group_of: list[int],
        states: list[dict[str, Array]],
        steps: npt.NDArray[np.int64],
    ) -> None:
        """Puts all of these in place, with a plan for them; on an error nothing has changed.

        All but the dtypes of the states have been checked. Parameters that were added let go of the bound
        gradients.
        """
        plan = self._plan
        made_for = [(self.subset(group), group["state_dtype"]) for group in groups]
        if states is not plan.states or made_for != self._made_for:
            plan = self._plan_for(groups, keys, params, group_of, states, steps)
        taken = [
            self.group(group, subset, f"group {index}: ")
            for index, (group, (subset, _)) in enumerate(zip(groups, made_for, strict=True))
        ]
        # nothing below can fail
        for mine, group in zip(self.param_groups, groups, strict=False):
            mine.update(group)
        self.param_groups += [dict(group) for group in groups[len(self._seen) :]]
        self._seen, self._groups, self._made_for = groups, taken, made_for
        self._remember()
        self._keys, self._params, self._group_of, self._steps = keys, params, group_of, steps
        self._plan = plan

    def _plan_for(
        self,
        groups: list[Hyper],
        keys: list[int | str],
        params: list[Array],
        group_of: list[int],
        states: list[dict[str, Array]],
        steps: npt.NDArray[np.int64],
    ) -> _kernels.Plan:
        """The plan that there is if its states suffice, else a new one, entered.

        State arrays that are there already stay, unless one has to be made: then all go into one new arena,
        converted to the nearest where their dtype was another.
        """
        needed = [
            [*have, *(x for x in self.letters(groups[g]) if x not in have)]
            for have, g in zip(states, group_of, strict=True)
        ]
        dtypes = [_state_dtype(key, p, groups[g]) for key, p, g in zip(keys, params, group_of, strict=True)]
        if states is self._plan.states and all(
            len(have) == len(need) and all(array.dtype == dtype for array in have.values())
            for have, need, dtype in zip(states, needed, dtypes, strict=True)
        ):
            return self._plan
        made = _arena(params, dtypes, needed)
        for arrays, have, g in zip(made, states, group_of, strict=True):
            fill = self.initial_states(groups[g])
            for letter, array in arrays.items():
                value = have[letter] if letter in have else fill.get(letter, 0.0)
                if letter in have or value:
                    with np.errstate(all="ignore"):  # float32 makes infinity of what is too large, as ever
                        array[...] = value
        plan = _kernels.Plan(self.kernel, params, keys, group_of, made, steps, self.state_names)
        if self._plan.bound is not None and params is self._params:
            plan.bind(self._plan.bound)
        plan.enter()  # and nobody leaves the old one: a thread that still holds it is refused
        return plan

    def _remember(self) -> None:
        """Takes the groups, as they are, for seen."""
        self._items = [tuple(chain.from_iterable(group.items())) for group in self.param_groups]


def _state_dtype(key: int | str, param: Array, h: Hyper) -> np.dtype[Any]:
    """The dtype of a parameter's states; refuses one that there are no kernels for."""
    wanted = h["state_dtype"]
    if wanted is None:
        return param.dtype
    possible = _kernels.state_dtypes(param.dtype.name)
    if wanted not in possible:
        raise ValueError(
            f"state_dtype: {_kernels.label_of(key)} is of {param.dtype}, its states cannot be of {wanted}; use "
            f"{' or '.join(possible)}"
        )
    return storage_dtype(wanted)


def _arena(
    params: Sequence[Array], dtypes: Sequence[np.dtype[Any]], letters: Sequence[Sequence[str]]
) -> list[dict[str, Array]]:
    """Zeros for the state of every parameter, in its shape and order and a dtype, in one piece of memory.

    Every array begins at a multiple of ALIGNMENT. A processor takes a load for one that depends on a store
    a little before it when their addresses agree modulo a page, and waits: so arrays of a page or more begin
    a quarter of a page apart from each other, and half a page from their parameter.
    """
    sizes = [param.size * dtype.itemsize for param, dtype in zip(params, dtypes, strict=True)]
    rooms = [-(-size // ALIGNMENT) * ALIGNMENT + PAGE * (size >= PAGE) for size in sizes]
    memory = np.zeros(sum(room * len(x) for room, x in zip(rooms, letters, strict=True)) + ALIGNMENT, np.uint8)
    start = memory.ctypes.data
    at = -start % ALIGNMENT
    made = []
    for param, dtype, size, room, names in zip(params, dtypes, sizes, rooms, letters, strict=True):
        arrays = {}
        for k, name in enumerate(names):
            begin = at
            if size >= PAGE:
                apart = param.ctypes.data // ALIGNMENT * ALIGNMENT + PAGE // 2 + k * PAGE // 4
                begin += (apart - start - at) % PAGE
            flat = memory[begin : begin + size].view(dtype)
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


def _as_groups(params: Any) -> list[Any]:
    if isinstance(params, Mapping):
        return [{"params": params}]
    if isinstance(params, np.ndarray | str) or not isinstance(params, Iterable):
        raise TypeError(
            "params: expected a list or dict of arrays, or a list of groups, got "
            f"{type(params).__name__}; put a single array into a list"
        )
    params = list(params)
    return params if any(isinstance(p, Mapping) for p in params) else [{"params": params}]


def _as_params(params: Any, count: int) -> tuple[list[int | str], list[Array]]:
    """Names or numbers of a group's parameters, and the parameters."""
    if isinstance(params, Mapping):
        for name in params:
            if not isinstance(name, str):
                raise TypeError(f"params: the names must be strings, got {shown(name)}")
        return list(params), list(params.values())
    if isinstance(params, str) or not isinstance(params, Iterable):
        raise TypeError(
            f"params: expected a list or dict of arrays, got {type(params).__name__}; put arrays into a list"
        )
    members = [params] if isinstance(params, np.ndarray) else list(params)
    return list(range(count, count + len(members))), members


IMPLEMENTATION_OPTIONS = {"foreach", "fused", "capturable", "differentiable", "initial_lr"}
"""What torch's param_groups have besides hyper-parameters."""

MOST_STEPS = 2**62
"""More than anybody makes; so no counter runs over."""


def _expect(name: str, value: Any, kind: type, called: str) -> None:
    if not isinstance(value, kind) or isinstance(value, str):
        raise TypeError(f"{name}: expected {called}, got {shown(value)}")


@_within("state_dict")
def _read_state_dict(
    optimizer: Optimizer, state_dict: Mapping[str, Any]
) -> tuple[list[Hyper], list[dict[str, Array]], npt.NDArray[np.int64]]:
    """Hyper-parameters by group, states by parameter and steps; refuses what does not fit."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"expected a dict as state_dict() returns it, got {shown(state_dict)}")
    for name, kind in {"state": Mapping, "param_groups": Sequence}.items():
        if name not in state_dict:
            raise ValueError(f"it has no {name!r}; pass what state_dict() returned")
        _expect(name, state_dict[name], kind, "a list of groups" if kind is Sequence else "a dict by parameters")
    saved_groups, saved_states = state_dict["param_groups"], dict(state_dict["state"])
    now = optimizer._groups_now()
    if len(saved_groups) != len(now):
        raise ValueError(
            f"it has {len(saved_groups)} parameter groups, the optimizer {len(now)}; make the optimizer with "
            "the same groups"
        )
    groups: list[Hyper] = []
    order: list[int] = []  # the saved numbers of the parameters
    for index, (saved, mine) in enumerate(zip(saved_groups, now, strict=True)):
        keys = [k for k, g in zip(optimizer._keys, optimizer._group_of, strict=True) if g == index]
        order += _saved_numbers(f"group {index}", saved, keys)
        skipped = {"params", "param_names"} | IMPLEMENTATION_OPTIONS
        new = {name: value for name, value in saved.items() if name not in skipped}
        if callable(mine["lr"]):
            new.pop("lr", None)
        merged = {**mine, **new}
        optimizer._check_group(index, merged)
        groups.append(merged)
    if len(set(order)) != len(order):
        raise ValueError("param_groups: two parameters have one number; give each its own")
    states: list[dict[str, Array]] = []
    steps = np.zeros(len(order), np.int64)
    for i, number in enumerate(order):
        label = optimizer._plan.labels[i]
        entry = saved_states.pop(number, {})
        _expect(label, entry, Mapping, "a dict of its state")
        with _within(label):
            arrays, steps[i] = _saved_state(optimizer, optimizer._params[i], entry)
            needed = optimizer.letters(groups[optimizer._group_of[i]]) if steps[i] else []
            for letter in needed:
                if letter not in arrays:
                    raise ValueError(f"{optimizer.state_names[letter]}: missing; its group's options need it")
        states.append(arrays)
    if saved_states:
        raise ValueError(
            f"it has states for unknown parameters {reprlib.repr(list(saved_states))}; the groups' params must "
            "name them all"
        )
    return groups, states, steps


def _saved_numbers(place: str, saved: Any, keys: Sequence[int | str]) -> list[int]:
    """The numbers under which a saved group has the states of its parameters, ``keys``."""
    _expect(place, saved, Mapping, "a dict of options")
    for name in "params", "param_names":
        if name in saved:
            _expect(f"{place}: {name}", saved[name], Sequence, "a list")
    found = list(saved.get("params", []))
    if len(found) != len(keys):
        raise ValueError(
            f"{place}: it has {len(found)} parameters, the optimizer's {len(keys)}; pass one that fits"
        )
    if not all(isinstance(number, int) for number in found):
        raise TypeError(f"{place}: params: expected a list of whole numbers, got {shown(found)}")
    names = saved.get("param_names")
    if names is not None and any(isinstance(key, str) for key in keys) and list(names) != list(keys):
        raise ValueError(
            f"{place}: it has the names {reprlib.repr(list(names))}, the optimizer {reprlib.repr(list(keys))}; "
            "they must be the same"
        )
    return found


def _saved_state(optimizer: Optimizer, param: Array, entry: Mapping[str, Any]) -> tuple[dict[str, Array], int]:
    """State arrays by their letters, and the steps made."""
    letters = {name: letter for letter, name in optimizer.state_names.items()}
    entry = {name: value for name, value in entry.items() if value is not None}
    steps = entry.pop("step", 1 if entry else 0)  # torch's SGD counts no steps
    array = _as_array("step", steps)
    number = array.item() if array.size == 1 and array.dtype.kind in "iuf" else -1
    if not 0 <= number <= MOST_STEPS or number != int(number):
        raise ValueError(f"step: expected a whole number, from 0 on, got {shown(steps)}")
    arrays = {}
    for name, value in entry.items():
        if name not in letters:
            raise ValueError(f"{name}: no state of {type(optimizer).__name__}; it has {', '.join(letters)}")
        array = _as_array(name, value)
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(f"{name}: it has dtype {array.dtype}; convert it to {param.dtype}")
        if array.shape != param.shape:
            raise ValueError(
                f"{name}: it has shape {array.shape}, the parameter {param.shape}; they must be the same"
            )
        arrays[letters[name]] = array
    return arrays, int(number)


def _as_array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:
        raise TypeError(
            f"{name}: expected what numpy.asarray takes, got {shown(value)}, of which it says: {error}"
        ) from error
