"""Norms and clipping of gradients without an optimizer, and the scale of a loss for 16-bit gradients.

`fastopt.Optimizer.step` does the same on the way, without a pass over memory of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, TypeAlias

import numpy as np

from fastopt import arrays, options, reference, storage
from fastopt._plan import Clipping, Gradients, norms_of_units
from fastopt.arrays import Array, Key
from fastopt.checked_settings import CheckedSettings
from fastopt.functional import thread_tuners

GradientList: TypeAlias = Sequence[Array | None] | Mapping[str, Array | None]


def _gradients(grads: GradientList) -> Gradients:
    found = arrays.listed_or_named("grads", grads)
    if isinstance(found, dict):
        return Gradients(found, list(found.values()), thread_tuners())
    return Gradients(range(len(found)), found, thread_tuners())


def global_norm(grads: GradientList, norm_type: float = 2.0) -> float:
    """The norm of all gradients together: the root of the sum of their squares, or their largest magnitude.

    grads: a list or dict of float32, float64, float16 or bfloat16 arrays in any layout; None does not count.
    norm_type: 2 or infinity.

    Squares are added up in float64 in an order that no machine or number of threads changes; a sum that overflows is
    taken again of smaller values. Without any gradient it is 0.0.
    """
    clipping = Clipping(norm_type=norm_type, skip_nonfinite=True)
    return float(_gradients(grads).measure(clipping))


def clip_grad_norm(grads: GradientList, max_norm: float, norm_type: float = 2.0) -> float:
    """Scales all gradients down, in place, so that their global norm is at most ``max_norm``; returns the norm before.

    By torch's rule, ``g * min(1, max_norm / (norm + 1e-6))``. The arguments are those of `global_norm`; arrays must
    be writable, and share no memory.
    """
    clipping = Clipping(max_norm=options.check_limit("max_norm", max_norm), norm_type=norm_type)
    gradients = _writable(grads)
    norm = float(gradients.measure(clipping))
    gradients.clip()
    return norm


def clip_grad_value(grads: GradientList, clip_value: float) -> None:
    """Clips every element to ±``clip_value``, in place; a NaN stays one."""
    limit = options.check_limit("clip_value", clip_value)
    _writable(grads).clip(limit)


def _writable(grads: GradientList) -> Gradients:
    arrays.refuse_file("grads", grads)
    gradients = _gradients(grads)
    if not gradients.are_known_to_be_writable():
        listed = [(arrays.gradient_label(tensor.key), tensor.array) for tensor in gradients.tensors]
        arrays.refuse_writing(listed, "it cannot be clipped in place", "pass a copy")
    return gradients


def clip_grad_adaptive(
    params: GradientList, grads: GradientList, clipping: float, axis: int | Sequence[int] | None
) -> None:
    """Scales the gradient of each unit down, in place, to a part of the norm of the unit's parameters (AGC).

    A unit with the parameters w and the gradient g: where ``||g|| >= clipping * max(||w||, 1e-3)``, g becomes
    ``g * clipping * max(||w||, 1e-3) / max(||g||, 1e-6)``.

    params, grads: two lists in one order or two dicts by the same names, of arrays of equal shapes; a gradient of None
        is left alone. Gradients must be writable, and share no memory.
    clipping: the largest part; the paper has 0.01 to 0.16.
    axis: the axis or axes that the norms run over; the others number the units. Layouts differ, so it has no default:
        for weights of shape (inputs, outputs), as in optax, it is 0; for torch's (outputs, inputs) it is 1, and
        (1, 2, 3) for its convolutions. None: an array is one unit. Arrays with fewer than two axes are always one unit.

    Norms are those of `global_norm`, with the same bits everywhere. Source: Brock, De, Smith, Simonyan 2021,
    arXiv:2102.06171, section 4.1.
    """
    limit = options.check_limit("clipping", clipping)
    arrays.refuse_file("grads", grads)
    given, grads = arrays.handed_over(params, grads, "clip_grad_adaptive")
    _refuse_missing(given, grads)
    units: dict[int, tuple[int, ...]] = {}  # the axes of the norms by the number of all axes
    found = []
    for tensor in _writable(grads).tensors:
        own, weights = tensor.array, np.asarray(given[tensor.key])
        if weights.shape != own.shape or weights.dtype.kind not in "fV":
            raise ValueError(
                f"{arrays.gradient_label(tensor.key)}: the parameter has shape {weights.shape} and dtype "
                f"{weights.dtype}, its gradient shape {own.shape}; pass floats of the same shape"
            )
        if own.ndim not in units:
            units[own.ndim] = _units(tensor.key, own.ndim, axis)
        found.append((weights, own, units[own.ndim]))
    if found:
        arrays.quietly(_clip_units, found, limit)


def _clip_units(pairs: Sequence[tuple[Array, Array, tuple[int, ...]]], limit: float) -> None:
    weight_norms = np.concatenate([_norms(storage.widened(weights), axes) for weights, _, axes in pairs])
    wide = [storage.widened(grad) for _, grad, _ in pairs]
    norms = np.concatenate([_norms(one, axes) for one, (_, _, axes) in zip(wide, pairs, strict=True)])
    largest = limit * np.maximum(weight_norms, _LEAST_WEIGHTS)
    is_larger = norms >= largest
    factors = np.where(is_larger, largest / np.maximum(norms, _LEAST_GRADIENT), 1.0)
    end = 0
    for one, (_, grad, axes) in zip(wide, pairs, strict=True):
        shape = _as_units(grad.shape, axes)[2]
        begin, end = end, end + math.prod(shape)
        if is_larger[begin:end].any():
            factor = factors[begin:end].reshape(shape).astype(one.dtype)
            if one is grad:
                np.multiply(grad, factor, out=grad)
            else:
                storage.nearest(grad, one * factor)


def _norms(array: Array, axes: tuple[int, ...]) -> Array:
    """The norm of each unit."""
    order, sizes, _ = _as_units(array.shape, axes)
    found = norms_of_units(np.ascontiguousarray(array if order is None else array.transpose(order)), *sizes)
    return reference.norms_over(array, axes).ravel() if found is None else found


@lru_cache
def _as_units(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[tuple[int, ...] | None, tuple[int, int, int], tuple[int, ...]]:
    """An array's axes in another order, if the axes of the norms have others between them; how many units lie before
    these axes, elements in them and units behind; and the shape of the norms, which keep the axes."""
    begin = axes[0] if axes else 0
    end, order = begin + len(axes), None
    kept = tuple(1 if k in axes else n for k, n in enumerate(shape))
    if axes != tuple(range(begin, end)):
        begin, end = len(shape) - len(axes), len(shape)
        order = (*(k for k in range(len(shape)) if k not in axes), *axes)
        shape = tuple(shape[k] for k in order)
    return order, (math.prod(shape[:begin]), math.prod(shape[begin:end]), math.prod(shape[end:])), kept


_LEAST_WEIGHTS, _LEAST_GRADIENT = 1e-3, 1e-6
"""Smaller norms count as these (the paper's epsilon; optax')."""


def _units(key: Key, ndim: int, axis: int | Sequence[int] | None) -> tuple[int, ...]:
    """The axes that the norms of an array run over."""
    if axis is None or ndim < 2:
        return tuple(range(ndim))
    found = []
    for one in axis if isinstance(axis, Sequence) else (axis,):
        number = options.whole_number("axis", one, -(2**31))
        if not -ndim <= number < ndim:
            raise ValueError(f"axis: {number} is out of range: {arrays.gradient_label(key)} has {ndim} axes")
        found.append(number % ndim)
    if len(set(found)) != len(found):
        raise ValueError(f"axis: {axis} names an axis twice")
    return tuple(sorted(found))


def _refuse_missing(params: Any, grads: Any) -> None:
    """Refuses parameters, two lists or two dicts, among which one of a gradient is missing."""
    if isinstance(params, dict):
        missing = [name for name in grads if name not in params]
        if missing:
            raise ValueError(f"params: no parameter for the gradient {missing[0]!r}; pass it under the same name")
    elif len(params) != len(grads):
        raise ValueError(f"params: got {len(params)} for {len(grads)} gradients; pass one for each")


class GradScaler(CheckedSettings):
    """The factor of a loss whose gradients are too small for 16 bits, as torch's ``amp.GradScaler`` works it out.

    Multiply the loss by `scale`, step with ``norm = opt.step(grads, grad_scale=1 / scaler.scale,
    skip_nonfinite=True)``, and call ``scaler.update(norm)``.

    init_scale: the first scale. growth_factor: multiplies it after ``growth_interval`` finite steps in a row.
    backoff_factor: multiplies it after a step whose norm was not finite.

    The settings and the scale may be assigned anew.
    """

    settings: ClassVar = {
        "scale": partial(options.checked_number, interval=options.Interval(0, math.inf, "()")),
        "growth_factor": partial(options.checked_number, interval=options.Interval(1, math.inf, "()")),
        "backoff_factor": partial(options.checked_number, interval=options.Interval(0, 1, "()")),
        "growth_interval": partial(options.whole_number, least=1),
        "finite_steps": partial(options.whole_number, least=0),
    }
    scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    finite_steps: int

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self.scale = self.settings["scale"]("init_scale", init_scale)
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self.finite_steps = growth_interval, 0

    def update(self, norm: float | None) -> None:
        """Takes the norm that a step returned, and changes the scale where that is due."""
        if norm is None:
            raise TypeError("norm: expected what step() returned, got None; step with skip_nonfinite=True")
        if not math.isfinite(options.as_number("norm", norm)):
            self.scale, self.finite_steps = self.scale * self.backoff_factor or self.scale, 0
            return
        self.finite_steps += 1
        if self.finite_steps >= self.growth_interval:
            grown = self.scale * self.growth_factor
            self.scale, self.finite_steps = grown if math.isfinite(grown) else self.scale, 0

    def state_dict(self) -> dict[str, float | int]:
        """What `load_state_dict` takes; the keys are torch's."""
        return {
            "scale": self.scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self.finite_steps,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts in place what `state_dict` returned, or torch's scaler; on an error nothing."""
        names = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
        missing = [name for name in names if name not in state_dict]
        if missing:
            raise ValueError(f"state_dict: {', '.join(missing)} missing; pass what state_dict() returned")
        new = GradScaler(*(state_dict[name] for name in names[:4]))
        steps = options.whole_number("_growth_tracker", state_dict["_growth_tracker"], 0)
        self.__dict__.update(new.__dict__ | {"finite_steps": steps})

    def __repr__(self) -> str:
        return (
            f"GradScaler(init_scale={self.scale}, growth_factor={self.growth_factor}, "
            f"backoff_factor={self.backoff_factor}, growth_interval={self.growth_interval})"
        )
