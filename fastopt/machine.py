"""The machine and this process: CPUs, threads, instruction sets, subnormal numbers, and the facts of a report.

Everything that Linux reports in files is read as bytes: a process may have any bytes for its name. A file that is
empty or malformed counts as one that is missing.
"""

from __future__ import annotations

import functools
import operator
import os
import platform
import time
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from fastopt import _kernels

Seconds: TypeAlias = float
PROC = Path("/proc")


def _read(path: Path) -> bytes:
    """The contents of a file; nothing if it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError):  # ValueError: a path with a NUL, from a malformed file
        return b""


def _whole_number(text: bytes | str) -> int | None:
    """The number that these digits are; None for anything else."""
    text = text.strip()
    # As many digits as a C long has: int() refuses thousands of them, and a division by such a number overflows.
    return int(text) if text.isdigit() and text.isascii() and len(text) <= 19 else None


# -- Forks -----------------------------------------------------------------------------------------

FORKED_WITHOUT_EXEC = 0x40
"""PF_FORKNOEXEC of Linux: the process was forked and has not started a program of its own."""


def was_forked(proc: Path = PROC) -> bool:
    """Whether this process was begun by a fork alone, without a program of its own (Linux)."""
    # The fields follow the process's name, which stands in parentheses and may itself hold spaces and parentheses.
    fields = _read(proc / "self/stat").rpartition(b")")[2].split()
    flags = _whole_number(fields[6]) if len(fields) > 6 else None
    return flags is not None and flags & FORKED_WITHOUT_EXEC != 0


# A child may be the first to import fastopt. Its parent may have had a team of threads for another library's work,
# and libgomp would wait in the child for threads that exist in the parent only.
_kernels.count_forks_from(was_forked())


# -- CPUs ------------------------------------------------------------------------------------------


@functools.cache
def _openmp_places() -> tuple[frozenset[int], ...]:
    """The places (sets of CPUs) to which OpenMP binds threads; none where it does not bind them."""
    return _kernels.openmp_places()


def allowed_cpus() -> frozenset[int]:
    """The CPUs on which the threads of a step may run, by their affinity."""
    try:
        mask = frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # another system than Linux; a sandbox that forbids the call
        return frozenset(range(os.cpu_count() or 1))
    places = _openmp_places()
    if not places:
        return mask
    # With OMP_PROC_BIND or OMP_PLACES, libgomp binds the calling thread to the first place when it is loaded,
    # and every thread that it starts to a place of its own. The mask of the calling thread then says nothing about
    # a team's other threads, but the places do: libgomp made them from the mask that the process had before. To
    # save that mask at our import would be too late where another library has loaded libgomp, and wrong where
    # another OpenMP runtime had narrowed it before ours was loaded: then all threads of a step share what is left.
    # If the mask is not the first place, the user has changed it since, and the CPUs outside it do not count. (A
    # user who sets exactly the first place changes nothing: the kernel has no record of that.)
    bound = frozenset().union(*places)
    return bound if mask == places[0] else (mask & bound or mask)


def available_cpus() -> int:
    """CPUs this process may use: the least of its affinity, its cgroup's quota and OpenMP's own setting.

    OpenMP's setting is OMP_NUM_THREADS, or a limit that was set later, as by threadpoolctl, in this thread.
    """
    limits = [_kernels.max_threads(), len(allowed_cpus())]
    quota = _cgroup_quota()
    if quota is not None:
        limits.append(max(1, int(quota)))
    outermost = _whole_number(os.environ.get("OMP_NUM_THREADS", "").split(",")[0])
    if outermost:
        limits.append(outermost)
    return min(limits)


def _cgroup_quota(file: Path = PROC / "self/cgroup", root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the process's own cgroup, or one above it, grants (v1 and v2); None without a quota."""
    quotas = []
    for line in _read(file).split(b"\n"):
        hierarchy, _, rest = line.partition(b":")
        controllers, colon, name = rest.partition(b":")
        is_v2 = not controllers
        if not (hierarchy and colon and (is_v2 or b"cpu" in controllers.split(b","))):
            continue
        mount = root if is_v2 else root / "cpu"
        folder = mount / os.fsdecode(name.lstrip(b"/"))
        for place in (folder, *folder.parents):
            if is_v2:
                numbers = _read(place / "cpu.max").split()
            else:
                numbers = [_read(place / f"cpu.cfs_{kind}_us") for kind in ("quota", "period")]
            # "max" in v2 and "-1" in v1 are no numbers here: no quota
            quota, period = map(_whole_number, numbers) if len(numbers) == 2 else (None, None)
            if quota and period:
                quotas.append(quota / period)
            if place == mount:
                break
    return min(quotas, default=None)


# -- CPUs that other processes use -----------------------------------------------------------------

