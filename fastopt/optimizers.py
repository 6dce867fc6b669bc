"""The optimizers, simplest first: each is its options, its checks and its coefficients.

The equations use the letters of the formulas in ``src_c/optim/`` and ``reference.py``; g is the gradient
after ``grad_scale``, ``maximize`` (g = -g) and ``weight_decay`` (g = g + weight_decay * p). With
``decoupled_weight_decay`` the parameter is multiplied by 1 - lr * weight_decay before the update instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fastopt._kernels import Plan, bias_correction, unedited
from fastopt.choice import Choices
from fastopt.optimizer import (
    Array,
    Hyper,
    LearningRate,
    Optimizer,
    Params,
    check_number,
)

__all__ = ["NAG", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "RMSprop", "Signum"]


def _lr_of_momentum(h: Hyper, lr: float) -> tuple[float, float]:
    """The factors of what goes into the momentum buffer and of what the parameter takes from it."""
    return (lr, 1.0) if h["lr_in_momentum"] and h["momentum"] != 0 else (1.0, lr)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's form of it.

    ::

        p = p - lr * g                                                   momentum = 0
        buf = momentum * buf + (1 - dampening) * g;  p = p - lr * buf    else (first step: buf = g)
        p = p - lr * (g + momentum * buf)                                nesterov
        buf = momentum * buf + (1 - dampening) * lr * g;  p = p - buf    lr_in_momentum

    Momentum as a moving average, v = beta * v + (1 - beta) * g, is ``SGD(lr * (1 - beta), momentum=beta)``.
    With ``lr_in_momentum`` a change of ``lr`` acts on new gradients only, not on the momentum.
    A momentum that is switched on later begins with a buffer of zeros.

    Sources: Polyak 1964; Sutskever, Martens, Dahl, Hinton 2013 (ICML). State: ``momentum_buffer``.
    """

    kernel = "sgd"
    state_names = {"buf": "momentum_buffer"}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        lr_in_momentum: bool = False,
        decoupled_weight_decay: bool = False,
        state_dtype: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def check(h: Hyper) -> None:
        if h["nesterov"] and (h["momentum"] == 0 or h["dampening"] != 0):
            raise ValueError("nesterov: it needs a momentum above 0 and a dampening of 0")

    @staticmethod
    def optional_states(h: Hyper) -> set[str]:
        return {"buf"} if h["momentum"] != 0 else set()

    @staticmethod
    def coefficients(h: Hyper, lr: float, t: int) -> tuple[float, ...]:
        damped = 1.0 if t == 1 else 1.0 - h["dampening"]
        inside, outside = _lr_of_momentum(h, lr)
        return h["momentum"], damped * inside, h["nesterov"], inside, outside


