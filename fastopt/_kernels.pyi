from collections.abc import Callable
from typing import Any

from fastopt.choice import Choices

TABLE: dict[str, dict[str, tuple[str, ...]]]
FORMATS: dict[str, tuple[str, str, str]]
ISA_NAMES: tuple[str, ...]
OPENMP: int
COMPILER: str

def select_isa(index: int) -> None: ...
def selected_isa() -> int: ...
def set_flush_denormal(mode: bool) -> None: ...
def max_threads() -> int: ...
def bias_correction(beta: float, t: int, /) -> float: ...
def label_of(key: int | str) -> str: ...
def state_dtypes(parameter: str) -> list[str]: ...
def unedited(mappings: Any, seen: list[tuple[Any, ...]]) -> bool: ...

class Group:
    def __init__(
        self,
        coefficients: Callable[[dict[str, Any], float, int], tuple[float, ...]],
        h: dict[str, Any],
        lr: float | Callable[[int], float],
        subset: int,
        seed: int,
        sign: float,
        weight_decay: float,
        decoupled: float,
    ) -> None: ...
    def rate(self, made: int) -> float: ...
    def scalars(self, t: int) -> tuple[float, ...]: ...

class Plan:
    kernel: str
    params: list[Any]
    keys: list[int | str]
    labels: list[str]
    states: list[dict[str, Any]]
    steps: Any
    bound: list[Any] | None
    def __init__(
        self,
        kernel: str,
        params: list[Any],
        keys: list[int | str],
        groups: list[int],
        states: list[dict[str, Any]],
        steps: Any,
        state_names: dict[str, str] | None = None,
    ) -> None: ...
    def bind(self, grads: Any) -> None: ...
    def enter(self) -> None: ...
    def leave(self) -> None: ...
    def step(
        self,
        grads: Any,
        grad_scale: float,
        groups: list[Group],
        choices: Choices,
        commit: Callable[[list[bool]], BaseException | None] | None,
    ) -> None: ...
