"""The classic optimizers, each with the settings the examples use.

SGD: Robbins and Monro, A stochastic approximation method, 1951.
Momentum: Polyak, Some methods of speeding up the convergence of iteration methods, 1964.
Nesterov: Sutskever et al., On the importance of initialization and momentum in deep learning, 2013.
Adagrad: Duchi, Hazan and Singer, Adaptive subgradient methods, JMLR 12, 2011.
RMSprop: Tieleman and Hinton, Neural networks for machine learning, lecture 6e, 2012.
Adadelta: Zeiler, ADADELTA: an adaptive learning rate method, arXiv:1212.5701.
Adam: Kingma and Ba, Adam: a method for stochastic optimization, arXiv:1412.6980.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fastopt


@dataclass(frozen=True)
class Classic:
    """An optimizer and its settings."""

    kind: Callable[..., fastopt.Optimizer]
    settings: dict[str, Any]

    def make(self, params: Any, **changes: float) -> fastopt.Optimizer:
        """The optimizer of some parameters, with changes to those settings that it has."""
        known = {name: value for name, value in changes.items() if name in self.settings}
        return self.kind(params, **{**self.settings, **known})


CLASSICS = {
    "SGD": Classic(fastopt.SGD, {"lr": 1e-2}),
    "Momentum": Classic(fastopt.SGD, {"lr": 1e-2, "momentum": 0.9}),
    "Nesterov": Classic(fastopt.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "Adagrad": Classic(fastopt.Adagrad, {"lr": 1e-2}),
    "RMSprop": Classic(fastopt.RMSprop, {"lr": 1e-3, "alpha": 0.9}),
    "Adadelta": Classic(fastopt.Adadelta, {"lr": 1.0}),
    "Adam": Classic(fastopt.Adam, {"lr": 1e-3}),
}
