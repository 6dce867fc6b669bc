"""Keras' optimizers with fastopt's step, on Keras' torch backend: ``model.compile(fastopt.keras.Adam(1e-3), …)``.

Each class here is a subclass of Keras' class of the same name. Arguments, schedules, clipping, weight decay, averages
and gradient accumulation are Keras' own code; only the update is fastopt's. It writes into Keras' own variables, so
that ``model.save`` keeps the state, and a file that was saved with Keras' class goes on with this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from fastopt import functional

if keras.backend.backend() != "torch":
    raise ImportError(
        f"fastopt.keras: Keras runs on the backend {keras.backend.backend()!r}, and fastopt can change variables in "
        "place on the backend 'torch' alone; set the environment variable KERAS_BACKEND=torch before Keras is imported"
    )

import torch

from fastopt.torch import _array, _check

Rule = tuple[Callable[..., None], tuple[str, ...], dict[str, Any]]
"""A function of `fastopt.functional`, the attributes with the lists of its states, and its options."""


def _adam(own: Any) -> Rule:
    states = ("_momentums", "_velocities", *(("_velocity_hats",) if own.amsgrad else ()))
    # Keras adds its epsilon before bias correction
    options = {"betas": (own.beta_1, own.beta_2), "eps": 0.0, "eps_hat": own.epsilon, "amsgrad": own.amsgrad}
    return functional.adam, states, options


def _sgd(own: Any) -> Rule:
    if own.momentum == 0:
        return functional.sgd, (), {}
    if own.nesterov:
        options = {"momentum": own.momentum, "nesterov": True, "lr_in_momentum": True}
        return _with_the_opposite_state, ("momentums",), options
    return functional.nag, ("momentums",), {"momentum": own.momentum}


def _with_the_opposite_state(param: Any, grad: Any, buffer: Any, **options: Any) -> None:
    """SGD whose buffer has Keras' sign: there it is added to the parameter."""
    np.negative(buffer, out=buffer)
    try:
        functional.sgd(param, grad, buffer, **options)
    finally:
        np.negative(buffer, out=buffer)


def _rmsprop(own: Any) -> Rule:
    # in the order in which the function takes them; None stands for one that is not needed
    states = (
        "_velocities",
        "_average_gradients" if own.centered else "",
        "_momentums" if own.momentum > 0 else "",
    )
    options = {"alpha": own.rho, "eps": 0.0, "eps_root": own.epsilon, "centered": own.centered}
    return functional.rmsprop, states, options | {"momentum": own.momentum, "lr_in_momentum": True}


RULES: dict[str, Callable[[Any], Rule]] = {
    "SGD": _sgd,
    "RMSprop": _rmsprop,
    "Adam": _adam,
    "AdamW": _adam,  # Keras has made the decay
    "Adagrad": lambda own: (functional.adagrad, ("_accumulators",), {"eps": 0.0, "eps_root": own.epsilon}),
    "Adadelta": lambda own: (
        functional.adadelta,
        ("_accumulated_grads", "_accumulated_delta_vars"),
        {"rho": own.rho, "eps": own.epsilon},
    ),
    "Adamax": lambda own: (
        functional.adamax,
        ("_m", "_u"),
        {"betas": (own.beta_1, own.beta_2), "eps": own.epsilon, "eps_in_max": False},
    ),
    "Lion": lambda own: (functional.lion, ("_momentums",), {"betas": (own.beta_1, own.beta_2)}),
}
"""How fastopt computes the update of each of Keras' classes."""


def _memory(variable: Any) -> Any:
    """The memory of one of Keras' variables as an array."""
    tensor = variable.value.detach()
    if not tensor.is_contiguous():  # some initializers make such; the states are in C order
        variable.value.data = tensor = tensor.contiguous()
    return _array(tensor)


class _Adaptor:
    """What the classes of this module change in Keras': the update of all variables."""

    _rule: Rule | None = None

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        own: Any = self
        rule = RULES[type(self).__mro__[2].__name__](self)
        if rule != self._rule:
            self.__dict__["_rule"] = rule  # past Keras, which would save it
        # an equal rule's own objects are given again, for fastopt knows these and need not check them
        function, names, options = self.__dict__["_rule"]
        options = options | {"lr": float(learning_rate), "step": int(own.iterations) + 1}
        calls = []
        for variable, grad in zip(trainable_variables, grads, strict=True):
            index = own._get_variable_index(variable)
            _check(index, variable.value)
            states = [getattr(own, name)[index] if name else None for name in names]
            arrays = [state if state is None else _memory(state) for state in states]
            gradient = _array(grad.detach().to(variable.value.dtype))
            seed = (
                {"seed": index} if variable.value.dtype == torch.bfloat16 else {}
            )  # others are not rounded at random
            calls.append((seed, _memory(variable), gradient, *arrays))
        for seed, *given in calls:
            function(*given, **seed, **options)
        torch.autograd.graph.increment_version([variable.value for variable in trainable_variables])


def _made(name: str) -> type[_Adaptor]:
    doc = f"`keras.optimizers.{name}` with the update of fastopt, on the torch backend."
    cls = type(name, (_Adaptor, getattr(keras.optimizers, name)), {"__module__": __name__, "__doc__": doc})
    return keras.saving.register_keras_serializable(package="fastopt")(cls)


__all__ = list(RULES)
globals().update({name: _made(name) for name in __all__})
