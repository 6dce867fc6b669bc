"""State: what a user reads of it, and state dicts in and out."""

from __future__ import annotations

import copy
import math
import re
import reprlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastopt._kernels import TABLE
from fastopt.algorithm import Hyper
from fastopt.arrays import Array, Key, quietly, shown_as, within
from fastopt.option_names import IMPLEMENTATION_OPTIONS
from fastopt.options import options_of, shown
from fastopt.rows import ROW_STEPS
from fastopt.storage import storage_dtype

if TYPE_CHECKING:
    from fastopt._plan import Change, Plan, Tensor
    from fastopt.changes import Changing

BFLOAT16_IN_FILES = np.dtype("V2")
"""What NumPy's own files make of bfloat16, which is no dtype of its own."""

MOST_STEPS = 2**62
"""More than anybody makes; so no counter runs over."""


def _refuse_write(*_: Any, **__: Any) -> NoReturn:
    raise TypeError(
        "opt.state: it shows what there is, and nothing can be put into it or taken out; write into an array, "
        "opt.state[0]['exp_avg'][...] = x, start anew with opt.reset(), or change a state_dict() and load it"
    )


class State(dict[str, Any]):
    """The state of one parameter: its arrays are views, which may be written into. Only ``step`` and the steps of rows,
    a read-only array, are what they were when read."""

    __setitem__ = __delitem__ = __ior__ = _refuse_write  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse_write  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class States(Mapping[Key, "dict[str, Any]"]):
    """The states of all parameters, by number or name; each is looked at when it is asked for.

    names: what the user calls the state arrays, by the formula's letters.
    """

    def __init__(self, tensors: list[Tensor], place: Mapping[Key, int], names: Mapping[str, str]) -> None:
        self._tensors, self._place, self._names = tensors, place, names

    def __getitem__(self, key: Key) -> dict[str, Any]:
        place = self._place.get(key, key)
        if not isinstance(place, int) or not -len(self) <= place < len(self):
            raise KeyError(key)
        tensor = self._tensors[place]
        arrays = tensor.states | tensor.number_views() | tensor.vectors
        views = {self._names[letter]: array.view() for letter, array in arrays.items()}
        row_steps = {} if tensor.row_steps is None else {ROW_STEPS: _read_only(tensor.row_steps.made.copy())}
        return State({"step": int(tensor.steps), **views, **row_steps})

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = _refuse_write

    def __iter__(self) -> Iterator[Key]:
        return iter([*self._place])  # another thread may add parameters

    def __len__(self) -> int:
        return len(self._place)

    def __repr__(self) -> str:
        return shown_as(dict(self))


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


# -- Out ---------------------------------------------------------------------------------------------


IMMUTABLE = (int, float, str, bytes, type(None))


def state_dict(plan: Plan, edits: Change, names: Mapping[str, str], *, copies: bool = True) -> dict[str, Any]:
    """All but the parameters; edits: of the groups, not yet taken by a step.

    copies: with False the arrays are those that steps write, and callables stand where otherwise their numbers do.
    """
    tensors: list[Tensor] = plan.tensors
    groups = list(plan.groups)
    for index, _, _, group in edits.groups:
        groups[index] = group
    new_states = dict(edits.states)
    sources = {id(array): values for array, values in edits.copies}
    most = max((tensor.steps for tensor in tensors), default=0)
    members: list[list[Tensor]] = [[] for _ in groups]
    for tensor in tensors:
        members[tensor.group].append(tensor)
    saved_groups = []
    for group, own in zip(groups, members, strict=True):
        saved = {
            name: value if isinstance(value, IMMUTABLE) else copy.deepcopy(value)
            for name, value in (group.numbers_after(most) if copies else group.h).items()
            if name not in {"params", "names"}
        }
        saved["params"] = [tensor.index for tensor in own]
        if any(isinstance(tensor.key, str) for tensor in own):
            saved["param_names"] = [tensor.key for tensor in own]
        saved_groups.append(saved)
    state = {}
    for i, tensor in enumerate(tensors):
        entry: dict[str, Any] = {"step": int(tensor.steps)}
        for letter, array in new_states.get(tensor, tensor.states).items():
            values = sources.get(id(array))
            entry[names[letter]] = np.copy(array) if copies or values is not None else array
            if values is not None:
                quietly(np.copyto, entry[names[letter]], values, "unsafe")
        entry.update({names[letter]: np.array(value) for letter, value in tensor.numbers_by_letter().items()})
        entry.update(
            {names[letter]: np.array(sources.get(id(array), array)) for letter, array in tensor.vectors.items()}
        )
        if tensor.row_steps is not None:
            entry[ROW_STEPS] = tensor.row_steps.made.copy()
        state[i] = entry
    return {"state": state, "param_groups": saved_groups}


