"""Other libraries that users would take, each optional: numexpr, JAX with optax, torch.compile, MLX, DeepSpeed, thinc.

`python -m fastopt bench` has NumPy, numba and torch already. The dicts translate our optimizers and options into
each library's. A function there takes the library, the parameters if it needs them, and the hyper-parameters; it
looks up those that the library has. A case that changes an option that was not looked up is unavailable.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from limits import BANDWIDTH, DIVISION, bandwidth_step, division_step

from fastopt.benchmark import candidates, internals
from fastopt.benchmark.candidates import (
    NUMPY_LARGEST,
    ONE_OR_ALL,
    ONE_THREAD,
    Candidate,
    Unavailable,
    elementwise,
    library,
)
from fastopt.benchmark.cases import Case, allocate
from fastopt.benchmark.internals import CPUS, Array, Hyper, Step
from fastopt.benchmark.tape import Recorded, Tape, trace

# -- Names and options of other libraries ----------------------------------------------------------

OPTAX: dict[str, Callable[[Any, Hyper], Any]] = {
    "SGD": lambda o, h: o.sgd(h["lr"], h["momentum"] or None, h["nesterov"]),
    "Signum": lambda o, h: o.signum(h["lr"], h["momentum"]),
    "Adagrad": lambda o, h: o.adagrad(h["lr"], h["initial_accumulator_value"], h["eps_root"]),
    "RMSprop": lambda o, h: o.rmsprop(
        h["lr"],
        h["alpha"],
        h["eps"],
        h["initial_accumulator_value"],
        eps_in_sqrt=False,
        centered=h["centered"],
        momentum=h["momentum"] or None,
    ),
    "Adadelta": lambda o, h: o.adadelta(h["lr"], h["rho"], h["eps"], h["weight_decay"]),
    "Adam": lambda o, h: o.adam(h["lr"], *h["betas"], h["eps"], h["eps_root"]),
    "AdamW": lambda o, h: o.adamw(h["lr"], *h["betas"], h["eps"], h["eps_root"], weight_decay=h["weight_decay"]),
    "AdaBelief": lambda o, h: o.adabelief(h["lr"], *h["betas"], h["eps"], h["eps_root"]),
    "Adamax": lambda o, h: o.adamax(h["lr"], *h["betas"], h["eps"]),
    "AdEMAMix": lambda o, h: o.contrib.ademamix(
        h["lr"], *h["betas"], h["alpha"], h["eps"], weight_decay=h["weight_decay"]
    ),
    "LAMB": lambda o, h: o.lamb(h["lr"], *h["betas"], h["eps"], weight_decay=h["weight_decay"]),
    "LARS": lambda o, h: o.lars(
        h["lr"],
        h["weight_decay"],
        trust_coefficient=h["trust_coeff"],
        eps=h["eps"],
        momentum=h["momentum"],
        nesterov=h["nesterov"],
    ),
    "Lion": lambda o, h: o.lion(h["lr"], *h["betas"], weight_decay=h["weight_decay"]),
    "NovoGrad": lambda o, h: o.novograd(h["lr"], *h["betas"], h["eps"], h["eps_root"], h["weight_decay"]),
    "RAdam": lambda o, h: o.radam(h["lr"], *h["betas"], h["eps"]),
    "Yogi": lambda o, h: o.yogi(h["lr"], *h["betas"], h["eps"]),
}


def deepspeed_adam(deepspeed: Any, params: list[Any], h: Hyper) -> Any:
    return deepspeed.adam.DeepSpeedCPUAdam(
        params,
        h["lr"],
        h["bias_correction"],
        h["betas"],
        h["eps"],
        h["weight_decay"],
        adamw_mode=h["decoupled_weight_decay"],
    )


DEEPSPEED: dict[str, Callable[[Any, list[Any], Hyper], Any]] = {
    "Adagrad": lambda d, p, h: d.adagrad.DeepSpeedCPUAdagrad(p, h["lr"], h["eps"], h["weight_decay"]),
    "Adam": deepspeed_adam,
    "AdamW": deepspeed_adam,
}

THINC: dict[str, Callable[[Any, Hyper], Any]] = {
    "Adam": lambda o, h: o.Adam(
        h["lr"], L2=0.0, beta1=h["betas"][0], beta2=h["betas"][1], eps=h["eps_hat"], grad_clip=0.0
    ),
}

MLX: dict[str, Callable[[Any, Hyper], Any]] = {
    "SGD": lambda o, h: o.SGD(h["lr"], h["momentum"], h["weight_decay"], nesterov=h["nesterov"]),
    "Adagrad": lambda o, h: o.Adagrad(h["lr"], h["eps"]),
    "RMSprop": lambda o, h: o.RMSprop(h["lr"], h["alpha"], h["eps"]),
    "Adadelta": lambda o, h: o.AdaDelta(h["lr"], h["rho"], h["eps"]),
    "Adam": lambda o, h: o.Adam(h["lr"], h["betas"], h["eps"], h["bias_correction"]),
    "AdamW": lambda o, h: o.AdamW(h["lr"], h["betas"], h["eps"], h["weight_decay"], h["bias_correction"]),
    "Lion": lambda o, h: o.Lion(h["lr"], h["betas"], h["weight_decay"]),
}

FORMS: dict[str, dict[str, Hyper]] = {
    "optax": {
        "Adagrad": {"eps": 0.0, "eps_root": 1e-10},
        "Adamax": {"eps_in_max": False},
        "LAMB": {"always_adapt": True},
        "LARS": {"always_adapt": True},
        "RAdam": {"eps_after_correction": True},
    },
    "thinc": {"Adam": {"eps": 0.0, "eps_hat": 1e-8}},
}
"""Options that give fastopt the library's formula, where fastopt's defaults give another."""


class _Recorder(dict[str, Any]):
    """Hyper-parameters that record which of them were looked up."""

    def __init__(self, hyper: Hyper) -> None:
        super().__init__(hyper)
        self.looked_up: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.looked_up.add(name)
        return super().__getitem__(name)


def make_optimizer(
    name: str, table: Mapping[str, Callable[..., Any]], case: Case, *arguments: Any
) -> tuple[Case, Any]:
    """A library's optimizer, and the case whose formula it computes."""
    optimizer = case.cls.__name__
    other = FORMS.get(name, {}).get(optimizer)
    form = replace(case, options=case.options | other) if other else case
    hyper = _Recorder(form.hyper)
    if optimizer in table:
        result = table[optimizer](*arguments, hyper)
    if optimizer not in table or not case.options.keys() <= hyper.looked_up:
        raise Unavailable(f"{name} has no {case.label}")
    return form, result


