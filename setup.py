"""One extension: the kernels in src_c/ and the Cython boundary over them.

The metadata is in pyproject.toml.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAGS = [
    "-O3",  # turns on the vectoriser
    "-std=gnu11",  # designated initialisers, and the GNU builtins that ask for CPU features
    "-fno-math-errno",  # lets sqrt be an instruction; nobody reads errno
    "-fno-trapping-math",  # without it, loops with sqrt or a comparison do not vectorise
    "-ffp-contract=off",  # no fused multiply-add: every machine computes the same bits
    "-fno-unswitch-loops",  # one loop a kernel; a test reads the machine code
    "-fvisibility=hidden",  # one symbol leaves: the module's init function
    "-Wall",
    "-Wextra",
]


def compiler() -> str:
    return os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"


def openmp() -> list[str]:
    """The OpenMP flag, if a program with a parallel loop compiles and links with it."""
    if os.environ.get("FASTOPT_OPENMP") == "0":
        return []
    source = "#include <omp.h>\nint main(void) {\n#pragma omp parallel\n{}\nreturn omp_get_max_threads() < 1; }\n"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.c").write_text(source)
        command = [*compiler().split(), "-fopenmp", "probe.c", "-o", "probe"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode == 0:
        return ["-fopenmp"]
    print("fastopt: no OpenMP found, the build is serial", file=sys.stderr)
    return []


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