class NAG(Optimizer):
    """Nesterov's accelerated gradient, with the gradient taken at the point looked ahead to.

    ::

        v = momentum * v - lr * gradient(p + momentum * v);  p = p + v

    `lookahead` moves the parameters to p + momentum * v, where the gradient is to be taken; ``step``
    returns them to the new p. Without it the gradient is that of p itself, and the step is classical
    momentum. A parameter whose gradient is None goes back to where it was, up to rounding.

    Sources: Nesterov 1983; Sutskever, Martens, Dahl, Hinton 2013 (ICML), equations 3 and 4.
    State: ``velocity``.
    """

    kernel = "nag"
    state_names = {"v": "velocity"}
    flags = {"ahead": False}
    _along: Plan | None = None
    _before: dict[int, Array] = {}
    """Parameters of 16 bits as `lookahead` found them: what is rounded at random has no way back."""
    _LOOKING_AHEAD, _RETURNING = 1 << 32, 2 << 32
    """Added to the seed, beyond all that users may give: the moves are rounded by random bits of their own."""

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def coefficients(h: Hyper, lr: float, t: int) -> tuple[float, ...]:
        return h["momentum"], lr, h["ahead"]

    @staticmethod
    def check_edit(h: Hyper, before: Hyper) -> None:
        for name in "momentum", "state_dtype":
            if before["ahead"] and h[name] != before[name]:
                raise ValueError(
                    f"{name}: the parameters are ahead by momentum * v as it was; put {before[name]!r} back, and "
                    "change it after step()"
                )

    def lookahead(self) -> None:
        """Moves every parameter to p + momentum * v; the next ``step`` takes gradients from there.

        Until then ``momentum`` and ``state_dtype`` stay what they are.
        """
        with self._alone():
            self._take_edits()
            if any(group["ahead"] for group in self._seen):
                raise RuntimeError("the parameters are ahead already; call step() before lookahead() again")
            self._before = {i: p.copy() for i, p in enumerate(self._params) if p.itemsize == 2}
            self._move(range(len(self._params)), 1.0, self._LOOKING_AHEAD)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._before = {}

    def commit(self, stepping: Sequence[bool]) -> BaseException | None:
        """Takes back what is ahead and has no gradient; a Ctrl-C amid that waits for the step."""
        ahead = [group["ahead"] for group in self._seen]
        if not any(ahead):
            return None
        back = [i for i, g in enumerate(self._group_of) if ahead[g] and not stepping[i]]
        works: list[Callable[[], None]] = [
            partial(self._move, [i for i in back if i not in self._before], -1.0, self._RETURNING)
        ]
        works += [partial(np.copyto, self._params[i], self._before[i]) for i in back if i in self._before]
        late = None
        for work in works:
            try:
                work()
            except BaseException as error:
                if any(group["ahead"] for group in self._seen):  # nothing has moved
                    raise
                late = error
        self._before = {}
        return late

    def _move(self, which: Sequence[int], sign: float, stream: int) -> None:
        """p = p + sign * momentum * v, a step of plain SGD along the velocity; then they are ahead, or not."""
        if not which:
            self._set_ahead(sign > 0)
            return
        if self._along is None or self._along.params is not self._params:
            n = len(self._params)
            steps = np.zeros(n, np.int64)
            self._along_choices = Choices()
            self._along = Plan("sgd", self._params, self._keys, self._group_of, [{}] * n, steps)
        self._along.steps[...] = self._steps  # the random bits are those of the optimizer's own step
        velocities = [None] * len(self._params)
        for i in which:
            velocities[i] = self._plan.states[i]["v"]
        plain = SGD.defaults_of()
        groups = [
            SGD.group({**plain, "lr": -sign * mine["momentum"], "seed": mine["seed"] + stream}, 0)
            for mine in self._seen
        ]
        self._along.step(velocities, 1.0, groups, self._along_choices, lambda _: self._set_ahead(sign > 0))

    def _set_ahead(self, ahead: bool) -> None:
        for seen in self._seen:
            seen["ahead"] = ahead
        if unedited(self.param_groups, self._items):  # else they are put right when they are checked
            for group in self.param_groups:
                group["ahead"] = ahead
            self._remember()


class Signum(Optimizer):
    """Signum: steps of one length, in the direction of the sign of the averaged gradient.

    ::

        m = momentum * m + (1 - momentum) * g
        p = p - lr * sign(m)

    The sign of 0 is 0. With ``momentum=0`` it is signSGD.

    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar 2018, arXiv:1802.04434. State: ``exp_avg``.
    """

    kernel = "signum"
    state_names = {"m": "exp_avg"}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def check(h: Hyper) -> None:
        check_number("momentum", h["momentum"], 1.0)

    @staticmethod
    def coefficients(h: Hyper, lr: float, t: int) -> tuple[float, ...]:
        return h["momentum"], 1.0 - h["momentum"], lr


class Adagrad(Optimizer):
    """Adagrad: a step size for every element, from the sum of its squared gradients.

    ::

        s = s + g^2
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s + eps_root) + eps)

    The textbook form lr / sqrt(s + eps) is ``eps=0, eps_root=eps``. ``initial_accumulator_value`` fills s
    when the optimizer is made.

    Source: Duchi, Hazan, Singer 2011 (JMLR 12). State: ``sum``.
    """

    kernel = "adagrad"
    state_names = {"s": "sum"}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        eps_root: float = 0.0,
        state_dtype: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def initial_states(h: Hyper) -> dict[str, float]:
        return {"s": h["initial_accumulator_value"]}

    @staticmethod
    def coefficients(h: Hyper, lr: float, t: int) -> tuple[float, ...]:
        return lr / (1.0 + (t - 1) * h["lr_decay"]), h["eps_root"], h["eps"]


