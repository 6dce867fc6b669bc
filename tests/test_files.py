"""Checkpoints in files: a resumed training has the same bits; a file is whole, or it is refused."""

from __future__ import annotations

import errno
import gc
import hashlib
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import tempfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from own_process import fork, own_process, run
from tracing import is_interrupted

import fastopt
from fastopt.schedules import ReduceLROnPlateau, cosine

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SUFFIXES = [".npz", ".safetensors"]
each_suffix = pytest.mark.parametrize("suffix", SUFFIXES)

# -- The same bits after a resume ------------------------------------------------------------------

SHAPES = {"w": (50, 20), "b": (20,), "s": (), "none": (0, 3), "large": (2**17,)}


def case_of(row: int) -> tuple[table.Variant, str]:
    variant, format = table.BY_CLASS[row]
    return variant.stored_as(format), format


class Training:
    """All that a training may have: groups, schedules, keys of the user's own, averages, a scaler, other arrays."""

    def __init__(self, row: int, seed: int) -> None:
        variant, format = case_of(row)
        self.dtype, self.grad_dtype = (table.dtype_of(x) for x in table.FORMATS[format][:2])
        is_large = variant.cls is table.LARGEST.cls
        shapes = {name: shape for name, shape in SHAPES.items() if name != "large" or is_large}
        self.params = {
            name: table.plain_values(math.prod(shape), "float32", seed + i).reshape(shape).astype(self.dtype)
            for i, (name, shape) in enumerate(shapes.items())
        }
        if table.takes_fortran_order(variant.cls):
            self.params["w"] = np.asfortranarray(self.params["w"])
        names = list(self.params)
        self.optimizer = variant.make(
            [
                {"params": {k: self.params[k] for k in names[:1]}, "lr": cosine(0.1, 20), "name": "first"},
                {"params": {k: self.params[k] for k in names[1:]}},
            ]
        )
        self.averages: list[Any] = []
        if not hasattr(variant.cls, "eval"):  # else it averages the parameters itself
            self.averages += [
                fastopt.ExponentialMovingAverage(self.optimizer, 0.75, bias_correction=True),
                fastopt.StochasticWeightAverage(self.optimizer, start=1, every=2),
                fastopt.Lookahead(self.optimizer, k=2),
            ]
        self.statistics = {"mean": np.full(3, float(seed)), "count": np.array(seed)}
        self.objects: dict[str, Any] = {
            "plateau": ReduceLROnPlateau(1.0, patience=1),
            "scaler": fastopt.GradScaler(2.0**seed, growth_interval=2),
        }
        self.epoch = 0

    def step(self, t: int) -> None:
        grads: dict[str, Any] = {
            name: table.plain_values(p.size, "float32", 100 * t + i).reshape(p.shape).astype(self.grad_dtype)
            for i, (name, p) in enumerate(self.params.items())
        }
        scaler = self.objects["scaler"]
        for grad in grads.values():
            grad *= self.grad_dtype.type(scaler.scale)  # a power of two
        if t == 4:
            grads["s"][...] = math.inf  # this step is skipped
        if t == 1:
            grads["b"] = None
        scaler.update(self.optimizer.step(grads, grad_scale=1 / scaler.scale, skip_nonfinite=True))
        self.optimizer.param_groups[1]["weight_decay"] *= 0.9
        self.statistics["mean"] += t
        self.statistics["count"][...] += 1
        self.objects["plateau"].step(1.0)
        self.epoch += 1

    def save(self, path: Path) -> None:
        arrays = self.params | self.statistics
        fastopt.save(path, self.optimizer, arrays, self.averages, **self.objects, epoch=self.epoch)

    def load(self, path: Path) -> None:
        arrays = self.params | self.statistics
        self.epoch = fastopt.load(path, self.optimizer, arrays, self.averages, **self.objects)["epoch"]

    def digest(self) -> str:
        found = hashlib.sha256()
        for row in table.bits(self.optimizer, list(self.params.values())):
            for data in row:
                found.update(data)
        for average in self.averages:
            for trail in average.state_dict()["state"].values():
                found.update(table.bits_of(trail["average"]))
                found.update(repr((trail["step"], trail["share"])).encode())
        groups = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in self.optimizer.param_groups]
        others = [a.tolist() for a in self.statistics.values()]
        objects = [value.state_dict() for value in self.objects.values()]
        found.update(repr((groups, others, objects, self.epoch)).encode())
        return found.hexdigest()


def resumed(folder: str, suffix: str, threads: int) -> None:
    """Goes on with all that was saved in a folder and prints what came out; in a process of its own."""
    fastopt.set_num_threads(threads)
    found = {}
    for path in sorted(Path(folder).glob(f"*{suffix}")):
        training = Training(int(path.stem), 1000)
        training.load(path)
        for t in range(3, 6):
            training.step(t)
        found[path.stem] = training.digest()
    print(json.dumps(found))


