"""The bits are those of the stored digest, whatever computes them."""

from __future__ import annotations

import digest
import table
from table import cases

import fastopt

BEST, *_ = ISAS = fastopt.available_isas()
SETTINGS = [(BEST, 1), *((isa, 3) for isa in ISAS)]
FIRST = [kernel for kernel, (*_, format) in digest.KERNELS.items() if format == table.DTYPES[0]]
"""All rows with all their options, in one format."""
FEW = [kernel for kernel, of in digest.KERNELS.items() if of[:2] == table.LARGEST.kernel]


def test_every_kernel_is_stored() -> None:
    assert [*digest.stored()] == [*digest.KERNELS], "run: python tests/digest.py --store"


def is_stored(kernel: str, isa: str, threads: int) -> None:
    fastopt.set_isa(isa)
    fastopt.set_num_threads(threads)
    assert digest.digest_of(kernel) == digest.stored()[kernel], f"{isa}, {threads} threads"


@cases("kernel", digest.KERNELS, [*FIRST, *(kernel for kernel in FEW if kernel not in FIRST)])
def test_the_bits_are_those_stored(kernel: str) -> None:
    is_stored(kernel, BEST, 3)


@cases("kernel", digest.KERNELS, FEW)
def test_the_bits_are_those_stored_in_every_setting(kernel: str) -> None:
    for isa, threads in SETTINGS:
        is_stored(kernel, isa, threads)
