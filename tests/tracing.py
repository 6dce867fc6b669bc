"""Counts the operations of the interpreter in a call, and does something before one of them: an interrupt, for example,
may come between any two."""

from __future__ import annotations

import gc
import inspect
import itertools
import sys
from collections.abc import Callable, Collection
from types import CodeType, FrameType
from typing import Any


def traced(
    call: Callable[[], object],
    at: int = -1,
    handler: Callable[[], object] = lambda: None,
    within: Collection[CodeType] | None = None,
) -> int:
    """Makes a call, with a handler at its place ``at``; returns the number of its places.

    within: only the places in these functions count.
    """
    count = itertools.count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if within is not None and frame.f_code not in within:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        # of a generator every opcode: its "call" may be that of `close`, where no signal arrives
        is_generator = frame.f_code.co_flags & inspect.CO_GENERATOR
        if (event == "opcode" or (event == "call" and not is_generator)) and next(count) == at:
            handler()
        return trace

    callbacks = gc.callbacks[:]
    gc.callbacks.clear()  # hypothesis has one, in which an exception would be lost
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
        gc.callbacks[:] = callbacks
    return next(count)


def is_interrupted(call: Callable[[], object], at: int, within: Collection[CodeType]) -> bool:
    """Makes a call, with a KeyboardInterrupt at its place ``at``; returns whether it has such a place."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    try:
        traced(call, at, interrupt, within)
    except KeyboardInterrupt:
        return True
    return False