FEW = [row for row, (v, f) in enumerate(table.BY_CLASS) if f == table.DTYPES[0] or v.cls is table.LARGEST.cls]
"""Every optimizer in one format, and one in all."""


@pytest.mark.parametrize("rows", [pytest.param(range(len(table.BY_CLASS)), marks=table.nightly, id="all"), FEW])
def test_a_resumed_training_has_the_same_bits(rows: Any, tmp_path: Path) -> None:
    """Every optimizer and format, in a new process, with other instruction sets and other numbers of threads."""
    expected: dict[str, str] = {}
    for row in rows:
        training = Training(row, 1)
        for t in range(3):
            training.step(t)
        for suffix in SUFFIXES:
            training.save(tmp_path / f"{row}{suffix}")
        for t in range(3, 6):
            training.step(t)
        expected[str(row)] = training.digest()
    cases = [
        (isa, threads, suffix) for isa in fastopt.available_isas() for threads in (1, 2) for suffix in SUFFIXES
    ]
    if rows is FEW:
        cases = [("numpy", 1, ".npz"), (fastopt.available_isas()[0], 2, ".safetensors")]
    for isa, threads, suffix in cases:
        with table.named((isa, threads, suffix)):
            printed = run(
                f"import test_files; test_files.resumed({str(tmp_path)!r}, {suffix!r}, {threads})",
                environment={"FASTOPT_ISA": isa},
                seconds=600,
            )
            assert json.loads(printed) == expected


# -- A small training ------------------------------------------------------------------------------


class Small:
    """An optimizer in the middle of its training; all that a refused load must leave alone."""

    def __init__(self, steps: int = 2, cls: table.Class = fastopt.Adam, **options: Any) -> None:
        self.params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}
        self.optimizer = cls(self.params, **options)  # type: ignore[call-arg]
        self.plateau = ReduceLROnPlateau(1.0 if options else self.optimizer)
        self.train(steps)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.step({name: p * 0.5 + 1 for name, p in self.params.items()})

    def everything(self) -> Any:
        return (
            table.bits(self.optimizer, list(self.params.values())),
            repr(self.optimizer),
            self.plateau.state_dict(),
        )


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"checkpoint{request.param}"


def left_behind(path: Path) -> list[str]:
    return [name for name in os.listdir(path.parent) if name.endswith(".saving")]


def test_what_was_saved_is_returned(path: Path) -> None:
    scene = Small()
    scene.optimizer.param_groups[0]["note"] = {"a": [1, (2.5, None)], 3: np.arange(2)}
    extra = {
        "epoch": 3,
        "name": "ünïcode \ud800 \x00 \"'\\",
        "numbers": [1, 2.5, math.inf, -math.inf, True, None, 10**30, -0.0],
        "tuple": (1, (2, [3])),
        "dict": {"x": 1, 2: "two", (3, "three"): {"deep": np.ones((2, 2), np.int8)}, None: 1, 0.5: 2, "array": 7},
        "scalar": np.float32(0.1),
        "rng": np.random.default_rng(0).bit_generator.state,
        "arrays": [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros((0, 2)), np.array(True)],
        "bfloat16": np.ones((2, 3), BFLOAT16)[:, ::2],
        "strided": np.arange(100, dtype=np.uint16)[::-3],
        "swapped": np.arange(5, dtype=">i4"),
        "plateau": scene.plateau,
    }
    fastopt.save(path, scene.optimizer, **extra)
    other = Small(0)
    found = fastopt.load(path, other.optimizer, plateau=other.plateau)
    assert found.pop("plateau") is other.plateau
    del extra["plateau"]
    assert list(found) == list(extra)
    for name, value in extra.items():
        if isinstance(value, np.ndarray):
            assert found[name].flags.owndata and found[name].flags.writeable
            assert found[name].dtype.name == value.dtype.name
            np.testing.assert_array_equal(found[name], value)
        else:
            assert repr(found[name]) == repr(value), name
    assert type(found["scalar"]) is np.float32
    assert repr(other.optimizer.param_groups[0]["note"]) == repr(scene.optimizer.param_groups[0]["note"])
    assert other.everything() == scene.everything()


def test_an_object_that_is_not_passed_to_load_is_returned_as_its_state(path: Path) -> None:
    scene = Small()
    scene.plateau.step(1.0)
    fastopt.save(path, scene.optimizer, plateau=scene.plateau, other=Small(7).optimizer)
    target = Small(0)
    found = fastopt.load(path, target.optimizer)
    assert found["plateau"] == scene.plateau.state_dict()
    second = Small(0)
    second.optimizer.load_state_dict(found["other"])
    assert second.optimizer.state["w"]["step"] == 7


