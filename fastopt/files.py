"""Checkpoints in files: `save` writes all of a training, `load` puts it back, bit for bit.

A file has a document and arrays (see `file_formats`). The document is JSON: numbers, strings and None stand for
themselves, an object of one key for the rest: ``{"array": [name, dtype]}``, ``{"tuple": […]}``, ``{"dict": {…}}``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, TypeAlias

import numpy as np

from fastopt import arrays, checkpoint, file_formats
from fastopt._turns import exclusive, reading
from fastopt.arrays import Array, within
from fastopt.optimizer import Optimizer
from fastopt.options import options_of, shown
from fastopt.storage import storage_dtype

Path: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
Arrays: TypeAlias = "Sequence[Array] | Mapping[str, Array]"

KIND, VERSION = "checkpoint of fastopt", 1
UNSAFE = re.compile(r"[\x00-\x1f\x7f%\\\ud800-\udfff]|(?<=/)\.\.?(?=/|$)")
"""Parts that names of arrays in files do not have: programs that unpack files take some for a path elsewhere."""


def save(
    path: Path, opt: Optimizer, params: Arrays | None = None, averages: Sequence[Any] = (), **extra: Any
) -> None:
    """Writes a file from which `load` continues the training with the same bits.

    path: ends in .npz or .safetensors, which says how the file is written. A file of that name is replaced as a
        whole, and stays as it is if there is an error or the process is killed.
    opt: an optimizer: its options, its state and, if it was made with them, its parameters. An option that is a
        callable is not saved.
    params: other arrays, or all parameters of an optimizer that was made without: a list, or a dict by names.
    averages: averages of the weights.
    extra: what else belongs to the training: numbers, strings, None, arrays, lists, tuples and dicts of these, and
        objects that have a ``state_dict()``, such as ReduceLROnPlateau, a GradScaler or another optimizer.

    Within ``average.applied()`` the parameters' own values are written, not those of the average.

    The state is not copied: it is written from where it lies. A signal handler may call this function; import it
    before, by ``from fastopt import save``.
    """
    found, suffix = file_formats.checked_path(path)
    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt: expected an optimizer of fastopt, got {shown(opt)}")
    _save(opt, found, suffix, params, averages, extra)


@reading
def _save(
    opt: Optimizer,
    path: str,
    suffix: str,
    params: Arrays | None,
    averages: Sequence[Any],
    extra: Mapping[str, Any],
) -> None:
    """Steps of other threads wait until all is written."""
    tree = _Tree()
    saved = checkpoint.state_dict(opt._plan, opt._edits(), opt.algorithm.states, copies=False)
    callables = [_without_callables(type(opt), group) for group in saved["param_groups"]]
    named = _training_values(opt, _named_arrays(opt, params))
    labels = [tensor.key for tensor in opt._plan.tensors]
    state = {
        i: tree.encoded(f"state/{labels[i]}", entry, f"the state of {arrays.label_of(labels[i])}")
        for i, entry in saved["state"].items()
    }
    document = {
        "kind": KIND,
        "version": VERSION,
        "optimizer": type(opt).__name__,
        "callables": callables,
        "param_groups": [
            tree.encoded(f"group/{i}", group, f"group {i}") for i, group in enumerate(saved["param_groups"])
        ],
        "state": state,
        "params": {name: tree.encoded(f"params/{name}", array, name) for name, array in named.items()},
        "averages": [tree.encoded(f"averages/{i}", x, f"averages[{i}]") for i, x in enumerate(_listed(averages))],
        "extra": {name: tree.encoded(f"extra/{name}", value, name) for name, value in extra.items()},
    }
    file_formats.write(path, suffix, json.dumps(document), tree.arrays)


def load(
    path: Path, opt: Optimizer, params: Arrays | None = None, averages: Sequence[Any] = (), **objects: Any
) -> dict[str, Any]:
    """Puts back what `save` wrote; on an error nothing has changed. Returns what was saved as ``extra``.

    opt: an optimizer of the same class, with the same groups, and parameters of the same names, shapes and dtypes,
        which are overwritten in place. The options are those of the file, but a callable stays, and has to be
        there if there was one when the file was saved.
    params, averages: as they were passed to `save`; the arrays are overwritten in place.
    objects: those whose state was saved as ``extra``, by the same names: their ``load_state_dict()`` is called.
        The dict that is returned has the state dict of an object that is not passed here.
    """
    found, suffix = file_formats.checked_path(path)
    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt: expected an optimizer of fastopt, got {shown(opt)}")
    arrays.refuse_file("params", params)
    text, stored = file_formats.read(found, suffix)
    with within(found):
        saved = _Saved(text, stored)
        receivers = _receivers(saved, averages, objects)
        extra = {name: objects.get(name, _owned(value)) for name, value in saved.extra.items()}
        _put_back(opt, saved, params, False)
        undo = []
        try:
            for place, (receiver, state) in enumerate(receivers):
                if (
                    place < len(receivers) - 1 or not averages
                ):  # an average is large, and the last one is not refused
                    undo.append((receiver, receiver.state_dict()))
                receiver.load_state_dict(state)
            _put_back(opt, saved, params, True)
        except BaseException:
            for receiver, before in undo:
                receiver.load_state_dict(before)
            raise
    return extra


@exclusive
def _put_back(opt: Optimizer, saved: _Saved, params: Arrays | None, commits: bool) -> None:
    """Refuses what does not fit; then, if it commits, overwrites the optimizer and the arrays."""
    if saved.optimizer != type(opt).__name__:
        raise ValueError(
            f"it was saved by {saved.optimizer}, and cannot be loaded into {type(opt).__name__}; use that"
        )
    groups = opt._groups_now()
    _refuse_missing_callables(saved.callables, groups)
    named = _named_arrays(opt, params)
    copies = _matched(named, saved.params)
    _refuse_other_state_dtypes(opt, groups, saved.state)
    change = opt._change_to({"state": saved.state, "param_groups": saved.param_groups}, groups)
    change.copies += copies
    # a number in a file may be a position or a name
    change.written = named | {int(name): array for name, array in named.items() if name.isdecimal()}
    if commits:
        opt._commit(change)


# -- Saving ------------------------------------------------------------------------------------------


def _listed(averages: Any) -> list[Any]:
    if isinstance(averages, str | Mapping) or not isinstance(averages, Sequence):
        raise TypeError(
            f"averages: expected a list of averages, got {shown(averages)}; put a single one into a list"
        )
    for i, average in enumerate(averages):
        if not hasattr(average, "state_dict"):
            raise TypeError(f"averages[{i}]: expected an average of weights, got {shown(average)}")
    return list(averages)


def _without_callables(cls: type[Optimizer], group: dict[str, Any]) -> dict[str, str]:
    """Takes the callables out of a group; returns for each option that had one how it prints."""
    found = {}
    for name, option in options_of(cls).items():
        value = group[name]
        if callable(value):
            found[name] = _printed(value)
            del group[name]
        elif option.is_callable(value):
            found[name] = ", ".join(_printed(x) if callable(x) else repr(x) for x in value)
            group[name] = tuple(None if callable(x) else x for x in value)
    return found


def _printed(function: Any) -> str:
    """A schedule as code, any other function by its name."""
    if type(function).__module__.startswith("fastopt."):
        return repr(function)
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _named_arrays(opt: Optimizer, params: Arrays | None) -> dict[str, Array]:
    """``params`` by names, then the optimizer's own parameters that are not among them."""
    if params is None:
        params = {}
    if isinstance(params, Mapping):
        given = dict(params)
    elif isinstance(params, Sequence) and not isinstance(params, str):
        given = {str(i): array for i, array in enumerate(params)}
    else:
        raise TypeError(
            f"params: expected a list or a dict of arrays, got {shown(params)}; put an array into a list"
        )
    named: dict[str, Array] = {}
    for name, array in given.items():
        if not isinstance(name, str):
            raise TypeError(f"params: the names must be strings, got {shown(name)}")
        named[name] = arrays.plain(f"params: {name!r}", array)
        _check_dtype(f"params: {name!r}", named[name].dtype)
    known = {_memory(array) for array in named.values()}
    for tensor in opt._plan.tensors if opt._plan.keeps_params else ():
        name = str(tensor.key)
        if name in named and _memory(named[name]) != _memory(tensor.param):
            raise ValueError(
                f"params: {name!r} is not the array that the optimizer has under this name; pass other arrays "
                "by names of their own"
            )
        # where an empty array lies says nothing about which it is
        if not tensor.param.size or _memory(tensor.param) not in known:
            named[name] = tensor.param
    return named


