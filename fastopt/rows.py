"""Steps on a few rows of large parameters, such as embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.options import shown

if TYPE_CHECKING:
    from fastopt._plan import Plan, Tensor
    from fastopt.algorithm import Hyper

ROW_STEPS = "row_steps"
"""The name, in states, of the number of steps that each row has made."""

ByParameter: TypeAlias = Sequence[Any] | Mapping[str, Any]


class UpdatingRows:
    """The part of `Optimizer` that updates rows."""

    if TYPE_CHECKING:
        _plan: Plan

    def update_rows(
        self, params: ByParameter, rows: ByParameter, grads: ByParameter, *, catch_up: bool = False
    ) -> None:
        """Updates some rows of large parameters, such as embeddings: all others, and their states, are not touched.

        params, rows, grads: three lists in one order, or three dicts by the same names. The parameters are handed over
        as to `update`, and lie in C order. rows: whole numbers, the indices along the parameter's first axis. grads: an
        array of shape (number of rows, *the parameter's shape but for its first axis), or None to leave the parameter
        alone. The gradients of a row that occurs twice are added up first, in the order of the call (those of 16 bits in
        float32). Raises TypeError or ValueError, before anything is written, for what cannot be updated; among that are
        optimizers whose step needs sums over the whole parameter, averages and `l1`.

        Every call counts as one step of the parameter: the bias correction of Adam, and schedules, go by these steps,
        as in ``torch.optim.SparseAdam``. For a row it is as if the calls in between that did not name it had not been.

        catch_up: True: a row first makes up for the calls that did not name it, by steps with a gradient of zero. So
        its values are, when it is named, those of dense steps with gradients that are zero elsewhere, bit for bit.
        Pass it in every call or in none. The time grows with the number of missed steps. The options of a group may
        not change while rows are behind (callables of the step may have other values): name all rows before, with
        gradients of 0. The numbers of steps are saved with the state, as ``"row_steps"``.
        """
        self._plan.update_rows(self, params, rows, grads, catch_up)


def handed_over(params: Any, rows: Any, grads: Any, catch_up: Any) -> tuple[Any, Any, Any]:
    """The arguments of `update_rows` as three lists, or as three dicts by the same names."""
    if not isinstance(catch_up, bool):
        raise TypeError(f"catch_up: expected True or False, got {shown(catch_up)}")
    params, grads = arrays.handed_over(params, grads, "update_rows")
    if isinstance(params, Mapping) != isinstance(rows, Mapping):
        raise TypeError(
            f"update_rows: got {type(rows).__name__} of rows and {type(params).__name__} of parameters; pass three "
            "lists in one order, or three dicts by the same names"
        )
    if isinstance(rows, Mapping):
        rows = dict(rows)
        for name in params:
            if name not in rows:
                raise ValueError(f"no rows for {name!r}; pass them under the same name")
        for name in rows:
            if name not in params:
                raise ValueError(f"rows for the unknown name {name!r}; leave them out or pass the parameter")
    elif isinstance(rows, np.ndarray | np.generic | str | bytes) or not hasattr(rows, "__iter__"):
        raise TypeError(f"rows: expected a list with an array for every parameter, got {shown(rows)}")
    else:
        rows = list(rows)
        if len(rows) != len(params):
            raise ValueError(f"rows: got {len(rows)} arrays for {len(params)} parameters; pass one for each")
    return params, rows, grads


def row_numbers(label: str, given: Any) -> Array:
    """The rows of a parameter as whole numbers of 64 bits that lie together."""
    try:
        found = np.asarray(given)
    except Exception as error:
        raise TypeError(f"{label}: its rows must be whole numbers, got {shown(given)}") from error
    if isinstance(given, np.ma.MaskedArray):
        raise TypeError(f"{label}: its rows are masked; pass those that count, rows.compressed()")
    if found.size == 0 and found.ndim == 1 and not isinstance(given, np.ndarray):
        return np.zeros(0, np.int64)  # an empty list
    if found.dtype.kind not in "iu":
        raise TypeError(
            f"{label}: its rows must be whole numbers, got dtype {found.dtype}; for a mask pass numpy.flatnonzero(mask)"
        )
    if found.ndim != 1:
        raise ValueError(f"{label}: its rows have shape {found.shape}, they must have one axis; pass rows.ravel()")
    if found.dtype == np.uint64 and found.size and int(found.max()) > np.iinfo(np.int64).max:
        refuse_row(label, int(found.max()), np.iinfo(np.int64).max)
    return np.require(found, np.int64, ["C", "A"])


def refuse_row(label: str, row: int, count: int) -> NoReturn:
    below = "; rows are counted from 0, not from the end" if row < 0 else ""
    raise ValueError(f"{label}: it has no row {row}: it has {count} rows, 0 to {count - 1}{below}")


def refuse_order(tensor: Tensor) -> NoReturn:
    if not tensor.shape:
        raise ValueError(f"{tensor.label}: it has no rows, because its shape is (); pass it to update")
    raise ValueError(
        f"{tensor.label}: it is in Fortran order, in which the numbers of a row do not lie together; make it with "
        "numpy.ascontiguousarray"
    )


def refuse_order_of_rows(label: str) -> NoReturn:
    raise ValueError(
        f"{label}: it is in Fortran order, and this optimizer needs the numbers of a row side by side; make it with "
        "numpy.ascontiguousarray"
    )


def refuse_gradient_shape(label: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> NoReturn:
    raise ValueError(
        f"{label}: the gradient of its rows has shape {shape}, it must be {expected}: a row for each of the rows"
    )


def refuse_optimizer(label: str, why: str) -> NoReturn:
    raise ValueError(f"update_rows: {label}: {why}; use update")


def refuse_catch_up(label: str) -> NoReturn:
    raise ValueError(
        f"{label}: this optimizer's rows have states of their own, for which missed steps cannot be made up; leave out "
        "catch_up"
    )


def refuse_without_catch_up(tensor: Tensor) -> NoReturn:
    raise ValueError(
        f"{tensor.label}: earlier calls had catch_up=True, and this one would lose what rows have missed; pass it in "
        "every call, or call reset()"
    )


def refuse_other_steps(tensor: Tensor) -> NoReturn:
    raise ValueError(
        f"{tensor.label}: it made steps without catch_up since the last call, and which rows have missed steps is not "
        "known any more; pass catch_up=True in every call, or call reset()"
    )


def refuse_changed_options(tensor: Tensor, row: int) -> NoReturn:
    raise ValueError(
        f"{tensor.label}: its group's options have changed since row {row} was updated, and the steps that it missed "
        "were made with others; name all rows, with gradients of 0, before options change, or make the option a "
        "callable of the step"
    )


def options_that_count(h: Hyper) -> Hyper:
    """The options of a group that steps depend on."""
    return {name: value for name, value in h.items() if name not in {"params", "names"}}


def is_same(options: Hyper, others: Hyper) -> bool:
    return options.keys() == others.keys() and all(
        options[name] is others[name] or bool(np.all(options[name] == others[name])) for name in options
    )
