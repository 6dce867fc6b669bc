"""One extension: the kernels in src_c/ and the Cython boundary over them.

The metadata is in pyproject.toml.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path


def compiler() -> str:
    return os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"


def builds(source: str, *flags: str) -> bool:
    """Whether a program compiles and links with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.c").write_text(source)
        command = [*compiler().split(), *flags, "probe.c", "-o", "probe"]
        return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


FLAGS = [
    "-O3",  # turns on the vectoriser
    "-std=gnu11",  # designated initialisers, and the GNU builtins that ask for CPU features
    "-fno-math-errno",  # lets sqrt be an instruction; nobody reads errno
    "-fno-trapping-math",  # without it, loops with sqrt or a comparison do not vectorise
    "-ffp-contract=off",  # no fused multiply-add: every machine computes the same bits
    "-fvisibility=hidden",  # one symbol leaves: the module's init function
    "-Wall",
    "-Wextra",
]
ONE_LOOP = "-fno-unswitch-loops"  # one loop a kernel; a test reads the machine code
if builds("int main(void) { return 0; }\n", "-Werror", ONE_LOOP):  # clang has no such flag, and no need of it
    FLAGS.append(ONE_LOOP)


def openmp() -> list[str]:
    """The OpenMP flag, if a program with a parallel loop compiles and links with it."""
    if os.environ.get("FASTOPT_OPENMP") == "0":
        return []
    source = "#include <omp.h>\nint main(void) {\n#pragma omp parallel\n{}\nreturn omp_get_max_threads() < 1; }\n"
    if builds(source, "-fopenmp"):
        return ["-fopenmp"]
    print("fastopt: no OpenMP found, the build is serial", file=sys.stderr)
    return []


def list_optimizers(folder: Path) -> None:
    """Writes ``_list.py``: an import of every class of the files in the folder, so that nobody keeps a list."""
    found = {
        name: path.stem
        for path in sorted(folder.glob("[!_]*.py"))
        for name in re.findall(r"^class ([A-Z]\w*)\(", path.read_text(), flags=re.MULTILINE)
    }
    lines = ["# Written by setup.py from the files in this folder."]
    lines += [f"from fastopt.optimizers.{module} import {name}" for name, module in found.items()]
    lines += ["", "__all__ = [", *(f'    "{name}",' for name in sorted(found)), "]", ""]
    folder.joinpath("_list.py").write_text("\n".join(lines))


if __name__ == "__main__":  # else for its FLAGS alone
    from Cython.Build import cythonize
    from setuptools import Extension, setup

    list_optimizers(Path("fastopt/optimizers"))
    OPENMP = openmp()
    setup(
        ext_modules=cythonize(
            Extension(
                "fastopt._kernels",
                sources=["fastopt/_kernels.pyx", *map(str, sorted(Path("src_c").glob("*.c")))],
                depends=[str(path) for path in sorted(Path("src_c").rglob("*")) if path.suffix in {".h", ".def"}],
                include_dirs=["src_c"],
                extra_compile_args=FLAGS + OPENMP,
                extra_link_args=OPENMP,
            ),
            language_level=3,
        )
    )