def _training_values(opt: Optimizer, named: dict[str, Array]) -> dict[str, Array]:
    """The arrays; within ``average.applied()`` with the parameters' own values in place of the average's."""
    own = {_memory(param): value for param, value in opt._plan.training_values if param.size}
    for name, array in named.items():
        if _memory(array) not in own and any(
            np.may_share_memory(array, param) for param, _ in opt._plan.training_values
        ):
            raise ValueError(
                f"params: {name!r} is a view of a parameter that has the values of an average at the moment; pass the "
                "parameter itself, or save outside of `with average.applied()`"
            )
    return {name: own.get(_memory(array), array) for name, array in named.items()}


def _memory(array: Array) -> tuple[Any, ...]:
    """Equal for two arrays that are the same elements in the same places."""
    address = array.ctypes.data if array.size else 0
    return address, array.shape, array.strides if array.size else (), array.dtype


def _check_dtype(label: str, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject or (dtype.kind == "V" and dtype.name != "bfloat16"):
        raise TypeError(f"{label}: an array of dtype {dtype} cannot be stored; convert it to numbers")


class _Tree:
    """Values as JSON, and the arrays that they refer to, by their names in the file."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def encoded(self, name: str, value: Any, label: str) -> Any:
        """name: what arrays in the value are called in the file. label: what messages call it."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, np.ndarray):
            return {"array": self._reference(name, arrays.plain(label, value), label)}
        if isinstance(value, np.generic):
            return {"scalar": self._reference(name, np.asarray(value), label)}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.encoded(f"{name}/{i}", x, f"{label}[{i}]") for i, x in enumerate(value)]}
        if isinstance(value, Mapping):
            items = [
                (self.encoded(name, key, f"{label}: a key"), self.encoded(f"{name}/{key}", x, f"{label}[{key!r}]"))
                for key, x in value.items()
            ]
            if all(type(key) is str for key in value):
                return {"dict": dict(items)}
            return {"items": items}
        if isinstance(value, int | float):  # of a subclass
            return int(value) if isinstance(value, int) else float(value)
        if callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
            # what has memory to spare may give its arrays as they are
            state = value._state_views() if hasattr(value, "_state_views") else value.state_dict()
            return {"object": [type(value).__name__, self.encoded(name, state, label)]}
        raise TypeError(
            f"{label}: {shown(value)} cannot be stored; pass numbers, strings, None, arrays, lists, tuples or "
            "dicts of them, or an object that has a state_dict()"
        )

    def _reference(self, name: str, array: Array, label: str) -> tuple[str, str]:
        _check_dtype(label, array.dtype)
        plain = UNSAFE.sub(lambda found: "".join(f"%{ord(x):02X}" for x in found[0]), name[:200])
        name = next(x for i in count() if (x := f"{plain}~{i}" if i else plain) not in self.arrays)
        self.arrays[name] = array
        return name, array.dtype.name


