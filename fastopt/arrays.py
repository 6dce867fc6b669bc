"""Which arrays may be parameters, states and gradients, and the memory that states lie in.

Everything here either returns an array that a step may use, or raises TypeError or ValueError with a sentence that
names the array, says what is wrong with it and what to do.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fastopt._kernels import state_dtypes
from fastopt.storage import storage_dtype

if TYPE_CHECKING:
    from fastopt._plan import Tensor

Array: TypeAlias = npt.NDArray[Any]
P = ParamSpec("P")
T = TypeVar("T")
Key: TypeAlias = int | str
"""The number or the name of a parameter."""

ALIGNMENT = 64
"""Bytes: every state array begins at a multiple of it."""

PAGE = 4096
"""Bytes: addresses that agree modulo it may be taken for the same by the processor."""


def label_of(key: Key) -> str:
    """The name in messages of the parameter of that number or name."""
    return f"parameter {key}" if isinstance(key, int) else repr(key)


def listing(labels: Sequence[str]) -> str:
    """Labels for a message, however many there are."""
    more = f" and {len(labels) - 9} more" if len(labels) > 10 else ""
    return ", ".join(labels[:9] if more else labels) + more


@contextmanager
def within(place: str) -> Iterator[None]:
    """Puts the place where something was found wrong before the message of the error."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{place}: {error}") from error.__cause__


