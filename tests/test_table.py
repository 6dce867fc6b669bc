"""The three places of an optimizer agree: formula, row, class with NumPy twin; and its digests are stored."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import fastopt
from fastopt import _kernels, optimizers
from fastopt.algorithm import Algorithm
from fastopt.docstrings import descriptions
from fastopt.options import NonNegative, StateDtype, options_of

SOURCE = Path(__file__).parent.parent / "src_c"
DIGEST = Path(__file__).with_name("digest.txt")
COMMON_SCALARS = len(_kernels.COMMON_SCALARS)
"""How many scalars every row has after its own."""

needs_source = pytest.mark.skipif(not SOURCE.is_dir(), reason="there is no src_c/ to read here")

Row = Mapping[str, Sequence[str]]
Class = type[fastopt.Optimizer]

ROWS: dict[str, Row] = _kernels.TABLE
CLASSES: dict[str, list[Class]] = {}
for _cls in optimizers.CLASSES:
    CLASSES.setdefault(_cls.algorithm.formula, []).append(_cls)

AUXILIARY = (
    set(re.findall(r"^#define FORMULA +(\w+)", (SOURCE / "auxiliary.def").read_text(), re.MULTILINE))
    if (SOURCE.is_dir())
    else set()
)
"""Formulas that are no optimizer's."""

FORMULAS = {
    path.stem: re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(), flags=re.DOTALL)
    for path in SOURCE.glob("formulas/*.h")
    if path.stem not in AUXILIARY
}
TABLE = (SOURCE / "formulas.def").read_text() if SOURCE.is_dir() else ""
READS = dict(
    re.findall(r"^#define FORMULA +(\w+)\n(?:#define (?!READS).*\n)*#define READS +(.*)$", TABLE, re.MULTILINE)
)
"""Which of p and g the formulas read that do not read both."""

NO_UPDATE = {name for name, reads in READS.items() if "p" not in reads}
"""Rows that only add up; no optimizer has them."""

NAMES = sorted((ROWS.keys() | CLASSES.keys() | FORMULAS.keys()) - NO_UPDATE)

NEEDED = {
    "lr": "the common rule of weight decay multiplies by it",
    "weight_decay": "every optimizer decays weights",
    "maximize": "every optimizer can maximize",
    "state_dtype": "states of every optimizer can be stored in 16 bits",
    "seed": "what is stored in 16 bits is rounded at random",
}
"""The options that class Optimizer reads of every optimizer, and why."""


# -- What can be wrong -----------------------------------------------------------------------------


def wrong(name: str, row: Row | None, classes: Sequence[Class]) -> str | None:
    """A sentence on the first thing that is missing of an optimizer, or that does not fit its row."""
    if row is None:
        return f"{name}: the row is missing; add one to src_c/formulas.def and build again"
    if not classes:
        return (
            f"{name}: the class is missing; write fastopt/optimizers/{name}.py, whose class has an algorithm with "
            f"formula = {name!r}, and build again"
        )
    for cls in classes:
        try:
            says = wrong_options(cls) or wrong_algorithm(cls, row)
        except Exception as error:
            says = f"its algorithm raises {type(error).__name__}: {error}"
        if says:
            return f"{name}: {cls.__name__}: {says}"
    return None


def wrong_options(cls: Class) -> str | None:
    """A sentence on the signature and the docstring of a class."""
    module, expected = cls.__module__, f"fastopt.optimizers.{cls.__name__.lower()}"
    if module != expected:
        return f"it is in {module}; put it into {expected}"
    signature = inspect.signature(cls).parameters
    if next(iter(signature), None) != "params":
        return "its signature must begin with params"
    for option, why in NEEDED.items():
        if option not in signature:
            return f"its signature lacks {option}; add it, for {why}"
    try:
        options = options_of(cls)
    except TypeError as error:
        return str(error)
    for name, option in options.items():
        default = option.default
        try:
            plain = option.check(default)
        except (TypeError, ValueError) as error:
            return f"the default of an option must be one of its values: {error}"
        if plain is not default:
            return f"the default {default!r} of {name} must be plain: write {plain!r}"
    undescribed = options.keys() - descriptions(cls).keys()
    if undescribed:
        return f"the docstring has no line for {', '.join(sorted(undescribed))}; add it under Options:"
    return None


