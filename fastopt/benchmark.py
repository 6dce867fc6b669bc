"""What a step costs beside plain NumPy, numba and torch on this machine: ``python -m fastopt bench``.

A candidate makes a step for a case and is checked against the NumPy twin before it is timed. All candidates
of a case run in turn, round after round in one process, so that what else the machine does hits all alike.
The repository's bench/ measures more with these same parts.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from statistics import quantiles
from timeit import Timer
from typing import Any, TypeAlias, TypeVar

import numpy as np

import fastopt
from fastopt import _kernels, optimizers, reference, threads
from fastopt.__main__ import facts
from fastopt.optimizer import Array, Hyper, Optimizer
from fastopt.tape import as_loop, record, replay, trace

T = TypeVar("T")
Shapes: TypeAlias = Sequence[tuple[int, ...]]
Step: TypeAlias = Callable[[], object]
Make: TypeAlias = "Callable[[Case, list[Array], list[Array]], Step]"
Key: TypeAlias = tuple[str, int | None]
"""A candidate and the number of threads that it is measured with; None is fastopt's own choice."""

WORKLOADS: dict[str, Shapes] = {
    "1 x 64": [(64,)],
    "1 x 1,000": [(1000,)],
    "1,000 x 64": [(64,)] * 1000,
    "MLP 784-200-10": [(784, 200), (200,), (200, 10), (10,)],
    **{f"1 x 2^{k}": [(2**k,)] for k in (16, 20, 24, 26)},
}
"""The shapes of the parameters."""


class Unavailable(Exception):
    """Why a candidate cannot run a case."""


def library(name: str) -> Any:
    """A module that is not one of the package's dependencies."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name.partition('.')[0]} is not installed") from error


# -- Cases -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    """One optimizer on one workload."""

    cls: type[Optimizer]
    options: Hyper
    """Those that are not the defaults."""
    workload: str
    shapes: Shapes
    dtype: str = "float32"

    @property
    def label(self) -> str:
        return f"{self.cls.__name__} {' '.join(self.options)}".strip()

    @property
    def hyper(self) -> Hyper:
        return self.cls.defaults_of() | self.options

    @property
    def elements(self) -> int:
        return sum(map(prod, self.shapes))

    @property
    def state_count(self) -> int:
        return len(self.cls.letters(self.hyper))

    @property
    def bytes_moved(self) -> int:
        """The fewest possible: the gradient is read, parameter and states are read and written."""
        return self.elements * np.dtype(self.dtype).itemsize * (3 + 2 * self.state_count)

    def make(self, params: list[Array]) -> Optimizer:
        return self.cls(params, **self.options)

    def arrays(self) -> list[Array]:
        """One for each shape."""
        return [empty(shape, self.dtype) for shape in self.shapes]

    def states(self, shape: tuple[int, ...], dtype: str) -> list[Array | None]:
        """The row's STATE and OPTIONAL buffers of a parameter, as they are at first."""
        row, h = _kernels.TABLE[self.cls.kernel], self.hyper
        first, needed = self.cls.initial_states(h), self.cls.letters(h)
        made: dict[str, Array | None] = dict.fromkeys((*row["state"], *row["optional"]))
        for letter in needed:
            made[letter] = array = empty(shape, dtype)
            array[...] = first.get(letter, 0.0)
        return list(made.values())

    def coefficients(self) -> Callable[[int], tuple[float, ...]]:
        """Of a step t, counted from 1, the kernel's coefficients in the order of the table."""
        return self.cls.group(self.hyper, 0).scalars


def empty(shape: tuple[int, ...], dtype: str) -> Array:
    """An array that lies as NumPy's usually do: at a multiple of 16 bytes and of no more."""
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    begin = (16 - memory.ctypes.data) % 64
    return memory[begin : begin + size].view(dtype).reshape(shape)


PERIOD = 2**16 + 1
"""The numbers in arrays repeat after so many; it shares no factor with the size of a page or a task."""


@lru_cache
def _two_periods(seed: int, dtype: str) -> Array:
    numbers = np.random.default_rng(seed).standard_normal(PERIOD).astype("float32").astype(dtype)
    return np.concatenate([numbers, numbers])


