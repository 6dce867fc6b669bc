"""What a message tells a user to do works: each mistake here is followed by its message's advice."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastopt

Made = Callable[[], Any]


def as_if_of(package: str, **methods: Any) -> Any:
    """A thing whose class comes from a package that need not be installed."""
    cls = type("Thing", (), {"__module__": package, **{k: (lambda self, v=v: v) for k, v in methods.items()}})
    return cls()


def ones(*shape: int) -> Any:
    return np.ones(shape or (3,), np.float32)


def steps(optimizer: fastopt.Optimizer) -> None:
    """The optimizer works, and changes what it was given."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [np.ones(p.shape, p.dtype) for p in params]
    keys = list(optimizer.state)
    optimizer.step(dict(zip(keys, grads, strict=True)) if isinstance(keys[0], str) else grads)
    assert all((p != 1).all() for p in params)


first, second = {"w": ones()}, {"b": ones()}
objects = np.empty(2, object)
objects[:] = [ones(), ones()]
dense = ones()
whole = ones(4, 4)

PARAMETERS: dict[str, tuple[Made, str, Made]] = {
    "None": (lambda: [ones(), None], r"parameter 1: .*add_param_group", lambda: [ones()]),
    "None by name": (lambda: {"w": None}, r"'w': .*update\(params, grads\)", lambda: {"w": ones()}),
    "a dict in a list": (
        lambda: [first, second],
        r"params\[0\]: .*'params'.*\{\*\*first, \*\*second\}",
        lambda: {**first, **second},
    ),
    "dicts in a list, as groups": (
        lambda: [first, second],
        r'\[\{"params": weights\}',
        lambda: [{"params": first}, {"params": second}],
    ),
    "a dict in a dict": (lambda: {"a": first, "b": second}, r"'a': .*\{\*\*first", lambda: {**first, **second}),
    "a list in a list": (
        lambda: [[ones()], [ones()]],
        r"parameter 0: .*\[\*first",
        lambda: [*[ones()], *[ones()]],
    ),
    "an array of arrays in a list": (lambda: [objects], r"parameter 0: .*list\(array\)", lambda: list(objects)),
    "an array of arrays": (lambda: objects, r"params: .*list\(params\)", lambda: list(objects)),
    "a scalar": (lambda: [np.float32(1)], r"parameter 0: .*numpy\.array", lambda: [np.array(np.float32(1))]),
    "an array alone": (lambda: ones(), "into a list", lambda: [ones()]),
    "a list of numbers": (lambda: [[1.0, 1.0]], "numpy.asarray", lambda: [np.asarray([1.0, 1.0])]),
    "float16": (
        lambda: [np.ones(3, np.float16)],
        r"array\.astype",
        lambda: [np.ones(3, np.float16).astype(np.float32)],
    ),
    "swapped": (
        lambda: [np.ones(3, ">f4")],
        r"array\.astype\(array\.dtype\.newbyteorder\('='\)\)",
        lambda: [np.ones(3, ">f4").astype(np.dtype(">f4").newbyteorder("="))],
    ),
    "read-only": (
        lambda: [np.broadcast_to(np.float32(1), (3,))],
        r"array\.copy\(\)",
        lambda: [np.broadcast_to(np.float32(1), (3,)).copy()],
    ),
    "twice": (lambda: [dense, dense], "pass every array once", lambda: [dense.copy()]),
    "an array of torch": (
        lambda: [as_if_of("torch.nn.parameter", detach=SimpleNamespace(numpy=lambda: ones()))],
        r"tensor\.detach\(\)\.numpy\(\)",
        lambda: [as_if_of("torch", detach=SimpleNamespace(numpy=lambda: ones())).detach().numpy()],
    ),
    "an array of JAX": (
        lambda: [as_if_of("jaxlib._jax", __array__=ones())],
        r"numpy\.array\(x\)",
        lambda: [np.array(as_if_of("jaxlib._jax", __array__=ones()).__array__())],
    ),
    "a sparse matrix": (
        lambda: [as_if_of("scipy.sparse._csr", toarray=ones())],
        r"matrix\.toarray\(\)",
        lambda: [as_if_of("scipy.sparse._csr", toarray=ones()).toarray()],
    ),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters(case: str) -> None:
    wrong, says, advised = PARAMETERS[case]
    with pytest.raises((TypeError, ValueError), match=says):
        fastopt.SGD(wrong(), lr=0.5)
    steps(fastopt.SGD(advised(), lr=0.5))
    if not case.startswith(("dicts", "a dict in a list", "an array alone")):
        with pytest.raises((TypeError, ValueError)):
            fastopt.SGD([{"params": wrong()}], lr=0.5)


def test_a_layer_that_has_not_been_built() -> None:
    optimizer = fastopt.SGD([ones()], lr=0.5)
    optimizer.add_param_group({"params": [ones()]})
    steps(optimizer)
    by_call = fastopt.SGD(lr=0.5)
    with pytest.raises(TypeError, match=r"'w': .*got NoneType"):
        by_call.update({"w": None}, {"w": ones()})
    by_call.update({"w": ones()}, {"w": ones()})


def test_a_slice_is_trained_as_a_copy_and_written_back() -> None:
    part = whole[:, :2]
    with pytest.raises(
        ValueError, match=r"array\.copy\(\), and write it back after each step: part\[\.\.\.\] = copy"
    ):
        fastopt.SGD([part], lr=0.5)
    copy = part.copy()
    optimizer = fastopt.SGD([copy], lr=0.5)
    optimizer.step([ones(4, 2)])
    part[...] = copy
    assert (whole[:, :2] == 0.5).all()
    assert (whole[:, 2:] == 1).all()


GRADIENTS: dict[str, tuple[Made, str, Made]] = {
    "sparse": (
        lambda: as_if_of("scipy.sparse._coo", toarray=ones()),
        r"grad\.toarray\(\)",
        lambda: as_if_of("scipy.sparse._coo", toarray=ones()).toarray(),
    ),
    "of torch": (
        lambda: as_if_of("torch", detach=SimpleNamespace(numpy=lambda: ones())),
        r"grad\.detach\(\)\.numpy\(\)",
        lambda: as_if_of("torch", detach=SimpleNamespace(numpy=lambda: ones())).detach().numpy(),
    ),
    "masked": (
        lambda: np.ma.masked_array(ones()),
        r"grad\.filled\(0\)",
        lambda: np.ma.masked_array(ones()).filled(0),
    ),
    "a list": (lambda: [1.0, 1.0, 1.0], "numpy.asarray", lambda: np.asarray([1.0, 1.0, 1.0], np.float32)),
    "integers": (lambda: np.ones(3, int), "astype", lambda: np.ones(3, int).astype(np.float32)),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients(case: str) -> None:
    wrong, says, advised = GRADIENTS[case]
    optimizer = fastopt.SGD([ones()], lr=0.5)
    with pytest.raises(TypeError, match=says):
        optimizer.step([wrong()])
    optimizer.step([advised()])
    assert (optimizer.param_groups[0]["params"][0] == 0.5).all()


def test_a_dict_of_gradients_for_an_optimizer_made_from_lists() -> None:
    optimizer = fastopt.SGD([ones(), ones()], lr=0.5)
    grads = {"w": ones(), "b": ones()}
    with pytest.raises(
        TypeError, match=r"list\(grads\.values\(\)\).*make the optimizer of a dict by the same names"
    ):
        optimizer.step(grads)
    optimizer.step(list(grads.values()))
    fastopt.SGD({"w": ones(), "b": ones()}).step(grads)


def test_a_bound_list_that_gets_another_array() -> None:
    param, grads = ones(), [ones()]
    optimizer = fastopt.SGD([param], lr=0.5)
    for bound in grads, dict(enumerate(grads)):
        optimizer.bind(bound)
        bound[0] = 2 * ones()  # type: ignore[index]
        with pytest.raises(ValueError, match=r"parameter 0: .*write into the bound array .*call bind again"):
            optimizer.step()
        optimizer.bind(bound)
        optimizer.step()
        bound[0][...] = 0.0  # type: ignore[index]
        optimizer.step()
    assert (param == -1.0).all()


def test_with_the_packages_themselves() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    optimizer = fastopt.SGD([ones(2, 3)], lr=0.5)
    matrix = sparse.csr_matrix(ones(2, 3))
    with pytest.raises(TypeError, match=r"grad\.toarray\(\)"):
        optimizer.step([matrix])
    optimizer.step([matrix.toarray()])


def test_with_torch_itself() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(3, 2)
    with pytest.raises(TypeError, match=r"parameter 0: .*tensor\.detach\(\)\.numpy\(\)"):
        fastopt.SGD(module.parameters())
    optimizer = fastopt.SGD([p.detach().numpy() for p in module.parameters()], lr=0.5)
    module(torch.ones(1, 3)).sum().backward()
    with pytest.raises(TypeError, match=r"grad\.detach\(\)\.numpy\(\)"):
        optimizer.step([p.grad.requires_grad_() for p in module.parameters()])
    optimizer.step([p.grad.detach().numpy() for p in module.parameters()])
