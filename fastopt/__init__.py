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
from fastopt.averages import ExponentialMovingAverage, Lookahead, StochasticWeightAverage
from fastopt.clipping import GradScaler, clip_grad_adaptive, clip_grad_norm, clip_grad_value, global_norm
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
    from fastopt import schedules, torch_state
    from fastopt.files import load, save

__version__: str
__all__ = [
    *_optimizers,
    "ExponentialMovingAverage",
    "GradScaler",
    "Lookahead",
    "Optimizer",
    "OrphanedParameterWarning",
    "StochasticWeightAverage",
    "available_isas",
    "clip_grad_adaptive",
    "clip_grad_norm",
    "clip_grad_value",
    "functional",
    "get_isa",
    "get_num_threads",
    "global_norm",
    "load",
    "save",
    "schedules",
    "set_flush_denormal",
    "set_isa",
    "set_num_threads",
    "torch_state",
]


def __getattr__(name: str) -> Any:
    # Modules that take long to load are loaded when they are asked for: the schedules a third as long as all the rest.
    if name in {"schedules", "torch_state"}:
        return import_module(f"fastopt.{name}")
    if name in {"load", "save"}:
        return getattr(import_module("fastopt.files"), name)
    # The version as long as all the rest.
    if name == "__version__":
        version = machine.version("fastopt")
        if version is not None:
            return version
        raise AttributeError("fastopt.__version__ is unknown: the package's metadata is not installed")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
