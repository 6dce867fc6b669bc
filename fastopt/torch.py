"""torch's optimizers with fastopt's step: ``fastopt.torch.Adam(model.parameters(), lr=1e-3)``.

Each class here is a subclass of torch's class of the same name. Options, groups, hooks, schedulers and state dicts
are torch's; only ``step`` is fastopt's. The options ``foreach`` and ``fused`` choose between implementations of
torch's and have no effect. What fastopt cannot compute is refused by name; steps with sparse gradients are torch's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fastopt import optimizers
from fastopt._kernels import TABLE
from fastopt._plan import Counts, Exchange, are_same, is_unchanged, items_of
from fastopt.options import options_of, shown
from fastopt.storage import storage_dtype
from fastopt.torch_state import from_torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
EXCHANGE = Exchange(torch.Tensor) if hasattr(torch.Tensor, "__dlpack_c_exchange_api__") else None
"""Reads tensors many times as fast as their methods; since torch 2.10."""
UNKNOWN = ("capturable", "differentiable")
"""Options of torch's that fastopt does not have."""


def _array(tensor: torch.Tensor) -> Any:
    """The tensor's memory as an array."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(storage_dtype("bfloat16"))
    return tensor.numpy()


def _tensor(array: Any) -> torch.Tensor:
    """The array's memory as a tensor."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _local(tensor: Any) -> torch.Tensor:
    """A tensor's own memory: of FSDP2's, which are spread over processes, the part in this one."""
    return tensor.detach().to_local() if _is_spread(tensor) else tensor  # type: ignore[no-any-return]


def _is_spread(tensor: Any) -> bool:
    module: Any = sys.modules.get("torch.distributed.tensor")  # slow to import, and there if such a tensor is
    return module is not None and isinstance(tensor, module.DTensor)


