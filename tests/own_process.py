"""Tests in a Python process of their own, which may crash or hang: then the test fails."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

P = ParamSpec("P")


def run(code: str, *, seconds: float = 600, environment: dict[str, str] | None = None) -> str:
    """What a program prints; kills it, and all that it started, when it hangs.

    What hangs, hangs for ever; the seconds are many because a sanitizer makes a program slow, and a machine may be busy.
    """
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as output:  # not a pipe: a child that hangs would hold it open
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-W", "ignore:This process:DeprecationWarning", "-c", code],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path} | (environment or {}),
            start_new_session=True,
        )
        try:
            end = str(process.wait(seconds))
        except subprocess.TimeoutExpired:
            end = f"none within {seconds} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read()
    assert end == "0", f"exit: {end}\n{text}"
    return text


def own_process(test: Callable[P, None]) -> Callable[P, None]:
    """Runs a test, whose arguments are literals, in a process of its own."""

    @functools.wraps(test)
    def outside(*args: P.args, **kwargs: P.kwargs) -> None:
        module, name = Path(test.__code__.co_filename).stem, test.__name__
        run(f"import {module}; {module}.{name}.__wrapped__(*{args!r}, **{kwargs!r})")

    return outside


def in_a_new_process(work: Callable[[Any], Any], argument: Any, folder: Path) -> Any:
    """What a function of a test's module returns in a new process; a folder for the files that carry it over."""
    file, module = folder / "content.pickle", Path(work.__code__.co_filename).stem
    file.write_bytes(pickle.dumps(argument))
    run(f"import own_process, {module}; own_process.replace_by_result({module}.{work.__name__}, {str(file)!r})")
    return pickle.loads(file.read_bytes())


def replace_by_result(work: Callable[[Any], Any], name: str) -> None:
    file = Path(name)
    # pytest's name for this folder, and so that of what comes from a test's module
    tests = types.ModuleType("tests")
    tests.__path__ = [str(Path(__file__).parent)]
    sys.modules.setdefault("tests", tests)
    file.write_bytes(pickle.dumps(work(pickle.loads(file.read_bytes()))))


def fork(work: Callable[[], int | None], seconds: float = 30) -> int | None:
    """A child's exit code: what `work` returns, 0 for None, 1 for an exception; None if it had to be killed.

    Where children hang, they hang for ever; the seconds are many because a machine may be busy.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
