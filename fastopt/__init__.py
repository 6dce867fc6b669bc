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

if TYPE_CHECKING:
    from fastopt import torch_state
    from fastopt.files import load, save

__version__: str
__all__ = [
    *_optimizers,
    "Optimizer",
    "available_isas",
    "functional",
    "get_isa",
    "get_num_threads",
    "load",
    "save",
    "set_flush_denormal",
    "set_isa",
    "set_num_threads",
    "torch_state",
]


def __getattr__(name: str) -> Any:
    # These are looked up when they are asked for: together they take longer than all the rest of the import.
    if name in {"load", "save"}:
        from fastopt import files

        return getattr(files, name)
    if name == "torch_state":
        import fastopt.torch_state

        return fastopt.torch_state
    if name == "__version__":
        version = machine.version("fastopt")
        if version is not None:
            return version
        raise AttributeError("fastopt.__version__ is unknown: the package's metadata is not installed")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