def _like(tensor: Any, part: torch.Tensor) -> torch.Tensor:
    """A tensor spread as another one is, of its part in this process; the part itself if that one is not spread."""
    if not _is_spread(tensor):
        return part
    return type(tensor).from_local(  # type: ignore[no-any-return]
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _places(params: list[torch.Tensor]) -> Any:
    """Where the elements of parameters lie, and their dtypes; .double() and .data = … change it."""
    places = None if EXCHANGE is None else EXCHANGE.places(params)
    return [(p.data_ptr(), p.dtype, p.shape, p.stride()) for p in params] if places is None else places


def _axes(p: torch.Tensor, keeps_order: bool) -> list[int]:
    """The axes in the order of memory, so that a channels_last parameter is a contiguous array; keeps_order: as they
    are, for an optimizer that tells rows from columns."""
    if keeps_order:
        return list(range(p.dim()))
    strides = p.stride()
    return sorted(range(p.dim()), key=lambda axis: -strides[axis])


class _Engine:
    """A fastopt optimizer on the memory of the parameters, and its states as tensors."""

    def __init__(self, owner: _Adaptor) -> None:
        cls = getattr(optimizers, type(owner).__name__)
        self.groups = owner.param_groups
        self.params = [p for group in self.groups for p in group["params"]]
        self.are_spread = any(map(_is_spread, self.params))
        self.places = _places(self._parts(self.params))
        self.sizes = [len(group["params"]) for group in self.groups]
        algorithm = cls.algorithm
        has_vectors = bool(algorithm.vector_letters())
        for index, p in enumerate(self.params):
            _check(index, p, cls.__name__ if has_vectors or TABLE[algorithm.formula]["work"] else None)
        parts = self._parts([p.detach() for p in self.params])
        self.axes = [_axes(part, has_vectors) for part in parts]
        self.is_plain = [axes == list(range(len(axes))) for axes in self.axes]
        self.are_all_plain = all(self.is_plain) and not self.are_spread
        views = [part.permute(axes) for part, axes in zip(parts, self.axes, strict=True)]
        # a parameter with gaps is updated in a copy, which is written back
        self.copies = [(view, view.contiguous()) for view in views if not view.is_contiguous()]
        copies = iter(self.copies)
        arrays = [_array(view if view.is_contiguous() else next(copies)[1]) for view in views]
        self.names = tuple(name for name in options_of(cls) if name in owner.defaults)
        # what each group held when the optimizer took its options, as `items_of` gives it; (): to be taken again
        self.groups_shown: list[tuple[Any, ...]] = [()] * len(self.groups)
        places = iter(arrays)
        groups = [
            {"params": [next(places) for _ in group["params"]], **self.options(group)} for group in self.groups
        ]
        self.optimizer = cls(groups)
        self.numbers = [
            algorithm.states[letter]
            for letter in (*TABLE[algorithm.formula]["numbers"], *algorithm.vector_letters())
        ]
        is_double = torch.get_default_dtype() == torch.float64
        self.steps = Counts(np.zeros(len(arrays), np.float64 if is_double else np.float32))
        self.tensors = [self._states(index) for index in range(len(arrays))]
        self._take_states(owner.state)
        self.steps.note()
        self.seen = [p in owner.state and bool(owner.state[p]) for p in self.params]
        for p, tensors, seen in zip(self.params, self.tensors, self.seen, strict=True):
            if seen:
                owner.state[p].update(tensors)
        self._note_entries(owner)

    def _parts(self, params: list[Any]) -> list[torch.Tensor]:
        return [_local(p) for p in params] if self.are_spread else params

    def _note_entries(self, owner: _Adaptor) -> None:
        """Records the tensors that torch's dict shows, so that the next step can tell whether they were replaced."""
        self.keys, self.entries = list(owner.state), list(owner.state.values())
        self.shown = list(map(items_of, self.entries))
        self.are_all_seen = all(self.seen)

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options of one of torch's groups, as numbers."""
        if any(map(group.get, UNKNOWN)):
            raise ValueError(f"{', '.join(UNKNOWN)}: fastopt has neither; leave them False, or use torch.optim")
        return {
            name: value if type(value := group[name]) in (float, bool, int) else _number(value)
            for name in self.names
        }

    def _take_options(self, groups: list[dict[str, Any]]) -> None:
        """Gives the optimizer the options of torch's groups, and records these if they cannot be edited in place."""
        for index, (theirs, ours) in enumerate(zip(groups, self.optimizer.param_groups, strict=True)):
            for name, value in self.options(theirs).items():
                if ours[name] != value:
                    ours[name] = value
            settings = map(theirs.get, (*self.names, *UNKNOWN))
            can_be_compared = type(theirs) is dict and all(map(_is_immutable, settings))
            self.groups_shown[index] = items_of(theirs) if can_be_compared else ()

    def _states(self, index: int) -> dict[str, Any]:
        """A parameter's states under torch's names, in the parameter's shape."""
        back = np.argsort(self.axes[index])
        states = {
            name: torch.from_numpy(array)
            if name in self.numbers
            else _like(self.params[index], _tensor(array).permute(tuple(back)))
            for name, array in self.optimizer.state[index].items()
            if name != "step"
        }
        if not {"dampening", "ns_steps"} & set(self.names):  # SGD and Muon of torch count no steps
            states["step"] = torch.from_numpy(self.steps.vector[index : index + 1]).view(())
        return states

    def _take_states(self, states: Any) -> None:
        """Copies the states that torch's dict holds into the optimizer."""
        found: dict[int, Any] = {}
        for index, p in enumerate(self.params):
            known = {  # other entries are the user's own, and stay where they are
                name: value
                for name, value in states.get(p, {}).items()
                if value is not None and (name in self.tensors[index] or name == "step")
            }
            if not known:
                continue
            entry = {
                name: _local(value).to(p.dtype).permute(self.axes[index])
                if name in self.tensors[index] and name not in self.numbers
                else value
                for name, value in known.items()
                if name != "step"
            }
            step = known.get("step", 1.0)
            self.steps.vector[index] = float(step)
            found[index] = {**entry, "step": int(step)}
        saved = self.optimizer.state_dict()
        saved["state"] |= from_torch({**saved, "state": found})["state"]
        self.optimizer.load_state_dict(saved)

    def fits(self, owner: _Adaptor, params: list[Any]) -> bool:
        """Whether groups, parameters, their memory and their states are those that the engine was made for."""
        state = owner.state
        return (
            are_same(params, self.params)
            and [len(group["params"]) for group in owner.param_groups] == self.sizes
            and _places(self._parts(params)) == self.places
            and are_same([*state], self.keys)
            and are_same([*state.values()], self.entries)
            and is_unchanged(self.entries, self.shown)
            and self.steps.are_unchanged()
        )

    def plain_arrays(self, grads: list[Any]) -> list[Any] | None:
        """The gradients' memory as arrays; None where one is missing, or `arrays` has to look at each."""
        if EXCHANGE is None or not self.are_all_plain:
            return None
        arrays = EXCHANGE.arrays(grads)
        return None if arrays is None or any(map(torch.Tensor.is_neg, grads)) else arrays

    def arrays(self, grads: list[Any]) -> list[Any]:
        """The gradients' memory as arrays, with the axes of the parameters' arrays; None for those that are missing."""
        found: list[Any] = []
        for index, grad in enumerate(grads):
            if grad is None:
                found.append(None)
                continue
            if not grad.is_cpu:
                raise ValueError(f"gradient of parameter {index}: on {grad.device}; fastopt needs it on the CPU")
            if grad.requires_grad:
                grad = grad.detach()
            grad = _local(grad)
            found.append(_array(grad if self.is_plain[index] else grad.permute(self.axes[index])))
        return found

    def step(self, owner: _Adaptor, grads: list[Any], moved: Sequence[int]) -> None:
        """Makes a step; moved: the numbers of the parameters that have a gradient."""
        if not is_unchanged(owner.param_groups, self.groups_shown):
            self._take_options(owner.param_groups)
        for view, copy in self.copies:
            copy.copy_(view)
        try:
            self.optimizer.step(grads)
            self._show_step(owner, moved)
        except BaseException:  # an interrupt may come when the step has been made
            self._show_step(owner, [i for i in moved if self.optimizer.state[i]["step"] > self.steps.vector[i]])
            raise

    def _show_step(self, owner: _Adaptor, moved: Sequence[int]) -> None:
        """Makes torch see that these parameters have had a step. The step is counted last, so that all of this can be
        done again where an interrupt has come before."""
        if not moved:
            return
        for view, copy in self.copies:
            view.copy_(copy)
        new = [] if self.are_all_seen else [i for i in moved if not self.seen[i]]
        for index in new:  # torch, too, shows a state from the first gradient on
            if self.tensors[index]:
                owner.state[self.params[index]].update(self.tensors[index])
        if new:
            for index in new:
                self.seen[index] = True
            self._note_entries(owner)
        are_all = len(moved) == len(self.params)
        torch.autograd.graph.increment_version(self.params if are_all else [self.params[i] for i in moved])
        self.steps.add_step(None if are_all else list(moved))


def _is_immutable(value: Any) -> bool:
    """Whether a setting cannot be edited in place, as a list or a tensor can."""
    if type(value) is tuple:
        return all(map(_is_immutable, value))
    return value is None or type(value) in (float, int, bool, str)


def _number(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return tuple(_number(x) for x in value) if isinstance(value, tuple | list) else value


def _check(index: int, p: torch.Tensor, of_matrices: str | None = None) -> None:
    """Refuses a parameter that fastopt cannot update; of_matrices: the optimizer, if it needs whole matrices."""
    if not p.is_cpu:
        raise ValueError(f"parameter {index}: on {p.device}; fastopt updates on the CPU; use torch.optim there")
    if p.dtype not in DTYPES:
        raise TypeError(f"parameter {index}: {shown(p.dtype)}; fastopt updates float32, float64 and bfloat16")
    if _is_spread(p):
        if of_matrices:
            raise TypeError(
                f"parameter {index}: its parts lie in several processes, and {of_matrices} needs whole matrices"
            )
    elif type(p) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise TypeError(f"parameter {index}: {type(p).__name__} has no memory of its own; use torch.optim")


class _Adaptor(torch.optim.Optimizer):  # type: ignore[misc]
    """What the classes of this module add to torch's: a step."""

    _engine: _Engine | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # torch's fused classes let GradScaler leave the scale to them
        self.__dict__.pop("_step_supports_amp_scaling", None)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._engine = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # load_state_dict ends here, and so do copies and pickles
        self._engine = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets the gradients to None; or, as torch's own, to zeros."""
        if not set_to_none or torch._C._autograd._profiler_enabled():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient, in one call; the closure, if any, is called first."""
        return (_observed_step if _is_observed(self) else _step)(self, closure)

    step.hooked = True  # type: ignore[attr-defined]  # else torch would call `_observed_step`, in every step


def _step(self: Any, closure: Callable[[], Any] | None) -> Any:
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    params = [p for group in self.param_groups for p in group["params"]]
    grads = [p.grad for p in params]
    engine = self._engine
    if engine is not None and not engine.fits(self, params):
        engine = self._engine = None
    arrays = None if engine is None else engine.plain_arrays(grads)
    if arrays is not None:
        engine.step(self, arrays, range(len(arrays)))
        return loss
    if any(grad is not None and grad.is_sparse for grad in grads):
        self._engine = None
        theirs: Any = type(self).__mro__[2]
        step = theirs.step
        # hooks and profiler are around this call already
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)
        return loss
    if engine is None:
        engine = self._engine = _Engine(self)
    engine.step(self, engine.arrays(grads), [i for i, grad in enumerate(grads) if grad is not None])
    return loss


_observed_step = torch.optim.Optimizer.profile_hook_step(_step)
"""The step with torch's hooks and its mark for profilers around it, which cost as much as a step of a small model."""


def _is_observed(optimizer: Any) -> bool:
    """Whether there is a hook or a profiler."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
    )


def _made(name: str) -> type[_Adaptor]:
    base = getattr(torch.optim, name)
    doc = f"`torch.optim.{name}` with the step of `fastopt.{name}`."
    return type(name, (_Adaptor, base), {"__module__": __name__, "__doc__": doc})


__all__ = [name for name in optimizers.__all__ if hasattr(torch.optim, name)]
globals().update({name: _made(name) for name in __all__})