def wrong_algorithm(cls: Class, row: Row) -> str | None:
    """A sentence on how the hooks and the twin of a class fit its row."""
    algorithm = cls.algorithm
    buffers, own = [*row["state"], *row["optional"]], [*row["scalars"][:-COMMON_SCALARS]]
    sums, factors, numbers = ([*row.get(key, ())] for key in ("sums", "factors", "numbers"))
    work = [*row.get("work", ()), *row.get("columns", ())]
    shapes = [shape for shape in ((), (3,), (2, 3), (2, 2, 3)) if algorithm.check_shape(shape) is None]
    vectors = {letter: None for shape in shapes for letter in algorithm.vectors(shape)}
    if set(algorithm.states) != {*buffers, *numbers, *vectors}:
        return f"algorithm.states names {[*algorithm.states]}, its row {[*buffers, *numbers, *vectors]}"
    by_shape = {letter for shape in shapes for letter in algorithm.optional_by_shape(shape)}
    if not by_shape <= set(row["optional"]):
        return f"algorithm.optional_by_shape returns {sorted(by_shape)}, its row has {[*row['optional']]}"
    names = list(algorithm.states.values())
    if len(set(names)) != len(names) or "step" in names:
        return f"algorithm.states must give every state a name of its own, and none is 'step': {names}"
    for h in settings(cls):
        for t in 1, 2:
            returned = len(algorithm.coefficients(h, t))
            if returned != len(own):
                return f"algorithm.coefficients returns {returned} numbers, its row has {own}"
        if len(algorithm.decay(h)) != 2:
            return "algorithm.decay must return two numbers: what is added to g, and a factor of p"
        needed = algorithm.optional_states(h)
        optional = [*row["optional"], *row["choice"]]
        if not needed <= set(optional):
            return f"algorithm.optional_states returns {sorted(needed)}, its row has {optional}"
        if algorithm.optional_states(h | {"lr": 0.0}) != algorithm.optional_states(h | {"lr": 0.5}):
            return "algorithm.optional_states must not depend on lr, which many programs edit before every step"
        initial = algorithm.initial_states(h).keys()
        if not initial <= set(algorithm.states):
            return f"algorithm.initial_states fills {sorted(initial)}, its row has {buffers}"
    if algorithm.twin is Algorithm.twin:
        return "the NumPy twin is missing; write twin in its algorithm"
    parameters, expected = (
        [*inspect.signature(algorithm.twin).parameters],
        ["p", "g", *buffers, *work, *own, *factors],
    )
    if parameters != expected:
        return f"the NumPy twin takes {parameters}, by its row it must take {expected}"
    ones = [np.ones(3) for _ in expected[: 2 + len(buffers) + len(work)]]
    with np.errstate(all="ignore"):
        found = algorithm.twin(*ones, *map(np.float64, range(1, 1 + len(own) + len(factors)))) or ()
    if len(found) != len(sums) or not all(np.shape(values) == (3,) for values in found):
        return (
            f"the NumPy twin returns {len(found)} arrays, by its row it must return one like p for each of {sums}"
        )
    return None


def settings(cls: Class) -> list[dict[str, Any]]:
    """The defaults of a class, then one option after the other changed where that is allowed."""
    options = options_of(cls)
    defaults = {name: option.default for name, option in options.items()} | cls.algorithm.flags
    found = [defaults]
    for name, option in options.items():
        for value in (True, False, 0.0, 0.5, 1.5):
            try:
                h = defaults | {name: option.check(value)}
                cls.algorithm.check(h)
            except (TypeError, ValueError):
                continue
            found.append(h)
    return found


def wrong_formula(name: str, formula: str | None, row: Row) -> str | None:
    """A sentence on what is missing of a formula, or what it leaves out of its row."""
    if formula is None:
        return f"{name}: the formula is missing; write src_c/formulas/{name}.h"
    named = [*re.findall(r"\w+", READS.get(name, "p, g")), *row["state"], *row["optional"]]
    named += [*row["scalars"][:-COMMON_SCALARS], *row.get("sums", ()), *row.get("factors", ())]
    named += [*row.get("work", ()), *row.get("columns", ()), *(f"has_{name}" for name in row.get("choice", ()))]
    unused = [word for word in named if not re.search(rf"\b{word}\b", formula)]
    return f"{name}: the formula makes no use of {', '.join(unused)} of its row" if unused else None


