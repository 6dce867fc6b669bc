"""scikit-learn's neural networks with fastopt's optimizers.

``fastopt.sklearn.MLPClassifier(optimizer=fastopt.AdamW, optimizer_options={"lr": 1e-3})`` is scikit-learn's own class
but for its optimizer: clones, pickles, grid searches, ``partial_fit``, ``warm_start`` and early stopping are its own
code.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from sklearn import neural_network

import fastopt
from fastopt.options import shown
from fastopt.schedule_free import ScheduleFree

__all__ = ["MLPClassifier", "MLPRegressor"]

THEIRS = {
    "solver": "optimizer=fastopt.Adam",
    "learning_rate": "a schedule: optimizer_options={'lr': fastopt.schedules.cosine(...)}",
    "learning_rate_init": "optimizer_options={'lr': ...}",
    "power_t": "a schedule: optimizer_options={'lr': fastopt.schedules.inverse_time(...)}",
    "momentum": "optimizer=fastopt.SGD, optimizer_options={'momentum': ...}",
    "nesterovs_momentum": "optimizer=fastopt.SGD, optimizer_options={'nesterov': ..., 'momentum': ...}",
    "beta_1": "optimizer_options={'betas': ...}",
    "beta_2": "optimizer_options={'betas': ...}",
    "epsilon": "optimizer_options={'eps': ...}; scikit-learn's Adam is fastopt.Adam with {'eps': 0.0, 'eps_hat': 1e-8}",
    "max_fun": "nothing: only lbfgs has it",
}
"""Parameters of scikit-learn's own optimizers, and what takes the place of each here."""


class _Steps:
    """An optimizer of fastopt with the methods that scikit-learn's networks call."""

    def __init__(self, optimizer: fastopt.Optimizer) -> None:
        self.optimizer = optimizer

    def update_params(self, params: list[Any], grads: list[Any]) -> None:
        self.optimizer.update(params, grads)

    def iteration_ends(self, time_step: int) -> None:
        """Nothing: schedules count the steps themselves."""

    def trigger_stopping(self, message: str, verbose: bool) -> bool:
        """Whether a training ends that no longer gets better."""
        if verbose:
            print(f"{message} Stopping.")
        return True


class _Network:
    """What the classes of this module add to scikit-learn's: the optimizer.

    optimizer: a class of fastopt's optimizers. optimizer_options: its keyword arguments, or None for the defaults; each
    fit begins with a new optimizer, as in scikit-learn, and partial_fit goes on with the last one.
    """

    optimizer: Any
    optimizer_options: Mapping[str, Any] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in kwargs.keys() & THEIRS.keys():
            raise TypeError(f"{name}: an option of scikit-learn's own optimizers; use {THEIRS[name]}")
        bound = inspect.signature(type(self).__init__).bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = {name: value for name, value in bound.arguments.items() if name != "self"}
        self.optimizer, self.optimizer_options = given.pop("optimizer"), given.pop("optimizer_options")
        super().__init__(**given)

    @property
    def _optimizer(self) -> _Steps:
        """What scikit-learn calls at each step; it is made where scikit-learn makes its own."""
        try:
            found: _Steps = self.__dict__["_steps"]
        except KeyError:
            raise AttributeError("_optimizer") from None
        return found

    @_optimizer.setter
    def _optimizer(self, theirs: Any) -> None:
        cls, options = self.optimizer, self.optimizer_options
        if not (isinstance(cls, type) and issubclass(cls, fastopt.Optimizer)):
            raise TypeError(f"optimizer: expected a class such as fastopt.Adam, got {shown(cls)}")
        if issubclass(cls, ScheduleFree):
            raise TypeError(
                f"optimizer: the result of {cls.__name__} is what its eval() gives, which scikit-learn does not call; "
                "take another class"
            )
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"optimizer_options: expected a dict such as {{'lr': 1e-3}}, got {shown(options)}")
        self.__dict__["_steps"] = _Steps(cls(**options or {}))


def _made(name: str) -> Any:
    base = getattr(neural_network, name)

    class Network(_Network, base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    theirs = inspect.signature(base.__init__).parameters.values()
    own = [
        inspect.Parameter("optimizer", inspect.Parameter.KEYWORD_ONLY, default=fastopt.Adam),
        inspect.Parameter("optimizer_options", inspect.Parameter.KEYWORD_ONLY, default=None),
    ]
    # scikit-learn reads the parameters of an estimator from its signature
    Network.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*(p for p in theirs if p.name not in THEIRS), *own]
    )
    Network.__name__ = Network.__qualname__ = name
    Network.__doc__ = (
        f"scikit-learn's ``{name}`` with an optimizer of fastopt's.\n\n"
        "    optimizer: a class, such as ``fastopt.Adam`` (the default).\n"
        "    optimizer_options: a dict of its keyword arguments, or None; numbers may be schedules of the step.\n\n"
        f"    All other parameters are scikit-learn's, but for those of its own optimizers: {', '.join(THEIRS)}.\n"
        "    ``alpha`` is scikit-learn's L2 penalty, a part of the loss.\n"
    )
    return Network


MLPClassifier = _made("MLPClassifier")
MLPRegressor = _made("MLPRegressor")
