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

from fastopt import functional
from fastopt.optimizer import Optimizer
from fastopt.optimizers import *  # noqa: F403  every optimizer, from the list in that module
from fastopt.optimizers import __all__ as _optimizers
from fastopt.threads import (
    available_isas,
    get_isa,
    get_num_threads,
    set_flush_denormal,
    set_isa,
    set_num_threads,
)

__version__: str
__all__ = [
    *_optimizers,
    "Optimizer",
    "available_isas",
    "functional",
    "get_isa",
    "get_num_threads",
    "set_flush_denormal",
    "set_isa",
    "set_num_threads",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # when it is asked for: to find it takes as long as all the rest of the import
        from importlib.metadata import version

        return version("fastopt")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
