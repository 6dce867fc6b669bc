"""Settings of the process: how many threads a step may use, which instruction set, and subnormal numbers."""

from __future__ import annotations

import operator
import os
from pathlib import Path

from fastopt import _kernels

_fixed: int | None = None
"""What steps use that are large enough to be divided, if somebody has said."""

_openmp_then = _kernels.max_threads()
"""OpenMP's own setting when `_fixed` was set."""


def available_cpus() -> int:
    """CPUs this process may use: the least of its affinity, its cgroup's quota and OpenMP's own setting.

    OpenMP's setting is OMP_NUM_THREADS, or what somebody has set since then, such as threadpoolctl.
    """
    limits = [
        _kernels.max_threads(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    ]
    quota = _cgroup_quota()
    if quota is not None:
        limits.append(max(1, int(quota)))
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdecimal() and int(first):
        limits.append(int(first))
    return min(limits)


def _cgroup_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the process's own cgroup, or one above it, grants (v1 and v2), if any does."""
    quotas = []
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root
        folder = mount / path.lstrip("/")
        for place in (folder, *folder.parents):
            try:
                if controllers:
                    quota, period = ((place / f"cpu.cfs_{x}_us").read_text() for x in ("quota", "period"))
                else:
                    quota, period = (place / "cpu.max").read_text().split()
                if quota != "max" and int(quota) > 0:
                    quotas.append(int(quota) / int(period))
            except (OSError, ValueError):
                pass
            if place == mount:
                break
    return min(quotas, default=None)


def _checked(name: str, n: object) -> int:
    try:
        value = operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected a whole number or None, got {n!r}") from None
    if isinstance(n, bool) or not 1 <= value <= 4096:
        raise ValueError(f"{name}: {n!r} is out of range; it must be from 1 to 4096")
    return value


def set_num_threads(n: int | None) -> None:
    """Makes parallel steps use ``n`` threads; None goes back to the default's own choice.

    The default is FASTOPT_NUM_THREADS. Without it every optimizer starts with one thread. It then times a
    few of its own steps now and then with more, together with what the program does after them, and keeps
    them where they save a clear part of the step and do not slow down the rest. It looks again at growing
    intervals, goes back at once when steps begin to stall, and tries nothing while other processes need
    the CPUs.

    Steps of fewer than 65,536 elements, and all steps of a forked child, run on the calling thread; larger
    ones are cut into tasks of 16,384 elements, and no more threads work than there are tasks. A limit that
    is set on OpenMP later, as by ``threadpoolctl.threadpool_limits``, holds for ``n`` too. The bits of the
    result do not depend on any of this.
    """
    global _fixed, _openmp_then
    _fixed, _openmp_then = _default_fixed if n is None else _checked("n", n), _kernels.max_threads()


def get_num_threads() -> int:
    """The most threads that a step may use."""
    return fixed_count() or available_cpus()


def fixed_count() -> int | None:
    """The number of threads that somebody has set, as far as a later limit of OpenMP's allows."""
    if _fixed is None:
        return None
    openmp = _kernels.max_threads()
    return min(_fixed, openmp) if openmp < _openmp_then else _fixed


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run, best first; ``numpy``, the plain NumPy twin, last."""
    return _kernels.ISA_NAMES


def set_isa(name: str | None) -> None:
    """Makes every step run one instruction set of `available_isas`; None goes back to the default.

    The default is FASTOPT_ISA, else the best. The bits of the result do not depend on it. ``numpy`` is for
    comparisons: what interrupts its step, such as Ctrl-C, leaves some parameters updated and others not.
    """
    names = available_isas()
    if name is None:
        name = _default_isa
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"isa: {name!r} cannot run here; choose one of {', '.join(names)}")
    _kernels.select_isa(names.index(name))


def get_isa() -> str:
    """The instruction set that steps run."""
    return available_isas()[_kernels.selected_isa()]


def set_flush_denormal(mode: bool) -> None:
    """Whether steps take subnormal numbers (below 1e-38 in float32, 2e-308 in float64) for zero.

    The default is False: the bits are NumPy's. But under gradients that are zero for hundreds of steps,
    averages fade to such numbers and stay there, and arithmetic on them costs some processors three
    times as much, others far more; with True it costs no more than usual. The processor's mode is set
    around each kernel, on the thread that runs it, and put back.
    """
    if not isinstance(mode, bool):
        raise TypeError(f"mode: expected True or False, got {mode!r}")
    _kernels.set_flush_denormal(mode)


_default_fixed: int | None = None
_default_isa = available_isas()[0]


def _read_environment() -> None:
    global _default_fixed, _default_isa
    wanted = os.environ.get("FASTOPT_NUM_THREADS")
    if wanted:
        number = int(wanted) if wanted.strip().isdecimal() else wanted
        _default_fixed = _checked("FASTOPT_NUM_THREADS", number)
    isa = os.environ.get("FASTOPT_ISA")
    if isa:
        try:
            set_isa(isa)
        except ValueError as error:
            raise ValueError(f"FASTOPT_ISA: {error}") from None
        _default_isa = isa
    set_num_threads(None)
    set_isa(None)


_read_environment()
