"""The keyword arguments that `step` and `update` share.

They come as a dict, which is empty in most steps: eight defaults of a signature would take as long as the update of
some hundred elements.
"""

import inspect
from collections.abc import Callable
from typing import Any, NoReturn, TypedDict, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


class StepOptions(TypedDict, total=False):
    """See `fastopt.Optimizer.step`."""

    grad_scale: float
    max_value: float | None
    max_norm_each: float | None
    max_norm: float | None
    norm_type: float
    skip_nonfinite: bool
    zero_grads: bool


DEFAULTS: StepOptions = {
    "grad_scale": 1.0,
    "max_value": None,
    "max_norm_each": None,
    "max_norm": None,
    "norm_type": 2.0,
    "skip_nonfinite": False,
    "zero_grads": False,
}


def takes_step_options(method: Method) -> Method:
    """Shows the arguments one by one in the signature of a method that takes them as ``**options``."""
    plain = inspect.signature(method)
    own = [parameter for parameter in plain.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=StepOptions.__annotations__[name]
        )
        for name, default in DEFAULTS.items()
    ]
    method.__signature__ = plain.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return method


def refuse(name: str) -> NoReturn:
    """Refuses an argument that a step does not have."""
    from fastopt.option_names import similar  # here, because no step with right arguments needs it

    meant = similar(name, list(DEFAULTS))
    advice = f"did you mean {meant[0]}?" if meant else f"its arguments are {', '.join(DEFAULTS)}"
    raise TypeError(f"{name}: a step takes no such argument; {advice}")


def refuse_zeros_of_a_mean() -> NoReturn:
    raise ValueError(
        "zero_grads: this step takes the mean of what accumulate() has added up, and does not have the arrays that were "
        "added; leave zero_grads out, and write zeros into the arrays after each accumulate()"
    )
