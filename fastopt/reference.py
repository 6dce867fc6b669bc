"""The same updates as plain NumPy expressions: the oracle, the baseline, the explanation.

Selected like an instruction set, by the name ``numpy``: ``fastopt.set_isa("numpy")`` or
``FASTOPT_ISA=numpy``. Every function below is the twin of one formula in ``src_c/optim/``, with the
same names, the same operations in the same order, and so the same bits. The arrays change in place:
``p`` is the parameter, then come the state buffers; one that an option adds is None where the option
is off. ``g`` is the gradient after scaling and weight decay. All else are scalars, of the arrays' dtype.
The equations stand in the docstrings of the classes in ``optimizers.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def update(
    name: str,
    p: Array,
    grad: Array,
    states: Sequence[Array | None],
    scalars: Sequence[float],
) -> None:
    """One step of the optimizer ``name`` on one array: what loops.h puts around each formula.

    states: the row's STATE and OPTIONAL buffers. scalars: the row's SCALARS, then grad_scale, weight_decay, decay.
    """
    with np.errstate(all="ignore"):
        *own, grad_scale, weight_decay, decay = (p.dtype.type(value) for value in scalars)
        # what changes no bit is left out, as in a loop written by hand
        g = grad_scale * grad if grad_scale != 1 else grad
        if weight_decay != 0:
            g = g + weight_decay * p
        if decay != 1:
            p *= decay
        globals()[name](p, g, *states, *own)


def sgd(
    p: Array, g: Array, buf: Array | None,
    momentum: Any, damped: Any, nesterov: Any, ahead: Any, lr: Any,
) -> None:  # fmt: skip
    u = g
    if buf is not None:
        buf *= momentum
        buf += damped * g
        u = ahead * g + momentum * buf if nesterov != 0 else buf
    p -= lr * u


def nag(p: Array, g: Array, v: Array, momentum: Any, lr: Any, ahead: Any) -> None:
    d = lr * g
    v *= momentum
    v -= d
    if ahead != 0:
        p -= d
    else:
        p += v


def signum(p: Array, g: Array, m: Array, beta: Any, one_minus_beta: Any, lr: Any) -> None:
    m *= beta
    m += one_minus_beta * g
    p -= lr * np.sign(m)


def adagrad(p: Array, g: Array, s: Array, lr: Any, eps_root: Any, eps: Any) -> None:
    s += g * g
    p -= lr * (g / (np.sqrt(s + eps_root) + eps))


def rmsprop(
    p: Array, g: Array, s: Array, a: Array | None, buf: Array | None,
    alpha: Any, one_minus_alpha: Any, eps_root: Any, eps: Any, momentum: Any, lr_in: Any, lr: Any,
) -> None:  # fmt: skip
    s *= alpha
    s += one_minus_alpha * (g * g)
    moment = s
    if a is not None:
        a *= alpha
        a += one_minus_alpha * g
        moment = np.maximum(s - a * a, 0)
    u = g / (np.sqrt(moment + eps_root) + eps)
    if buf is not None:
        buf *= momentum
        buf += lr_in * u
        u = buf
    p -= lr * u


def adadelta(
    p: Array, g: Array, s: Array, d: Array,
    rho: Any, one_minus_rho: Any, eps: Any, lr: Any,
) -> None:  # fmt: skip
    s *= rho
    s += one_minus_rho * (g * g)
    delta = np.sqrt((d + eps) / (s + eps)) * g
    d *= rho
    d += one_minus_rho * (delta * delta)
    p -= lr * delta


def adam(
    p: Array, g: Array, m: Array, v: Array, vmax: Array | None,
    beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any,
    correction2: Any, eps_root: Any, eps: Any, step_size: Any,
) -> None:  # fmt: skip
    m *= beta1
    m += one_minus_beta1 * g
    v *= beta2
    v += one_minus_beta2 * (g * g)
    moment = v
    if vmax is not None:
        np.maximum(v, vmax, out=vmax)
        moment = vmax
    p -= step_size * (m / (np.sqrt(moment * correction2 + eps_root) + eps))
