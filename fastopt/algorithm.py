"""class Algorithm: what the author of an optimizer writes, apart from what its users see."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt._kernels import TABLE

Array: TypeAlias = npt.NDArray[Any]
Hyper: TypeAlias = dict[str, Any]
"""The options of a parameter group by their names, and the flags."""


def by_tensor(function: Callable[..., Any], *arguments: Array) -> Array:
    """For `Algorithm.prepare`: what a function gives for each tensor, worked out in Python floats.

    NumPy's powers of arrays would have other bits on other processors. arguments: for each argument of the function an
    array with an entry for every tensor.
    """
    n = len(arguments[0])
    # most tensors have made equally many steps
    if n == 1 or all((values == values[0]).all() for values in arguments):
        return np.array([function(*[values.item(0) for values in arguments])]).repeat(n, axis=0)
    each = list(zip(*[values.tolist() for values in arguments], strict=True))
    found = {own: function(*own) for own in set(each)}
    return np.array([found[own] for own in each])


def power(base: float, exponent: float) -> float:
    """base ** exponent; infinity where a float cannot hold it."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


class Algorithm:
    """How an optimizer uses its formula; each optimizer has a subclass, nested in it as ``algorithm``.

    In the hooks, ``h`` has the checked options and the flags of a parameter group.
    """

    formula: ClassVar[str]
    """The row of src_c/formulas.def."""

    states: ClassVar[dict[str, str]]
    """The names that users (and torch) know the state buffers and numbers by, for each letter of the formula."""

    flags: ClassVar[Hyper] = {}
    """Entries of a group besides the options, with their first values: saved like options, not edited by users."""

    adds_l1: ClassVar[bool] = True
    """Whether an option ``l1``, where there is one, adds l1 * sign(p) to the gradient; else it is the formula's own."""

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        """Returns the row's SCALARS in their order, for step ``t``, which is 1 first.

        Here, and in `decay`, every number of ``h`` is a float: callables have been asked.
        """
        raise NotImplementedError

    @staticmethod
    def decay(h: Hyper) -> tuple[float, float]:
        """Returns the multiple of p that is added to g, and the factor of p before the update."""
        if h.get("decoupled_weight_decay"):
            return 0.0, 1.0 - h["lr"] * h["weight_decay"]
        return h["weight_decay"], 1.0

    @staticmethod
    def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
        """Returns the row's FACTORS in their order, each an array with an entry for every tensor of a group, or one
        number for all; for rows that have SUMS, FACTORS or NUMBERS, and where the row has a CHOICE, for groups with it.

        t: the step of each tensor, 1 first. sums: by name, what each sum has added up to over each tensor. numbers:
        by name, the NUMBERS of each tensor; what this writes into them holds from this step on.
        In ``sums`` of a row that has any, "elements" is the number of elements of each tensor.
        """
        return ()

    @staticmethod
    def first_factors(h: Hyper, t: Array, numbers: dict[str, Array]) -> tuple[Any, ...] | None:
        """Returns FACTORS for sum mode, as `prepare` does for the update; None: they are 1.

        numbers: as for `prepare`, but nothing is written into them.
        """
        return None

    sums_of_all: ClassVar[bool] = False
    """Whether `prepare` gets the sums over all tensors of the step, of all groups, in the place of each tensor's."""

    @staticmethod
    def vectors(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Returns by their letters the shapes of states that are float64 arrays of another shape than the parameter's.

        Python alone computes with them. A parameter that has any must have two axes or more, in C order, and is updated
        row by row: each row along the last axis has SUMS and FACTORS of its own, and `prepare_rows` takes the place of
        `prepare`.
        """
        return {}

    @staticmethod
    def prepare_rows(h: Hyper, t: int, sums: dict[str, Any], vectors: dict[str, Array]) -> tuple[Any, ...]:
        """Returns the row's FACTORS in their order, each an array with an entry for every row of one parameter, or one
        number for all its rows.

        t: the step, 1 first. sums: by name, what each sum has added up to over each row, in one axis; "elements" is the
        number of elements of a row. vectors: by letter, the states of `vectors`, in `update_rows` those of the rows that
        it names; what this writes into them holds from this step on. None in the place of a factor leaves it as
        `first_row_factors` has given it.
        """
        raise NotImplementedError

    @staticmethod
    def first_row_factors(
        h: Hyper, t: int, rows: Array, columns: Array, vectors: dict[str, Array], work: dict[str, Array]
    ) -> tuple[Any, ...]:
        """Fills the row's COLUMNS, for rows that have them, and returns FACTORS for sum mode, as `prepare_rows` does.

        rows, columns: the sums of the squares of the gradient, before weight decay, over each row and each column of the
        parameter's matrices, which its last two axes are; both have the parameter's axes, one of them of length 1.
        vectors: as for `prepare_rows`, which is called afterwards. work: the COLUMNS by their letters, shaped as
        ``columns``.
        """
        raise NotImplementedError

    @staticmethod
    def optional_by_shape(shape: tuple[int, ...]) -> set[str]:
        """Returns the letters of the row's OPTIONAL buffers that a parameter of a shape needs, whatever its options."""
        return set()

    @staticmethod
    def transform(h: Hyper, t: int, g: Array, states: dict[str, Array], work: dict[str, Array]) -> None:
        """Fills the row's WORK arrays for one parameter, for rows that have them; changes nothing else.

        g: the gradient as the formula sees it but for weight decay. states: the STATE and OPTIONAL buffers that are in
        use, by letter. All are in the type of the arithmetic, as arrays of the parameter's shape. work: the WORK arrays,
        and whatever else this puts there to have it in the next step.
        """

    @staticmethod
    def check_shape(shape: tuple[int, ...]) -> str | None:
        """Returns a sentence on a parameter that the optimizer cannot update because of its shape, and what to do."""
        return None

    @staticmethod
    def initial_states(h: Hyper) -> dict[str, float]:
        """Returns by their letters what new state buffers are filled with, and NUMBERS begin with, where not 0.

        They are made of options that take no callables, `fastopt.options.InitialValue`.
        """
        return {}

    @staticmethod
    def optional_states(h: Hyper) -> set[str]:
        """Returns the letters of the row's OPTIONAL buffers ``h`` needs, and the name of its CHOICE if it is made.

        It must not depend on the learning rate. Here, and in `check` and `check_edit`, a number of ``h`` may be a
        callable, which counts as not 0.
        """
        return set()

    @staticmethod
    def check(h: Hyper) -> None:
        """Raises ValueError if options that are right by themselves do not go together."""

    @staticmethod
    def check_edit(h: Hyper, before: Hyper) -> None:
        """Raises ValueError if options that are right must not follow those ``before``."""

    @staticmethod
    def twin(p: Any, g: Any, *args: Any, **kwargs: Any) -> Any:
        """Does in NumPy what the formula does, in place: the same operations in the same order, so the same bits.

        Takes the parameter, the gradient, the row's STATE, OPTIONAL, WORK, COLUMNS, SCALARS and FACTORS, each under its
        name in the row. An OPTIONAL buffer, or COLUMNS, that is not in use is None; scalars and factors have the dtype
        of the arrays.
        Returns the SUMS, as a tuple of arrays shaped like p, if the row has any. Where the row has a CHOICE that is
        not made, it gets no factors, whose defaults are None, and returns no sums.
        """
        raise NotImplementedError

    @classmethod
    def subset(cls, h: Hyper) -> int:
        """The optional buffers and the choice that ``h`` needs, as the bits that number the row's kernels."""
        return cls.bits_of(cls.optional_states(h))

    @classmethod
    def bits_of(cls, names: set[str]) -> int:
        """Optional buffers, and the choice, as bits."""
        row = TABLE[cls.formula]
        return sum(1 << bit for bit, name in enumerate((*row["optional"], *row["choice"])) if name in names)

    @classmethod
    def vector_letters(cls) -> list[str]:
        """The letters of all states that `vectors` names, for some shape or other."""
        row = TABLE[cls.formula]
        return [x for x in cls.states if x not in (*row["state"], *row["optional"], *row["numbers"])]

    @classmethod
    def needs_factors(cls, h: Hyper) -> bool:
        """Whether a step takes numbers of each whole tensor: the row's SUMS, FACTORS or NUMBERS."""
        row = TABLE[cls.formula]
        if row["choice"] and not cls.optional_states(h).issuperset(row["choice"]):
            return False
        return bool(row["sums"] or row["factors"] or row["numbers"])

    @classmethod
    def letters(cls, h: Hyper, shape: tuple[int, ...]) -> list[str]:
        """All state buffers that ``h`` and a parameter's shape need, in the row's order."""
        row, needed = TABLE[cls.formula], cls.optional_states(h) | cls.optional_by_shape(shape)
        return [*row["state"], *(letter for letter in row["optional"] if letter in needed)]
