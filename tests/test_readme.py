"""Every Python block of README.md runs as pasted."""

import importlib.util
import os
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
NOT_RUN = "<!-- not run -->\n"
"""Marks, in the line above it, a block that is no whole program."""

BLOCKS = re.findall(rf"({NOT_RUN})?```python\n(.*?)```", README.read_text(), re.DOTALL)
PROGRAMS = [block for mark, block in BLOCKS if not mark]


def name(program: str) -> str:
    """The first line of a program that is no import."""
    return next(line for line in program.splitlines() if line and not line.startswith(("import", "from")))


@pytest.mark.parametrize("program", PROGRAMS, ids=name)
def test_a_block_runs_as_pasted(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE):
        if module != "fastopt" and importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
        if module == "keras" and os.environ.get("KERAS_BACKEND") != "torch":
            pytest.skip("KERAS_BACKEND=torch is not set")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})


def test_the_recipes_are_all_there() -> None:
    assert len(PROGRAMS) >= 7


def test_results_are_as_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    """The comments beside a print."""
    first, second = PROGRAMS[:2]
    scope: dict[str, object] = {}
    exec(first, scope)
    assert scope["w"] == pytest.approx([1, -2, 3], abs=0.01)
    assert scope["b"] == pytest.approx(0.5, abs=0.01)
    capsys.readouterr()
    exec(second, {})
    assert capsys.readouterr().out == "0.999 1.0\n"


def test_every_file_of_the_package_is_in_the_list_of_contributing() -> None:
    root = README.parent
    text = (root / "CONTRIBUTING.md").read_text()
    files = [*root.glob("fastopt/[a-z]*.py"), *root.glob("src_c/*.[ch]"), *root.glob("src_c/*.def")]
    assert len(files) > 40
    missing = [path.name for path in files if path.name not in text and not path.name.startswith("isa_")]
    assert not missing, f"CONTRIBUTING.md: say in a line what is in {', '.join(sorted(missing))}"


def test_files_that_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^):]+)\)", README.read_text()):
        file, _, heading = target.partition("#")
        assert (README.parent / file).exists(), target
        assert not heading or f"## {heading.replace('-', ' ')}" in README.read_text().lower(), target
