"""The folder is the architecture: no file or class that holds several jobs, and no circle of imports."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastopt

PACKAGE = Path(fastopt.__file__).parent
SOURCES = [path for kind in ("py", "pyx", "pxi") for path in sorted(PACKAGE.rglob(f"*.{kind}"))]
LONGEST_FILE, LONGEST_CLASS = 500, 400


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_and_no_class_is_too_long(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LONGEST_FILE
    begins = [k for k, line in enumerate(lines) if re.match(r"(cdef )?class ", line)]
    for begin in begins:
        end = next((k for k in range(begin + 1, len(lines)) if re.match(r"\w", lines[k])), len(lines))
        assert end - begin <= LONGEST_CLASS, lines[begin]


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a module imports when it is loaded; not those for types alone."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastopt":
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_circle_of_imports() -> None:
    modules = {
        ".".join(("fastopt", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in SOURCES
        if path.suffix == ".py"
    }
    graph = {name: set(imported(path)) & modules.keys() - {name, "fastopt"} for name, path in modules.items()}
    assert sum(map(len, graph.values())) > 50
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