@pytest.mark.parametrize("form", ["list", "dict"])
def test_other_arrays_are_saved_too(path: Path, form: str) -> None:
    def arrays(value: float) -> Any:
        found = [np.full((2, 2), value), np.full(3, value, np.int64), np.ones((3, 4), np.float32).T * value]
        return found if form == "list" else {"a": found[0], "b/c": found[1], "d": found[2][::2]}

    scene = Small()
    fastopt.save(path, scene.optimizer, arrays(2.0))
    other, given = Small(0), arrays(0.0)
    fastopt.load(path, other.optimizer, given)
    for array in given if form == "list" else given.values():
        assert (array == 2).all()
    assert other.everything() == scene.everything()


def test_parameters_that_are_passed_by_other_names_are_stored_once(path: Path) -> None:
    scene = Small()
    fastopt.save(path, scene.optimizer, {"layer.weight": scene.params["w"]})
    once = path.stat().st_size
    with pytest.raises(ValueError, match=r"it has no 'w' and it has 'layer.weight' besides; pass the same"):
        fastopt.load(path, Small(0).optimizer)
    other = Small(0)
    fastopt.load(path, other.optimizer, {"layer.weight": other.params["w"]})
    assert other.everything() == scene.everything()
    fastopt.save(path, scene.optimizer, {"layer.weight": scene.params["w"].copy()})
    assert path.stat().st_size > once
    with pytest.raises(ValueError, match="'w' is not the array that the optimizer has under this name"):
        fastopt.save(path, scene.optimizer, {"w": np.ones(3)})


NAMES = [
    "../../x",
    "..",
    ".",
    "a/b",
    "/root",
    "ü",
    "\ud800",
    "",
    "a\0b",
    "%41",
    "A",
    "\\",
    *("x" * 1000 + y for y in "12"),
]


def test_any_names(path: Path) -> None:
    params = {name: np.full(2, i, np.float32) for i, name in enumerate(NAMES)}
    optimizer = fastopt.Adam(params)
    optimizer.step({name: np.full(2, 1.0, np.float32) for name in NAMES})
    fastopt.save(path, optimizer)
    others = {name: np.zeros(2, np.float32) for name in NAMES}
    other = fastopt.Adam(others)
    fastopt.load(path, other)
    assert table.bits(other, list(others.values())) == table.bits(optimizer, list(params.values()))
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        assert len({*names}) == len(names)
        assert not [n for n in names if ".." in n.split("/") or n.startswith("/") or "\\" in n]


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    scene = Small(state_dtype="bfloat16")
    fastopt.save(tmp_path / "x.npz", scene.optimizer)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["params/w"], scene.params["w"])
        assert file["state/w/exp_avg"].view(BFLOAT16).tobytes() == scene.optimizer.state["w"]["exp_avg"].tobytes()
    fastopt.save(tmp_path / "x.safetensors", scene.optimizer)
    library = pytest.importorskip("safetensors.numpy")
    found = library.load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(found["params/w"], scene.params["w"])
    assert found["state/w/exp_avg"].dtype == BFLOAT16
    assert found["state/w/exp_avg"].tobytes() == scene.optimizer.state["w"]["exp_avg"].tobytes()


def test_arrays_begin_at_multiples_of_their_elements(path: Path) -> None:
    """So that they are copied fast, and may be mapped by other programs."""
    from fastopt import file_formats

    scene = Small()
    fastopt.save(path, scene.optimizer, {"flag": np.ones(3, bool), "wide": np.ones(5)})
    _, arrays = file_formats.read(str(path), path.suffix)
    assert all(array.flags.aligned for array in arrays.values())


# -- Callables, averages, objects ------------------------------------------------------------------


def test_callables_are_not_saved_but_have_to_be_there(path: Path) -> None:
    def falling(step: int) -> float:
        raise RuntimeError("a save asks no callable")

    scene = Small(0, lr=cosine(0.1, 100), betas=(falling, 0.9))
    scene.optimizer.param_groups[0]["eps"] = 1e-4
    fastopt.save(path, scene.optimizer)
    for options in {}, {"lr": falling}, {"betas": (falling, 0.9)}:
        message = r"group 0: (lr|betas) was a function of the step when it was saved, .*(cosine\(0.1|falling)"
        with pytest.raises(ValueError, match=message):
            fastopt.load(path, Small(0, **options).optimizer)
    other = Small(0, lr=falling, betas=(falling, 0.5), weight_decay=lambda step: 0.1)
    fastopt.load(path, other.optimizer)
    group = other.optimizer.param_groups[0]
    assert group["lr"] is falling
    assert group["betas"] == (falling, 0.9)
    assert callable(group["weight_decay"]), "a callable here wins over a number there"
    assert group["eps"] == 1e-4


