"""Stores the numbers of other people's optimizers, for tests/test_referees.py.

    pip install torch==2.13.0 adabelief-pytorch==0.2.1 …    (the packages below that are asked for)
                                                            (timm imports torchvision)
    python tests/referees/make.py timm keras …

Each line of <library>.json has a call there, ours, how many steps are made, and the parameters after some of them,
in float64. Each tensor has an optimizer of its own, because some count the steps of all tensors together.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from cases import LR_FACTOR, RUNS, Array, gradients, parameters

FOLDER = Path(__file__).parent
TEN = "lr=0.1, weight_decay=0.1"

Step = Callable[[Array, float], Array]
"""Makes a step with a gradient and a factor of lr, and returns the new parameter."""
Make = Callable[[str, Array], Step]
"""Makes the optimizer of a tensor from its call."""


def torch_like(module: Any) -> Make:
    """For optimizers that are made like torch's."""
    import torch

    def make(call: str, start: Array) -> Step:
        tensor = torch.from_numpy(start.copy()).requires_grad_()
        name, _, options = call.partition("(")
        optimizer = eval(f"{name}([tensor], {options}", {**vars(module), "tensor": tensor})

        def step(grad: Array, factor: float) -> Array:
            for group in optimizer.param_groups:
                group["lr"] *= factor
            tensor.grad = torch.from_numpy(grad.copy())
            optimizer.step()
            return np.asarray(tensor.detach().numpy().copy())

        return step

    return make


def keras() -> Make:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as library

    library.config.set_floatx("float64")

    def make(call: str, start: Array) -> Step:
        variable = library.Variable(start, dtype="float64")
        optimizer = eval(call, vars(library.optimizers))

        def step(grad: Array, factor: float) -> Array:
            optimizer.learning_rate = float(optimizer.learning_rate) * factor
            optimizer.apply([library.ops.convert_to_tensor(grad)], [variable])
            return np.asarray(library.ops.convert_to_numpy(variable), np.float64)

        return step

    return make


def from_file(path: str) -> Any:
    """A module of a repository that is no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def line(make: Make, run: str, call: str, ours: str) -> dict[str, Any]:
    steps, kept = RUNS[run]
    params = parameters()
    tensors = [make(call, p) for p in params]
    factors = [1.0] * len(params)
    after = {}
    for number in range(steps):
        for i, grad in enumerate(gradients(number)):
            factors[i] *= LR_FACTOR.get(number, 1.0)
            if grad is not None:
                params[i] = tensors[i](grad, factors[i])
                factors[i] = 1.0
        if number + 1 in kept:
            after[number + 1] = [p.ravel().tolist() for p in params]
    return {"call": call, "ours": ours, "run": run, "after": after}


def line_of_all(module: Any, run: str, call: str, ours: str) -> dict[str, Any]:
    """The same by one optimizer of all tensors, which adds up over them."""
    import torch

    steps, kept = RUNS[run]
    tensors = [torch.from_numpy(p).requires_grad_() for p in parameters()]
    name, _, options = call.partition("(")
    optimizer = eval(f"{name}(tensors, {options}", {**vars(module), "tensors": tensors})
    after = {}
    for number in range(steps):
        optimizer.param_groups[0]["lr"] *= LR_FACTOR.get(number, 1.0)
        for tensor, grad in zip(tensors, gradients(number), strict=True):
            tensor.grad = None if grad is None else torch.from_numpy(grad.copy())
        optimizer.step()
        if number + 1 in kept:
            after[number + 1] = [tensor.detach().numpy().ravel().tolist() for tensor in tensors]
    return {"call": call, "ours": ours, "run": run, "after": after}


def both(make: Make, theirs: str, ours: str, ten: str = TEN) -> Iterator[dict[str, Any]]:
    """Ten steps with weight decay and a large lr, and a hundred with the defaults of both."""
    name, _, options = theirs.partition("(")
    own, _, own_options = ours.partition("(")
    yield line(make, "ten", f"{name}({ten}, {options}", f"{own}({TEN}, {own_options}")
    yield line(make, "hundred", theirs, ours)


def adabelief_pytorch() -> Iterator[dict[str, Any]]:
    make = torch_like(importlib.import_module("adabelief_pytorch"))
    quiet = "print_change_log=False"
    yield from both(make, f"AdaBelief(rectify=False, {quiet})", "AdaBelief()")
    yield from both(make, f"AdaBelief({quiet})", "AdaBelief(rectify=True)")
    yield line(
        make,
        "ten",
        f"AdaBelief({TEN}, betas=(0.8, 0.9), eps=1e-3, weight_decouple=False, rectify=False, {quiet})",
        f"AdaBelief({TEN}, betas=(0.8, 0.9), eps=1e-3, eps_root=1e-3, decoupled_weight_decay=False)",
    )


def madgrad() -> Iterator[dict[str, Any]]:
    make = torch_like(importlib.import_module("madgrad"))
    yield from both(make, "MADGRAD()", "MADGRAD()")
    for momentum in 0.9, 0.0:
        more = f"{TEN}, momentum={momentum}, eps=1e-3"
        yield line(
            make, "ten", f"MADGRAD({more}, decouple_decay=True)", f"MADGRAD({more}, decoupled_weight_decay=True)"
        )


def pytorch_optimizer() -> Iterator[dict[str, Any]]:
    make = torch_like(importlib.import_module("pytorch_optimizer"))
    yield from both(make, "Yogi(weight_decouple=False)", "Yogi()")
    yield line(
        make,
        "ten",
        f"Yogi({TEN}, betas=(0.8, 0.9))",
        f"Yogi({TEN}, betas=(0.8, 0.9), decoupled_weight_decay=True)",
    )


def authors() -> Iterator[dict[str, Any]]:
    """Files of the authors' repositories, which lie in the folder that AUTHORS names."""
    folder = os.environ["AUTHORS"]
    # github.com/sail-sg/Adan: adan.py
    make = torch_like(from_file(f"{folder}/adan.py"))
    yield from both(make, "Adan(foreach=False)", "Adan()")
    yield line(
        make,
        "ten",
        f"Adan({TEN}, betas=(0.9, 0.8, 0.7), eps=1e-3, no_prox=True, foreach=False)",
        f"Adan({TEN}, betas=(0.9, 0.8, 0.7), eps=1e-3, no_prox=True)",
    )
    # github.com/iShohei220/adopt: src/adopt/adopt.py
    make = torch_like(from_file(f"{folder}/adopt.py"))
    yield from both(make, "ADOPT(foreach=False)", "ADOPT()")
    more = f"{TEN}, betas=(0.8, 0.9), eps=0.1"
    yield line(
        make,
        "ten",
        f"ADOPT({more}, clip_lambda=None, decouple=True, foreach=False)",
        f"ADOPT({more}, clip_exp=None, decoupled_weight_decay=True)",
    )
    # github.com/apple/ml-ademamix: pytorch/ademamix.py
    make = torch_like(from_file(f"{folder}/ademamix.py"))
    yield from both(make, "AdEMAMix(alpha=5.0)", "AdEMAMix()")
    warm = "betas=(0.9, 0.99, 0.999), alpha=3.0, beta3_warmup=70, alpha_warmup=40"
    yield line(make, "hundred", f"AdEMAMix({warm})", f"AdEMAMix({warm})")
    more = f"{TEN}, betas=(0.0, 0.9, 0.99), eps=1e-3, beta3_warmup=5, alpha_warmup=20"
    yield line(make, "ten", f"AdEMAMix({more})", f"AdEMAMix({more}, alpha=2.0)")


