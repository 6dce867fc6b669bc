from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastopt._turns import Turns
from fastopt.accumulation import Accumulated
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.arrays import Key
from fastopt.options import Bounds
from fastopt.step_options import StepOptions
from fastopt.thread_tuner import ThreadTuners

class Exchange:
    def __init__(self, cls: type) -> None: ...
    def places(self, arrays: list[Any]) -> bytes | None: ...
    def arrays(self, given: list[Any]) -> list[Array] | None: ...

class Counts:
    vector: Array
    def __init__(self, vector: Array) -> None: ...
    def note(self) -> None: ...
    def are_unchanged(self) -> bool: ...
    def add_step(self, indices: list[int] | None = None) -> None: ...

def are_same(mine: list[Any], theirs: list[Any]) -> bool: ...
def is_unchanged(mappings: list[dict[Any, Any]], items: list[tuple[Any, ...]]) -> bool: ...
def items_of(mapping: dict[Any, Any]) -> tuple[Any, ...]: ...

class Clipping:
    def __init__(self, **asked: Any) -> None: ...

class Intervals:
    tensors: list[Tensor]
    def with_arrays(
        self, tensors: list[Tensor], added: list[tuple[Tensor, int, Array]], without: set[Tensor] | None = None
    ) -> Intervals: ...
    def holds(self, array: Array) -> bool: ...

class Tensor:
    key: Key
    given: Any
    param: Array
    now: Array
    label: str
    order: str
    dtype: Any
    shape: tuple[int, ...]
    states: dict[str, Array]
    index: int
    group: int
    steps: int
    row_steps: RowSteps | None
    letters: list[str]
    array: Array
    address: int
    end_element: int
    def __init__(
        self, algorithm: type[Algorithm], index: int, key: Key, given: Any, group: int, first_element: int
    ) -> None: ...
    vectors: dict[str, Array]
    def number_views(self) -> dict[str, Array]: ...
    def numbers_by_letter(self) -> dict[str, float]: ...
    def name_of(self, buffer: int, names: Mapping[str, str]) -> str: ...

class RowSteps:
    made: Array
    until: int

def row_steps_of(states: Mapping[str, Any], steps: int) -> RowSteps | None: ...

class Group:
    algorithm: type[Algorithm]
    h: Hyper
    lost: str | None
    subset: int
    def __init__(
        self,
        algorithm: type[Algorithm],
        h: Hyper,
        callables: tuple[str, ...],
        resolve: Callable[[Hyper, Sequence[str], int], Hyper],
        lost: str | None = None,
    ) -> None: ...
    def with_flags(self, h: Hyper) -> Group: ...
    def numbers_after(self, steps_taken: int) -> Hyper: ...
    def in_step_after(self, steps_taken: int) -> Hyper: ...
    def scalars(self, t: int) -> tuple[float, ...]: ...

class Move:
    tensor: Tensor
    letter: str
    algorithm: type[Algorithm]
    def __init__(self, tensor: Tensor, letter: str, group: Group, t: int) -> None: ...

class Change:
    groups: list[tuple[int, Hyper | None, Hyper, Group]]
    added_groups: list[tuple[Hyper, Group]]
    added_tensors: list[Tensor]
    states: list[tuple[Tensor, dict[str, Any]]]
    copies: list[tuple[Array, Array]]
    steps: list[tuple[Tensor, int]]
    moves: list[Move]
    numbers: list[tuple[Tensor, dict[str, float]]]
    row_steps: list[tuple[Tensor, RowSteps | None]]
    intervals: Intervals | None
    unseen: dict[Key, Any] | None
    notes: dict[Any, Any]
    written: dict[Key, Array]
    def give_to_added(self) -> None: ...

class Work:
    tuners: ThreadTuners
    def threads(self, elements: int) -> int: ...

class Trail:
    array: Array
    steps: int
    share: float
    def __init__(self, array: Array, steps: int = 0, share: float = 0.0) -> None: ...

class Follower:
    rule: Any

class Applied:
    def __init__(
        self, optimizer: Any, average: Any, values: Callable[[], list[tuple[Key, Array, Array]]]
    ) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

class Plan:
    algorithm: type[Algorithm]
    groups: list[Group]
    tensors: list[Tensor]
    place: dict[Key, int]
    unseen: dict[Key, Any]
    intervals: Intervals
    keeps_params: bool
    last_move: Change | None
    bound: list[Array | None] | None
    accumulated: Accumulated | None
    is_function: bool
    work: Work
    followers: list[Follower]
    applied: Any
    training_values: list[tuple[Array, Array]]
    def __init__(
        self,
        algorithm: type[Algorithm],
        turns: Turns,
        tuners: ThreadTuners,
        keeps_params: bool = True,
        bounds: dict[str, Bounds] = ...,
        is_function: bool = False,
    ) -> None: ...
    def is_unedited(self, param_groups: Any) -> bool: ...
    def edited(self, param_groups: list[Any]) -> list[int]: ...
    def commit(self, param_groups: Any, change: Change) -> None: ...
    def bind(self, grads: Any) -> None: ...
    def checked_gradients(self, grads: Any) -> list[Array | None]: ...
    def step(self, optimizer: Any, grads: Any, asked: StepOptions | Mapping[str, Any] = ...) -> float | None: ...
    def update(
        self, optimizer: Any, params: Any, grads: Any, asked: StepOptions | Mapping[str, Any] = ...
    ) -> float | None: ...
    def update_rows(self, optimizer: Any, params: Any, rows: Any, grads: Any, catch_up: bool) -> None: ...
    def move(self, optimizer: Any, params: Any) -> None: ...
    def follow(self, rule: Any, seed: int) -> Follower: ...
    def unfollow(self, follower: Follower) -> None: ...
    def trails_of(self, follower: Follower) -> dict[Key, Trail]: ...
    def load_trails(self, entries: list[tuple[Trail, Array, int, float]]) -> None: ...
    def write_mirrors(self, pairs: list[tuple[Array, Array]]) -> None: ...

class Gradients:
    tensors: list[Tensor]
    norm: float
    def __init__(self, keys: Iterable[Key], grads: list[Any], tuners: ThreadTuners) -> None: ...
    def are_known_to_be_writable(self) -> bool: ...
    def measure(self, clipping: Clipping) -> float: ...
    def clip(self, limit: float | None = None) -> None: ...

def norms_of_units(array: Array, outer: int, count: int, inner: int) -> Array | None: ...

class Function:
    def __init__(
        self,
        algorithm: type[Algorithm],
        names: tuple[str, ...],
        default_lr: float,
        least_lr: float,
        checked: Callable[[Hyper], Group],
        slow: Callable[[tuple[Any, ...], Hyper], None],
        tuners: Callable[[], ThreadTuners],
    ) -> None: ...

def as_function(function: Function) -> Callable[..., None]: ...
