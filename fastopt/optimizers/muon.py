from __future__ import annotations

from math import sqrt
from typing import Annotated, Any, Literal

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Epsilon, Finite, Interval, NonNegative, Seed, StateDtype, UnitInterval


class Muon(Optimizer):
    """Muon: the momentum of a matrix, made orthogonal, so that all its directions count alike.

    ::

        m = momentum * m + (1 - momentum) * g
        u = (1 - momentum) * g + momentum * m                              without nesterov: u = m
        X = u / max(||u||, eps);  ns_steps times:  A = X X';  X = a X + (b A + c A A) X
        p = p * (1 - lr * weight_decay) - lr * r * X                       r: see adjust_lr_fn

    For parameters with two axes: the weights of hidden layers. The usual pair is Muon for these and AdamW for the
    rest, two optimizers::

        muon = fastopt.Muon([w1, w2], lr=0.02)
        adam = fastopt.AdamW([embedding, b1, b2, head], lr=1e-3)

    The iteration (a, b, c: ns_coefficients) brings all singular values near 1. It runs on NumPy's matrix products, in
    float32, for float64 parameters in float64; so here alone the bits depend on NumPy's BLAS and its threads. torch
    computes it in bfloat16, and agrees to two digits; with the processor's bfloat16 instructions it takes half the
    time, without them three times as long. Keras adds up gradients without 1 - momentum, optax corrects the average
    for its start. The work arrays are made once: two of a matrix's size, two squares of its shorter side.

    Sources: Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein 2024, kellerjordan.github.io/posts/muon; for
    match_rms_adamw Liu et al. 2025, arXiv:2502.16982. State: ``momentum_buffer``.

    Options:
    weight_decay: p loses this part of itself, times lr, before the update (torch's).
    momentum: the weight of the old in m (torch's).
    nesterov: False: u is m (torch's).
    ns_coefficients: a, b and c of the iteration (torch's).
    eps: the least norm that u is divided by (torch's).
    ns_steps: how often the iteration runs, below 100 (torch's).
    adjust_lr_fn: r: None or "original": sqrt(max(1, rows / columns)); "match_rms_adamw": 0.2 * sqrt(max(rows,
        columns)), so that steps are as long as AdamW's and can share its lr (torch's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        weight_decay: NonNegative = 0.1,
        momentum: UnitInterval = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[Finite, Finite, Finite] = (3.4445, -4.775, 2.0315),
        eps: Epsilon = 1e-7,
        ns_steps: Annotated[int, Interval(0, 100)] = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "muon"
        states = {"buf": "momentum_buffer"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0 - h["lr"] * h["weight_decay"]

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return 1.0 - h["momentum"], h["lr"]

        @staticmethod
        def check_shape(shape: tuple[int, ...]) -> str | None:
            if len(shape) == 2:
                return None
            return f"Muon takes parameters with two axes, this has shape {shape}; give it to AdamW, beside Muon"

        @staticmethod
        def transform(h: Hyper, t: int, g: Array, states: dict[str, Array], work: dict[str, Array]) -> None:
            o, buf = work["o"], states["buf"]
            number, momentum = o.dtype.type, h["momentum"]
            u = room(work, "u", o.shape, o.dtype)
            np.subtract(g, buf, out=u)
            np.multiply(u, number(1.0 - momentum), out=u)
            np.add(buf, u, out=u)
            if h["nesterov"]:  # from the new m on to g, by 1 - momentum
                np.subtract(u, g, out=o)
                np.multiply(o, number(momentum), out=o)
                np.add(g, o, out=u)
            orthogonalize(u, o, h["ns_coefficients"], h["ns_steps"], h["eps"], work)
            rows, columns = o.shape
            matches = h["adjust_lr_fn"] == "match_rms_adamw"
            ratio = (
                0.2 * sqrt(max(rows, columns)) if matches else sqrt(max(1.0, rows / columns if columns else 1.0))
            )
            np.multiply(o, number(ratio), out=o)

        @staticmethod
        def twin(p: Array, g: Array, buf: Array, o: Array, weight: Any, rate: Any) -> None:
            buf += weight * (g - buf)
            p -= rate * o


def orthogonalize(
    u: Array, out: Array, coefficients: tuple[float, float, float], steps: int, eps: float, work: dict[str, Array]
) -> None:
    """Writes X, which u becomes by the iteration, into ``out``; u is overwritten."""
    a, b, c = (u.dtype.type(x) for x in coefficients)
    x, y = (u.T, out.T) if u.shape[0] > u.shape[1] else (u, out)
    np.divide(x, max(float(np.linalg.norm(u)), eps), out=x)
    gram = room(work, "gram", (len(x), len(x)), u.dtype)
    square = room(work, "square", gram.shape, u.dtype)
    for _ in range(steps):
        np.matmul(x, x.T, out=gram)
        np.matmul(gram, gram.T, out=square)  # it is symmetric: of a matrix and its transpose NumPy computes half
        np.multiply(square, c, out=square)
        np.multiply(gram, b, out=gram)
        np.add(gram, square, out=gram)
        gram.flat[:: len(gram) + 1] += a
        np.matmul(gram, x, out=y)
        x, y = y, x
    if steps % 2 == 0:  # then the last product is in u
        np.copyto(y, x)


def room(work: dict[str, Array], name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array that is made once for a parameter."""
    if name not in work or work[name].shape != shape:
        work[name] = np.empty(shape, dtype)
    return work[name]