# -- numexpr ---------------------------------------------------------------------------------------

SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "less": "<", "greater": ">"}
FUNCTIONS = {"absolute": "abs"}
"""By NumPy's names, those that numexpr writes otherwise."""


def as_expressions(tape: Tape, arrays: Sequence[Array], scalars: Sequence[Array]) -> list[tuple[str, str]]:
    """A tape as few expressions, each after the name of the array that it is assigned to.

    A temporary is written into the expressions that use it, unless an array in it changes before; an array
    that is assigned to twice in a row is written once.
    """
    names = {id(a): f"a{k}" for k, a in enumerate(arrays)} | {id(s): f"s{k}" for k, s in enumerate(scalars)}
    last_use = {id(x): at for at, (_, inputs, _) in enumerate(tape) for x in inputs}
    temporaries: dict[int, str] = {}  # the expression of each, in terms of the current arrays
    pending: dict[str, str] = {}  # assignments that no other expression has read yet
    done: list[tuple[str, str]] = []
    for at, (ufunc, inputs, result) in enumerate(tape):
        target = names.get(id(result.array))
        operands = []
        for x in inputs:
            if isinstance(x, Recorded) and x.array is None:
                operands.append(temporaries[id(x)])
                continue
            name = names.get(id(x.array if isinstance(x, Recorded) else x), repr(x))
            if name in pending and name != target:
                done.append((name, pending.pop(name)))
            operands.append(pending.get(name, name))
        sign, function = SIGNS.get(ufunc.__name__), FUNCTIONS.get(ufunc.__name__, ufunc.__name__)
        call = f" {sign} ".join(operands) if sign else f"{function} ( {' , '.join(operands)} )"
        if target is None:
            temporaries[id(result)] = f"( {call} )"
            continue
        for key, expression in temporaries.items():
            if last_use[key] > at and target in expression.split():
                temporaries[key] = f"t{len(done)}"
                done.append((temporaries[key], expression))
        for name in [
            name for name, expression in pending.items() if name != target and target in expression.split()
        ]:
            done.append((name, pending.pop(name)))
        pending[target] = f"( {call} )"
    return [*done, *pending.items()]


