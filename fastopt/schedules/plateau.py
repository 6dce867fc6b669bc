"""ReduceLROnPlateau: a learning rate that follows what is measured; the one schedule that has state."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

from fastopt.options import as_number, shown
from fastopt.schedules.arguments import Kind, elements, number_in, one_of, or_none, whole


class HasGroups(Protocol):
    """An optimizer, of which nothing but the groups' ``lr`` is used."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


MinLr: TypeAlias = float | list[float] | tuple[float, ...]

_SETTINGS: dict[str, Kind] = {
    "mode": one_of("min", "max"),
    "factor": number_in(0, 1),
    "patience": whole(0),
    "threshold": number_in(0),
    "threshold_mode": one_of("rel", "abs"),
    "cooldown": whole(0),
    "eps": number_in(0),
}

_STATE: dict[str, Kind] = {
    "best": as_number,
    "num_bad_epochs": whole(0),
    "cooldown_counter": whole(0),
    "last_epoch": whole(0),
}


class ReduceLROnPlateau:
    """Multiplies the learning rate by a factor whenever a measure has stopped improving.

        plateau = ReduceLROnPlateau(opt, patience=3)      plateau = ReduceLROnPlateau(0.1, patience=3)
        for epoch in range(epochs):                       opt = fastopt.SGD(params, lr=plateau)
            train(opt)                                    for epoch in range(epochs):
            plateau.step(validation_loss())                   train(opt)
                                                              plateau.step(validation_loss())

    optimizer: any optimizer of fastopt, whose groups' ``lr`` is edited; or a number: then the object is called in
        place of a number, as schedules are, and returns the current one (1.0 makes it a factor for `chained`).
    mode: "min" if the measure should fall, "max" if it should rise.
    factor: by which the learning rate is multiplied. At least 0 and below 1.
    patience: how many epochs without improvement are let pass; the next one reduces.
    threshold: by how much a measure must be better than the best to count. At least 0.
    threshold_mode: "rel": by this part of the best; "abs": by this much. A measure that may be negative needs
        "abs".
    cooldown: how many epochs after a reduction do not count.
    min_lr: the learning rate never falls below it; one number or one for each parameter group.
    eps: a reduction by no more than this is not made.

    All names, defaults and numbers are those of torch's ReduceLROnPlateau. A measure of NaN is no improvement.
    The settings may be assigned anew.
    """

    __slots__ = (
        "best",
        "cooldown",
        "cooldown_counter",
        "eps",
        "factor",
        "last_epoch",
        "min_lr",
        "mode",
        "num_bad_epochs",
        "optimizer",
        "patience",
        "threshold",
        "threshold_mode",
        "value",
    )

    def __init__(
        self,
        optimizer: HasGroups | float,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: MinLr = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self.optimizer: HasGroups | None = None
        self.value = math.nan
        if hasattr(optimizer, "param_groups"):
            self.optimizer = optimizer
        else:
            try:
                self.value = number_in(0)("optimizer", optimizer)
            except TypeError:
                raise TypeError(
                    f"optimizer: expected an optimizer of fastopt or a number, got {shown(optimizer)}"
                ) from None
        self.mode, self.factor, self.patience = mode, factor, patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.min_lr, self.eps = cooldown, min_lr, eps
        self._lrs()  # refuses groups whose lr is no number
        self.best = math.inf if self.mode == "min" else -math.inf
        self.num_bad_epochs = 0
        self.cooldown_counter = 0
        self.last_epoch = 0

    mode: str
    factor: float
    patience: int
    threshold: float
    threshold_mode: str
    cooldown: int
    min_lr: MinLr
    eps: float

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "min_lr":
            value = self._checked_min_lr(value)
        elif name in _SETTINGS:
            value = _SETTINGS[name](name, value)
        object.__setattr__(self, name, value)

    def __call__(self, step: int = 0) -> float:
        """The current number, at every step; of a plateau that was made of a number."""
        if self.optimizer is not None:
            raise TypeError(
                "this ReduceLROnPlateau edits its optimizer's groups and has no number of its own; make one of a "
                "number to use it as a schedule"
            )
        return self.value

    def _lrs(self) -> list[float]:
        """The current learning rate of each group, or the one number."""
        if self.optimizer is None:
            return [self.value]
        found = []
        for i, group in enumerate(self.optimizer.param_groups):
            if callable(group["lr"]):
                raise TypeError(
                    f"optimizer: the lr of group {i} is a function of the step; make a ReduceLROnPlateau of 1.0 "
                    "and give the group lr=chained([schedule, plateau])"
                )
            found.append(as_number(f"optimizer: the lr of group {i}", group["lr"]))
        return found

    def step(self, metrics: float) -> None:
        """Counts an epoch that ended with this measure, and reduces the learning rate if it is time."""
        measure = as_number("metrics", metrics)
        lrs = self._lrs()
        floors = self._floors(len(lrs))
        self.last_epoch += 1
        if self._is_better(measure):
            self.best = measure
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
            for i, (lr, floor) in enumerate(zip(lrs, floors, strict=True)):
                reduced = max(lr * self.factor, floor)
                if lr - reduced > self.eps:
                    self._put(i, reduced)

    def _is_better(self, measure: float) -> bool:
        if self.mode == "min":
            limit = (
                self.best * (1.0 - self.threshold) if self.threshold_mode == "rel" else self.best - self.threshold
            )
            return measure < limit
        limit = self.best * (1.0 + self.threshold) if self.threshold_mode == "rel" else self.best + self.threshold
        return measure > limit

    def _put(self, i: int, lr: float) -> None:
        if self.optimizer is None:
            self.value = lr
        else:
            self.optimizer.param_groups[i]["lr"] = lr

    def _checked_min_lr(self, min_lr: Any) -> MinLr:
        check = number_in(0)
        if not isinstance(min_lr, list | tuple):
            one: float = check("min_lr", min_lr)
            return one
        floors = [check(f"min_lr[{i}]", one) for i, one in enumerate(min_lr)]
        count = 1 if self.optimizer is None else len(self.optimizer.param_groups)
        if len(floors) != count:
            raise ValueError(
                f"min_lr: {len(floors)} numbers for {count} parameter groups; pass one for each, or one"
            )
        return floors

    def _floors(self, groups: int) -> list[float]:
        if not isinstance(self.min_lr, list | tuple):
            return [self.min_lr] * groups
        if len(self.min_lr) != groups:
            raise ValueError(
                f"min_lr: {len(self.min_lr)} numbers for {groups} parameter groups; a group was added: assign "
                "plateau.min_lr anew, one number or one for each"
            )
        return list(self.min_lr)

    # -- State --

    def state_dict(self) -> dict[str, Any]:
        """The settings and the state, as plain numbers and strings, named as in torch; without the optimizer."""
        state = {name: getattr(self, name) for name in (*_SETTINGS, *_STATE)}
        one = None if isinstance(self.min_lr, list | tuple) else self.min_lr
        return {**state, "default_min_lr": one, "min_lrs": self._floors(len(self._lrs())), "_last_lr": self._lrs()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` returned, here or in torch; on an error nothing has changed.

        The settings of the dict replace those of the constructor. The groups' ``lr`` belong to the optimizer's own
        state dict; a plateau that was made of a number takes its number from this one.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected a dict, got {shown(state_dict)}")
        expected = [*_SETTINGS, *_STATE, "min_lrs", "_last_lr"]
        missing = [name for name in expected if name not in state_dict]
        if missing:
            raise ValueError(
                f"state_dict: {', '.join(missing)} missing; pass what state_dict() of a ReduceLROnPlateau returned"
            )
        checked = {
            name: kind(f"state_dict[{name!r}]", state_dict[name]) for name, kind in {**_SETTINGS, **_STATE}.items()
        }
        value = self.value
        if self.optimizer is None:
            lrs = elements("state_dict['_last_lr']", state_dict["_last_lr"], "numbers")
            if len(lrs) != 1:
                raise ValueError(
                    f"state_dict: it has {len(lrs)} learning rates and this plateau one number; load it into one "
                    "that was made of the optimizer"
                )
            value = number_in(0)("state_dict['_last_lr'][0]", lrs[0])
        one = or_none(number_in(0))("state_dict['default_min_lr']", state_dict.get("default_min_lr"))
        min_lr = self._checked_min_lr(elements("state_dict['min_lrs']", state_dict["min_lrs"], "numbers"))
        for name, plain in checked.items():
            setattr(self, name, plain)
        self.min_lr = min_lr if one is None else one
        self.value = value

    def __repr__(self) -> str:
        first = repr(self.value) if self.optimizer is None else f"<{type(self.optimizer).__name__}>"
        settings = [f"{name}={getattr(self, name)!r}" for name in (*_SETTINGS, "min_lr")]
        return f"ReduceLROnPlateau({', '.join([first, *settings])})"
