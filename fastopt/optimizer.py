"""class Optimizer: the parameter groups, state, step and edits that all optimizers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from fastopt import arrays, checkpoint, docstrings, option_names, options, unseen
from fastopt._plan import Change, Plan
from fastopt._turns import Turns, exclusive, reading
from fastopt.accumulation import Accumulating
from fastopt.algorithm import Algorithm, Hyper
from fastopt.arrays import Array
from fastopt.averages import Mirroring
from fastopt.changes import Changing
from fastopt.copying import Copying
from fastopt.parameters import as_groups
from fastopt.rows import UpdatingRows
from fastopt.settings import Settings, with_advice
from fastopt.step_options import StepOptions, takes_step_options
from fastopt.thread_tuner import ThreadTuners

if TYPE_CHECKING:
    from typing_extensions import Unpack

Params: TypeAlias = Iterable[Array] | Mapping[str, Array] | Iterable[Mapping[str, Any]]
Grads: TypeAlias = Sequence[Array | None] | Mapping[str, Array | None]
Handed: TypeAlias = Sequence[Array] | Mapping[str, Array]


class Optimizer(Changing, Settings, Accumulating, UpdatingRows, Mirroring, Copying):
    """Updates parameters in place; each subclass is one algorithm.

    params: arrays, float32, float64 or bfloat16 (ml_dtypes), native, writable, C- or Fortran-contiguous: a
    list, a dict by names, or a list of groups, dicts with ``"params"`` and hyper-parameters that differ from
    the defaults. Raises TypeError or ValueError, naming the parameter or the option, for all that cannot be
    updated.

    One call at a time: calls from other threads wait for their turn. Inside a call, a callable or a signal handler
    of the same thread may read (``state``, ``state_dict()``, ``repr``); a call that would change the optimizer
    raises RuntimeError there.
    """

    algorithm: ClassVar[type[Algorithm]]
    """The part that the author of an optimizer writes."""

    param_groups: list[Hyper]
    """Dicts with ``"params"`` and the hyper-parameters, which may be edited between steps."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__doc__ = docstrings.OptionsDocstring(vars(cls).get("__doc__") or "")  # type: ignore[assignment]
        if "__init__" in vars(cls):
            cls.__init__ = with_advice(vars(cls)["__init__"])  # type: ignore[method-assign]

    def __init__(self, params: Params | None, hyper: Mapping[str, Any]) -> None:
        # `hyper` is locals() of the subclass's __init__, so that its signature is the one list of options
        given = {name: value for name, value in hyper.items() if name not in {"self", "params", "__class__"}}
        self.defaults = {**option_names.check_all(type(self), given), **self.algorithm.flags}
        self.algorithm.check(self.defaults)
        self.param_groups = []
        self._turns = Turns()
        groups = [{}] if params is None else as_groups(params)
        keeps_params = params is not None and not any("names" in group for group in groups)
        self._plan = Plan(self.algorithm, self._turns, ThreadTuners(), keeps_params, options.bounds_of(type(self)))
        self._plan.commit(self.param_groups, self._with_groups(groups))

    # -- The methods that a user calls --

    @takes_step_options
    def step(self, grads: Grads | None = None, **options: Unpack[StepOptions]) -> float | None:
        """Updates every parameter that has a gradient, in place; all of them or, on an error, none.

        grads: for each parameter an array of its shape and dtype (or of 16 bits) in any layout, or None to
        leave the parameter, its state and its step alone: a list in the parameters' order or a dict by their
        names; omitted after `bind`. The other arguments act on the gradients in this order:

        grad_scale: every gradient is multiplied by it.
        max_value: elements are clipped to ±max_value (torch's clip_grad_value_).
        max_norm_each: each gradient is scaled down to this norm of its own, by torch's rule g * min(1, max / (norm +
        1e-6)) (Keras' clipnorm).
        max_norm: all gradients are scaled down to this norm of them all, by the same rule (torch's clip_grad_norm_).
        norm_type: 2 or infinity.
        skip_nonfinite: a step with an infinity or a NaN in any gradient changes nothing.
        zero_grads: zeros are written into the gradients after the step, also after one that is skipped.

        Returns the norm of all gradients after ``grad_scale`` and before any clipping if max_norm, max_norm_each or
        skip_nonfinite was asked for, else None. Not finite: with skip_nonfinite the step was skipped.
        """
        return self._plan.step(self, grads, options)

    @takes_step_options
    def update(self, params: Handed, grads: Grads, **options: Unpack[StepOptions]) -> float | None:
        """Updates parameters that are handed over at each call, in place; all of them or, on an error, none.

        params, grads: two lists in one order, or two dicts by the same names, never mixed. A dict may hold any of the
        names. The state belongs to the position or the name: it is made when that is first seen, and from then on
        the array must have the same shape and dtype, but may lie elsewhere. An optimizer that was made without
        parameters, ``Adam(lr=1e-3)``, keeps no reference to them; one that was made with parameters holds the new
        ones from then on. A new name joins the group that lists it, ``Adam([{"names": ["b"], "weight_decay": 0.0},
        {}])``, else the last. The other arguments, and what is returned, are those of `step`.
        """
        return self._plan.update(self, params, grads, options)

    @exclusive
    def bind(self, grads: Grads | None) -> None:
        """Registers gradient arrays that are overwritten in each iteration: from now on ``step()`` takes none.

        grads: as for `step`, each contiguous in its parameter's order; None ends it. So does a step that is given
        others, and `add_param_group`.
        """
        self._plan.bind(grads)

    @exclusive
    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters, with their own hyper-parameters: a dict as in ``params``."""
        self._take_edits()
        self._plan.commit(self.param_groups, self._with_groups([group]))

    @exclusive
    def reset(self) -> None:
        """Starts anew: states and step counters (and so schedules) as in a new optimizer; on an error nothing.

        Options and parameters stay; gradients that were accumulated, and states that wait for `update` to see
        their names, are dropped.
        """
        self._take_edits()
        plan, change = self._plan, Change()
        for index, group in enumerate(plan.groups):
            if any(group.h[name] != first for name, first in self.algorithm.flags.items()):
                raise RuntimeError(f"group {index}: the parameters are ahead; call step() before reset()")
        self._start_from(
            change, [group.h for group in plan.groups], [{}] * len(plan.tensors), [0] * len(plan.tensors)
        )
        change.unseen = {}
        self._commit(change)
        plan.accumulated = None

    @property
    @reading
    def state(self) -> checkpoint.States:
        """For each parameter (by number or name) its ``"step"`` and its state arrays, which are views."""
        return checkpoint.States(self._plan.tensors, self._plan.place, self.algorithm.states)

    @reading
    def state_dict(self) -> dict[str, Any]:
        """A copy of all but the parameters, shaped as in torch: plain dicts, numbers and arrays."""
        saved = checkpoint.state_dict(self._plan, self._edits(), self.algorithm.states)
        return unseen.with_unseen(saved, self._plan.unseen)

    @exclusive
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts in place what `state_dict` returned, or torch's does (as arrays); on an error nothing.

        Options that the dict does not have stay, callables stay, each callable in ``betas`` too, and so does
        ``state_dtype`` if it is None there. Other keys of the dict's groups are kept, but for those by which torch
        chooses an implementation. States of names, or positions, that `update` has not seen yet wait until it does.
        """
        before = self._groups_now()
        change = self._change_to(state_dict, before)
        checkpoint.warn_of_new_state_dtypes(self._plan.tensors, before, [h for _, _, h, _ in change.groups])
        self._commit(change)

    @reading
    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"  group {index}: {len(group['params'])} parameters")
            lines += [f"    {k}: {arrays.shown_as(v)}" for k, v in group.items() if k != "params"]
        return "\n".join([*lines, ")"])