def numexpr_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The NumPy twin as expressions for numexpr, as few as possible."""
    elementwise(case)
    numexpr = library("numexpr")
    evaluate = numexpr.evaluate
    clock, coefficients, as_scalar = itertools.count(1), case.coefficients(), np.dtype(case.dtype).type
    scalars = [np.array(value, case.dtype) for value in coefficients(1)]
    tensors = case.with_states(params, grads)
    present = [[a.reshape(-1) for a in arrays if a is not None] for arrays in tensors]
    tape = trace(partial(internals.twin_update, case.cls, case.hyper), tensors[0], scalars)
    for name in {ufunc.__name__ for ufunc, *_ in tape} - SIGNS.keys():
        if FUNCTIONS.get(name, name) not in numexpr.expressions.functions:
            raise Unavailable(f"numexpr has no {name}")
    lines = as_expressions(tape, [a for a in tensors[0] if a is not None], scalars)
    temporaries = {
        name: allocate((max(p.size for p in params),), case.dtype) for name, _ in lines if name[0] == "t"
    }

    def step() -> None:
        values = {f"s{k}": as_scalar(value) for k, value in enumerate(coefficients(next(clock)))}
        for arrays in present:
            values |= {f"a{k}": array for k, array in enumerate(arrays)}
            values |= {name: buffer[: arrays[0].size] for name, buffer in temporaries.items()}
            for target, expression in lines:
                evaluate(expression, local_dict=values, global_dict={}, out=values[target])

    return step


# -- JAX and optax ---------------------------------------------------------------------------------


class OptaxStep:
    """A jitted update whose parameters and state are donated: XLA writes them in place where it can."""

    def __init__(self, case: Case, params: list[Array], grads: list[Array]) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        jax, optax = library("jax"), library("optax")
        jax.config.update("jax_enable_x64", True)
        self.form, transform = make_optimizer("optax", OPTAX, case, optax)
        self.jax, self.numpy_params, self.numpy_grads = jax, params, grads
        self.params = [jax.numpy.array(p) for p in params]
        self.state = transform.init(self.params)

        def update(params: Any, state: Any, grads: Any) -> Any:
            changes, state = transform.update(grads, state, params)
            return optax.apply_updates(params, changes), state

        self.update = jax.jit(update, donate_argnums=(0, 1))
        self.put()

    def put(self) -> None:
        self.grads = [self.jax.numpy.array(g) for g in self.numpy_grads]

    def get(self) -> None:
        for mine, theirs in zip(self.numpy_params, self.params, strict=True):
            mine[...] = theirs

    def __call__(self) -> None:
        self.params, self.state = self.update(self.params, self.state, self.grads)
        self.jax.block_until_ready((self.params, self.state))


# -- torch.compile ---------------------------------------------------------------------------------


def torch_compile_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """torch.optim's foreach form, which torch.compile makes loops in C++ of."""
    if case.dtype == "float64":
        raise Unavailable("it works out the coefficients of a step in float32")
    step = candidates.torch_step("foreach", case, params, grads)
    torch = library("torch")
    torch.compiler.reset()  # it compiles a method of torch.optim for eight optimizers, and no more
    compiled: Step = torch.compile(step)
    return compiled


# -- MLX -------------------------------------------------------------------------------------------


