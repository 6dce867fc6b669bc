"""thinc's optimizers with fastopt's update: ``fastopt.thinc.Adam(0.001)``, and in configs ``"fastopt.Adam.v1"``.

The classes here are subclasses of thinc's ``Optimizer``, and can be passed wherever thinc or spaCy takes one. Schedules,
averages and counters are thinc's own code; clipping, decay and the update are one call of fastopt's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import thinc.api
from thinc.backends import get_array_ops
from thinc.optimizers import ADAM_DEFAULTS, SGD_DEFAULTS, FloatOrSeq

import fastopt
from fastopt.options import shown
from fastopt.schedule_free import ScheduleFree

__all__ = ["SGD", "Adam", "Optimizer"]

Key = tuple[int, str]


class _Current:
    """A callable option that is what an attribute of a thinc optimizer is at the moment."""

    def __init__(self, optimizer: Any, name: str) -> None:
        self.optimizer, self.name = optimizer, name

    def __call__(self, step: int) -> float:
        return float(getattr(self.optimizer, self.name))


class _Optimizer(thinc.api.Optimizer):  # type: ignore[misc, unused-ignore]
    """A thinc optimizer whose update is fastopt's. Its ``steps`` is the optimizer of fastopt, which has the state."""

    steps: fastopt.Optimizer
    unused: ClassVar[tuple[str, ...]] = ("use_radam",)
    """Attributes of thinc's that have no effect here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.unused and getattr(self, name, value) != value:
            raise AttributeError(
                f"{name}: fastopt.thinc.{type(self).__name__} does not use it; its options are in "
                "optimizer.steps.param_groups"
            )
        super().__setattr__(name, value)

    def __call__(self, key: Key, weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> tuple[Any, Any]:
        """Updates one parameter, as thinc's optimizers do: weights change in place, the gradient becomes 0."""
        if len(gradient) >= 1:
            self._update({key: weights}, {key: gradient}, lr_scale)
        return weights, gradient

    def finish_update(self, model: Any) -> None:
        """Does what ``model.finish_update(optimizer)`` does, for all parameters in one call."""
        params, grads = {}, {}
        for node in model.walk():
            for shim in node.shims:
                shim.finish_update(self)
        for node in model.walk():
            for name in node.param_names:
                if node.has_grad(name) and len(node.get_grad(name)) >= 1:
                    key = node.id, name
                    params[key], grads[key] = node.get_param(name), node.get_grad(name)
        self._update(params, grads, 1.0)

    def _update(self, params: dict[Key, Any], grads: dict[Key, Any], lr_scale: float) -> None:
        named = {f"{number} {name}": weights for (number, name), weights in params.items()}
        gradients: Any = dict(zip(named, grads.values(), strict=True))
        for name, weights in named.items():
            if not (isinstance(weights, np.ndarray) and isinstance(gradients[name], np.ndarray)):
                raise TypeError(
                    f"{name!r}: fastopt updates NumPy arrays, this is a {type(weights).__name__}; call "
                    "thinc.api.require_cpu() before the model is made, or take thinc's own optimizer"
                )
        self.lr_scale = lr_scale
        adds_l2 = self.L2 != 0 and not self.L2_is_weight_decay
        if adds_l2:  # before clipping, and so not by weight_decay
            gradients = {name: grad + self.L2 * named[name] for name, grad in gradients.items()}
        self.steps.update(named, gradients, max_norm_each=self.grad_clip or None, zero_grads=not adds_l2)
        for key, weights in params.items():
            if adds_l2:
                grads[key][...] = 0
            self.nr_update[key] += 1
            if self.averages is not None:
                ops = get_array_ops(weights)  # type: ignore[no-untyped-call, unused-ignore]
                if key not in self.averages:
                    self.averages[key] = ops.alloc(weights.shape, dtype="float32")
                ops.update_averages(self.averages[key], weights, self.nr_update[key])

    lr_scale = 1.0

    @property
    def _decay(self) -> float:
        """The part of itself that a parameter loses in a step: thinc takes it off after the update."""
        decay = self.lr_scale * self.learn_rate * self.L2 if self.L2_is_weight_decay else 0.0
        if not decay < 1.0:
            raise ValueError(f"L2: times the learning rate it must be below 1, and is {decay}")
        return decay

    @property
    def _lr(self) -> float:
        return self.lr_scale * self.learn_rate * (1.0 - self._decay)

    @property
    def _weight_decay(self) -> float:
        """Before an update with `_lr`, what takes off as much as thinc does after its own."""
        return self.L2 / (1.0 - self._decay) if self.L2_is_weight_decay else 0.0