def wrong_digest(name: str, stored: str) -> str | None:
    """A sentence on the lack of a row's kernels in digest.txt."""
    if re.search(rf"  {name}_\d+_\w+$", stored, flags=re.MULTILINE):
        return None
    return f"{name}: its digests are missing; run python tests/digest.py --store, which must change no other line"


# -- The optimizers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_row_and_class_agree(name: str) -> None:
    sentence = wrong(name, ROWS.get(name), CLASSES.get(name, []))
    assert sentence is None, sentence


@needs_source
@pytest.mark.parametrize("name", ROWS)
def test_formula_agrees_with_its_row(name: str) -> None:
    sentence = wrong_formula(name, FORMULAS.get(name), ROWS[name])
    assert sentence is None, sentence


@pytest.mark.parametrize("name", sorted(ROWS.keys() - NO_UPDATE))
def test_digests_are_stored(name: str) -> None:
    sentence = wrong_digest(name, DIGEST.read_text())
    assert sentence is None, sentence


@needs_source
def test_rows_are_built() -> None:
    rows = re.findall(r"^#define FORMULA +(\w+)", TABLE, flags=re.MULTILINE)
    assert rows == [*ROWS], "the rows of src_c/formulas.def are not those built; build again"


def test_classes_are_listed() -> None:
    folder = Path(optimizers.__file__).parent
    files = {path.stem for path in folder.glob("[!_]*.py")}
    listed = {cls.__module__.rpartition(".")[2] for cls in optimizers.CLASSES}
    assert files == listed, "the files of fastopt/optimizers/ are not those listed; build again"
    for name in optimizers.__all__:
        assert getattr(fastopt, name) is getattr(optimizers, name)
        assert hasattr(fastopt.functional, name.lower()), f"{name}: not in fastopt.functional"


def test_classes_come_simplest_first() -> None:
    assert sorted(optimizers.__all__) == sorted(cls.__name__ for cls in optimizers.CLASSES)
    states = [len(cls.algorithm.states) for cls in optimizers.CLASSES]
    assert states == sorted(states)


# -- The sentences, on optimizers that are wrong ---------------------------------------------------

COMPLETE = fastopt.Adam
"""The optimizer that is made wrong in every way below."""


def without(parameter: str, **others: Any) -> Class:
    """The class without a parameter in its signature, and with others in its place."""
    signature = inspect.signature(COMPLETE)
    parameters = [p for name, p in signature.parameters.items() if name != parameter]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters += [inspect.Parameter(name, keyword, default=value) for name, value in others.items()]

    class Altered(COMPLETE):  # type: ignore[misc, valid-type]
        """It stands where the class itself does."""

        __signature__ = signature.replace(parameters=parameters)

    Altered.__module__, Altered.__name__ = COMPLETE.__module__, COMPLETE.__name__
    return Altered


def with_hooks(**attributes: Any) -> Class:
    """The class with other attributes of its algorithm."""
    attributes = {name: staticmethod(x) if callable(x) else x for name, x in attributes.items()}
    altered = without("")
    altered.algorithm = type("algorithm", (COMPLETE.algorithm,), attributes)
    return altered


def with_option(annotation: Any, default: Any) -> Class:
    """The class with another option ``x``."""
    altered = without("", x=default)

    def __init__(self: Any) -> None: ...

    __init__.__annotations__ = get_type_hints(COMPLETE.__init__, include_extras=True) | {"x": annotation}
    altered.__init__ = __init__  # type: ignore[method-assign]
    return altered


