"""Puts this folder where ``import table`` finds it, and undoes the settings that a test makes."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Processes of pytest-xdist share the cores: threads of one that spin while they wait for work hold
# up the others, and the tests take six times as long. OpenMP reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_finish() -> None:
    """The garbage collector would look through thousands of collected tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    import fastopt  # loads OpenMP

    isa = fastopt.get_isa()
    yield
    fastopt.set_isa(isa)
    fastopt.set_num_threads(None)
    fastopt.set_flush_denormal(False)


@pytest.fixture
def counters_in_float64() -> Iterator[None]:
    """torch keeps NAdam's mu_product, and ASGD's eta and mu, in its default dtype: float32 would round them."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
