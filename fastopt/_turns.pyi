from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
Self = TypeVar("Self")
Result = TypeVar("Result")

class Turns:
    def __init__(self) -> None: ...

def exclusive(
    method: Callable[Concatenate[Self, P], Result],
) -> Callable[Concatenate[Self, P], Result]: ...
def reading(
    method: Callable[Concatenate[Self, P], Result],
) -> Callable[Concatenate[Self, P], Result]: ...
def __getattr__(name: str) -> Any: ...