SHORTEST_INTERVAL: Seconds = 0.1
"""Linux counts idle time in hundredths of a second: a shorter interval says too little."""


class IdleTime(NamedTuple):
    """How long some CPUs have been idle, and how that changed."""

    cpus: frozenset[int]
    when: Seconds
    idle: Seconds
    """Since the machine started, all these CPUs together."""
    own: Seconds
    """CPU time of this process, all its threads together."""
    left: float
    """The number of CPUs that other processes left to this one, on average, in the interval before."""


_last_idle_time: IdleTime | None = None


def others_keep_cpus_busy(count: int, proc: Path = PROC) -> bool:
    """Whether other processes keep so many of our CPUs busy that fewer than ``count`` are left (Linux).

    This process's own threads do not count: the tuner measures their cost.
    """
    cpus = allowed_cpus()
    spare = len(cpus) - count
    running = _running_threads(proc)
    if running is None or running - 1 <= spare:  # the calling thread is one of them
        return False
    if running - _own_running_threads(proc) <= spare:
        return False
    if len(cpus) >= (os.cpu_count() or 1):
        return True
    # The running threads may run on other CPUs than ours. A container cannot see where they run, but /proc/stat
    # has the time that each CPU was idle.
    return _cpus_left(cpus, proc) < count - 0.5


def _running_threads(proc: Path) -> int | None:
    """Threads of the whole machine that run or wait for a CPU now."""
    fields = _read(proc / "loadavg").split()
    return _whole_number(fields[3].partition(b"/")[0]) if len(fields) > 3 else None


def _own_running_threads(proc: Path) -> int:
    """Threads of this process that run or wait for a CPU now."""
    stats = (_read(path) for path in proc.glob("self/task/*/stat"))
    return sum(stat.rpartition(b")")[2].split()[:1] == [b"R"] for stat in stats)


def _cpus_left(cpus: frozenset[int], proc: Path = PROC) -> float:
    """How many of these CPUs other processes have left to this one since the last call, on average."""
    global _last_idle_time
    idle = _idle_seconds(cpus, _read(proc / "stat"))
    if idle is None:
        return len(cpus)
    now, own, last = time.monotonic(), time.process_time(), _last_idle_time
    left = float(len(cpus))
    if last is not None and last.cpus == cpus:
        if now - last.when < SHORTEST_INTERVAL:
            return last.left
        left = (idle - last.idle + own - last.own) / (now - last.when)
    _last_idle_time = IdleTime(cpus, now, idle, own, left)
    return left


def _idle_seconds(cpus: frozenset[int], stat: bytes) -> Seconds | None:
    """How long these CPUs have been idle since the machine started, by the text of /proc/stat."""
    ticks: dict[int, int] = {}
    for line in stat.splitlines():
        if not line.startswith(b"cpu"):
            break  # the lines of the CPUs come first
        name, *fields = line.split()
        cpu = _whole_number(name[3:])
        idle, waiting_for_a_disk = map(_whole_number, fields[3:5]) if len(fields) > 4 else (None, None)
        if cpu is not None and idle is not None and waiting_for_a_disk is not None:
            ticks[cpu] = idle + waiting_for_a_disk
    if not cpus <= ticks.keys():
        return None
    return sum(ticks[cpu] for cpu in cpus) / os.sysconf("SC_CLK_TCK")


# -- Threads ---------------------------------------------------------------------------------------

MOST_THREADS = 4096


class FixedThreads(NamedTuple):
    """A number of threads that was set."""

    threads: int
    openmp_limit: int
    """OpenMP's own setting at that time."""


_fixed: FixedThreads | None = None


def _checked_num_threads(name: str, n: object) -> int:
    try:
        value = operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected a whole number or None, got {n!r}") from None
    if isinstance(n, bool) or not 1 <= value <= MOST_THREADS:
        raise ValueError(f"{name}: {n!r} is out of range; it must be from 1 to {MOST_THREADS}")
    return value


def set_num_threads(n: int | None) -> None:
    """Makes steps of at least 65,536 elements use ``n`` threads; None goes back to the default.

    The default is the environment variable FASTOPT_NUM_THREADS. Where that is not set, each optimizer finds
    its own number. It starts with one thread. From time to time it measures a few of its steps with more
    threads, together with the program's work between the steps. It keeps more threads if they make the step
    clearly shorter and do not slow down the program's other work. It repeats this at growing intervals, goes
    back to one thread when steps begin to stall, and tries nothing while other processes keep the CPUs busy.

    A step is cut into tasks of 16,384 elements and uses no more threads than it has tasks. Smaller steps, all
    steps of a forked child, and all steps of a build without OpenMP run on the calling thread. The number of
    threads never changes the bits of the result.

    A lower limit that is set on OpenMP later limits ``n`` too. ``threadpoolctl.threadpool_limits`` sets such a
    limit, but only for the thread that calls it: OpenMP keeps the setting for each thread apart, so steps that
    other threads make do not obey it.
    """
    global _fixed
    threads = _default_fixed if n is None else _checked_num_threads("n", n)
    _fixed = None if threads is None else FixedThreads(threads, _kernels.max_threads())


