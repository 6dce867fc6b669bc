"""python -m fastopt: what this build is and what this machine can do; with ``bench``: how fast it is here."""

import platform
import sys
from importlib.metadata import version

import fastopt
from fastopt import _kernels, threads


def cpu() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def facts() -> dict[str, str]:
    """Everything that a report about speed or bits should say."""
    openmp = f"yes ({_kernels.OPENMP})" if _kernels.OPENMP else "no: every step is serial, with the same bits"
    return {
        "fastopt": fastopt.__version__,
        "Python": f"{platform.python_version()}, NumPy {version('numpy')}",
        "compiler": _kernels.COMPILER,
        "OpenMP": openmp,
        "CPU": f"{cpu()} ({platform.machine()})",
        "instruction sets": " > ".join(fastopt.available_isas()),
        "in use": fastopt.get_isa(),
        "threads": f"up to {fastopt.get_num_threads()} a step, of {threads.available_cpus()} available",
        "kernels": ", ".join(
            f"{name} ({', '.join((*row['state'], *(f'[{x}]' for x in row['optional']))) or 'no state'})"
            for name, row in _kernels.TABLE.items()
        ),
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["bench"]:
        from fastopt.benchmark import report

        report.main()
    elif sys.argv[1:]:
        sys.exit("usage: python -m fastopt [bench]")
    else:
        for name, value in facts().items():
            print(f"{name + ':':18}{value}")