def quietly(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function that casts numbers: float32 makes infinity of what is too large, without a warning.

    It runs in a context of its own, because an interrupt on the way out of `errstate` would leave that in force.
    """

    def call() -> T:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return copy_context().run(call)


def shown_as(value: Any) -> str:
    """The repr of a value. For arrays NumPy enters `errstate`, and an interrupt there would leave that in force."""
    return copy_context().run(repr, value)


def is_bfloat16(array: Any) -> bool:
    """Whether it is an array or scalar of ml_dtypes.bfloat16; there is none as long as ml_dtypes is not imported."""
    ml_dtypes = sys.modules.get("ml_dtypes")
    return (
        ml_dtypes is not None
        and isinstance(array, np.ndarray | np.generic)
        and array.dtype == np.dtype(ml_dtypes.bfloat16)
    )


def plain(label: str, array: Any) -> Array:
    """A plain view of an array, whatever class it is of: no other code can give it another shape."""
    if not isinstance(array, np.ndarray):
        refuse_no_array(label, array)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label}: the array is masked, and a step knows no mask; pass its data (array.data)")
    return np.ndarray.view(array, np.ndarray)


def package_of(thing: Any) -> str:
    """The package that a thing's class comes from."""
    return type(thing).__module__.partition(".")[0]


def refuse_no_array(label: str, given: Any) -> NoReturn:
    """Says how something else becomes a NumPy array that a step may write into."""
    expected = f"{label}: expected a NumPy array, got {type(given).__name__}"
    if given is None:
        advice = (
            "leave it out, and add it with add_param_group once its layer has been built; or make the optimizer "
            "without parameters, Adam(lr=...), and pass what there is at each step: update(params, grads)"
        )
    elif package_of(given) == "torch":
        advice = "pass tensor.detach().numpy(), which shares the tensor's memory (of a tensor on the CPU)"
    elif package_of(given) in ("jax", "jaxlib"):
        advice = (
            "JAX's arrays cannot be updated in place; keep the parameters in NumPy, numpy.array(x), and give JAX "
            "those"
        )
    elif package_of(given) == "scipy" and hasattr(given, "toarray"):
        advice = "the matrix is sparse; pass its dense array, matrix.toarray()"
    elif isinstance(given, Mapping):
        advice = (
            "pass one dict of arrays by names, or a list of arrays; {**first, **second} makes one of two dicts"
        )
    elif isinstance(given, list | tuple) and any(isinstance(x, np.ndarray) for x in given):
        advice = "pass one flat list of arrays: [*first, *second]"
    elif isinstance(given, np.generic):
        advice = "a scalar cannot be updated in place; make an array of it with numpy.array, and read its element"
    else:
        advice = "make one of it with numpy.asarray"
    raise TypeError(f"{expected}; {advice}")


def refuse_file(what: str, given: Any) -> None:
    """Refuses an .npz file: it reads its arrays anew at each access, so a step would change nothing."""
    if isinstance(given, np.lib.npyio.NpzFile):
        raise TypeError(
            f"{what}: got an open .npz file, which reads its arrays anew at each access; pass dict(file), and use the "
            "arrays of that dict from now on"
        )


def is_in_order(array: Array, order: str) -> bool:
    """Whether the elements lie one after the other, aligned, in C or Fortran order."""
    flags = array.flags
    return array.size == 0 or (flags.aligned and (flags.f_contiguous if order == "F" else flags.c_contiguous))


def order_of(array: Array) -> str:
    """The order in which a parameter's elements are numbered."""
    return "C" if array.flags.c_contiguous else "F"


def checked_parameter(label: str, array: Any) -> Array:
    """A plain view of a parameter."""
    param = plain(label, array)
    if param.dtype == object:
        raise TypeError(
            f"{label}: it is an array of objects, and only arrays of numbers can be updated; pass its members: "
            "list(array)"
        )
    if param.dtype.type not in (np.float32, np.float64) and not is_bfloat16(param):
        raise TypeError(
            f"{label}: dtype {param.dtype} cannot be updated; use float32, float64 or bfloat16 (array.astype)"
        )
    if not param.dtype.isnative:
        raise ValueError(
            f"{label}: the bytes are swapped (dtype {param.dtype.str}); use a native array: "
            "array.astype(array.dtype.newbyteorder('='))"
        )
    if not param.flags.writeable:
        refuse_read_only(label)
    if not is_in_order(param, order_of(param)):
        raise ValueError(
            f"{label}: the array must be contiguous and aligned, to be updated in place (its strides are "
            f"{param.strides}); train a copy, array.copy(), and write it back after each step: part[...] = copy"
        )
    return param


def refuse_read_only(label: str) -> NoReturn:
    raise ValueError(f"{label}: the array is read-only; pass a writable one (array.copy())")


def checked_states(
    label: str, param: Array, states: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Array]:
    """Plain views of a parameter's states, by their letters; names: what the user calls each."""
    found: dict[str, Array] = {}
    for letter, given in states.items():
        called = f"the state {names[letter]!r} of {label}"
        state = plain(called, given)
        possible = [a.dtype.name for a in found.values()][:1] or state_dtypes(param.dtype.name)
        if state.dtype.name not in possible or not state.dtype.isnative:
            raise TypeError(
                f"{called}: it has dtype {state.dtype}, the parameter {param.dtype}; convert it to "
                f"{' or '.join(possible)} with astype"
            )
        if not state.flags.writeable:
            refuse_read_only(called)
        if state.shape != param.shape:
            raise ValueError(
                f"{called}: it has shape {state.shape}, the parameter {param.shape}; they must be the same"
            )
        if not is_in_order(state, order_of(param)):
            raise ValueError(
                f"{called}: the array must be contiguous and aligned, in the parameter's order "
                f"({order_of(param)}); make it with numpy.zeros_like"
            )
        found[letter] = state
    return found


def refuse_other_param(
    label: str, dtype: np.dtype[Any], shape: tuple[int, ...], order: str, given: Any
) -> NoReturn:
    """Says why an array cannot take the place of the one that a parameter had in the call before."""
    param = checked_parameter(label, given)
    if param.dtype != dtype or param.shape != shape:
        raise ValueError(
            f"{label}: it is now {param.dtype} of shape {param.shape}, its state {dtype} of shape {shape}; pass an "
            "array like the first, or make a new optimizer"
        )
    raise ValueError(
        f"{label}: it now lies in {order_of(param)} order in memory, its state in {order} order; pass it as "
        f"numpy.require(array, requirements='{order}')"
    )


# -- Gradients: the fast path is in _plan.pyx; here is all that it does not know ---------------------


def plain_gradient(label: str, param_dtype: np.dtype[Any], grad: Any, is_bound: bool = False) -> Array:
    """A gradient that is not exactly a NumPy array, as one."""
    if is_bound and isinstance(grad, np.generic):
        raise TypeError(
            f"{label}: its gradient is a number that nothing can overwrite; pass an array, np.zeros(())"
        )
    if isinstance(grad, np.ma.MaskedArray):
        raise TypeError(f"{label}: its gradient is masked, and a step knows no mask; pass grad.filled(0)")
    if isinstance(grad, np.ndarray):
        return np.ndarray.view(grad, np.ndarray)
    if isinstance(grad, np.generic) and grad.dtype.kind in "fV":
        return np.broadcast_to(np.asarray(grad), ())  # read-only, as the scalar is
    if package_of(grad) == "scipy" and hasattr(grad, "toarray"):
        raise TypeError(f"{label}: its gradient is a sparse matrix; pass its dense array, grad.toarray()")
    if package_of(grad) == "torch" and hasattr(grad, "detach"):
        raise TypeError(f"{label}: its gradient is a tensor of torch; pass grad.detach().numpy()")
    try:
        return np.asarray(memoryview(grad))
    except Exception as error:
        raise TypeError(
            f"{label}: its gradient must be a NumPy array of {param_dtype}, got {type(grad).__name__}; make one of it "
            "with numpy.asarray"
        ) from error


def refuse_gradient_dtype(label: str, param_dtype: np.dtype[Any], grad: Any, given: Any) -> NoReturn:
    """given: what was passed for ``grad``, the array that it was taken for."""
    if not isinstance(given, np.ndarray):
        plain_gradient(label, param_dtype, object() if not isinstance(given, np.generic) else given)
    raise TypeError(
        f"{label}: its gradient has dtype {grad.dtype}, the parameter {param_dtype}; convert it with astype"
    )


def refuse_gradient_shape(label: str, shape: tuple[int, ...], grad: Array) -> NoReturn:
    raise ValueError(f"{label}: its gradient has shape {grad.shape}, the parameter {shape}; they must be the same")


def refuse_bound_layout(label: str, order: str) -> NoReturn:
    raise ValueError(
        f"{label}: a bound gradient must lie in memory as its parameter does ({order} order); make it with "
        "numpy.empty_like"
    )


def rounded(grad: Array) -> Array:
    """A gradient of float64 as float32, rounded to the nearest."""
    return quietly(grad.astype, np.float32)


def warn_of_rounding(label: str) -> None:
    warnings.warn(
        f"{label}: its gradient is of float64, the parameter of float32: every step rounds such gradients first, which "
        "takes a pass over memory and an array more. Usually a float64 scalar or array has come into the computation; "
        "convert it, or the gradient, with astype(numpy.float32). This optimizer does not say so again",
        stacklevel=3,
    )


def refuse_replaced_gradients(
    holder: Any, members: Sequence[Any], keys: Sequence[Key], labels: Sequence[str]
) -> NoReturn:
    """holder: the list or dict that was bound; members: what it had (of a dict, key, value, key, value)."""
    before: Any = dict(zip(members[::2], members[1::2], strict=True)) if isinstance(holder, dict) else members
    places: Sequence[Any] = keys if isinstance(holder, dict) else range(len(keys))
    for place, label in zip(places, labels, strict=True):
        has_it = place in holder if isinstance(holder, dict) else place < len(holder)
        if not has_it or holder[place] is not before[place]:
            raise ValueError(
                f"{label}: its gradient in the {type(holder).__name__} that was bound is another object now, and the "
                "step would read the old one; write into the bound array (grads[i][...] = new), or call bind again"
            )
    raise ValueError(
        f"gradients: the {type(holder).__name__} that was bound has other members now; call bind again"
    )


def listed(grads: Any, keys: Sequence[Key], labels: Sequence[str]) -> list[Any]:
    """Gradients in the parameters' order, from any form in which a user may pass them."""
    if isinstance(grads, Mapping):
        if keys and isinstance(keys[0], int) and grads and all(isinstance(name, str) for name in grads):
            raise TypeError(
                "gradients: got a dict by names, but this optimizer was made from lists; pass list(grads.values()) if "
                "they are in the parameters' order, or make the optimizer of a dict by the same names"
            )
        missing = [label for key, label in zip(keys, labels, strict=True) if key not in grads]
        if missing:
            raise ValueError(
                f"no gradient for {listing(missing)}; pass one for every parameter's name (None leaves a parameter "
                "alone)"
            )
        known = set(keys)
        unknown = [repr(key) for key in grads if key not in known]
        if unknown:
            raise ValueError(
                f"gradients for unknown names {listing(unknown)}; leave them out: the parameters are "
                f"{listing(labels)}"
            )
        return [grads[key] for key in keys]
    if isinstance(grads, np.ndarray | np.generic | str | bytes) or not hasattr(grads, "__iter__"):
        raise TypeError(
            "gradients: expected a list in the parameters' order or a dict by their names, got "
            f"{type(grads).__name__}; put a single array into a list"
        )
    found = list(grads)
    if not found and hasattr(grads, "__next__"):
        raise ValueError("gradients: the iterator has no more to give; make one for every step, or pass a list")
    return found


def handed_over(params: Any, grads: Any, method: str = "update") -> tuple[Any, Any]:
    """The parameters and gradients that a method is given, as two lists or as two dicts by names."""
    if isinstance(params, Mapping) != isinstance(grads, Mapping):
        raise TypeError(
            f"{method}: got {type(params).__name__} of parameters and {type(grads).__name__} of gradients; pass two "
            "lists in one order, or two dicts by the same names"
        )
    return to_write("params", params), listed_or_named("gradients", grads)


def to_write(name: str, given: Any) -> list[Any] | dict[Any, Any]:
    """Arrays that a method is given to write into, as a list or as a dict by names."""
    refuse_file(name, given)
    return listed_or_named(name, given)


def listed_or_named(name: str, given: Any) -> list[Any] | dict[Any, Any]:
    """Arrays that a method is given, as a list or as a dict by names."""
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, np.ndarray | np.generic | str | bytes) or not hasattr(given, "__iter__"):
        raise TypeError(
            f"{name}: expected a list or a dict by names, got {type(given).__name__}; put a single array into a list"
        )
    return list(given)