# -- Loading -----------------------------------------------------------------------------------------


class _Saved:
    """The contents of a file, checked as far as that is possible without an optimizer."""

    def __init__(self, text: str, stored: Mapping[str, Array]) -> None:
        self._stored = stored
        try:
            document = json.loads(text)
            if document["kind"] != KIND:
                raise ValueError(document["kind"])
            self.version = document["version"]
            if self.version == VERSION:
                self.optimizer: str = document["optimizer"]
                self.callables: list[dict[str, str]] = document["callables"]
                self.param_groups = [self._decoded(group) for group in document["param_groups"]]
                self.state = {int(i): self._decoded(entry) for i, entry in document["state"].items()}
                self.params: dict[str, Array] = {k: self._decoded(v) for k, v in document["params"].items()}
                self.averages: list[Any] = [self._decoded(state) for state in document["averages"]]
                self.extra: dict[str, Any] = {k: self._decoded(v) for k, v in document["extra"].items()}
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(f"{file_formats.NO_CHECKPOINT} ({error!r})") from error
        if self.version != VERSION:
            raise ValueError("it was saved by another version of fastopt; use that one")

    def _decoded(self, node: Any) -> Any:
        if not isinstance(node, dict):
            if isinstance(node, list):
                raise ValueError("a list")
            return node
        ((kind, value),) = node.items()
        if kind == "array":
            return self._array(*value)
        if kind == "scalar":
            return self._array(*value)[()]
        if kind == "list":
            return [self._decoded(x) for x in value]
        if kind == "tuple":
            return tuple(self._decoded(x) for x in value)
        if kind == "dict":
            return {key: self._decoded(x) for key, x in value.items()}
        if kind == "items":
            return {self._decoded(key): self._decoded(x) for key, x in value}
        if kind == "object":
            return _State(value[0], self._decoded(value[1]))
        raise ValueError(kind)

    def _array(self, name: str, dtype: str) -> Array:
        array = self._stored[name]
        if dtype == "bfloat16" and array.dtype == checkpoint.BFLOAT16_IN_FILES:
            array = array.view(storage_dtype(dtype))
        if array.dtype.name != dtype:
            raise ValueError(f"{name} has dtype {array.dtype}")
        return array