class Adam(_Optimizer):
    """thinc's Adam, with its arguments and defaults. In a config ``fastopt.Adam.v1``.

    Its epsilon is added before bias correction, as thinc's.

    learn_rate, beta1, beta2, eps, L2, grad_clip: numbers, or thinc's schedules of them: lists or generators, which
        ``step_schedules()`` moves on.
    L2: the part of itself, times the learning rate, that a parameter loses after the update; with
        L2_is_weight_decay=False this multiple of the parameter is added to the gradient before it is clipped.
    grad_clip: the largest norm of the gradient of one parameter, 0 for none.
    use_averages: whether ``optimizer.averages`` has thinc's moving averages of the parameters.
    """

    def __init__(
        self,
        learn_rate: FloatOrSeq = ADAM_DEFAULTS["learn_rate"],
        *,
        L2: FloatOrSeq = ADAM_DEFAULTS["L2"],
        beta1: FloatOrSeq = ADAM_DEFAULTS["beta1"],
        beta2: FloatOrSeq = ADAM_DEFAULTS["beta2"],
        eps: FloatOrSeq = ADAM_DEFAULTS["eps"],
        grad_clip: FloatOrSeq = ADAM_DEFAULTS["grad_clip"],
        L2_is_weight_decay: bool = True,
        use_averages: bool = True,
    ) -> None:
        super().__init__(
            learn_rate,
            L2=L2,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            grad_clip=grad_clip,
            L2_is_weight_decay=L2_is_weight_decay,
            use_averages=use_averages,
        )
        self.steps = fastopt.Adam(
            lr=_Current(self, "_lr"),
            betas=(_Current(self, "b1"), _Current(self, "b2")),
            eps=0.0,
            eps_hat=_Current(self, "eps"),
            weight_decay=_Current(self, "_weight_decay"),
            decoupled_weight_decay=True,
        )


class SGD(_Optimizer):
    """thinc's SGD, with its arguments and defaults. In a config ``fastopt.SGD.v1``.

    learn_rate, L2, grad_clip, L2_is_weight_decay, use_averages: as for `Adam`.
    """

    unused = (*_Optimizer.unused, "b1", "b2", "eps")

    def __init__(
        self,
        learn_rate: FloatOrSeq,
        *,
        L2: FloatOrSeq = SGD_DEFAULTS["L2"],
        grad_clip: FloatOrSeq = SGD_DEFAULTS["grad_clip"],
        L2_is_weight_decay: bool = True,
        use_averages: bool = True,
    ) -> None:
        super().__init__(
            learn_rate,
            L2=L2,
            grad_clip=grad_clip,
            L2_is_weight_decay=L2_is_weight_decay,
            use_averages=use_averages,
        )
        self.steps = fastopt.SGD(
            lr=_Current(self, "_lr"), weight_decay=_Current(self, "_weight_decay"), decoupled_weight_decay=True
        )


class Optimizer(_Optimizer):
    """Any optimizer of fastopt as one of thinc's. In a config ``fastopt.Optimizer.v1``.

    name: of a class, such as "Lion".
    learn_rate: a number, or a schedule of thinc's.
    options: the other arguments of that class.
    grad_clip, use_averages: as for `Adam`.
    """

    unused = (*SGD.unused, "L2", "L2_is_weight_decay")

    def __init__(
        self,
        name: str,
        learn_rate: FloatOrSeq,
        *,
        options: dict[str, Any] | None = None,
        grad_clip: FloatOrSeq = ADAM_DEFAULTS["grad_clip"],
        use_averages: bool = True,
    ) -> None:
        super().__init__(learn_rate, grad_clip=grad_clip, use_averages=use_averages)
        cls = getattr(fastopt, name, None) if isinstance(name, str) else None
        if not (isinstance(cls, type) and issubclass(cls, fastopt.Optimizer)) or cls is fastopt.Optimizer:
            raise ValueError(f"name: expected the name of an optimizer such as 'Adam', got {shown(name)}")
        if issubclass(cls, ScheduleFree):
            raise ValueError(
                f"name: the result of {name} is what its eval() gives, which thinc does not call; take another class"
            )
        if options and "lr" in options:  # within an except block, Python's own error is a KeyError
            raise TypeError("options: multiple values for keyword argument 'lr'; pass it as learn_rate alone")
        make: Any = cls
        self.steps = make(lr=_Current(self, "_lr"), **options or {})