def refuse_name(name: Any) -> NoReturn:
    raise TypeError(f"params: the names must be strings, got {name!r} ({type(name).__name__})")


def refuse_mixture(by_name: bool) -> NoReturn:
    raise TypeError(
        "update: this optimizer knows its parameters by "
        + ("names; pass dicts by these" if by_name else "positions; pass lists in their order")
    )


def refuse_step_without_params() -> NoReturn:
    raise TypeError(
        "this optimizer was made without parameters; call update(params, grads), or make one with them: "
        "Adam([w, b])"
    )


def refuse_fewer(given: int, expected: int) -> NoReturn:
    raise ValueError(
        f"params: got {given} for {expected} parameters; pass all of them in their order (and None for the gradient of "
        "one to leave it alone), or use dicts by names, which may hold any of them"
    )


def refuse_count(given: int, expected: int) -> NoReturn:
    raise ValueError(
        f"gradients: got {given} for {expected} parameters; pass one for each, None to leave a parameter alone"
    )


def refuse_loose_dtype(key: Key, grad: Array) -> NoReturn:
    raise TypeError(
        f"{gradient_label(key)}: dtype {grad.dtype} is none that gradients have; convert it to float32 or float64 with "
        "astype"
    )


def gradient_label(key: Key) -> str:
    """What messages call the gradient of that number or name, where there is no parameter."""
    return f"gradient {key!r}"


