from __future__ import annotations

from math import sqrt
from typing import Annotated, Any, SupportsFloat

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, Interval, NonNegative, Seed, StateDtype


class Prodigy(Optimizer):
    """Prodigy: Adam with a learning rate that grows by itself, to an estimate of the distance to the solution.

    ::

        dlr = d * lr                                                       d: d0 at first
        m = beta1 * m + d * (1 - beta1) * g
        v = beta2 * v + d^2 * (1 - beta2) * g^2
        s = beta3 * s + d / d0 * dlr * g
        n = beta3 * n + d / d0 * dlr * (sum of g * (p0 - p))               p0: p before the first step
        d = max(d, d_coef * n / (sum of |s|))
        p = p * (1 - dlr * weight_decay) - dlr * m / (sqrt(v) + d * eps)

    Leave lr at 1, or have a schedule multiply that. The sums run over all parameters of a step, of all groups; m, v
    and s have the d of before the step. The authors' package prodigyopt computes the same; its slice_p is always 1
    here. While all gradients are zero d stays.

    Source: Mishchenko, Defazio 2023, arXiv:2306.06101. State: ``exp_avg``, ``exp_avg_sq``, ``s``, ``p0``, and the
    numbers ``d``, ``d_max`` and ``d_numerator``.

    Options:
    lr: multiplies the learning rate that is found (the authors').
    betas: beta1 and beta2, the weights of the old in m and in v (the authors').
    beta3: the weight of the old in s and in n; None: sqrt(beta2) (the authors').
    eps: added to the root, against a division by 0 (the authors').
    weight_decay: p loses this part of itself, times dlr, before the update (the authors').
    decoupled_weight_decay: False: g + weight_decay * p takes the place of g instead (the authors' decouple).
    bias_correction: True: dlr is d * lr * sqrt(1 - beta2^t) / (1 - beta1^t) (the authors' use_bias_correction).
    safeguard_warmup: True: d takes the place of dlr in s, against too large a d after a warm-up (the authors').
    d0: the first d, much smaller than the distance may be (the authors').
    d_coef: multiplies the estimate; this is what to tune (the authors').
    growth_rate: d grows at most by this factor a step; None: without a limit (the authors', theirs is inf).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1.0,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        beta3: Beta | None = None,
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = True,
        bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: Annotated[SupportsFloat, Interval(0, ends="()")] = 1e-6,
        d_coef: NonNegative = 1.0,
        growth_rate: Annotated[SupportsFloat, Interval(1)] | None = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "prodigy"
        states = {
            "m": "exp_avg", "v": "exp_avg_sq", "s": "s", "p0": "p0",
            "d_now": "d", "d_max": "d_max", "numerator": "d_numerator",
        }  # fmt: skip
        sums_of_all = True

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0 if h["decoupled_weight_decay"] else h["weight_decay"], 1.0

        @staticmethod
        def initial_states(h: Hyper) -> dict[str, float]:
            return {"d_now": h["d0"], "d_max": h["d0"]}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            pull = h["weight_decay"] if h["decoupled_weight_decay"] else 0.0
            return t == 1, beta1, 1.0 - beta1, beta2, 1.0 - beta2, beta3_of(h), h["eps"], pull

        @staticmethod
        def first_factors(h: Hyper, t: Array, numbers: dict[str, Array]) -> tuple[Any, ...]:
            beta1, beta2 = h["betas"]
            most = int(t.argmax())  # a parameter without a gradient has no part in a step, and keeps its numbers
            d, d0, k = float(numbers["d_now"][most]), h["d0"], int(t[most])
            dlr = d * h["lr"]
            if h["bias_correction"]:
                dlr *= sqrt(bias_correction(beta2, k)) / bias_correction(beta1, k)
            rate = d / d0 * dlr
            return d, rate, d / d0 * d if h["safeguard_warmup"] else rate, dlr, d

        @classmethod
        def prepare(cls, h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            d, rate, gain, dlr, _ = cls.first_factors(h, t, numbers)
            most = int(t.argmax())
            progress, length = float(sums["progress"][most]), float(sums["length"][most])
            numerator = beta3_of(h) * float(numbers["numerator"][most]) + progress
            d_hat = h["d_coef"] * numerator / length if length > 0 else d
            d_max = max(float(numbers["d_max"][most]), d_hat)
            start = max(d, d_hat) if d == h["d0"] else d
            next_d = d_max if h["growth_rate"] is None else min(d_max, start * h["growth_rate"])
            numbers["d_now"][:], numbers["d_max"][:], numbers["numerator"][:] = next_d, d_max, numerator
            return d, rate, gain, dlr, next_d

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, v: Array, s: Array, p0: Array,
            first: Any, beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any, beta3: Any, eps: Any,
            pull: Any, d: Any, rate: Any, gain: Any, dlr: Any, next_d: Any,
        ) -> tuple[Array, Array]:  # fmt: skip
            np.positive(np.where(first, p, p0), out=p0)
            progress = np.multiply(g, p0 - p, dtype=np.float64) * rate
            m *= beta1
            m += d * one_minus_beta1 * g
            v *= beta2
            v += d * d * one_minus_beta2 * g * g
            s *= beta3
            s += gain * g
            length = np.abs(s)
            p -= pull * dlr * p
            p -= dlr * (m / (np.sqrt(v) + next_d * eps))
            return progress, length


def beta3_of(h: Hyper) -> float:
    return float(sqrt(h["betas"][1]) if h["beta3"] is None else h["beta3"])