def pieces(arrays: Sequence[Array], seed: int, dtype: str) -> Iterator[tuple[Array, Array]]:
    """Views of the arrays, piece by piece, with the normally distributed numbers that belong there.

    The numbers are float32's, in any dtype, and none is subnormal.
    """
    at = 0
    for array in arrays:
        flat = array.reshape(-1)
        for begin in range(0, flat.size, PERIOD):
            piece = flat[begin : begin + PERIOD]
            yield piece, _two_periods(seed, dtype)[at : at + piece.size]
            at = (at + piece.size) % PERIOD


def fill(arrays: Sequence[Array], seed: int) -> None:
    for piece, values in pieces(arrays, seed, arrays[0].dtype.name):
        piece[...] = values


# -- Candidates ------------------------------------------------------------------------------------


def fastopt_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    return partial(case.make(params).step, grads)


def update(kernel: str, arrays: Sequence[Any], scalars: Sequence[Any]) -> None:
    """The NumPy twin."""
    p, g, *states = arrays
    reference.update(kernel, p, g, states, scalars)


def with_states(case: Case, params: list[Array], grads: list[Array]) -> list[list[Array | None]]:
    """For each parameter all arrays of its update."""
    return [[p, g, *case.states(p.shape, case.dtype)] for p, g in zip(params, grads, strict=True)]


def numpy_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The NumPy twin, as one writes it by hand."""
    kernel, coefficients, clock = case.cls.kernel, case.coefficients(), itertools.count(1)
    tensors = with_states(case, params, grads)

    def step() -> None:
        scalars = coefficients(next(clock))
        for arrays in tensors:
            update(kernel, arrays, scalars)

    return step


def numpy_out_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The NumPy twin with its temporaries allocated beforehand."""
    kernel, coefficients, clock = case.cls.kernel, case.coefficients(), itertools.count(1)
    scalars = [np.array(value, case.dtype) for value in coefficients(1)]
    buffers: dict[tuple[int, ...], list[Array]] = {}
    tapes = [
        record(partial(update, kernel), arrays, scalars, buffers) for arrays in with_states(case, params, grads)
    ]

    def step() -> None:
        for array, value in zip(scalars, coefficients(next(clock)), strict=True):
            array[...] = value
        for tape in tapes:
            replay(tape)

    return step


