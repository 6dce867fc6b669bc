"""Three extensions: fastopt._kernels has the kernels of src_c/, fastopt._plan the steps that call them, fastopt._turns
the turns that they take.

The metadata is in pyproject.toml.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

NEEDED = {"setuptools": (77, 0), "cython": (3, 1), "numpy": (2, 0)}
"""The oldest versions that build fastopt, as in pyproject.toml."""


def compiler() -> str:
    return os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"


def builds(source: str, *flags: str) -> bool:
    """Whether a program compiles and links with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.c").write_text(source)
        command = [*compiler().split(), *flags, "probe.c", "-o", "probe"]
        try:
            return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


@cache
def known(*flags: str) -> list[str]:
    """Those of the flags that the compiler knows."""
    return [flag for flag in flags if builds("int main(void) { return 0; }\n", "-Werror", flag)]


# Flags of the environment (CFLAGS=-Ofast, -march=native, …) come before these on the command line, and of two
# flags that contradict each other the last one counts.
LINK_FLAGS = [
    "-pthread",
    "-O3",  # after -Ofast, for which gcc links code that changes the floating-point mode of the process
    "-fno-fast-math",  # likewise, after -ffast-math
    "-fno-unsafe-math-optimizations",  # likewise
    *known("-mno-daz-ftz"),  # likewise: newer versions of gcc link it for -mdaz-ftz as well
]
FLAGS = [
    "-O3",  # turns on the vectoriser
    "-pthread",  # tasks.c asks whether threads can be made
    "-std=gnu11",  # designated initialisers, and the GNU builtins that ask for CPU features
    "-fno-fast-math",  # the same bits everywhere, whatever part of -ffast-math was asked for
    "-fno-associative-math",  # likewise
    "-fno-reciprocal-math",  # likewise
    "-fno-finite-math-only",  # likewise
    "-fsigned-zeros",  # likewise
    *known("-fno-single-precision-constant"),  # 0.1 is a double
    *known("-ffp-eval-method=source"),  # every operation in its own type
    *known("-mfpmath=sse"),  # likewise, on x86
    # The baseline runs on every processor, whatever -march=native or -mfma asks for: each of the other
    # instruction sets has a file of its own, which switches the compiler to it.
    *known("-march=x86-64", "-mno-sse3"),
    "-fno-math-errno",  # lets sqrt be an instruction; nobody reads errno
    "-fno-trapping-math",  # without it, loops with sqrt or a comparison do not vectorise
    "-ffp-contract=off",  # no fused multiply-add: every machine computes the same bits
    "-fvisibility=hidden",  # one symbol leaves each extension: its init function
    *known("-fno-unswitch-loops"),  # one loop a kernel; a test reads the machine code. clang has no need of it
    # Python's own flags ask for debugging information: a quarter of the time to compile, three quarters of the size.
    *([] if "-g" in os.environ.get("CFLAGS", "").split() else ["-g0"]),
    "-Wall",
    "-Wextra",
]


@cache
def openmp() -> list[str]:
    """The OpenMP flag, if a program with a parallel loop compiles and links with it."""
    if os.environ.get("FASTOPT_OPENMP") == "0":
        return []
    source = "#include <omp.h>\nint main(void) {\n#pragma omp parallel\n{}\nreturn omp_get_max_threads() < 1; }\n"
    if builds(source, "-fopenmp"):
        return ["-fopenmp"]
    print("fastopt: no OpenMP found, the build is serial", file=sys.stderr)
    return []


def missing_packages() -> str | None:
    """A sentence that says which packages to install before setup() can run; None if they are there."""
    from importlib.metadata import PackageNotFoundError, version

    found, wrong = [], []
    for package, least in NEEDED.items():
        try:
            here = version(package)
        except PackageNotFoundError:
            here = "none"
        numbers = tuple(int(number) for number in re.findall(r"\d+", here)[:2])
        if numbers < least:
            wrong.append(f"'{package}>={least[0]}.{least[1]}'")
            found.append(f"{package} {here}")
    if not wrong:
        return None
    return (
        f"fastopt: too old or missing to build with: {', '.join(found)}. Run `pip install {' '.join(wrong)}`, or "
        "leave out --no-build-isolation, and pip gets them for the build alone."
    )


def missing_compiler() -> str | None:
    """A sentence that says how to get a compiler and Python's headers; None if they are there."""
    if not builds("int main(void) { return 0; }\n"):
        return (
            f"fastopt: no working C compiler ({compiler()}). Install gcc or clang (Debian, Ubuntu: apt install gcc "
            "libc6-dev; Fedora: dnf install gcc), or name one by the environment variable CC."
        )
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").exists():
        return (
            f"fastopt: Python's headers are missing ({headers}/Python.h). Install them (Debian, Ubuntu: apt install "
            "python3-dev; Fedora: dnf install python3-devel)."
        )
    return None