class MlxStep:
    """A compiled update on MLX's CPU backend, whose arrays do not change in place."""

    def __init__(self, case: Case, params: list[Array], grads: list[Array]) -> None:
        if case.dtype != "float32":
            raise Unavailable("MLX has learning rates of float32 alone")
        self.mlx, self.numpy_params, self.numpy_grads = library("mlx.core"), params, grads
        self.form, optimizer = make_optimizer("MLX", MLX, case, library("mlx.optimizers"))
        self.params = {str(k): self.mlx.array(p) for k, p in enumerate(params)}
        optimizer.init(self.params)
        self.state = [self.params, optimizer.state]

        def update(grads: Any) -> None:
            self.params.update(optimizer.apply_gradients(grads, self.params))

        self.update = self.mlx.compile(update, inputs=self.state, outputs=self.state)
        self.put()

    def put(self) -> None:
        self.grads = {str(k): self.mlx.array(g) for k, g in enumerate(self.numpy_grads)}

    def get(self) -> None:
        for mine, theirs in zip(self.numpy_params, self.params.values(), strict=True):
            mine[...] = theirs

    def __call__(self) -> None:
        self.update(self.grads)
        self.mlx.eval(self.state)


# -- DeepSpeed -------------------------------------------------------------------------------------


@dataclass
class PeerStep:
    step: Step
    form: Case

    def __call__(self) -> None:
        self.step()


def deepspeed_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """DeepSpeed's optimizers for the CPU; the first use builds them, which takes minutes."""
    if case.dtype != "float32":
        raise Unavailable("DeepSpeed has no float64")
    torch = library("torch")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # ninja is there
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = library("deepspeed.ops")
    tensors = [torch.from_numpy(p).requires_grad_() for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    try:
        form, optimizer = make_optimizer("DeepSpeed", DEEPSPEED, case, deepspeed, tensors)
    except RuntimeError as error:
        raise Unavailable(f"DeepSpeed does not build here: {error}") from error
    return PeerStep(optimizer.step, form)


# -- thinc -----------------------------------------------------------------------------------------


def thinc_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """thinc clears the gradient, so each timed step copies it back; zeros would make the moments subnormal."""
    if case.dtype != "float32":
        raise Unavailable("thinc has no float64")
    form, optimizer = make_optimizer("thinc", THINC, case, library("thinc.optimizers"))
    cleared = [np.empty_like(g) for g in grads]

    def step() -> None:
        for key, (p, g, copy) in enumerate(zip(params, grads, cleared, strict=True)):
            np.copyto(copy, g)
            optimizer((key, ""), p, copy)

    return PeerStep(step, form)


# -- All candidates --------------------------------------------------------------------------------


def bound_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    optimizer = case.make(params)
    optimizer.bind(grads)
    return optimizer.step


CANDIDATES = {
    **{name: c for name, c in candidates.CANDIDATES.items() if name.startswith("NumPy")},
    "numexpr": Candidate(numexpr_step, largest=NUMPY_LARGEST),
    "numba": candidates.CANDIDATES["numba"],
    "thinc": Candidate(thinc_step, ONE_THREAD, largest=NUMPY_LARGEST),
    "optax": Candidate(OptaxStep, (CPUS,), largest=NUMPY_LARGEST),
    "MLX": Candidate(MlxStep, (CPUS,), largest=NUMPY_LARGEST),
    **{name: c for name, c in candidates.CANDIDATES.items() if name.startswith("torch")},
    "torch compile": Candidate(torch_compile_step, largest=NUMPY_LARGEST),
    "DeepSpeed": Candidate(deepspeed_step),
    "fastopt": replace(candidates.CANDIDATES["fastopt"], threads=(*ONE_OR_ALL, None)),
    "fastopt bound": Candidate(bound_step, exact=True, largest=NUMPY_LARGEST),
    BANDWIDTH: Candidate(bandwidth_step, verify=False),
    DIVISION: Candidate(division_step, verify=False),
}
"""Everything that is measured, in the order of the tables' columns."""


def compiles_long(name: str, case: Case, full: bool) -> bool:
    """Whether a candidate takes minutes before its first step: those that compile a loop for each array."""
    return name in ("optax", "MLX", "torch compile") and len(case.shapes) > (500 if full else 100)
