"""Puts this folder where ``import table`` finds it, and undoes the settings that a test makes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastopt

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    isa = fastopt.get_isa()
    yield
    fastopt.set_isa(isa)
    fastopt.set_num_threads(None)