def numba_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The NumPy twin as one loop over the elements, compiled by numba; parallel on more threads than one."""
    numba = library("numba")
    coefficients, clock, as_scalar = case.coefficients(), itertools.count(1), np.dtype(case.dtype).type
    tensors = with_states(case, params, grads)
    scalars = [np.array(value, case.dtype) for value in coefficients(1)]
    tape = trace(partial(update, case.cls.kernel), tensors[0], scalars)
    present = [[array for array in arrays if array is not None] for arrays in tensors]
    flat = [[array.reshape(-1) for array in arrays] for arrays in present]
    scope: dict[str, Any] = {"np": np, "prange": numba.prange}
    exec(as_loop(tape, present[0], scalars), scope)
    loops = {
        parallel: numba.njit(scope["step"], error_model="numpy", parallel=parallel) for parallel in (False, True)
    }

    def step() -> None:
        scalars = [as_scalar(value) for value in coefficients(next(clock))]
        loop = loops[numba.get_num_threads() > 1]
        for arrays in flat:
            loop(*arrays, *scalars)

    return step


def torch_step(implementation: str, case: Case, params: list[Array], grads: list[Array]) -> Step:
    """implementation: "loop", "foreach", "fused", or "best": fused if it exists, else foreach."""
    torch = library("torch")
    cls = getattr(torch.optim, case.cls.__name__, None)
    options = inspect.signature(cls).parameters if cls else {}
    if cls is None or not case.options.keys() <= options.keys():
        raise Unavailable(f"torch has no {case.label}")
    if implementation == "best":
        implementation = "fused" if "fused" in options else "foreach"
    if implementation not in (*options, "loop"):
        raise Unavailable(f"torch has no {implementation} {cls.__name__}")
    flags = {name: name == implementation for name in ("foreach", "fused") if name in options}
    tensors = [torch.from_numpy(p).requires_grad_() for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    step: Step = cls(tensors, **case.options, **flags).step
    return step


CPUS = threads.available_cpus()
SERIAL: tuple[int | None, ...] = (1,)
ANY: tuple[int | None, ...] = tuple({1: None, CPUS: None})
"""Numbers of threads."""

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
"""How far from the float64 twin, absolute and relative, three steps may lead that are not to be exact."""


@dataclass(frozen=True)
class Candidate:
    """A way to update parameters, and how many threads it is measured with."""

    make: Make
    threads: tuple[int | None, ...] = ANY
    exact: bool = False
    """Whether its bits are to be those of the twin in the same dtype."""
    checked: bool = True
    largest: int = 2**62
    """Elements: larger cases say nothing new about it, and take long."""


NUMPY_LARGEST = 2**25

CANDIDATES = {
    "NumPy": Candidate(numpy_step, SERIAL, exact=True, largest=NUMPY_LARGEST),
    "NumPy out=": Candidate(numpy_out_step, SERIAL, exact=True, largest=NUMPY_LARGEST),
    "numba": Candidate(numba_step),
    "torch": Candidate(partial(torch_step, "loop"), largest=NUMPY_LARGEST),
    "torch foreach": Candidate(partial(torch_step, "foreach"), largest=NUMPY_LARGEST),
    "torch fused": Candidate(partial(torch_step, "fused")),
    "fastopt": Candidate(fastopt_step, exact=True),
}


def use_threads(count: int | None) -> None:
    """Makes everybody use so many threads; None: fastopt its own choice, everybody else all."""
    for name in ("torch", "numba", "numexpr"):
        if name in sys.modules:
            sys.modules[name].set_num_threads(count or CPUS)
    fastopt.set_num_threads(count)


# -- Checks ----------------------------------------------------------------------------------------

STEPS = (1, 2, 3)
"""Those that are checked. Each has gradients of its own; all later ones have those of the last."""


@lru_cache(maxsize=2)
def expected(case: Case, dtype: str) -> list[Array]:
    """The parameters after STEPS of the NumPy twin in a dtype: piece by piece, as a kernel sees one element."""
    arrays, coefficients = [np.empty(shape, dtype) for shape in case.shapes], case.coefficients()
    grads = [pieces(arrays, t, dtype) for t in STEPS]
    for (p, values), *steps in zip(pieces(arrays, 0, dtype), *grads, strict=True):
        p[...] = values
        states = case.states(p.shape, dtype)
        for t, (_, g) in zip(STEPS, steps, strict=True):
            reference.update(case.cls.kernel, p, g, states, coefficients(t))
    return arrays


def checked(candidate: Candidate, case: Case, params: list[Array], grads: list[Array]) -> Step:
    """A candidate's step, after the first ones were found to be those of the NumPy twin.

    A step whose library keeps arrays of its own has methods: `put` fetches the gradients, `get` stores
    the parameters.
    """
    fill(params, 0)
    fill(grads, 1)
    step = candidate.make(case, params, grads)
    if not candidate.checked:
        return step
    for t, count in zip(STEPS, itertools.cycle(candidate.threads)):
        use_threads(count)
        fill(grads, t)
        getattr(step, "put", int)()
        step()
    getattr(step, "get", int)()
    form = getattr(step, "form", case)  # the case whose formula is the library's, where it differs
    for result, right in zip(params, expected(form, case.dtype if candidate.exact else "float64"), strict=True):
        result, right = result.reshape(-1), right.reshape(-1)
        for begin in range(0, result.size, PERIOD):
            part = slice(begin, begin + PERIOD)
            if candidate.exact:
                np.testing.assert_array_equal(result[part].view(np.uint8), right[part].view(np.uint8))
            else:
                most = TOLERANCE[case.dtype]
                np.testing.assert_allclose(result[part], right[part], rtol=most, atol=most)
    return step


# -- Measuring -------------------------------------------------------------------------------------

BLOCK = 2e-3
"""Seconds: so long a candidate runs at a time, at least, because a clock reading costs too."""

PAUSE = 5e-3
"""Seconds between candidates: the last one's threads spin for a while before they sleep."""


@dataclass(frozen=True)
class Timing:
    """Seconds a step: the median, and half the distance between the quartiles."""

    median: float
    spread: float

    def __str__(self) -> str:
        return f"{in_microseconds(self.median)} ±{self.spread / self.median:.0%}"


