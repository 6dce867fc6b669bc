"""Averages of the weights, Lookahead and mirrors: arrays that an optimizer writes after the parameters, in its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from fastopt import arrays, options, storage
from fastopt._plan import Applied, Trail
from fastopt._turns import exclusive, reading
from fastopt.arrays import Array, Key, within
from fastopt.checked_settings import CheckedSettings
from fastopt.parameters import by_key, given_by_key, refuse_params
from fastopt.schedule_free import ScheduleFree

if TYPE_CHECKING:
    from fastopt._plan import Plan, Tensor
    from fastopt._turns import Turns

Weight = tuple[float | None, float]
Own = TypeVar("Own", bound="Average")


LEAVE = "leave `with average.applied()` first"
"""What to do in the block where the parameters have the values of an average."""


class Follower(CheckedSettings):
    """Arrays that are written in each step, see `_followers.pxi`: one for each parameter."""

    fixed = frozenset({"opt"})
    leave = LEAVE
    row: ClassVar[str | None] = None
    writes_param: ClassVar[bool] = False

    def __init__(self, opt: Any) -> None:
        self.opt = opt
        self._turns: Turns = opt._turns
        self._left: dict[Key, Any] | None = None  # the trails of one that was removed
        self._follower = self._follow()

    @exclusive
    def _follow(self) -> Any:
        return self.opt._plan.follow(self, ~self.opt.defaults["seed"] & (1 << 64) - 1)

    @exclusive
    def remove(self) -> None:
        """Ends it: later steps do not write the arrays any more, which stay as they are."""
        if self._left is None:
            plan = self.opt._plan
            if plan.applied is self:
                raise RuntimeError(f"the parameters are those of this average; {LEAVE}")
            self._left = plan.trails_of(self._follower)
            plan.unfollow(self._follower)

    @property
    @reading
    def arrays(self) -> Any:
        """The arrays, as they are and not copied: a list, or a dict by the parameters' names."""
        found = {key: trail.array for key, trail in self._trails().items() if trail is not None}
        return list(found.values()) if all(type(key) is int for key in found) else found

    def _all_trails(self) -> dict[Key, Any]:
        if self._left is not None:
            return self._left
        found: dict[Key, Any] = self.opt._plan.trails_of(self._follower)
        return found

    def _trails(self) -> dict[Key, Any]:
        """Those that have values: for a parameter that `update` has seen before this was made, from its next step on."""
        return {key: trail for key, trail in self._all_trails().items() if trail is None or trail.has_values}

    # -- What a step asks for --

    def trail(self, tensor: Tensor) -> Any:
        """The array of a parameter; None if it has none."""
        raise NotImplementedError

    def weight(self, steps: int, share: float) -> Weight:
        """After so many steps: the scalar of the row, None where the step changes nothing; and the next share."""
        return 1.0, share

    @staticmethod
    def twin(p: Array, array: Array, weight: Any) -> None:
        """The row in NumPy, in place."""
        raise NotImplementedError


