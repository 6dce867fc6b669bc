"""The bits are those of the stored digest, whatever computes them."""

from __future__ import annotations

import digest
import pytest

import fastopt

BEST, *_ = ISAS = fastopt.available_isas()
SETTINGS = [(BEST, 1), *((isa, 3) for isa in ISAS)]


def test_every_kernel_is_stored() -> None:
    assert [*digest.stored()] == [*digest.KERNELS], "run: python tests/digest.py --store"


@pytest.mark.parametrize("kernel", digest.KERNELS)
def test_the_bits_are_those_stored(kernel: str) -> None:
    for isa, threads in SETTINGS:
        fastopt.set_isa(isa)
        fastopt.set_num_threads(threads)
        assert digest.digest_of(kernel) == digest.stored()[kernel], f"{isa}, {threads} threads"