def refuse_zeroing(gradients: Sequence[tuple[str, Array]]) -> None:
    """Refuses gradients that zero_grads must not, or cannot, write zeros into."""
    refuse_writing(gradients, "zero_grads cannot write zeros into it", "pass a copy, or leave out zero_grads")


def refuse_writing(gradients: Sequence[tuple[str, Array]], purpose: str, advice: str) -> None:
    """Refuses gradients that cannot be written in place, each element once."""
    for label, grad in gradients:
        if not grad.flags.writeable:
            raise ValueError(f"{label}: its gradient is read-only, so {purpose}; {advice}")
        if grad.size > 1 and any(s == 0 and n > 1 for s, n in zip(grad.strides, grad.shape, strict=True)):
            raise ValueError(f"{label}: its gradient is broadcast, so {purpose}; {advice}")
    for first, second in sharing(gradients):
        raise ValueError(f"{first} and {second}: their gradients share memory, so {purpose}; {advice}")


def sharing(labelled: Sequence[tuple[str, Array]]) -> Iterator[tuple[str, str]]:
    """The labels of arrays that share memory, two by two."""
    spans = [(*np.lib.array_utils.byte_bounds(array), label, array) for label, array in labelled if array.size]
    around: list[Any] = []  # the spans before that end behind the begin of the next
    for span in sorted(spans, key=lambda span: span[:2]):
        around = [before for before in around if before[1] > span[0]]
        yield from ((before[2], span[2]) for before in around if np.shares_memory(before[3], span[3]))
        around.append(span)


