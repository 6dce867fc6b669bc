"""Lets benchmarks import their neighbours, heads a run with its facts, and keeps it short."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cases import facts


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every optimizer, dtype and size")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: measured only with --full")
    # torch.compile's own use of it, in a newer Python
    config.addinivalue_line("filterwarnings", "ignore:.torch.jit.script_method. is deprecated")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    items[:] = [item for item in items if not item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)


def pytest_report_header() -> list[str]:
    return [f"{name}: {value}" for name, value in facts().items()]
