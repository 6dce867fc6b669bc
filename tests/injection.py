"""Acts at any point of a call where CPython runs the handlers of signals: entries of functions, returns of calls,
backward jumps.

What a handler raises, such as KeyboardInterrupt, comes out of the call at that very point; what it calls finds
everything as it is then. Only code in Python has such points: compiled code that runs none has no middle.
"""

from __future__ import annotations

import dis
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias


@cache
def calls_of(code: CodeType) -> frozenset[int]:
    """The offsets of the instructions that call something."""
    return frozenset(i.offset for i in dis.get_instructions(code) if i.opname.startswith("CALL"))


Place: TypeAlias = tuple[str, str, int, int]
"""Of a point the file, the function, the instruction and the line."""


class Points:
    """While ``call`` runs, acts at the point of that number, 0 first; at none if it is None."""

    def __init__(self, number: int | None = None, act: Callable[[], object] = lambda: None) -> None:
        self.number, self.act = number, act
        self.passed: list[Place] = []
        self._last: dict[FrameType, int] = {}

    def run(self, call: Callable[[], object]) -> None:
        sys.settrace(self._entry)
        try:
            call()
        finally:
            sys.settrace(None)
            self._last.clear()

    def _entry(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._last[frame] = -1
        self._pass(frame)
        return self._within

    def _within(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            last, now = self._last.get(frame, -1), frame.f_lasti
            self._last[frame] = now
            if now <= last or last in calls_of(frame.f_code):
                self._pass(frame)
        elif event == "return":
            self._last.pop(frame, None)
        return self._within

    def _pass(self, frame: FrameType) -> None:
        code = frame.f_code
        self.passed.append((code.co_filename, code.co_name, frame.f_lasti, frame.f_lineno))
        if len(self.passed) - 1 == self.number:
            self.act()


def interrupt() -> None:
    raise KeyboardInterrupt


def points_of(call: Callable[[], object]) -> list[Place]:
    """The places of the points that a call has."""
    points = Points()
    points.run(call)
    return points.passed


def some(points: Sequence[Place], most: int | None) -> list[int]:
    """The numbers of so many points; all if ``most`` is None.

    Each place counts twice, when it is passed first and last; three in four are places of the package itself.
    """
    if most is None or len(points) <= most:
        return [*range(len(points))]
    ends = {place: n for n, place in enumerate(points)}
    firsts = {place: n for n, place in reversed([*enumerate(points)])}
    ours = [place for place in ends if "fastopt" in Path(place[0]).parts[-2:-1] + Path(place[0]).parts[-3:-2]]
    others = [place for place in ends if place not in ours]
    draw = random.Random(len(points))
    found: set[int] = set()
    for places, share in (ours, most - most // 4), (others, most // 4):
        numbers = sorted({firsts[place] for place in places} | {ends[place] for place in places})
        found |= {*draw.sample(numbers, min(share, len(numbers)))}
    return sorted(found)


@contextmanager
def timer(seconds: float, handler: Callable[[], object]) -> Iterator[None]:
    """A real signal after so many seconds, if the block takes that long."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