def keras_lines() -> Iterator[dict[str, Any]]:
    make = keras()
    ten = TEN.replace("lr", "learning_rate")
    yield from both(make, "Ftrl()", "FTRL()", ten)
    yield line(
        make,
        "ten",
        f"Ftrl({ten}, initial_accumulator_value=0.5, l1_regularization_strength=0.3, "
        "l2_regularization_strength=0.2, l2_shrinkage_regularization_strength=0.1, beta=0.7)",
        f"FTRL({TEN}, initial_accumulator_value=0.5, l1=0.3, l2=0.2, l2_shrinkage=0.1, beta=0.7)",
    )
    yield line(make, "hundred", "Adamax(epsilon=1e-3)", "Adamax(lr=1e-3, eps=1e-3, eps_in_max=False)")
    yield line(make, "hundred", "Lion()", "Lion(lr=1e-3)")


def timm() -> Iterator[dict[str, Any]]:
    make = torch_like(importlib.import_module("timm.optim"))
    alone = "max_grad_norm=None, foreach=False"
    yield from both(make, f"Lamb({alone})", "LAMB()")
    yield line(make, "ten", f"Lamb({TEN}, trust_clip=True, {alone})", f"LAMB({TEN}, trust_clip=True)")
    for more in "always_adapt=True, betas=(0.8, 0.9), eps=1e-3", "bias_correction=False":
        more = f"lr=0.1, weight_decay=0.0, {more}"
        yield line(make, "ten", f"Lamb({more}, {alone})", f"LAMB({more})")
    yield from both(make, "Lars(foreach=False)", "LARS()")
    for more in (
        "momentum=0.9, trust_coeff=0.1",
        "momentum=0.9, nesterov=True, eps=0.1",
        "momentum=0.9, dampening=0.5, trust_coeff=0.5, trust_clip=True",
    ):
        yield line(make, "ten", f"Lars({TEN}, {more}, foreach=False)", f"LARS({TEN}, {more})")
    more = "lr=0.1, momentum=0.9, always_adapt=True"
    yield line(make, "ten", f"Lars({more}, foreach=False)", f"LARS({more})")
    for theirs, ours in ("AdamWLegacy", "AdamW"), ("Lion", "Lion"):
        yield from both(make, f"{theirs}(caution=True, foreach=False)", f"{ours}(cautious=True)")
    more = f"{TEN}, betas=(0.5, 0.6)"
    yield line(make, "ten", f"Lion({more}, caution=True, foreach=False)", f"Lion({more}, cautious=True)")
    more = f"{TEN}, betas=(0.5, 0.6), amsgrad=True"
    yield line(make, "ten", f"AdamWLegacy({more}, caution=True, foreach=False)", f"AdamW({more}, cautious=True)")


