"""Fused optimizer steps for NumPy arrays: one pass over memory, the same bits everywhere."""

try:
    from fastopt._kernels import TABLE as _TABLE  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "fastopt._kernels":
        raise
    raise ImportError(
        "this is fastopt's source folder, where nothing has been built: start Python in another folder, or "
        "build here with pip install -e ."
    ) from _error

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastopt import functional, machine
from fastopt.machine import (
    available_isas,
    get_isa,
    get_num_threads,
    set_flush_denormal,
    set_isa,
    set_num_threads,
)
from fastopt.optimizer import Optimizer
from fastopt.optimizers import *  # noqa: F403  every optimizer, from the list in that module
from fastopt.optimizers import __all__ as _optimizers
from fastopt.orphans import OrphanedParameterWarning

if TYPE_CHECKING:
    from fastopt import schedules

__version__: str
__all__ = [
    *_optimizers,
    "Optimizer",
    "OrphanedParameterWarning",
    "available_isas",
    "functional",
    "get_isa",
    "get_num_threads",
    "schedules",
    "set_flush_denormal",
    "set_isa",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    # What takes long to load is loaded when it is asked for: the schedules a third as long as all the rest.
    if name == "schedules":
        return import_module("fastopt.schedules")
    # The version as long as all the rest.
    if name == "__version__":
        version = machine.version("fastopt")
        if version is not None:
            return version
        raise AttributeError("fastopt.__version__ is unknown: the package's metadata is not installed")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
