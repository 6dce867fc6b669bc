"""In which forms a user may pass parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastopt import arrays
from fastopt.arrays import Key
from fastopt.options import shown

if TYPE_CHECKING:
    from fastopt._plan import Plan


def as_groups(params: Any) -> list[Any]:
    arrays.refuse_file("params", params)
    if isinstance(params, Mapping):
        return [{"params": params}]
    if isinstance(params, np.ndarray) and params.dtype == object and params.ndim:
        raise TypeError("params: it is an array of objects; pass its members: list(params)")
    if isinstance(params, np.ndarray | str) or not isinstance(params, Iterable):
        raise TypeError(
            "params: expected a list or dict of arrays, or a list of groups, got "
            f"{type(params).__name__}; put a single array into a list"
        )
    params = list(params)
    for i, group in enumerate(params):
        arrays.refuse_file(f"params[{i}]", group)
        is_group = not isinstance(group, Mapping) or not group or group.keys() & {"params", "names"}
        if not is_group and all(isinstance(x, np.ndarray) for x in group.values()):
            raise TypeError(
                f"params[{i}]: got a dict of arrays in a list; a group needs the key 'params': "
                '[{"params": weights}, ...], or pass one dict of all arrays: {**first, **second}'
            )
    return params if any(isinstance(p, Mapping) for p in params) else [{"params": params}]


def as_params(params: Any, count: int) -> tuple[list[Key], list[Any]]:
    """Names or numbers of a group's parameters, and the parameters."""
    arrays.refuse_file("params", params)
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


def by_key(name: str, given: Any) -> dict[Key, Any]:
    """Arrays that a method is given to write into, by their names or positions."""
    found = arrays.to_write(name, given)
    return found if isinstance(found, dict) else dict(enumerate(found))


def given_by_key(plan: Plan, params: Any, method: str) -> dict[Key, Any]:
    """The parameters that an optimizer keeps; where it was made without them, those that a method is given."""
    if params is not None:
        return by_key("params", params)
    if not plan.keeps_params:
        refuse_without_params(method)
    return {tensor.key: tensor.given for tensor in plan.tensors}


def refuse_without_params(method: str) -> NoReturn:
    raise TypeError(f"params: this optimizer was made without parameters; pass {method}(params=...)")


def refuse_params(call: str) -> NoReturn:
    raise TypeError(f"params: this optimizer was made with its parameters; call {call} without them")
