"""What the benchmarks are made of."""

from math import prod

import pytest
from cases import FLAT, MANY, WORKLOADS


@pytest.mark.parametrize(
    ("workload", "arrays", "elements"),
    [
        ("MLP 784-200-10", 4, 159_010),
        ("ResNet-50", 161, 25_557_032),
        ("GPT-2 small", 148, 124_439_808),
        (MANY, 1000, 64_000),
        (FLAT, 1, 64_000),
    ],
)
def test_shapes(workload: str, arrays: int, elements: int) -> None:
    shapes = WORKLOADS[workload]
    assert len(shapes) == arrays
    assert sum(map(prod, shapes)) == elements
