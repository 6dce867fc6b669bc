"""The four places of an optimizer agree: formula, row, class and NumPy twin."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import table

import fastopt
from fastopt import _kernels, optimizers, reference

SOURCE = Path(__file__).parent.parent / "src_c"
COMMON_SCALARS = 3
"""How many scalars every row has after its own: see COMMON_SCALARS of _kernels.pyx."""

needs_source = pytest.mark.skipif(not SOURCE.is_dir(), reason="there is no src_c/ to read here")

Row = Mapping[str, Sequence[str]]

ROWS: dict[str, Row] = _kernels.TABLE
CLASSES = {
    name: [cls for cls in table.OPTIMIZERS if cls.kernel == name]
    for name in dict.fromkeys(cls.kernel for cls in table.OPTIMIZERS)
}
TWINS = {
    name: value
    for name, value in vars(reference).items()
    if isinstance(value, FunctionType) and value.__module__ == reference.__name__ and value is not reference.update
}


def without_comments(source: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", source, flags=re.DOTALL)


FORMULAS = {path.stem: without_comments(path.read_text()) for path in SOURCE.glob("optim/*.h")}
NAMES = sorted(ROWS.keys() | CLASSES.keys() | TWINS.keys() | FORMULAS.keys())


def check(
    name: str,
    row: Row | None,
    classes: Sequence[type[fastopt.Optimizer]],
    twin: FunctionType | None,
) -> str | None:
    """A sentence on what is missing of an optimizer, or disagrees with its row."""
    if row is None:
        return f"{name}: the row is missing; add one to src_c/optimizers.def and build again"
    if not classes:
        return (
            f"{name}: the class is missing; write one with kernel = {name!r} in "
            "fastopt/optimizers.py and name it in __all__"
        )
    if twin is None:
        return f"{name}: the NumPy twin is missing; write a function {name} in fastopt/reference.py"
    letters, own = [*row["state"], *row["optional"]], [*row["scalars"][:-COMMON_SCALARS]]
    expected = ["p", "g", *letters, *own]
    parameters = [*inspect.signature(twin).parameters]
    if parameters != expected:
        return f"{name}: the NumPy twin takes {parameters}, by its row it must take {expected}"
    for cls in classes:
        if set(cls.state_names) != set(letters):
            named = [*cls.state_names]
            return f"{name}: {cls.__name__} names the states {named}, its row {letters}"
        h = cls.defaults_of()
        returned = len(cls.coefficients(h, h["lr"], 1))
        if returned != len(own):
            return f"{name}: {cls.__name__}.coefficients returns {returned} numbers, its row has {own}"
    return None


def check_formula(name: str, formula: str | None, row: Row) -> str | None:
    """A sentence on what is missing of a formula, or what it leaves out of its row."""
    if formula is None:
        return f"{name}: the formula is missing; write src_c/optim/{name}.h"
    named = ["p", "g", *row["state"], *row["optional"], *row["scalars"][:-COMMON_SCALARS]]
    unused = [word for word in named if not re.search(rf"\b{word}\b", formula)]
    return f"{name}: the formula makes no use of {', '.join(unused)} of its row" if unused else None


@pytest.mark.parametrize("name", NAMES)
def test_row_class_and_twin_agree(name: str) -> None:
    sentence = check(name, ROWS.get(name), CLASSES.get(name, []), TWINS.get(name))
    assert sentence is None, sentence


@needs_source
@pytest.mark.parametrize("name", ROWS)
def test_formula_agrees_with_its_row(name: str) -> None:
    sentence = check_formula(name, FORMULAS.get(name), ROWS[name])
    assert sentence is None, sentence


@needs_source
def test_rows_are_built() -> None:
    rows = re.findall(r"#define OPTIMIZER +(\w+)", (SOURCE / "optimizers.def").read_text())
    assert rows == [*ROWS], "the rows of src_c/optimizers.def are not those built; build again"


def test_every_class_is_public() -> None:
    written = {
        name
        for name, value in vars(optimizers).items()
        if inspect.isclass(value) and value.__module__ == optimizers.__name__
    }
    hidden = sorted(written - set(optimizers.__all__))
    assert not hidden, f"{', '.join(hidden)}: not in __all__ of fastopt/optimizers.py"
    for name in optimizers.__all__:
        assert getattr(fastopt, name) is getattr(optimizers, name)
        assert hasattr(fastopt.functional, name.lower()), f"{name}: not in fastopt.functional"


@pytest.mark.parametrize("cls", table.OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_class_keeps_to_its_row(cls: type[fastopt.Optimizer]) -> None:
    assert {"lr", "weight_decay", "maximize"} <= table.options_of(cls).keys(), (
        f"{cls.__name__}: every optimizer takes lr, weight_decay and maximize"
    )
    names = list(cls.state_names.values())
    assert len(set(names)) == len(names), f"{cls.__name__}: two states have one name"
    for variant in table.variants(cls):
        optional = cls.optional_states(variant.hyper)
        assert optional <= set(ROWS[cls.kernel]["optional"]), f"{variant}: {optional}"
        initial = cls.initial_states(variant.hyper)
        assert initial.keys() <= cls.state_names.keys(), f"{variant}: {initial}"


# -- The sentences, on optimizers that are wrong ---------------------------------------------------


def altered(cls: type[fastopt.Optimizer], **attributes: Any) -> type[fastopt.Optimizer]:
    return type(cls.__name__, (cls,), attributes)


COMPLETE = next(c for c in table.OPTIMIZERS if c.kernel in ROWS and c.kernel in TWINS)


def broken() -> dict[str, tuple[str | None, str]]:
    """For each way to get an optimizer wrong, the sentence and what it must say."""
    cls = COMPLETE
    name, row = cls.kernel, ROWS[cls.kernel]
    classes, twin = CLASSES[name], TWINS[name]
    longer = {**row, "scalars": ["another", *row["scalars"]]}
    other_states = altered(cls, state_names={"x": "x"})

    def another_twin(p: Any, g: Any) -> None: ...

    fewer = staticmethod(lambda h, lr, t: ())
    return {
        "no row": (check(name, None, classes, twin), "the row is missing"),
        "no class": (check(name, row, [], twin), "the class is missing"),
        "no twin": (check(name, row, classes, None), "the NumPy twin is missing"),
        "another twin": (check(name, row, classes, another_twin), "twin takes ['p', 'g'],"),
        "another row": (check(name, longer, classes, twin), "'another', "),
        "states": (check(name, row, [other_states], twin), "the states ['x']"),
        "scalars": (check(name, row, [altered(cls, coefficients=fewer)], twin), "returns 0 numbers"),
        "no formula": (check_formula(name, None, row), f"write src_c/optim/{name}.h"),
        "formula": (check_formula(name, "p = p - g;", row), "makes no use of"),
    }


@pytest.mark.parametrize(("way", "said"), broken().items(), ids=broken())
def test_what_is_wrong_is_said(way: str, said: tuple[str | None, str]) -> None:
    sentence, part = said
    assert sentence is not None, f"{way}: nothing was said"
    assert part in sentence
    assert sentence.startswith(COMPLETE.kernel + ": ")
    assert "\n" not in sentence