class Average:
    """As an average of weights is made."""

    def __init__(self, optimizer: fastopt.Optimizer, value: float) -> None:
        self.optimizer = optimizer
        self.arrays = [np.full(3, value), np.full((2, 2), value, np.float32)]

    def state_dict(self) -> dict[str, Any]:
        self.optimizer.state_dict()  # may be read within a save
        return {"arrays": [a.copy() for a in self.arrays], "steps": 3}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.bind(None)  # and it may be changed within a load
        for mine, saved in zip(self.arrays, state["arrays"], strict=True):
            if np.isnan(saved).any():
                raise ValueError("an average that refuses")
            mine[...] = saved


def test_averages_are_saved_too(path: Path) -> None:
    scene, other = Small(), Small(0)
    fastopt.save(path, scene.optimizer, averages=[Average(scene.optimizer, 1.0), Average(scene.optimizer, 2.0)])
    found = [Average(other.optimizer, 0.0), Average(other.optimizer, 0.0)]
    fastopt.load(path, other.optimizer, averages=found)
    assert [average.arrays[1][0, 0] for average in found] == [1, 2]
    assert other.everything() == scene.everything()
    with pytest.raises(ValueError, match="averages: it has 2, 1 were given; pass as many"):
        fastopt.load(path, other.optimizer, averages=found[:1])


@pytest.mark.parametrize("refuses", [0, 1])
def test_what_one_object_refuses_changes_no_other(path: Path, refuses: int) -> None:
    scene, other = Small(), Small(0)
    scene.plateau.patience = 77
    values = [1.0, 2.0]
    values[refuses] = math.nan
    averages = [Average(scene.optimizer, value) for value in values]
    fastopt.save(path, scene.optimizer, averages=averages, plateau=scene.plateau)
    before = other.everything()
    found = [Average(other.optimizer, 0.0), Average(other.optimizer, 0.0)]
    with pytest.raises(ValueError, match="an average that refuses"):
        fastopt.load(path, other.optimizer, averages=found, plateau=other.plateau)
    assert other.everything() == before
    assert [average.arrays[1][0, 0] for average in found] == [0, 0]


# -- Refused before anything changes ---------------------------------------------------------------


class Nothing:
    pass


UNSTORABLE: dict[str, Any] = {
    "an object": Nothing(),
    "a class": ReduceLROnPlateau,
    "a function": len,
    "bytes": b"x",
    "a set": {1},
    "a complex number": 1j,
    "an array of objects": np.array([{}, None]),
    "structured": np.zeros(2, "f4,f4"),
    "masked": np.ma.ones(3),
    "deep within": {"a": [1, (2, Nothing())]},
    "a key": {Nothing(): 1},
}


@pytest.mark.parametrize("case", UNSTORABLE)
def test_what_cannot_be_stored_is_named_and_no_file_written(path: Path, case: str) -> None:
    scene = Small()
    fastopt.save(path, scene.optimizer)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"^thing.*(pass|convert)"):
        fastopt.save(path, scene.optimizer, thing=UNSTORABLE[case])
    scene.optimizer.param_groups[0]["thing"] = UNSTORABLE[case]
    if case not in ("a function", "a class"):
        with pytest.raises(TypeError, match=r"^group 0\['thing'\].*(pass|convert)"):
            fastopt.save(path, scene.optimizer)
    assert path.read_bytes() == before
    assert not left_behind(path)


def test_what_no_safetensors_file_can_hold(tmp_path: Path) -> None:
    scene = Small()
    for value in np.ones(2, complex), np.array(["a"]), np.array(1, "M8[s]"):
        with pytest.raises(TypeError, match=r"^extra/x: safetensors has no dtype .*\.npz"):
            fastopt.save(tmp_path / "x.safetensors", scene.optimizer, x=value)
        fastopt.save(tmp_path / "x.npz", scene.optimizer, x=value)
        assert repr(fastopt.load(tmp_path / "x.npz", scene.optimizer)["x"]) == repr(value)
    assert os.listdir(tmp_path) == ["x.npz"]


def make(steps: int = 0, cls: table.Class = fastopt.Adam, shapes: Any = None, **options: Any) -> fastopt.Optimizer:
    params = {k: np.zeros(s, options.pop("dtype", np.float32)) for k, s in (shapes or SMALL).items()}
    return cls(params, **options)  # type: ignore[call-arg]


