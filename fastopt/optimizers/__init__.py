"""The optimizers, one a file: its equation, its options, its coefficients and its NumPy twin.

The letters of the equations are those of the formulas in ``src_c/formulas/``. g is the gradient after
``grad_scale``, ``maximize`` and ``weight_decay``. setup.py writes ``_list.py``, which imports each class of the
files here, in a form that type checkers and packagers of applications can read.
"""

from fastopt.optimizer import Optimizer
from fastopt.optimizers import _list
from fastopt.optimizers._list import *  # noqa: F403
from fastopt.optimizers._list import __all__ as __all__

CLASSES: list[type[Optimizer]] = sorted(
    (getattr(_list, name) for name in __all__), key=lambda cls: (len(cls.algorithm.states), cls.__name__)
)
"""All of them, simplest first."""
