"""The names of options: which there are, and which one somebody probably meant by another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from fastopt.options import options_of

IMPLEMENTATION_OPTIONS = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Entries of torch's parameter groups besides hyper-parameters: they choose one of torch's implementations."""

MEANT = {
    **dict.fromkeys(("beta1", "beta2", "beta_1", "beta_2", "b1", "b2", "beta"), "betas"),
    **dict.fromkeys(("learning_rate", "learningrate", "alpha", "eta", "step_size"), "lr"),
    **dict.fromkeys(("epsilon", "adam_epsilon"), "eps"),
    **dict.fromkeys(("wd", "l2", "decay", "weightdecay"), "weight_decay"),
    "mu": "momentum",
}
"""The options of other packages whose letters do not show which of ours they are."""


def similar(name: str, known: Sequence[str]) -> list[str]:
    """The known names that somebody may have meant, the likeliest first."""
    import difflib  # here: it takes a while to load, and most programs make no such mistake

    plain = name.lower().replace("-", "_")
    if MEANT.get(plain) in known:
        return [MEANT[plain]]
    return difflib.get_close_matches(plain, known, n=max(len(known), 1), cutoff=0.75)


@lru_cache(maxsize=4096)
def _mistake(cls: type, name: str, besides: frozenset[str]) -> str | None:
    """The mistake in a name that is no option of the class; None if it may be a key of the user's own."""
    own = options_of(cls)
    if name in IMPLEMENTATION_OPTIONS:
        return "it chooses one of torch's implementations, fastopt has one; leave it out"
    others = sorted(other.__name__ for other in _relatives(cls) if name in options_of(other))
    if others:
        return f"an option of {', '.join(others)}, not of {cls.__name__}; it has {', '.join(own)}"
    for meant in similar(name, [*own, *(besides - {"names"})]):  # name is a usual key of the user's own
        # lr_scale and base_lr are longer on purpose
        if not re.search(rf"^{meant}_\w|\w_{meant}$", name.lower()):
            return f"no option of {cls.__name__}, but it resembles one; use {meant}, or a name that differs more"
    return None


def _relatives(cls: type) -> Iterator[type]:
    """The other optimizers of this package."""
    found = [base for base in cls.__mro__ if base.__name__ == "Optimizer"]
    for base in found:
        found += base.__subclasses__()
        if base not in (found[0], cls) and base.__module__.startswith("fastopt."):
            yield base


def check_names(
    cls: type, names: Iterable[Any], besides: Iterable[str] = (), place: str = "", own_keys: bool = False
) -> None:
    """Refuses names that are no option of the class, and the lack of one that is.

    besides: names that are let through. own_keys: whether keys of the user's own are let through as well, unless
    they look like a mistake.
    """
    options = options_of(cls)
    let_through = frozenset(besides)
    allowed, given = options.keys() | let_through, set(names)
    for name in names:
        if name in allowed:
            continue
        if not isinstance(name, str):
            raise ValueError(f"{place}{name}: no option of {cls.__name__}; the keys of a group must be strings")
        mistake = _mistake(cls, name, let_through)
        if mistake is not None:
            raise ValueError(f"{place}{name}: {mistake}")
        if not own_keys:
            raise ValueError(f"{place}{name}: no option of {cls.__name__}; it has {', '.join(options)}")
    for name in options:
        if name not in given:
            raise ValueError(f"{place}{name}: missing from the parameter group; put it back")


def check_all(
    cls: type, h: Mapping[str, Any], besides: Iterable[str] = (), place: str = "", own_keys: bool = False
) -> dict[str, Any]:
    """A copy of ``h`` with every option of the class in its plain form; for the rest see `check_names`."""
    check_names(cls, h, besides, place, own_keys)
    return {**h, **{name: option.check(h[name], place) for name, option in options_of(cls).items()}}