SMALL = {"w": (2, 3), "b": (3,)}
MISMATCHES: dict[str, tuple[Callable[[], fastopt.Optimizer], str]] = {
    "another class": (lambda: make(cls=fastopt.AdamW), "saved by Adam, and cannot be loaded into AdamW"),
    "another shape": (
        lambda: make(shapes=SMALL | {"w": (3, 2)}),
        r"'w': it has shape \(2, 3\), the array \(3, 2\)",
    ),
    "another dtype": (lambda: make(dtype=np.float64), "'w': it has dtype float32, the array float64"),
    "another name": (
        lambda: make(shapes={"w": (2, 3), "c": (3,)}),
        "it has no 'c' and it has 'b' besides; pass the same",
    ),
    "another order": (lambda: make(shapes={"b": (3,), "w": (2, 3)}), "group 0: it has the names .* the same"),
    "a parameter less": (lambda: make(shapes={"w": (2, 3)}), "it has 'b' besides"),
    "a parameter more": (lambda: make(shapes=SMALL | {"c": (1,)}), "it has no 'c'"),
    "two groups": (
        lambda: fastopt.Adam(
            [{"params": {"w": np.zeros((2, 3), np.float32)}}, {"params": {"b": np.zeros(3, np.float32)}}]
        ),
        "it has 1 parameter groups, the optimizer 2",
    ),
    "another state_dtype": (
        lambda: make(state_dtype="bfloat16"),
        "state 'exp_avg' of 'w': it is stored as float32, and would be bfloat16 .*state_dtype='float32'",
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_mismatch_is_refused_before_any_change(path: Path, case: str) -> None:
    scene = Small()
    fastopt.save(path, scene.optimizer)
    maker, message = MISMATCHES[case]
    other = maker()
    params = [group["params"] for group in other.param_groups]
    before = repr(other.state_dict())
    with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(str(path))}: .*{message}"):
        fastopt.load(path, other)
    assert repr(other.state_dict()) == before
    assert not any(np.any(p) for group in params for p in group)


def test_other_refusals_of_a_load(path: Path) -> None:
    scene, other = Small(), Small(0)
    fastopt.save(path, scene.optimizer, {"mean": np.ones(2)}, plateau=scene.plateau, epoch=3)
    before = other.everything()
    frozen = np.ones(2)
    frozen.flags.writeable = False
    mean = np.zeros(2)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ({"mean": mean}, {"scaler": other.plateau}, "scaler: it has no such extra; it has plateau, epoch"),
        ({"mean": mean}, {"epoch": other.plateau}, "epoch: no object was saved under this name"),
        ({"mean": mean}, {"plateau": 3}, r"plateau: expected an object with load_state_dict\(\), got 3"),
        ({"mean": mean}, {"plateau": other.optimizer}, "plateau: it was saved by ReduceLROnPlateau, not by Adam"),
        ({"mean": mean}, {"averages": [Average(other.optimizer, 1.0)]}, "averages: it has 0, 1 were given"),
        ({"mean": mean}, {"averages": 3}, "averages: expected a list"),
        ({"mean": mean}, {"averages": [3]}, r"averages\[0\]: expected an average"),
        (None, {}, "it has 'mean' besides"),
        ({"mean": frozen}, {}, "'mean': the array is read-only"),
        ({"mean": [1.0, 2.0]}, {}, "params: 'mean': expected a NumPy array"),
        ({"mean": np.zeros(2, np.float32)}, {}, "'mean': it has dtype float64, the array float32"),
        (mean, {}, "params: expected a list or a dict of arrays"),
        ({3: mean}, {}, "params: the names must be strings"),
    ]
    for params, objects, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            fastopt.load(path, other.optimizer, params, **objects)
        assert other.everything() == before
        assert not mean.any()
    fastopt.load(path, other.optimizer, {"mean": mean}, plateau=other.plateau)
    assert mean.all()


def test_wrong_calls(tmp_path: Path) -> None:
    optimizer = Small().optimizer
    for call in fastopt.save, fastopt.load:
        for wrong in "x", "x.pickle", tmp_path, b"x.pt":
            with pytest.raises(ValueError, match=r"its suffix must be \.npz or \.safetensors"):
                call(wrong, optimizer)
        with pytest.raises(TypeError, match=r"^path: expected a string or a path"):
            call(3, optimizer)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^opt: expected an optimizer of fastopt"):
            call(tmp_path / "x.npz", [np.ones(3)])  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        fastopt.load(tmp_path / "x.npz", optimizer)
    with pytest.raises(FileNotFoundError):
        fastopt.save(tmp_path / "folder" / "x.npz", optimizer)
    (tmp_path / "y.npz").mkdir()
    with pytest.raises(ValueError, match="it is no regular file"):
        fastopt.save(tmp_path / "y.npz", optimizer)
    fastopt.save(os.fsencode(tmp_path / "X.NPZ"), optimizer)
    fastopt.load(str(tmp_path / "X.NPZ"), optimizer)


# -- Damaged and hostile files ---------------------------------------------------------------------


def changed_in_a_byte(data: bytes) -> Iterator[bytes]:
    rng = random.Random(0)
    places = {*range(0, 200), *range(len(data) - 200, len(data)), *(rng.randrange(len(data)) for _ in range(300))}
    for place in sorted(places):
        yield data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    for _ in range(50):
        yield data[: rng.randrange(len(data))]
    yield data + b"x"
    yield b""