# -- Memory that must not be shared ------------------------------------------------------------------


def refuse_shared(pairs: Sequence[tuple[tuple[int, int, str], tuple[int, int, str]]]) -> NoReturn:
    """pairs: arrays that share memory, each as the number of its parameter, its place there and what it is called.

    Of several pairs the message names the one that the caller passed first: addresses differ from run to run.
    """
    first, second = min(tuple(sorted(pair)) for pair in pairs)
    raise ValueError(
        f"{first[2]} and {second[2]} share memory; pass every array once, and no two views of the same elements"
    )


def refuse_shared_gradient(label: str, other: str) -> NoReturn:
    raise ValueError(f"{label}: its gradient shares memory with {other}; pass a copy of the gradient")


# -- States ------------------------------------------------------------------------------------------


def state_dtype_of(tensor: Tensor, wanted: str | None) -> np.dtype[Any]:
    """The dtype of a parameter's states; refuses one that there are no kernels for."""
    if wanted is None:
        return tensor.dtype
    possible = state_dtypes(tensor.dtype.name)
    if wanted not in possible:
        raise ValueError(
            f"state_dtype: {tensor.label} is of {tensor.dtype}, its states cannot be of {wanted}; use "
            f"{' or '.join(possible)}"
        )
    return storage_dtype(wanted)


def arena(
    tensors: Sequence[Tensor], dtypes: Sequence[np.dtype[Any]], letters: Sequence[Mapping[str, int]]
) -> list[dict[str, Array]]:
    """Zeros for the states of each parameter, in its shape and order and a dtype, in one piece of memory.

    letters: of each parameter's states, with the place of each among all that the parameter has.

    Every array begins at a multiple of ALIGNMENT. A processor takes a load for one that depends on a store
    a little before it when their addresses agree modulo a page, and waits: so arrays of a page or more begin
    a quarter of a page apart from each other, and half a page from their parameter.
    """
    sizes = [math.prod(tensor.shape) * dtype.itemsize for tensor, dtype in zip(tensors, dtypes, strict=True)]
    rooms = [-(-size // ALIGNMENT) * ALIGNMENT + PAGE * (size >= PAGE) for size in sizes]
    memory = np.zeros(sum(room * len(x) for room, x in zip(rooms, letters, strict=True)) + ALIGNMENT, np.uint8)
    start = memory.ctypes.data
    at = -start % ALIGNMENT
    found = []
    for tensor, dtype, size, room, names in zip(tensors, dtypes, sizes, rooms, letters, strict=True):
        arrays = {}
        for name, k in names.items():
            begin = at
            if size >= PAGE:
                apart = tensor.address // ALIGNMENT * ALIGNMENT + PAGE // 2 + k * PAGE // 4
                begin += (apart - start - at) % PAGE
            flat = memory[begin : begin + size].view(dtype)
            arrays[name] = flat.reshape(tensor.shape, order="F" if tensor.order == "F" else "C")
            at += room
        found.append(arrays)
    return found