def measure(
    steps: Mapping[T, Step],
    prepare: Callable[[T], object],
    seconds: float,
    block: float = BLOCK,
    rounds: int = 5,
) -> dict[T, Timing]:
    """Runs all steps in turn for about so many seconds and at least so many rounds.

    Each runs for `block` seconds at a time, after `prepare` was called with its name.
    """
    timers = {name: Timer(step) for name, step in steps.items()}
    samples: dict[T, list[float]] = {name: [] for name in steps}
    numbers = {}
    for name, timer in timers.items():
        prepare(name)
        timer.timeit(1)
        once = timer.timeit(1)
        numbers[name] = 1 if once > block else int(block / timer.timeit(3) * 3) + 1
    order, shuffle = list(steps), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, samples.values())) < rounds:
        shuffle(order)  # so that nobody always comes after the same one
        for name in order:
            prepare(name)
            time.sleep(PAUSE)
            timers[name].timeit(numbers[name] // 4 + 1)  # to warm up
            samples[name].append(timers[name].timeit(numbers[name]) / numbers[name])
    timings = {}
    for name, values in samples.items():
        low, middle, high = quantiles(values, n=4)
        timings[name] = Timing(middle, (high - low) / 2)
    return timings


def measure_case(
    case: Case, candidates: Mapping[str, Candidate], seconds: float
) -> tuple[dict[Key, Timing], dict[str, str]]:
    """Timings of the candidates that can run the case, and why the others cannot."""
    params, grads = case.arrays(), case.arrays()
    steps: dict[Key, Step] = {}
    reasons: dict[str, str] = {}
    for name, candidate in candidates.items():
        try:
            if case.elements > candidate.largest:
                raise Unavailable(f"not measured above {candidate.largest:,} elements")
            step = checked(candidate, case, params, grads)
        except Unavailable as reason:
            reasons[name] = str(reason)
            continue
        steps |= dict.fromkeys(((name, count) for count in candidate.threads), step)
    expected.cache_clear()
    gc.collect()
    fill(params, 0)
    return measure(steps, lambda key: use_threads(key[1]), seconds), reasons


# -- Tables ----------------------------------------------------------------------------------------


def in_microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column to the left, the others to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def threads_of(count: int | None) -> str:
    return "own choice" if count is None else "1 thread" if count == 1 else f"{count} threads"


def progress(items: Sequence[T], **options: Any) -> Iterable[T]:
    """The items, with a progress bar where tqdm is installed."""
    try:
        return library("tqdm").tqdm(items, **options)  # type: ignore[no-any-return]
    except Unavailable:
        return items


COLUMNS = {
    "NumPy": SERIAL,
    "NumPy out=": SERIAL,
    "numba": ANY[-1:],
    "torch best": ANY[-1:],
    "fastopt": ANY,
}

NOTE = f"""\
Microseconds a step, float32: the median ± half the distance between the quartiles. NumPy is the update
written by hand; out= the same, its temporaries allocated beforehand; numba the same as one compiled loop;
torch is fused where it can be, else foreach. One thread or, of {CPUS}, as the column says.
"""


def main(seconds: float = 2.0) -> None:
    """Prints two tables: one optimizer at several sizes, and every optimizer at one."""
    available = CANDIDATES | {"torch best": Candidate(partial(torch_step, "best"))}
    candidates = {
        name: Candidate(available[name].make, counts, available[name].exact) for name, counts in COLUMNS.items()
    }
    at_sizes = [
        Case(fastopt.Adam, {}, name, shapes)
        for name, shapes in WORKLOADS.items()
        if sum(map(prod, shapes)) in range(1000, 2**24 + 1)
    ]
    every = [Case(getattr(optimizers, name), {}, "1 x 2^20", WORKLOADS["1 x 2^20"]) for name in optimizers.__all__]
    results: dict[Case, dict[Key, Timing]] = {}
    missing: dict[str, None] = {}
    for case in progress([*at_sizes, *every], desc="benchmark", unit="row"):
        results[case], reasons = measure_case(case, candidates, seconds)
        missing |= dict.fromkeys(reasons.values())
    use_threads(None)
    for name, value in facts().items():
        if name != "kernels":
            print(f"{name + ':':18}{value}")
    print(f"\n{NOTE}")
    columns = [(name, count) for name, counts in COLUMNS.items() for count in counts]
    columns = [key for key in columns if any(key in timings for timings in results.values())]
    head = [f"{name}, {threads_of(count)}" for name, count in columns]
    for title, cases in (("Adam", at_sizes), ("2^20 elements", every)):
        rows = [
            [
                case.workload if cases is at_sizes else case.label,
                *(str(results[case].get(key, "")) for key in columns),
            ]
            for case in cases
        ]
        print(markdown([title, *head], rows))
    print("Not measured: " + "; ".join(missing) + "." if missing else "")