class RMSprop(Optimizer):
    """RMSprop: a step size for every element, from a moving average of its squared gradients.

    ::

        s = alpha * s + (1 - alpha) * g^2
        a = alpha * a + (1 - alpha) * g;  s' = max(s - a^2, 0)           centered; else s' = s
        u = g / (sqrt(s' + eps_root) + eps)
        p = p - lr * u                                                   momentum = 0
        buf = momentum * buf + u;  p = p - lr * buf                      else
        buf = momentum * buf + lr * u;  p = p - buf                      lr_in_momentum

    s - a^2 is never negative but for cancellation; torch takes the root of it as it is and gets NaN. The
    textbook form lr / sqrt(s + eps) is ``eps=0, eps_root=eps``. ``initial_accumulator_value`` fills s when
    the optimizer is made.

    Sources: Hinton 2012 (lecture 6e); Graves 2013, arXiv:1308.0850. State: ``square_avg``, ``grad_avg``,
    ``momentum_buffer``.
    """

    kernel = "rmsprop"
    state_names = {"s": "square_avg", "a": "grad_avg", "buf": "momentum_buffer"}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        eps_root: float = 0.0,
        initial_accumulator_value: float = 0.0,
        lr_in_momentum: bool = False,
        state_dtype: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def optional_states(h: Hyper) -> set[str]:
        in_use = {"a": h["centered"], "buf": h["momentum"] != 0}
        return {letter for letter, used in in_use.items() if used}

    @staticmethod
    def initial_states(h: Hyper) -> dict[str, float]:
        return {"s": h["initial_accumulator_value"]}

    @staticmethod
    def coefficients(h: Hyper, lr: float, t: int) -> tuple[float, ...]:
        inside, outside = _lr_of_momentum(h, lr)
        return h["alpha"], 1.0 - h["alpha"], h["eps_root"], h["eps"], h["momentum"], inside, outside


class Adadelta(Optimizer):
    """Adadelta: RMSprop whose step size is a moving average of the squared updates.

    ::

        s = rho * s + (1 - rho) * g^2
        delta = sqrt((d + eps) / (s + eps)) * g
        d = rho * d + (1 - rho) * delta^2
        p = p - lr * delta

    Source: Zeiler 2012, arXiv:1212.5701. State: ``square_avg``, ``acc_delta``.
    """

    kernel = "adadelta"
    state_names = {"s": "square_avg", "d": "acc_delta"}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def coefficients(h: Hyper, lr: float, t: int) -> tuple[float, ...]:
        return h["rho"], 1.0 - h["rho"], h["eps"], lr


class Adam(Optimizer):
    """Adam, and AMSGrad.

    ::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        m^ = m / (1 - beta1^t);  v^ = v / (1 - beta2^t)
        p = p - lr * m^ / (sqrt(v^ + eps_root) + eps)

    With ``amsgrad``, v^ is made of max_exp_avg_sq, the largest v so far, in place of v. Without
    ``bias_correction``, m^ = m and v^ = v. ``eps_hat`` is an eps before bias correction, as in Keras and at
    the end of section 2 of the paper: lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps_hat); give
    it with ``eps=0``, or as True: then eps is meant so. Adam with sqrt(v^ + eps) is ``eps=0,
    eps_root=eps``.

    Sources: Kingma, Ba 2014, arXiv:1412.6980; Reddi, Kale, Kumar 2018, arXiv:1904.09237. State:
    ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``.
    """

    kernel = "adam"
    state_names = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        eps_root: float = 0.0,
        eps_hat: float = 0.0,
        bias_correction: bool = True,
        decoupled_weight_decay: bool = False,
        state_dtype: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def optional_states(h: Hyper) -> set[str]:
        return {"vmax"} if h["amsgrad"] else set()

    @staticmethod
    def coefficients(h: Hyper, lr: float, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        correction1 = correction2 = 1.0
        if h["bias_correction"]:
            correction1, correction2 = bias_correction(beta1, t), bias_correction(beta2, t)
        eps, eps_hat = h["eps"], h["eps_hat"]
        if eps_hat is True:
            eps, eps_hat = 0.0, eps
        if eps_hat:
            eps += eps_hat / math.sqrt(correction2)
        step_size = lr / correction1
        return beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 / correction2, h["eps_root"], eps, step_size


class AdamW(Adam):
    """`Adam` with decoupled weight decay: p = p * (1 - lr * weight_decay) before the update.

    Source: Loshchilov, Hutter 2017, arXiv:1711.05101.
    """

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        eps_root: float = 0.0,
        eps_hat: float = 0.0,
        bias_correction: bool = True,
        decoupled_weight_decay: bool = True,
        state_dtype: str | None = None,
        seed: int = 0,
    ) -> None:
        Optimizer.__init__(self, params, locals())