def test_damaged_files_are_refused(path: Path) -> None:
    scene, other = Small(), Small(0)
    fastopt.save(path, scene.optimizer, plateau=scene.plateau, epoch=3)
    before, refused = other.everything(), 0
    for data in changed_in_a_byte(path.read_bytes()):
        path.write_bytes(data)
        try:
            fastopt.load(path, other.optimizer, plateau=other.plateau)
        except ValueError as error:
            assert str(error).startswith(f"{path}: this is no checkpoint of fastopt, or it is damaged")
            assert other.everything() == before
            refused += 1
        else:  # a byte that says nothing, such as the date of a member
            assert other.everything() == scene.everything()
            other = Small(0)
    assert refused > 300


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    ran = []

    class Malicious:
        def __reduce__(self) -> Any:
            return ran.append, (1,)

    path = tmp_path / "x.npz"
    scene = Small()
    fastopt.save(path, scene.optimizer)
    with zipfile.ZipFile(path) as archive:
        document = archive.read("fastopt.json")
        members = {name: archive.read(name) for name in archive.namelist()}
    array = np.empty(6, object)
    array[0] = Malicious()
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    members["params/w.npy"] = (tmp_path / "bad.npy").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match="it has objects, which are not read"):
        fastopt.load(path, scene.optimizer)
    path.write_bytes(pickle.dumps(Malicious()))
    for suffix in SUFFIXES:
        other = path.rename(tmp_path / f"x{suffix}")
        with pytest.raises(ValueError, match="no checkpoint of fastopt"):
            fastopt.load(other, scene.optimizer)
        path = other
    assert not ran
    np.savez(tmp_path / "plain.npz", w=scene.params["w"])
    with pytest.raises(ValueError, match=r"it has no fastopt\.json"):
        fastopt.load(tmp_path / "plain.npz", scene.optimizer)
    np.savez_compressed(tmp_path / "plain.npz", w=scene.params["w"])
    with pytest.raises(ValueError, match="compressed"):
        fastopt.load(tmp_path / "plain.npz", scene.optimizer)
    document = document.replace(b'"version": 1', b'"version": 2')
    with zipfile.ZipFile(tmp_path / "newer.npz", "w") as archive:
        archive.writestr("fastopt.json", document)
    with pytest.raises(ValueError, match="saved by another version of fastopt"):
        fastopt.load(tmp_path / "newer.npz", scene.optimizer)


DOCUMENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no dict": lambda d: [],
    "another kind": lambda d: d | {"kind": "recipe"},
    **{
        f"no {key}": lambda d, key=key: {k: v for k, v in d.items() if k != key}  # type: ignore[misc]
        for key in (
            "kind",
            "version",
            "optimizer",
            "callables",
            "param_groups",
            "state",
            "params",
            "averages",
            "extra",
        )
    },
    "an unknown array": lambda d: d | {"params": {"w": {"array": ["params/x", "float32"]}}},
    "another dtype": lambda d: d | {"params": {"w": {"array": ["params/w", "float64"]}}},
    "an unknown tag": lambda d: d | {"extra": {"x": {"object of": 1}}},
    "two tags": lambda d: d | {"extra": {"x": {"list": [], "tuple": []}}},
    "an unhashable key": lambda d: d | {"extra": {"x": {"items": [[{"list": []}, 1]]}}},
    "a state of no number": lambda d: d | {"state": {"x": {"dict": {}}}},
    "a deep list": lambda d: d | {"extra": {"x": DEEP}},
}
DEEP = "a list of lists"
LEVELS = 5000
"""More than json writes: so they are written by hand, in the place of DEEP."""


@pytest.mark.parametrize("case", DOCUMENTS)
def test_documents_that_nobody_saved(case: str, tmp_path: Path) -> None:
    path, scene = tmp_path / "x.npz", Small()
    fastopt.save(path, scene.optimizer)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    text = json.dumps(DOCUMENTS[case](json.loads(members["fastopt.json"])))
    text = text.replace(json.dumps(DEEP), '{"list": [' * LEVELS + "1" + "]}" * LEVELS)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, text if name == "fastopt.json" else data)
    before = scene.everything()
    with pytest.raises(ValueError, match="no checkpoint of fastopt"):
        fastopt.load(path, scene.optimizer)
    assert scene.everything() == before


# -- A file is replaced as a whole -----------------------------------------------------------------


def test_mode_and_link_of_a_file_that_is_replaced_stay(path: Path) -> None:
    scene = Small()
    mask = os.umask(0o027)
    try:
        fastopt.save(path, scene.optimizer)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    link = path.with_name(f"link{path.suffix}")
    link.symlink_to(path)
    fastopt.save(link, scene.optimizer)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o604
    assert not left_behind(path)


