"""torch's state dicts as NumPy's, and back.

``opt.load_state_dict(from_torch(theirs.state_dict()))`` goes on where torch stopped, and
``theirs.load_state_dict(to_torch(opt.state_dict()))`` the other way. Keys that the other side does not know stay.
torch is imported when a function is called, not before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastopt.checkpoint import BFLOAT16_IN_FILES
from fastopt.option_names import IMPLEMENTATION_OPTIONS
from fastopt.options import shown
from fastopt.storage import storage_dtype

NOT_IN_TORCH: dict[str, Any] = {
    "l1": 0.0,
    "eps_root": 0.0,
    "eps_hat": False,
    "bias_correction": True,
    "cautious": False,
    "lr_in_momentum": False,
    "eps_in_max": True,
    "eps_after_correction": False,
}
"""Options that no optimizer of torch has, with the value under which torch computes the same."""


def _of_this_class(group: Mapping[str, Any]) -> dict[str, Any]:
    """Options that other optimizers of torch have, but not the one of these groups."""
    if "dampening" in group or "eps_in_max" in group:
        return {"decoupled_weight_decay": False}
    return {"weight_decay": 0.0} if "etas" in group else {}


def from_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with arrays in place of tensors, which are copied.

    A 0-d tensor in a parameter group becomes a number, in the state a 0-d array. bfloat16 needs ml_dtypes.
    """
    return _converted(state_dict, _array, _number)


def to_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with tensors in place of arrays, which are copied.

    Steps become what torch has, float32 tensors. Options that torch does not have stay in the groups, where it
    passes them over; one that changes the result is refused.
    """
    import torch

    found = _converted(state_dict, _tensor, lambda array: _tensor(array) if array.ndim else array.tolist())
    for index, group in enumerate(found["param_groups"]):
        is_sgd = "dampening" in group
        missing = NOT_IN_TORCH | _of_this_class(group)
        for name, neutral in missing.items():
            if group.get(name, neutral) != neutral:
                raise ValueError(
                    f"group {index}: torch has no {name}, and would compute something else than with "
                    f"{name}={group[name]!r}; make the optimizer with {name}={neutral!r}"
                )
        if not IMPLEMENTATION_OPTIONS & group.keys():
            group |= {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
        for number in group["params"]:
            entry = found["state"].get(number, {})
            step = entry.get("step")
            if is_sgd and step == 0:
                # torch takes a momentum buffer that is there for one that has seen gradients
                del found["state"][number]
            elif isinstance(step, int | float):
                entry["step"] = torch.tensor(float(step), dtype=_dtype_of_steps())
    return found


def _dtype_of_steps() -> Any:
    import torch

    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def _converted(
    state_dict: Mapping[str, Any], in_state: Callable[[Any], Any], in_groups: Callable[[Any], Any]
) -> dict[str, Any]:
    """A copy of a state dict in which the arrays or tensors have been converted."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(f"state_dict: expected what state_dict() of an optimizer returns, got {shown(state_dict)}")
    found = {name: _mapped(value, in_state) for name, value in state_dict.items()}
    found["param_groups"] = [_mapped(group, in_groups) for group in state_dict["param_groups"]]
    return found


def _mapped(value: Any, convert: Callable[[Any], Any]) -> Any:
    """A copy of nested dicts, lists and tuples with another one for each array or tensor."""
    if isinstance(value, dict):
        return {key: _mapped(x, convert) for key, x in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(x, convert) for x in value)
    torch = sys.modules.get("torch")
    if isinstance(value, np.ndarray | np.generic) or (torch is not None and isinstance(value, torch.Tensor)):
        return convert(value)
    return value


def _number(tensor: Any) -> Any:
    return _array(tensor) if tensor.ndim else tensor.item()


def _array(tensor: Any) -> Any:
    """An array of the tensor's elements, in its memory order."""
    if isinstance(tensor, np.ndarray | np.generic):
        return np.array(tensor, order="K", copy=True)
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        array = tensor.view(torch.int16).numpy().view(storage_dtype("bfloat16"))
    else:
        array = tensor.numpy()
    return np.array(array, order="K", copy=True)


def _tensor(array: Any) -> Any:
    """A tensor of the array's elements, in its memory order."""
    import torch

    if isinstance(array, torch.Tensor):
        return array.clone()
    array = np.array(array, order="K", copy=True)
    if array.dtype.name == "bfloat16" or array.dtype == BFLOAT16_IN_FILES:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "biufc":
        return array
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
