"""One digest of all bits that the kernels compute: the same for every compiler, processor and setting.

    python tests/digest.py [KERNEL ...]     compares with digest.txt, and names the kernels that differ
    python tests/digest.py --few            only those of rows that differ in kind, in one format
    python tests/digest.py --store          writes digest.txt; its diff says which kernels changed
    python tests/digest.py --driver COMMAND has every kernel called by a program: see driver.c

A KERNEL is a name in digest.txt, such as adam_0_float32: the row, the subset of optional buffers, the format.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import table
from table import Array

import fastopt
from fastopt import reference

STORED = Path(__file__).with_name("digest.txt")
"""A line for each kernel, and one for all of these lines."""

KERNELS = {
    f"{row}_{subset}_{format}": (row, subset, format)
    for row, subset, format in [*table.KERNELS, *table.MATRIX_KERNELS]
}


def digest_of(kernel: str) -> str:
    """SHA-256 of what a kernel makes of inputs of all sizes, for the variants that run it.

    In formats of one dtype those are all, in others one; but those whose gradient is another one when it comes to
    the kernel.
    """
    row, subset, format = KERNELS[kernel]
    start, grads = table.inputs(format)
    digest = hashlib.sha256()
    if (row, subset) in table.MATRIX_RUNS:
        variant = table.MATRIX_RUNS[row, subset].stored_as(format)
        matrix_of = as_row if variant.cls in table.BY_ROWS else as_column
        matrices = [matrix_of(p) for p in start]
        with table.plain_work():
            optimizer = table.train(variant, matrices, [[matrix_of(g) for g in step] for step in grads])
        for arrays in table.bits(optimizer, matrices):
            digest.update(b"".join(arrays))
        return digest.hexdigest()
    for variant in table.VARIANTS if format in table.DTYPES else [table.RUNS[row, subset]]:
        if variant.changed == "l1" and table.adds_l1(variant.cls):
            continue
        if variant.kernel == (row, subset) and variant.hyper["state_dtype"] is None:
            params = [p.copy() for p in start]
            for arrays in table.bits(table.train(variant.stored_as(format), params, grads), params):
                digest.update(b"".join(arrays))
    return digest.hexdigest()


def as_column(array: Array) -> Array:
    return array.reshape(-1, 1).copy()


def as_row(array: Array) -> Array:
    """A row whose sum is no NaN, which would make NaNs of all its numbers."""
    with np.errstate(invalid="ignore"):
        return np.where(abs(array) < 8, array, array.dtype.type(1)).reshape(1, -1)


def storage_of(array: Array) -> str:
    """A gradient of bfloat16 comes as the boundary knows it."""
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def listing(found: dict[str, str]) -> str:
    lines = "".join(f"{digest}  {kernel}\n" for kernel, digest in found.items())
    return lines + f"{hashlib.sha256(lines.encode()).hexdigest()}  all of the above\n"


def stored() -> dict[str, str]:
    """The stored digests by kernel."""
    text = STORED.read_text()
    *lines, _ = text.splitlines()
    found = {kernel: digest for digest, kernel in (line.split() for line in lines)}
    if text != listing(found):
        raise ValueError(
            f"{STORED} does not agree with its last line; write it again: python tests/digest.py --store"
        )
    return found


class Driver:
    """Stands in for the NumPy twin: has a program make each call of a kernel, on whatever processor it runs."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = shlex.join(command)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> None:
        self.twin = table.another_twin(self.update, self.sums)
        self.twin.__enter__()

    def __exit__(self, *_: object) -> None:
        """Any end of the program but a clean one counts, also where it has answered everything."""
        self.twin.__exit__(None, None, None)
        with suppress(BrokenPipeError):
            self.process.communicate()
        if self.process.wait():
            sys.exit(f"{self.command}: exit status {self.process.returncode}")

    def update(
        self,
        algorithm: Any,
        p: Array,
        grad: Array,
        states: Sequence[Array | None],
        scalars: Sequence[float],
        random_key: int,
        first_element: int,
        factors: Sequence[float] = (),
    ) -> None:
        """As `storage.update`."""
        for buffer in self.ask(algorithm, [p, grad, *states], scalars, factors, 0, random_key, first_element):
            content = self.answer(buffer.nbytes)
            if buffer is not grad:
                buffer[...] = np.frombuffer(content, buffer.dtype).reshape(buffer.shape)
            elif content != grad.tobytes():
                raise ValueError(f"{algorithm.formula}: it wrote to its gradient")

    def sums(
        self,
        algorithm: Any,
        p: Array,
        grad: Array,
        states: Sequence[Array | None],
        scalars: Sequence[float],
        factors: Sequence[float] = (),
    ) -> Array:
        """As `storage.sums`."""
        count = len(table.TABLE[algorithm.formula]["sums"])
        self.ask(algorithm, [p, grad, *states], scalars, factors, count, 0, 0)
        blocks = -(-p.size // reference.SUM_BLOCK)
        return np.frombuffer(self.answer(8 * blocks * count)).reshape(blocks, count)

    def ask(
        self,
        algorithm: Any,
        buffers: Sequence[Array | None],
        scalars: Sequence[float],
        factors: Sequence[float],
        sums: int,
        random_key: int,
        first_element: int,
    ) -> list[Array]:
        """Sends a request; returns the arrays in it."""
        name = algorithm.formula
        p, grad, *states = buffers
        assert p is not None and grad is not None and self.process.stdin
        given = sum(1 << i for i, buffer in enumerate(buffers) if buffer is not None)
        row = table.TABLE[name]
        subset = given >> 2 + len(row["state"]) & (1 << len(row["optional"])) - 1
        if sums or factors:
            subset |= len(row["choice"]) << len(row["optional"])
        stored = [storage_of(p), storage_of(grad), storage_of(next((x for x in states if x is not None), p))]
        first_work = 2 + len(row["state"]) + len(row["optional"]) if row["work"] or row["columns"] else 0
        format = [*table.FORMATS.values()].index(tuple(stored))
        counts = len(scalars), len(factors), sums
        request = struct.pack(
            "=32s8I3Q",
            name.encode(),
            subset,
            format,
            given,
            *counts,
            first_work,
            0,
            p.size,
            random_key,
            first_element,
        )
        arrays = [buffer for buffer in buffers if buffer is not None]
        content = [np.array(scalars, float), np.array(factors, float), *arrays]
        self.process.stdin.write(b"".join([request, *(x.tobytes() for x in content)]))
        self.process.stdin.flush()
        return arrays

    def answer(self, size: int) -> bytes:
        assert self.process.stdout
        content = self.process.stdout.read(size)
        if len(content) != size:
            raise EOFError
        return content


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="only these")
    parser.add_argument("--few", action="store_true", help="only those of rows that differ in kind, in one format")
    parser.add_argument("--store", action="store_true", help="write digest.txt")
    parser.add_argument("--driver", metavar="COMMAND", type=shlex.split, help="what makes the calls of kernels")
    options = parser.parse_args(arguments)
    if unknown := set(options.kernels) - set(KERNELS):
        parser.error(f"no kernel {', '.join(unknown)}; there are {', '.join(KERNELS)}")
    if options.few:
        first = table.DTYPES[0]
        options.kernels += [name for name, (row, _, f) in KERNELS.items() if row in table.KINDS and f == first]
    if options.store and options.kernels:
        parser.error("--store takes all kernels")
    with Driver(options.driver) if options.driver else nullcontext():
        found = {kernel: digest_of(kernel) for kernel in options.kernels or KERNELS}
    if options.store:
        STORED.write_text(listing(found))
        return
    want = stored()
    wrong = [kernel for kernel in found if found[kernel] != want.get(kernel)]
    if wrong:
        sys.exit(f"not the stored bits: {', '.join(wrong)}")
    by = shlex.join(options.driver) if options.driver else fastopt.get_isa()
    print(f"{len(found)} of {len(want)} kernels have the stored bits ({by})")


if __name__ == "__main__":
    main()