def check_whole(path: Path) -> int:
    """Reads what `save_without_end` saves; returns the number of steps made."""
    params = [np.zeros(20_000, np.float32), np.zeros(300, np.float32)]
    optimizer = fastopt.Adam(params)
    step = fastopt.load(path, optimizer)["step"]
    for i, param in enumerate(params):
        assert optimizer.state[i]["step"] == step
        assert (param == params[0][0]).all()
        for name in "exp_avg", "exp_avg_sq":
            assert (optimizer.state[i][name] == optimizer.state[0][name][0]).all()
    assert isinstance(step, int)
    return step


def save_without_end(path: Path) -> None:
    params = [np.zeros(20_000, np.float32), np.zeros(300, np.float32)]
    optimizer = fastopt.Adam(params)
    grads = [np.full_like(p, 0.25) for p in params]
    step = 0
    while True:
        optimizer.step(grads)
        step += 1
        fastopt.save(path, optimizer, step=step)


def kill_in_the_middle(folder: str, suffix: str, kills: int) -> None:
    path = Path(folder) / f"checkpoint{suffix}"
    rng = random.Random(kills)
    seen, remains = 0, 0
    for _ in range(kills):
        pid = os.fork()
        if pid == 0:
            save_without_end(path)
        until = time.monotonic() + 60
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == before:  # it has saved once
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        seen = max(seen, check_whole(path))
        remains = max(remains, len(left_behind(path)))
    assert seen > 0
    assert remains <= 1, "the next save removes what a killed one left behind"
    fastopt.save(path, Small().optimizer)
    assert not left_behind(path)


@each_suffix
@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=table.nightly)])
def test_a_killed_process_leaves_a_whole_file(suffix: str, kills: int, tmp_path: Path) -> None:
    run(f"import test_files; test_files.kill_in_the_middle({str(tmp_path)!r}, {suffix!r}, {kills})", seconds=600)


