"""Building: sentences that say what to install or to change, and a build folder that other flags have left."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest
import table

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="there are no sources")


def lacks_packages() -> bool:
    """Whether setup.py could not build here: pip builds in an environment of its own."""
    found = {name: importlib.util.find_spec(name) for name in ("Cython", "setuptools", "numpy")}
    return not all(found.values()) or int(version("setuptools").split(".")[0]) < 77


needs_packages = pytest.mark.skipif(lacks_packages(), reason="needs Cython and setuptools 77 to run setup.py")


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    """setup.py, without a build."""
    spec = importlib.util.spec_from_file_location("fastopt_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- Sentences ---------------------------------------------------------------------------------------


def say(*environment: tuple[str, str]) -> str:
    """What a build says that cannot be made."""
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=ROOT,
        env=os.environ | dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


@needs_packages
@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", "no-such-compiler -pthread"])
def test_without_a_compiler(compiler: str) -> None:
    sentence = say(("CC", compiler))
    assert sentence.startswith(f"fastopt: no working C compiler ({compiler})")
    assert "apt install gcc" in sentence


def test_without_pythons_headers(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not setup.builds("int main(void) { return 0; }\n"):
        pytest.skip("there is no compiler")
    assert setup.missing_compiler() is None
    monkeypatch.setattr(setup.sysconfig, "get_path", lambda name: str(tmp_path))
    sentence = setup.missing_compiler()
    assert "Python's headers are missing" in sentence
    assert "apt install python3-dev" in sentence


@needs_packages
@pytest.mark.parametrize("package", ["setuptools", "cython", "numpy"])
@pytest.mark.parametrize("here", ["1.9", "0.29.37", None])
def test_old_packages(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, package: str, here: str | None) -> None:
    """As pip has them with --no-build-isolation."""
    assert setup.missing_packages() is None

    def version(name: str) -> str:
        if name == package:
            if here is None:
                raise PackageNotFoundError(name)
            return here
        return "999.0"

    monkeypatch.setattr("importlib.metadata.version", version)
    sentence = setup.missing_packages()
    assert f"{package} {here or 'none'}" in sentence
    assert re.search(rf"pip install '{package}>=\d+\.\d+'", sentence)
    assert "--no-build-isolation" in sentence


# -- Rows that do not fit ----------------------------------------------------------------------------


def letters(count: int, letter: str) -> str:
    return ", ".join(f"{letter}{k}" for k in range(count))


ROWS: dict[str, tuple[dict[str, str], str | None]] = {
    "scalars, as many as there may be": ({"SCALARS": letters(17, "x")}, None),
    "scalars": ({"SCALARS": letters(18, "x")}, "the row wide has too many SCALARS; raise FASTOPT_MAX_SCALARS"),
    "buffers, as many as there may be": ({"STATE": letters(6, "s")}, None),
    "buffers": ({"STATE": letters(7, "s")}, "the row wide has too many STATE, OPTIONAL and WORK buffers"),
    "optional buffers": (
        {"STATE": letters(5, "s"), "OPTIONAL": "a, b"},
        "too many STATE, OPTIONAL and WORK buffers",
    ),
    "subsets": ({"OPTIONAL": "a, b, c"}, "the row wide has too many OPTIONAL buffers"),
    "sums": ({"SUMS": letters(5, "u")}, "the row wide has too many SUMS; raise FASTOPT_MAX_SUMS"),
    "factors": ({"FACTORS": letters(6, "f")}, "the row wide has too many FACTORS; raise FASTOPT_MAX_FACTORS"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_does_not_fit(name: str, setup: ModuleType, tmp_path: Path) -> None:
    """It stops the compiler with a sentence, where it would write past an array."""
    lists, expected = ROWS[name]
    source = tmp_path / "src_c"
    shutil.copytree(ROOT / "src_c", source, ignore=shutil.ignore_patterns("formulas.def"))
    sums = [f"{letter} = g * g;" for letter in lists.get("SUMS", "").split(", ") if letter]
    (source / "formulas/wide.h").write_text("\n".join([*sums, "p = p - g;\n"]))
    lines = ["#define FORMULA wide", *(f"#define {what} {of}" for what, of in lists.items())]
    (source / "formulas.def").write_text("\n".join([*lines, "#include EACH_ROW", "#undef EACH_ROW\n"]))
    command = [*setup.compiler().split(), "-std=gnu11", "-fsyntax-only", "isa_baseline.c"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if expected is None:
        assert done.returncode == 0, done.stderr[:3000]
    else:
        assert done.returncode != 0
        assert expected in done.stderr


# -- A build folder that was used before -------------------------------------------------------------


WAYS = {
    "in place": ["setup.py", "build_ext", "--inplace"],
    "editable": ["-c", "from setuptools.build_meta import build_editable; build_editable('.')"],  # as pip calls it
}


@table.nightly
@needs_packages
@pytest.mark.parametrize("way", WAYS)
def test_a_build_folder_of_other_flags_is_not_used_again(way: str, tmp_path: Path) -> None:
    """A build with OpenMP, then one without, then with it again: each has what it was asked for."""
    if not table.OPENMP:
        pytest.skip("there is no OpenMP")
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("*.so", "build", ".git", "*.c.tmp", ".venv"))
    for path in source.glob("fastopt/*.c"):
        path.unlink()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")

    def build(**environment: str) -> tuple[int, int]:
        """OpenMP's version, and how many files were compiled."""
        done = subprocess.run(
            [sys.executable, *WAYS[way]],
            cwd=source,
            env=os.environ | {"CFLAGS": "-O0"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (source / f"fastopt/_kernels{suffix}").exists()
        code = "from fastopt import _kernels; print(_kernels.OPENMP)"
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True
        )
        return int(found.stdout), done.stdout.count(" -c ")

    def kind(found: tuple[int, int]) -> tuple[bool, bool]:
        return found[0] > 0, found[1] > 0

    assert kind(build()) == (True, True)
    assert kind(build()) == (True, False)  # the same flags: nothing is compiled
    for path in source.glob("fastopt/*.pyx"):
        path.touch()  # Cython writes the same text again
    assert kind(build()) == (True, False)
    (source / "src_c/loops.h").touch()
    assert kind(build()) == (True, True)
    assert kind(build(FASTOPT_OPENMP="0")) == (False, True)
    assert kind(build(FASTOPT_OPENMP="0")) == (False, False)
    assert kind(build()) == (True, True)
    assert kind(build(CFLAGS="-O0 -fwrapv")) == (True, True)