class Average(Follower):
    """What the averages share.

    The arrays have the parameters' dtype, float32 for 16 bits, and their order in memory. All parameters of a step that
    is made take part, with or without a gradient; a step that is skipped or refused changes nothing. Averages are
    updated in the order of their making. They are not in the optimizer's state dict, and ``opt.reset()`` leaves them
    alone: save them with ``fastopt.save(path, opt, averages=[average])``. Pickled or copied together with the optimizer
    they stay together; a copy of the optimizer alone has none. The arguments but the first are attributes, and may be
    assigned anew for the steps to come.
    """

    def __init__(self, opt: Any) -> None:
        if not hasattr(opt, "_plan") or not hasattr(opt, "_turns"):
            raise TypeError(f"opt: expected an optimizer of fastopt, got {options.shown(opt)}; make it first")
        if isinstance(opt, ScheduleFree):
            raise TypeError(
                f"opt: {type(opt).__name__} averages the parameters itself; call opt.eval() for its average"
            )
        self._waiting: dict[Key, tuple[Array, int, float]] = {}  # for keys that `update` has not seen yet
        super().__init__(opt)

    def trail(self, tensor: Tensor) -> Any:
        dtype = np.dtype(np.float64 if tensor.dtype == np.float64 else np.float32)
        place = len(self.opt._plan.followers)
        array = arrays.arena([tensor], [dtype], [{"average": 4 + place}])[0]["average"]
        if tensor.key in self._waiting:
            values, steps, share = self._waiting[tensor.key]
            with within(f"the average of {tensor.label}"):
                array[...] = _fitting(values, array)
            return Trail(array, steps, share)
        if tensor.now is None:  # the next step copies it
            return Trail(array, is_filled=False)
        np.copyto(array, storage.widened(tensor.now))
        return Trail(array)

    @property
    def steps(self) -> int:
        """The largest number of steps that any parameter has been in since the average was made."""
        return max((trail.steps for trail in self._trails().values()), default=0)

    @reading
    def state_dict(self) -> dict[str, Any]:
        """A copy of arrays and counters; the options are not in it."""
        state = self._state_views()
        return {
            "state": {key: {**x, "average": x["average"].copy(order="K")} for key, x in state["state"].items()}
        }

    @reading
    def _state_views(self) -> dict[str, Any]:
        """The same without a copy."""
        found = {key: (t.array, t.steps, t.share) for key, t in self._trails().items()}
        return {
            "state": {
                key: {"step": steps, "share": share, "average": array}
                for key, (array, steps, share) in (self._waiting | found).items()
            }
        }

    @exclusive
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts in place what `state_dict` returned; on an error nothing.

        Averages of names, or positions, that `update` has not seen yet wait until it does.
        """
        plan: Plan = self.opt._plan
        trails = self._all_trails()
        if not isinstance(state_dict, Mapping) or not isinstance(state_dict.get("state"), Mapping):
            raise ValueError("state_dict: it has no 'state'; pass what state_dict() returned")
        state = state_dict["state"]
        missing = [arrays.label_of(key) for key in self._trails() if key not in state]
        unknown = [arrays.label_of(key) for key in state if key not in trails]
        if missing or (unknown and plan.keeps_params):
            raise ValueError(
                f"state_dict: it {'lacks' if missing else 'has'} {arrays.listing(missing or unknown)}; pass one of an "
                "average around the same parameters"
            )
        read = {}
        for key, entry in state.items():
            with within(f"the average of {arrays.label_of(key)}"):
                read[key] = _read(entry, trails[key].array if key in trails else None)
        self._waiting = {key: entry for key, entry in read.items() if key not in trails}
        arrays.quietly(plan.load_trails, [(trails[key], *read[key]) for key in trails if key in read])

    def applied(self, params: Any = None) -> Any:
        """``with average.applied():`` the parameters have the values of the average; then their own again, exactly.

        params: for an optimizer that was made without them, the arrays, as for `update`. Parameters of 16 bits have the
        averages rounded to the nearest. Steps, loads and a second ``applied()`` in the block raise RuntimeError.
        """
        return Applied(self.opt, self, lambda: self._values(params))

    def _values(self, params: Any) -> list[tuple[Key, Array, Array]]:
        """The parameters by their keys, and the values that they are to have."""
        plan: Plan = self.opt._plan
        trails = self._trails()
        found = []
        for key, value in given_by_key(plan, params, "applied").items():
            label = arrays.label_of(key)
            if key not in trails:
                raise ValueError(f"{label}: there is no average of it yet; pass it to update() first")
            array, average = arrays.checked_parameter(label, value), trails[key].array
            if array.shape != average.shape:
                raise ValueError(
                    f"{label}: its shape is {array.shape}, its average's {average.shape}; pass the same"
                )
            rounded = average
            if array.dtype != average.dtype:
                rounded = np.empty_like(array)
                storage.nearest(rounded, average)
            found.append((key, array, rounded))
        return found

    def _options(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _made_again, (type(self), self.opt, self._options(), self.state_dict(), self._left is not None)

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({type(self.opt).__name__}(...){shown})"


def _lerp(p: Array, array: Array, weight: Any) -> None:
    difference = p - array
    array[...] = array + weight * difference if weight < 0.5 else p - difference * (1 - weight)


_number = partial(options.checked_number, interval=options.Interval(0, 1))


def _decay(label: str, value: Any) -> Any:
    return value if callable(value) else _number(label, value)


class ExponentialMovingAverage(Average):
    """A moving average of the parameters: ``average = decay * average + (1 - decay) * parameter`` after each step.

    opt: the optimizer, in whose steps the average is updated.
    decay: 0 <= decay < 1; default 0.999. Also a callable of the number of steps that the average has seen.
    bias_correction: whether the average is divided by 1 - the product of the decays, so that it weighs the parameters
        of all steps as if it had begun with zeros; default False: the first step copies, and counts for much longer
        (torch's ``get_ema_multi_avg_fn``, Keras' ``use_ema``).

    With bias correction the arrays have it already.
    """

    row, twin = "lerp", staticmethod(_lerp)
    settings: ClassVar = {"decay": _decay, "bias_correction": options.check_flag}
    decay: float | Callable[[int], float]
    bias_correction: bool

    def __init__(
        self, opt: Any, decay: float | Callable[[int], float] = 0.999, *, bias_correction: bool = False
    ) -> None:
        self.decay, self.bias_correction = decay, bias_correction
        super().__init__(opt)

    def weight(self, steps: int, share: float) -> Weight:
        decay = _number(f"decay({steps})", self.decay(steps)) if callable(self.decay) else self.decay
        share = decay * share + (1 - decay)
        if self.bias_correction:
            return (1 - decay) / share, share
        return 1 - decay if steps else 1.0, share

    def _options(self) -> dict[str, Any]:
        return {"decay": self.decay, "bias_correction": self.bias_correction}


class StochasticWeightAverage(Average):
    """The mean of the parameters: ``average += (parameter - average) / n`` (Izmailov et al. 2018, arXiv:1803.05407).

    opt: the optimizer, in whose steps the mean is updated.
    start: how many steps are left out at the beginning; default 0. Until the first one that counts, the arrays have
        the parameters after the first step.
    every: 1 averages the parameters after each step, k those after each k-th one after `start`; default 1.
    """

    row, twin = "lerp", staticmethod(_lerp)
    settings: ClassVar = {
        "start": partial(options.whole_number, least=0),
        "every": partial(options.whole_number, least=1),
    }
    start: int
    every: int

    def __init__(self, opt: Any, *, start: int = 0, every: int = 1) -> None:
        self.start, self.every = start, every
        super().__init__(opt)

    def weight(self, steps: int, share: float) -> Weight:
        n, rest = divmod(steps + 1 - self.start, self.every)
        if n > 0 and rest == 0:
            return 1 / n, share
        return (None if steps else 1.0), share

    def _options(self) -> dict[str, Any]:
        return {"start": self.start, "every": self.every}


class Lookahead(Average):
    """Every k steps the parameters go back a part of their way (Zhang et al. 2019, arXiv:1907.08610, algorithm 1).

    ``slow += alpha * (parameter - slow); parameter = slow``, where slow begins as the parameters before the first step,
    as in the paper and in optax (timm begins with the parameters after k steps).

    opt: the optimizer, in whose steps this happens. Its states stay as they are.
    k: after how many steps; default 5.
    alpha: the part, 0 < alpha <= 1; default 0.5.
    """

    row = "lookahead"
    writes_param = True
    settings: ClassVar = {
        "k": partial(options.whole_number, least=1),
        "alpha": partial(options.checked_number, interval=options.Interval(0, 1, "(]")),
    }
    k: int
    alpha: float

    def __init__(self, opt: Any, k: int = 5, alpha: float = 0.5) -> None:
        self.k, self.alpha = k, alpha
        super().__init__(opt)

    def weight(self, steps: int, share: float) -> Weight:
        return (None if (steps + 1) % self.k else self.alpha), share

    @staticmethod
    def twin(p: Array, array: Array, weight: Any) -> None:
        array[...] = array + weight * (p - array)
        p[...] = array

    def _options(self) -> dict[str, Any]:
        return {"k": self.k, "alpha": self.alpha}


class Mirror(Follower):
    """Copies of the parameters in 16 bits, see `Optimizer.mirror`."""

    def __init__(self, opt: Any, given: Any, params: Any) -> None:
        own = self._params(opt._plan, params)
        self._given = self._checked(opt._plan, own, given)
        super().__init__(opt)
        self._write(own)

    @exclusive
    def _write(self, params: dict[Key, Array]) -> None:
        self.opt._plan.write_mirrors(self.pairs(params))

    def pairs(self, params: Mapping[Key, Array]) -> list[tuple[Array, Array]]:
        """The mirrors of these parameters, each with its parameter."""
        found = []
        for key, mirror in self._given.items():
            if key in params:
                self._refuse_other(key, params[key])
                found.append((mirror, params[key]))
        return found

    def trail(self, tensor: Tensor) -> Any:
        if tensor.key not in self._given:
            return None
        if tensor.now is not None:
            self._refuse_other(tensor.key, tensor.now)
        return Trail(self._given[tensor.key])

    def _refuse_other(self, key: Key, param: Array) -> None:
        mirror = self._given[key]
        if param.shape != mirror.shape or not arrays.is_in_order(mirror, arrays.order_of(param)):
            raise ValueError(
                f"the mirror of {arrays.label_of(key)}: its shape or its order in memory is not the parameter's; pass "
                "the parameter that it was made for"
            )

    @staticmethod
    def _params(plan: Plan, params: Any) -> dict[Key, Array]:
        if plan.keeps_params:
            if params is not None:
                refuse_params("mirror(arrays)")
            return {tensor.key: tensor.param for tensor in plan.tensors}
        given = given_by_key(plan, params, "mirror")
        return {key: arrays.checked_parameter(arrays.label_of(key), param) for key, param in given.items()}

    @staticmethod
    def _checked(plan: Plan, params: dict[Key, Array], given: Any) -> dict[Key, Array]:
        found, taken = {}, by_key("arrays", given)
        if taken.keys() != params.keys():
            raise ValueError(
                f"mirror: got {len(taken)} arrays for {len(params)} parameters; pass one for each, in the "
                "same order or by the same names"
            )
        for key, param in params.items():
            with within(f"the mirror of {arrays.label_of(key)}"):
                array, order = arrays.plain("mirror", taken[key]), arrays.order_of(param)
                if array.dtype != np.float16 and not arrays.is_bfloat16(array):
                    raise TypeError(f"its dtype is {array.dtype}; pass an array of float16 or bfloat16")
                if array.shape != param.shape or not arrays.is_in_order(array, order):
                    raise ValueError(
                        f"its shape is {array.shape}; pass a contiguous array of shape {param.shape} in "
                        f"{order} order, as np.empty_like makes it"
                    )
                if not array.flags.writeable or not array.flags.aligned:
                    raise ValueError("it is read-only or not aligned; pass another array")
                if plan.intervals.holds(array):
                    raise ValueError("it shares memory with a parameter or a state; pass an array of its own")
            found[key] = array
        mirrors = [(f"the mirror of {arrays.label_of(key)}", array) for key, array in found.items()]
        own = [(arrays.label_of(key), param) for key, param in params.items()]
        for first, second in arrays.sharing([*mirrors, *own]):
            raise ValueError(f"{first} and {second} share memory; pass arrays of their own")
        return found


class Mirroring:
    """The part of `Optimizer` that keeps copies of the parameters."""

    def mirror(self, arrays: Any, params: Any = None) -> Mirror:
        """Keeps copies of the parameters in 16 bits, for a model that computes with those.

        arrays: bfloat16 or float16 arrays of the parameters' shapes and orders: a list or a dict, as the optimizer was
        made. They are written now, after each step and after each load, rounded to the nearest, of two equally near to
        the even one. Returns an object whose ``remove()`` ends it. Parameters that are added later have no mirror.
        params: for an optimizer that was made without them, the arrays, as for `update`.
        """
        return Mirror(self, arrays, params)


def _made_again(
    cls: type[Own], opt: Any, given: Mapping[str, Any], state: Mapping[str, Any], is_removed: bool
) -> Own:
    """A copy of an average, around a copy of its optimizer."""
    average = cls(opt, **given)
    average.load_state_dict(state)
    if is_removed:
        average.remove()
    return average


def _read(entry: Any, array: Array | None) -> tuple[Array, int, float]:
    """The array, the steps and the share of a state dict's entry; array: that into which it will be copied."""
    if not isinstance(entry, Mapping) or not {"step", "share", "average"} <= set(entry):
        raise ValueError("it has no 'step', 'share' and 'average'; pass what state_dict() returned")
    values = np.asarray(entry["average"])
    if values.dtype.kind != "f":
        raise TypeError(f"its dtype is {values.dtype}; pass an array of floats")
    share = options.checked_number("share", entry["share"], options.Interval(0, 1, "[]"))
    values = np.array(values) if array is None else _fitting(values, array)
    return values, options.whole_number("step", entry["step"], 0), share


def _fitting(values: Array, array: Array) -> Array:
    if values.shape != array.shape:
        raise ValueError(f"its shape is {values.shape}, the parameter's {array.shape}; pass the same")
    return np.asarray(arrays.quietly(values.astype, array.dtype))