def schedulefree() -> Iterator[dict[str, Any]]:
    library = importlib.import_module("schedulefree")

    def make(call: str, start: Array) -> Step:
        """In training mode, in which it does not begin."""
        mode = {
            name: type(name, (cls,), {"__init__": in_training(cls)})
            for name, cls in (("AdamW", library.AdamWScheduleFree), ("SGD", library.SGDScheduleFree))
        }
        return torch_like(SimpleNamespace(**mode))(call, start)

    def in_training(cls: Any) -> Callable[..., None]:
        def begin(self: Any, *args: Any, **options: Any) -> None:
            cls.__init__(self, *args, **options, foreach=False)
            self.train()

        return begin

    yield from both(make, "AdamW()", "ScheduleFreeAdamW()")
    yield from both(make, "SGD()", "ScheduleFreeSGD()")
    more = f"{TEN}, warmup_steps=4, r=1.5, weight_lr_power=1.0"
    yield line(
        make,
        "ten",
        f"AdamW({more}, betas=(0.8, 0.9), eps=1e-3)",
        f"ScheduleFreeAdamW({more}, betas=(0.8, 0.9), eps=1e-3)",
    )
    yield line(make, "ten", f"SGD({more}, momentum=0.8)", f"ScheduleFreeSGD({more}, momentum=0.8)")


def prodigyopt() -> Iterator[dict[str, Any]]:
    module = importlib.import_module("prodigyopt")
    yield line_of_all(module, "hundred", "Prodigy()", "Prodigy()")
    for theirs, ours in (
        ("", ""),
        ("decouple=False, d0=0.1", "decoupled_weight_decay=False, d0=0.1"),
        ("use_bias_correction=True, d0=1e-3", "bias_correction=True, d0=1e-3"),
        ("safeguard_warmup=True, d0=1e-2, d_coef=2.0", "safeguard_warmup=True, d0=1e-2, d_coef=2.0"),
        (
            "growth_rate=1.5, beta3=0.5, betas=(0.8, 0.9), eps=1e-3",
            "growth_rate=1.5, beta3=0.5, betas=(0.8, 0.9), eps=1e-3",
        ),
    ):
        yield line_of_all(module, "ten", f"Prodigy({TEN}, {theirs})", f"Prodigy({TEN}, {ours})")


def optimi() -> Iterator[dict[str, Any]]:
    make = torch_like(importlib.import_module("optimi"))
    yield line(make, "ten", f"StableAdamW({TEN}, foreach=False)", f"StableAdamW({TEN})")
    yield line(make, "hundred", "StableAdamW(lr=1e-3, foreach=False)", "StableAdamW()")
    more = f"{TEN}, betas=(0.5, 0.6), eps=0.1"
    yield line(make, "ten", f"StableAdamW({more}, foreach=False)", f"StableAdamW({more})")


def optax() -> Iterator[dict[str, Any]]:
    import jax

    jax.config.update("jax_enable_x64", True)
    library = importlib.import_module("optax")

    def make(call: str, start: Array) -> Step:
        name, _, options = call.partition("(")
        optimizer = library.inject_hyperparams(getattr(library, name))(**eval(f"dict({options}"))
        param = jax.numpy.asarray(start)
        state = optimizer.init(param)

        def step(grad: Array, factor: float) -> Array:
            nonlocal param, state
            state.hyperparams["learning_rate"] = state.hyperparams["learning_rate"] * factor
            updates, state = optimizer.update(jax.numpy.asarray(grad), state, param)
            param = library.apply_updates(param, updates)
            return np.asarray(param, np.float64)

        return step

    rate = TEN.replace("lr", "learning_rate")
    yield line(make, "ten", f"lamb({rate})", f"LAMB({TEN})")
    yield line(make, "hundred", "lamb(learning_rate=1e-3)", "LAMB(weight_decay=0.0, always_adapt=True)")
    yield line(make, "ten", f"novograd({rate})", f"NovoGrad({TEN})")
    yield line(make, "hundred", "novograd(learning_rate=1e-3)", "NovoGrad()")
    more = "b1=0.8, b2=0.9, eps=1e-3, eps_root=0.1"
    yield line(
        make, "ten", f"novograd({rate}, {more})", f"NovoGrad({TEN}, betas=(0.8, 0.9), eps=1e-3, eps_root=0.1)"
    )


LIBRARIES = {
    "timm": timm,
    "optax": optax,
    "schedulefree": schedulefree,
    "prodigyopt": prodigyopt,
    "optimi": optimi,
    "adabelief_pytorch": adabelief_pytorch,
    "madgrad": madgrad,
    "pytorch_optimizer": pytorch_optimizer,
    "authors": authors,
    "keras": keras_lines,
}

if __name__ == "__main__":
    for library in sys.argv[1:] or LIBRARIES:
        text = ",\n".join(json.dumps(one) for one in LIBRARIES[library]())
        (FOLDER / f"{library}.json").write_text(f"[\n{text}\n]\n")