def get_num_threads() -> int:
    """The largest number of threads that a step of the calling thread may use.

    It is 1 in a forked child and in a build without OpenMP. Otherwise it is the number that was set, or the
    number of CPUs that the process may use.
    """
    return 1 if is_limited_to_one_thread() else fixed_num_threads() or available_cpus()


def fixed_num_threads() -> int | None:
    """The number of threads that was set, as far as a later limit of OpenMP allows; None if none was set."""
    fixed = _fixed
    if fixed is None:
        return None
    limit = _kernels.max_threads()
    return min(fixed.threads, limit) if limit < fixed.openmp_limit else fixed.threads


def is_limited_to_one_thread() -> bool:
    """Whether every step of this process runs on its calling thread, for as long as the process lives."""
    # libgomp hangs in a child of a process that has had a team of threads
    return not _kernels.OPENMP or _kernels.fork_count() > 0


# -- Instruction sets and subnormal numbers --------------------------------------------------------

TWIN = "numpy"
"""The name under which the plain NumPy twin stands among the instruction sets."""


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run, best first; ``numpy``, the plain NumPy twin, last."""
    return _kernels.ISA_NAMES


def set_isa(name: str | None) -> None:
    """Makes every step run one instruction set of `available_isas`; None goes back to the default.

    The default is the environment variable FASTOPT_ISA, else the best instruction set. It never changes the
    bits of the result. ``numpy`` is meant for comparisons: a step that is interrupted there, as by Ctrl-C,
    leaves some parameters updated and others not.
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
    """With True, steps treat subnormal numbers (below 1e-38 in float32, 2e-308 in float64) as zero.

    With False, the default, the bits are NumPy's. True is for speed: when gradients stay zero for hundreds of
    steps, moving averages decay into subnormal numbers and stay there. Arithmetic on subnormal numbers is
    three times as slow on some processors, and far slower on others. Each thread sets the processor's mode
    before it runs a kernel and restores it afterwards.
    """
    if not isinstance(mode, bool):
        raise TypeError(f"mode: expected True or False, got {mode!r}")
    _kernels.set_flush_denormal(mode)


# -- Defaults from the environment -----------------------------------------------------------------

_default_fixed: int | None = None
_default_isa = available_isas()[0]


def _read_environment() -> None:
    global _default_fixed, _default_isa
    wanted = os.environ.get("FASTOPT_NUM_THREADS")
    if wanted:
        number = _whole_number(wanted)
        _default_fixed = _checked_num_threads("FASTOPT_NUM_THREADS", wanted if number is None else number)
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
if len(allowed_cpus()) < (os.cpu_count() or 1):
    _cpus_left(allowed_cpus())  # so that the first question about them has an interval behind it


# -- Facts -----------------------------------------------------------------------------------------


def version(distribution: str) -> str | None:
    """The version of an installed distribution; None where its metadata is not installed."""
    import importlib.metadata  # takes as long to import as the rest of fastopt

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name(proc: Path = PROC) -> str:
    """The name of the processor, as its maker gives it where that is known."""
    for line in _read(proc / "cpuinfo").splitlines():
        key, _, value = line.partition(b":")
        if key.strip() == b"model name" and value.strip():
            return value.strip().decode(errors="replace")
    return platform.processor() or platform.machine()


def _buffers(row: dict[str, tuple[str, ...]]) -> str:
    """The state buffers of a row of the table, the optional ones in brackets."""
    return ", ".join((*row["state"], *(f"[{name}]" for name in row["optional"]))) or "no state"


def facts() -> dict[str, str]:
    """The facts that a report about speed or bits should state."""
    openmp = f"yes ({_kernels.OPENMP})" if _kernels.OPENMP else "no: steps run on one thread, with the same bits"
    return {
        "fastopt": version("fastopt") or "of unknown version: its metadata is not installed",
        "Python": f"{platform.python_version()}, NumPy {np.__version__}",
        "compiler": _kernels.COMPILER,
        "OpenMP": openmp,
        "CPU": f"{cpu_name()} ({platform.machine()})",
        "instruction sets": " > ".join(available_isas()),
        "in use": get_isa(),
        "threads": f"up to {get_num_threads()} a step; CPUs available: {available_cpus()}",
        "kernels": ", ".join(f"{name} ({_buffers(row)})" for name, row in _kernels.TABLE.items()),
    }