class _State(dict[str, Any]):
    """The state dict of an object; name: its class's."""

    def __init__(self, name: str, state: Mapping[str, Any]) -> None:
        super().__init__(state)
        self.name = name


def _owned(value: Any) -> Any:
    """The same without views of the file."""
    if isinstance(value, np.ndarray):
        return value.copy(order="K")
    if isinstance(value, Mapping):
        return {key: _owned(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_owned(x) for x in value)
    return value


def _receivers(saved: _Saved, averages: Sequence[Any], objects: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The objects to load, each with its state; averages last, because theirs are the large ones."""
    found = []
    for name, receiver in objects.items():
        if name not in saved.extra:
            raise ValueError(
                f"{name}: it has no such extra; it has {', '.join(saved.extra) or 'none'}; leave it out"
            )
        found.append((name, receiver, _owned_state(saved.extra[name])))
    given = _listed(averages)
    if len(given) != len(saved.averages):
        raise ValueError(f"averages: it has {len(saved.averages)}, {len(given)} were given; pass as many")
    found += [(f"averages[{i}]", *pair) for i, pair in enumerate(zip(given, saved.averages, strict=True))]
    for label, receiver, state in found:
        if not callable(getattr(receiver, "load_state_dict", None)) or isinstance(receiver, type):
            raise TypeError(f"{label}: expected an object with load_state_dict(), got {shown(receiver)}")
        if not isinstance(state, _State):
            raise TypeError(
                f"{label}: no object was saved under this name; leave it out, it is among what load returns"
            )
        if state.name != type(receiver).__name__:
            raise ValueError(f"{label}: it was saved by {state.name}, not by {type(receiver).__name__}; use that")
    return [(receiver, dict(state)) for _, receiver, state in found]


def _owned_state(value: Any) -> Any:
    return _State(value.name, _owned(value)) if isinstance(value, _State) else value


def _refuse_missing_callables(saved: Sequence[Mapping[str, str]], groups: Sequence[Mapping[str, Any]]) -> None:
    for index, (names, group) in enumerate(zip(saved, groups, strict=False)):
        for name, text in names.items():
            now = group.get(name)
            if not callable(now) and not (isinstance(now, tuple | list) and any(callable(x) for x in now)):
                raise ValueError(
                    f"group {index}: {name} was a function of the step when it was saved, {text}, and functions "
                    "are not stored; make the optimizer with it"
                )


def _refuse_other_state_dtypes(
    opt: Optimizer, groups: Sequence[Mapping[str, Any]], saved: Mapping[int, Mapping[str, Any]]
) -> None:
    """A load gives the same bits: it does not round states to the dtype of this optimizer."""
    for tensor in opt._plan.tensors:
        dtype = arrays.state_dtype_of(tensor, groups[tensor.group].get("state_dtype"))
        for letter in tensor.letters:
            name = opt.algorithm.states[letter]
            array = saved.get(tensor.index, {}).get(name)
            if isinstance(array, np.ndarray) and array.dtype != dtype:
                raise ValueError(
                    f"the state {name!r} of {tensor.label}: it is stored as {array.dtype}, and would be {dtype} "
                    f"in this optimizer; make it with state_dtype={array.dtype.name!r}"
                )


def _matched(named: Mapping[str, Array], saved: Mapping[str, Array]) -> list[tuple[Array, Array]]:
    """The arrays to be overwritten, each with its values."""
    if named.keys() != saved.keys():
        missing = [repr(name) for name in named if name not in saved]
        unknown = [repr(name) for name in saved if name not in named]
        texts = [f"it has no {arrays.listing(missing)}"] * bool(missing)
        texts += [f"it has {arrays.listing(unknown)} besides"] * bool(unknown)
        raise ValueError(
            f"its arrays are not those of the optimizer and params: {' and '.join(texts)}; pass the same as to "
            "save"
        )
    for name, array in named.items():
        label, values = repr(name), saved[name]
        if array.shape != values.shape:
            raise ValueError(
                f"{label}: it has shape {values.shape}, the array {array.shape}; they must be the same"
            )
        if array.dtype.newbyteorder("=") != values.dtype.newbyteorder("="):
            raise TypeError(
                f"{label}: it has dtype {values.dtype}, the array {array.dtype}; they must be the same"
            )
        if not array.flags.writeable:
            arrays.refuse_read_only(label)
    return [(array, saved[name]) for name, array in named.items()]