def test_a_full_disk_leaves_the_old_file(path: Path) -> None:
    """The limit of a process on the size of files is met as a full disk is: in the middle of a write."""
    old, new = Small(), Small(5)
    fastopt.save(path, old.optimizer, big=np.zeros(100_000))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in 0, 1, 100, 2_000, 700_000, 800_900:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                fastopt.save(path, new.optimizer, big=np.zeros(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert caught.value.errno == errno.EFBIG
        assert not left_behind(path)
    gc.collect()  # nothing that is left half closed complains
    other = Small(0)
    fastopt.load(path, other.optimizer)
    assert other.everything() == old.everything()


@each_suffix
def test_a_full_tmpfs(suffix: str, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        path, old = folder / f"checkpoint{suffix}", Small()
        fastopt.save(path, old.optimizer, big=np.zeros(50_000))
        with pytest.raises(OSError, match="No space left") as caught:
            fastopt.save(path, Small(5).optimizer, big=np.zeros(100_000))
        assert caught.value.errno == errno.ENOSPC
        assert not left_behind(path)
        other = Small(0)
        fastopt.load(path, other.optimizer)
        assert other.everything() == old.everything()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a ZipFile that was half made
def test_an_interrupt_leaves_the_old_file(path: Path) -> None:
    old = Small()
    fastopt.save(path, old.optimizer)

    class Interrupts:
        def state_dict(self) -> dict[str, Any]:
            return {"x": np.zeros(3_000_000)}

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    stopped = 0
    try:
        for k in range(1, 30):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001 * k)
                fastopt.save(path, Small(5).optimizer, x=Interrupts())
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                stopped += 1
            assert not left_behind(path)
            if "x" in fastopt.load(path, Small(0).optimizer):  # it was already there when the interrupt came
                fastopt.save(path, old.optimizer)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_place_leaves_no_other_file(path: Path) -> None:
    old, new = Small(), Small(5)
    descriptors = len(os.listdir("/proc/self/fd"))
    for place in itertools.count():
        fastopt.save(path, old.optimizer)
        was_there = is_interrupted(lambda: fastopt.save(path, new.optimizer), place, table.that_replace_a_file())
        assert not left_behind(path)
        fastopt.load(path, Small().optimizer)
        assert len(os.listdir("/proc/self/fd")) == descriptors
        if not was_there:
            break
    assert place > 20


# -- Signals, threads, forks -----------------------------------------------------------------------


def saved_by_a_handler(folder: str, suffix: str) -> None:
    path = Path(folder) / f"checkpoint{suffix}"
    params = [np.zeros(20_000, np.float32), np.zeros(300, np.float32)]
    optimizer = fastopt.Adam(params, lr=lambda step: sum(range(2000)) * 1e-9)  # signals come in the callable too
    grads = [np.full_like(p, 0.25) for p in params]
    saves, depth, save = 0, 0, fastopt.save  # imported before a signal may come

    def handler(*_: Any) -> None:
        nonlocal saves, depth
        depth += 1
        if depth < 3:  # and within a handler's save
            signal.setitimer(signal.ITIMER_REAL, 0.002)
        save(path, optimizer, step=optimizer.state[0]["step"])
        saves += 1
        depth -= 1
        signal.setitimer(signal.ITIMER_REAL, 0.002)

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    until = time.monotonic() + 60
    while saves < 100 and time.monotonic() < until:
        optimizer.step(grads)
        if saves % 10 == 5:  # signals come in a save too
            fastopt.save(path, optimizer, step=optimizer.state[0]["step"])
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert saves >= 100
    found = [np.zeros_like(p) for p in params]
    other = fastopt.Adam(found, lr=lambda step: 0.0)
    step = fastopt.load(path, other)["step"]
    for i, param in enumerate(found):
        assert other.state[i]["step"] == step
        assert (param == found[0][0]).all()
    assert not left_behind(path)


@each_suffix
def test_a_signal_handler_may_save(suffix: str, tmp_path: Path) -> None:
    run(f"import test_files; test_files.saved_by_a_handler({str(tmp_path)!r}, {suffix!r})", seconds=120)


def test_a_load_within_a_call_is_refused(path: Path) -> None:
    scene = Small()
    fastopt.save(path, scene.optimizer)
    seen = []

    def lr(step: int) -> float:
        with pytest.raises(RuntimeError, match="inside another call"):
            fastopt.load(path, scene.optimizer)
        seen.append(step)
        return 0.1

    scene.optimizer.param_groups[0]["lr"] = lr
    scene.train(1)
    assert seen


def test_threads_that_step_and_save(path: Path) -> None:
    params = [np.zeros(20_000, np.float32), np.zeros(300, np.float32)]
    optimizer = fastopt.Adam(params)
    grads = [np.full_like(p, 0.25) for p in params]
    optimizer.step(grads)
    done = threading.Event()

    def stepping() -> None:
        while not done.is_set():
            optimizer.step(grads)

    thread = threading.Thread(target=stepping)
    thread.start()
    try:
        for _ in range(20):
            fastopt.save(path, optimizer)
            found = [np.zeros_like(p) for p in params]
            other = fastopt.Adam(found)
            fastopt.load(path, other)
            assert other.state[0]["step"] == other.state[1]["step"]
            for i, param in enumerate(found):
                assert (param == found[0][0]).all()
                assert (other.state[i]["exp_avg"] == other.state[0]["exp_avg"][0]).all()
    finally:
        done.set()
        thread.join()


@own_process
def test_several_processes_may_save_to_one_path() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"

        def saving() -> None:
            for _ in range(20):
                fastopt.save(path, Small().optimizer)

        saving()
        thread = threading.Thread(target=saving)
        thread.start()
        assert fork(lambda: saving()) == 0
        assert fork(lambda: saving()) == 0
        thread.join()
        fastopt.load(path, Small(0).optimizer)
        assert not left_behind(path)


# -- Cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_no_second_copy_of_the_state(path: Path, order: Any) -> None:
    def make_large() -> fastopt.Optimizer:
        return fastopt.Adam({"w": np.ones((1500, 2000), np.float32, order=order)})  # 12 MB, and 24 of state

    optimizer, other = make_large(), make_large()
    optimizer.step([np.full((1500, 2000), 0.5, np.float32)])
    statistics, others = np.ones((1000, 2000))[:, ::2], np.zeros((1000, 2000))[:, ::2]  # 8 MB
    fastopt.save(path, Small().optimizer)  # so that all that takes part has been imported
    tracemalloc.start()
    try:
        fastopt.save(path, optimizer, {"x": statistics})
        saving = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        fastopt.load(path, other, {"x": others})
        loading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert table.bits(other, other.param_groups[0]["params"]) == table.bits(
        optimizer, optimizer.param_groups[0]["params"]
    )
    assert others.all()
    assert saving < 4e6, "a few pieces of a file"
    assert loading < 4e6


def test_the_import_of_fastopt_imports_none_of_it() -> None:
    heavy = [
        "fastopt.files",
        "fastopt.file_formats",
        "fastopt.torch_state",
        "zipfile",
        "torch",
        "safetensors",
        "json",
    ]
    printed = run(f"import sys, fastopt; before = [*sys.modules]; print([m for m in {heavy!r} if m in before])")
    modules = eval(printed)
    assert not [m for m in modules if m.startswith(("fastopt", "torch", "safetensors"))]
    run("import fastopt; fastopt.save; fastopt.load; fastopt.torch_state.from_torch; dir(fastopt)")
    run("from fastopt import *; save; load; torch_state")