def list_optimizers(folder: Path) -> None:
    """Writes ``_list.py``: an import of every class of the files in the folder, so that nobody keeps a list."""
    found = {
        name: path.stem
        for path in sorted(folder.glob("[!_]*.py"))
        for name in re.findall(r"^class ([A-Z]\w*)\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    lines = ["# Written by setup.py from the files in this folder."]
    lines += [f"from fastopt.optimizers.{module} import {name}" for name, module in found.items()]
    lines += ["", "__all__ = [", *(f'    "{name}",' for name in sorted(found)), "]", ""]
    text, path = "\n".join(lines), folder / "_list.py"
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # else make would build again
        path.write_text(text, encoding="utf-8")


def cythonized(extensions: list) -> list:
    """The extensions with Cython's C files. A file whose text stays keeps its time, so that it is not compiled again:
    Cython writes all anew where it was installed after them, as in every isolated build."""
    from Cython.Build import cythonize

    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("fastopt").glob("*.c")}
    found = cythonize(extensions, language_level=3)
    for path, (text, time) in before.items():
        if path.read_bytes() == text:
            os.utime(path, ns=(time, time))
    return found


def run_setup() -> None:
    import numpy
    from setuptools import Extension, setup
    from setuptools.command.build_ext import build_ext
    from setuptools.command.build_py import build_py

    class BuildExtensions(build_ext):
        """Compiles files in parallel, and anew when other flags compiled what lies in the build folder."""

        def run(self) -> None:
            if sentence := missing_compiler():
                raise SystemExit(sentence)
            if self.editable_mode:  # setuptools would compile all anew, in a folder that is new each time
                self.build_temp = f"build/editable.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
                self.build_lib = f"{self.build_temp}/lib"
            stamp = Path(self.build_temp, "compiled-with.txt")
            how = self.how()
            if not stamp.exists() or stamp.read_text() != how:
                self.force = True
                stamp.unlink(missing_ok=True)
            super().run()
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(how)

        def how(self) -> str:
            """Everything but the sources on which the compiled files depend."""
            command = [*compiler().split(), "--version"]
            version = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            variables = ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED", "ARCHFLAGS")
            environment = [f"{name}={os.environ.get(name)}" for name in variables]
            return "\n".join([version, *environment, *FLAGS, *openmp(), "link:", *LINK_FLAGS, numpy.__version__])

        def copy_extensions_to_source(self) -> None:
            self.force = True  # also over a newer file, which other flags may have compiled
            super().copy_extensions_to_source()

        def build_extensions(self) -> None:
            jobs = self.parallel if isinstance(self.parallel, int) and self.parallel > 1 else 0
            self.parallel = jobs or len(os.sched_getaffinity(0))
            for extension in self.extensions:
                extension.extra_compile_args = FLAGS + openmp()
                extension.extra_link_args = LINK_FLAGS + openmp()
                extension.include_dirs.append(numpy.get_include())  # not before: Cython writes it into its C files
            compile_serially = self.compiler.compile
            with ThreadPoolExecutor(self.parallel) as pool:

                def compile_all(sources, **arguments):
                    objects = pool.map(lambda source: compile_serially([source], **arguments), sources)
                    return [path for paths in objects for path in paths]

                self.compiler.compile = compile_all
                super().build_extensions()

    class BuildPackage(build_py):
        """Adds the public header to the package, and takes away what another version left in the build folder."""

        def run(self) -> None:
            super().run()
            if self.editable_mode:
                return
            folder = Path(self.build_lib, "fastopt")
            written = {Path(path) for path in self.get_outputs(include_bytecode=False)}
            for path in folder.rglob("*"):
                if path.is_file() and path.suffix != ".so" and path not in written:
                    path.unlink()
            (folder / "include").mkdir(exist_ok=True)
            shutil.copy("src_c/fastopt.h", folder / "include")

    headers = [str(path) for path in sorted(Path("src_c").rglob("*")) if path.suffix in {".h", ".def"}]
    included = [str(path) for path in sorted(Path("fastopt").glob("*.pxi"))]
    # here and below those that take longest first, so that no processor waits at the end
    kernels = [f"src_c/{name}.c" for name in ("isa_baseline", "isa_avx512", "isa_avx2", "dispatch", "bias")]
    extensions = [
        Extension(
            "fastopt._plan",
            ["fastopt/_plan.pyx", "src_c/tasks.c"],
            include_dirs=["src_c"],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
            depends=headers + included,
        ),
        Extension("fastopt._kernels", [*kernels, "fastopt/_kernels.pyx"], include_dirs=["src_c"], depends=headers),
        Extension("fastopt._turns", ["fastopt/_turns.pyx"], include_dirs=["src_c"]),
    ]
    setup(
        ext_modules=cythonized(extensions),
        cmdclass={"build_ext": BuildExtensions, "build_py": BuildPackage},
    )


if __name__ == "__main__":  # else for its FLAGS alone
    if sentence := missing_packages():
        raise SystemExit(sentence)
    list_optimizers(Path("fastopt/optimizers"))
    run_setup()
