"""The docstring of an optimizer: what its author wrote, then a line for every option."""

from __future__ import annotations

import inspect
import re
import textwrap

from fastopt.options import options_of

COMMON = {
    "params": "the arrays to update, see `fastopt.Optimizer`.",
    "lr": "the learning rate (torch's).",
    "weight_decay": "g + weight_decay * p takes the place of g (torch's).",
    "decoupled_weight_decay": "p is multiplied by 1 - lr * weight_decay before the update instead (torch's).",
    "l1": "l1 * sign(p) is added to g, with sign(0) = 0, also where weight decay is decoupled (fastopt's).",
    "maximize": "-g takes the place of g (torch's).",
    "state_dtype": 'how the states are stored: "bfloat16" keeps those of float32 parameters in half the memory; '
    "None: in the parameter's dtype (fastopt's).",
    "seed": "the seed of the random bits that round to bfloat16, see `fastopt.Optimizer` (fastopt's).",
    "eps_root": "added under the root; eps=0, eps_root=eps is the textbook's root of (s + eps) (optax's).",
    "lr_in_momentum": "lr multiplies what enters the momentum buffer, not what leaves it: a change of lr then "
    "acts on new gradients only (Keras', TensorFlow's).",
}
"""The lines of options that several optimizers have. A class's own line takes the place of one of these."""

HEADING = "\nOptions:\n"
"""In the docstring of a class it begins the lines of its own options, ``name: what it does (whose it is).``"""

NOTE = "A callable may stand for a number: it is given the number of steps taken so far, and returns the number."


def _described(doc: str) -> dict[str, str]:
    """The lines of options that a docstring has."""
    _, _, lines = inspect.cleandoc(doc).partition(HEADING)
    entries = re.findall(r"^(\w+): (.*(?:\n +.*)*)", lines, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


class OptionsDocstring:
    """The ``__doc__`` of an optimizer: its own, then for every option a line with its range and its default.

    It is put together when somebody reads it: this takes longer than an import should.
    """

    def __init__(self, doc: str | None) -> None:
        self.doc = doc or ""  # there is none under python -OO

    def __get__(self, instance: object, owner: type) -> str:
        return completed(owner)


def descriptions(cls: type) -> dict[str, str]:
    """The line of every option that has one, without its range and default."""
    found = dict(COMMON)
    for base in reversed(cls.__mro__):
        own = vars(base).get("__doc__")
        if isinstance(own, OptionsDocstring):
            found |= _described(own.doc)
    return {name: found[name] for name in options_of(cls) if name in found}


def completed(cls: type) -> str:
    """The docstring of an optimizer with a line for every option."""
    own = vars(cls)["__doc__"]
    text = inspect.cleandoc(own.doc).partition(HEADING)[0].rstrip()
    described = descriptions(cls)
    lines = [f"params: {COMMON['params']}"] + [
        f"{name}: {described.get(name, '')} Default {option.default!r}; {option.kind}."
        for name, option in options_of(cls).items()
    ]
    wrapped = [textwrap.fill(line, 105, subsequent_indent="    ", break_long_words=False) for line in lines]
    return "\n".join([text, "", "Options:", *wrapped, "", NOTE])