# -- In ----------------------------------------------------------------------------------------------


def warn_of_new_state_dtypes(tensors: Sequence[Tensor], before: Sequence[Hyper], after: Sequence[Hyper]) -> None:
    """Says where groups, ``before`` a load and ``after`` it, have their states in different dtypes."""
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        was, is_now = old.get("state_dtype"), new["state_dtype"]
        own = {tensor.dtype.name for tensor in tensors if tensor.group == index}
        if any((was or dtype) != (is_now or dtype) for dtype in own):
            warnings.warn(
                f"group {index}: state_dtype is {is_now!r} from now on, as in the state dict; it was {was!r}. "
                f"Set param_groups[{index}]['state_dtype'] after the load to have it otherwise",
                stacklevel=3,
            )


def _expect(name: str, value: Any, kind: type, called: str) -> None:
    if not isinstance(value, kind) or isinstance(value, str):
        raise TypeError(f"{name}: expected {called}, got {shown(value)}")


@within("state_dict")
def read(
    state_dict: Mapping[str, Any],
    tensors: Sequence[Tensor],
    now: Sequence[Hyper],
    cls: type[Changing],
    checked_group: Callable[[int, Hyper], Hyper],
) -> tuple[list[Hyper], list[dict[str, Array]], list[int]]:
    """For each group its checked options, and for each parameter its states and its steps.

    Refuses what does not fit. now: copies of the groups that the optimizer has.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"expected a dict as state_dict() returns it, got {shown(state_dict)}")
    for name, kind in {"state": Mapping, "param_groups": Sequence}.items():
        if name not in state_dict:
            raise ValueError(f"it has no {name!r}; pass what state_dict() returned")
        _expect(name, state_dict[name], kind, "a list of groups" if kind is Sequence else "a dict by parameters")
    saved_groups, saved_states = state_dict["param_groups"], _by_numbers(state_dict["state"])
    if len(saved_groups) != len(now):
        raise ValueError(
            f"it has {len(saved_groups)} parameter groups, the optimizer {len(now)}; make the optimizer with "
            "the same groups"
        )
    groups: list[Hyper] = []
    order: list[int] = []  # the saved numbers of the parameters
    members: list[list[Tensor]] = [[] for _ in now]
    for tensor in tensors:
        members[tensor.group].append(tensor)
    for index, (saved, mine) in enumerate(zip(saved_groups, now, strict=True)):
        keys = [tensor.key for tensor in members[index]]
        order += _saved_numbers(f"group {index}", saved, keys)
        with within(f"group {index}"):
            merged = _merged(cls, saved, mine, any(isinstance(key, str) for key in keys))
        groups.append(checked_group(index, merged))
    if len(set(order)) != len(order):
        raise ValueError("param_groups: two parameters have one number; give each its own")
    by_order = [tensor for own in members for tensor in own]
    number_of = dict(zip(by_order, order, strict=True))
    states: list[dict[str, Array]] = []
    steps: list[int] = []
    for tensor in tensors:
        entry = saved_states.pop(number_of[tensor], {})
        _expect(tensor.label, entry, Mapping, "a dict of its state")
        with within(tensor.label):
            arrays, steps_taken = _saved_state(cls, tensor, entry)
            needed = (
                [
                    *cls.algorithm.letters(groups[tensor.group], tensor.shape),
                    *TABLE[cls.algorithm.formula]["numbers"],
                    *tensor.vectors,
                ]
                if steps_taken
                else []
            )
            for letter in needed:
                if letter not in arrays:
                    raise ValueError(f"{cls.algorithm.states[letter]}: missing; its group's options need it")
        states.append(arrays)
        steps.append(steps_taken)
    if saved_states:
        raise ValueError(
            f"it has states for unknown parameters {reprlib.repr(list(saved_states))}; the groups' params must "
            "name them all"
        )
    return groups, states, steps


def _by_numbers(saved: Mapping[Any, Any]) -> dict[Any, Any]:
    """The states by numbers, also where they are digits: JSON makes strings of all keys."""
    found: dict[Any, Any] = {}
    for key, entry in saved.items():
        if isinstance(key, str) and re.fullmatch("0|[1-9][0-9]{,17}", key):
            key = int(key)
        if key in found:
            raise ValueError(f"state: it has parameter {key} twice, by its number and as a string; leave one")
        found[key] = entry
    return found


def _merged(cls: type[Changing], saved: Mapping[str, Any], mine: Hyper, has_names: bool) -> Hyper:
    """A group with what the saved one has; callables stay, and so does a state_dtype if the saved one is None.

    has_names: whether the parameters have names, which then are no key of the user's own.
    """
    merged = dict(mine)
    for name, value in saved.items():
        if name == "params" or name in IMPLEMENTATION_OPTIONS or (name == "param_names" and has_names):
            continue
        if name in options_of(cls) or name in cls.algorithm.flags:
            now = mine.get(name)
            if isinstance(value, np.ndarray):  # of a file that stores nothing else
                value = value.tolist()
            if callable(now) or (name == "state_dtype" and value is None):
                value = now
            elif isinstance(now, tuple | list) and isinstance(value, tuple | list) and len(now) == len(value):
                value = tuple(old if callable(old) else new for old, new in zip(now, value, strict=True))
            if isinstance(cls.algorithm.flags.get(name), bool) and not isinstance(value, bool):
                raise TypeError(f"{name}: expected True or False, got {shown(value)}")
        elif not isinstance(value, np.ndarray) and getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()  # of a tensor: a torch scheduler keeps the learning rate as it found it
        merged[name] = value
    return merged


def _saved_numbers(place: str, saved: Any, keys: Sequence[Key]) -> list[int]:
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


def _saved_state(cls: type[Changing], tensor: Tensor, entry: Mapping[str, Any]) -> tuple[dict[str, Array], int]:
    """State arrays by their letters, and the steps made."""
    letters = {name: letter for letter, name in cls.algorithm.states.items()}
    entry = {name: value for name, value in entry.items() if value is not None}
    steps = entry.pop("step", 1 if entry else 0)  # torch's SGD counts no steps
    array = _as_array("step", steps)
    number = array.item() if array.size == 1 and array.dtype.kind in "iuf" else -1
    if not 0 <= number <= MOST_STEPS or number != int(number):
        raise ValueError(f"step: expected a whole number, from 0 on, got {shown(steps)}")
    arrays = {}
    if ROW_STEPS in entry:
        arrays[ROW_STEPS] = _saved_row_steps(tensor, entry.pop(ROW_STEPS), int(number))
    for name, value in entry.items():
        if name not in letters:
            raise ValueError(f"{name}: no state of {cls.__name__}; it has {', '.join(letters) or 'none'}")
        array, shape = _as_array(name, value), _shape_of_state(cls, letters[name], tensor.shape)
        if isinstance(value, list | tuple):  # as in JSON, which makes whole numbers of some floats
            if array.dtype.kind in "iu":
                array = array.astype(np.float64)
            if array.size == 0 and shape is not None and math.prod(shape) == 0:
                array = array.reshape(shape)
        if array.dtype == BFLOAT16_IN_FILES:
            array = array.view(storage_dtype("bfloat16"))
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(f"{name}: it has dtype {array.dtype}; convert it to {tensor.dtype}")
        if shape is not None and array.shape != shape:
            raise ValueError(
                f"{name}: it has shape {array.shape}, the parameter {tensor.shape}; they must be the same"
                if shape == tensor.shape
                else f"{name}: it has shape {array.shape}; of a parameter of shape {tensor.shape} it has shape {shape}"
            )
        arrays[letters[name]] = array
    return arrays, int(number)


def _shape_of_state(cls: type[Changing], letter: str, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape of a state of a parameter of a shape; None where that is not known."""
    if letter in TABLE[cls.algorithm.formula]["numbers"]:
        return ()
    if shape is None:
        return None
    vectors = cls.algorithm.vectors(shape)
    if letter in vectors:
        return vectors[letter]
    has_vectors = bool(cls.algorithm.vector_letters())
    if has_vectors and letter not in cls.algorithm.optional_by_shape(shape):
        raise ValueError(f"{cls.algorithm.states[letter]}: no state of a parameter of shape {shape}; leave it out")
    return shape


def _saved_row_steps(tensor: Tensor, value: Any, steps: int) -> Array:
    """How many steps each row has made."""
    made = _as_array(ROW_STEPS, value)
    if made.dtype.kind not in "iu" or made.shape != tensor.shape[:1]:
        raise ValueError(
            f"{ROW_STEPS}: it has shape {made.shape} and dtype {made.dtype}; expected a whole number for each of the "
            f"parameter's {tensor.shape[:1]} rows"
        )
    if made.size and not (int(made.min()) >= 0 and int(made.max()) <= steps):
        raise ValueError(f"{ROW_STEPS}: a row must have made from 0 to {steps} steps, as many as the parameter")
    return made


def _as_array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:
        if type(value).__module__.partition(".")[0] == "torch":
            raise TypeError(
                f"{name}: of this tensor numpy.asarray says: {error}; pass "
                "fastopt.torch_state.from_torch(state_dict)"
            ) from error
        raise TypeError(
            f"{name}: expected what numpy.asarray takes, got {shown(value)}, of which it says: {error}"
        ) from error