def broken() -> dict[str, tuple[str | None, str]]:
    """For each way to get an optimizer wrong, the sentence and what it must say."""
    cls, name = COMPLETE, COMPLETE.algorithm.formula
    row: dict[str, Sequence[str]] = {"sums": (), "factors": (), "numbers": (), **ROWS[name]}
    elsewhere = without("")
    elsewhere.__module__ = "fastopt.optimizers.other"
    ways = {
        "no row": (wrong(name, None, [cls]), "the row is missing; add one to src_c/formulas.def"),
        "no class": (wrong(name, row, []), f"the class is missing; write fastopt/optimizers/{name}.py"),
        "a class in another file": (
            wrong(name, row, [elsewhere]),
            "it is in fastopt.optimizers.other; put it into",
        ),
        "no params": (wrong(name, row, [without("params")]), "must begin with params"),
        "no annotation": (wrong(name, row, [without("", x=0.0)]), "x: an option needs an annotation"),
        "no range": (wrong(name, row, [with_option(float, 0.0)]), "x: no kind of option has the annotation"),
        "default": (
            wrong(name, row, [with_option(NonNegative, -1.0)]),
            "one of its values: x: -1.0 is out of range",
        ),
        "another default": (wrong(name, row, [with_option(NonNegative, 1)]), "must be plain: write 1.0"),
        "no line": (wrong(name, row, [with_option(StateDtype, None)]), "has no line for x; add it under Options:"),
        "no twin": (wrong(name, row, [with_hooks(twin=Algorithm.twin)]), "the NumPy twin is missing"),
        "another twin": (wrong(name, row, [with_hooks(twin=lambda p, g: None)]), "twin takes ['p', 'g'],"),
        "a scalar": (wrong(name, {**row, "scalars": ["more", *row["scalars"]]}, [cls]), "'more', "),
        "a sum": (
            wrong(name, {**row, "sums": ["pp", "uu"]}, [cls]),
            "returns 1 arrays, by its row it must return one",
        ),
        "a factor": (wrong(name, {**row, "factors": ["trust"]}, [cls]), "'step_size', 'trust']"),
        "a number": (wrong(name, {**row, "numbers": ["product"]}, [cls]), "its row ['m', 'v', 'vmax', 'product']"),
        "a state": (wrong(name, {**row, "state": ["m"]}, [cls]), "its row ['m', 'vmax']"),
        "states": (wrong(name, row, [with_hooks(states={"x": "x"})]), "algorithm.states names ['x']"),
        "one name": (
            wrong(name, row, [with_hooks(states=dict.fromkeys(cls.algorithm.states, "m"))]),
            "must give every state a name of its own",
        ),
        "coefficients": (wrong(name, row, [with_hooks(coefficients=lambda h, t: ())]), "returns 0 numbers"),
        "a wrong name": (
            wrong(name, row, [with_hooks(coefficients=lambda h, t: h["beta"])]),
            "its algorithm raises KeyError: 'beta'",
        ),
        "decay": (wrong(name, row, [with_hooks(decay=lambda h: ())]), "decay must return two numbers"),
        "optional": (
            wrong(name, row, [with_hooks(optional_states=lambda h: {"x"})]),
            "returns ['x'], its row has",
        ),
        "optional by lr": (
            wrong(name, row, [with_hooks(optional_states=lambda h: {"vmax"} if h["lr"] else set())]),
            "must not depend on lr",
        ),
        "initial": (
            wrong(name, row, [with_hooks(initial_states=lambda h: {"x": 1.0})]),
            "fills ['x'], its row has",
        ),
        "no formula": (wrong_formula(name, None, row), f"write src_c/formulas/{name}.h"),
        "formula": (wrong_formula(name, "p = p - g;", row), "makes no use of m, v, vmax, beta1"),
        "a sum in no formula": (wrong_formula(name, "", {**row, "sums": ["pp"]}), ", pp, scale, has_cautious of"),
        "no digest": (wrong_digest(name, "123  other_0_float32\n"), "run python tests/digest.py --store"),
    }
    for option in NEEDED:
        ways[f"no {option}"] = wrong(name, row, [without(option)]), f"its signature lacks {option}; add it, for "
    return ways


BROKEN = broken()


@pytest.mark.parametrize(("way", "said"), BROKEN.items(), ids=BROKEN)
def test_what_is_wrong_is_said(way: str, said: tuple[str | None, str]) -> None:
    sentence, part = said
    assert sentence is not None, f"{way}: nothing was said"
    assert part in sentence
    assert sentence.startswith(COMPLETE.algorithm.formula + ": ")
    assert "\n" not in sentence
