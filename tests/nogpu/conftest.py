"""Tests on the driver that does nothing in place of a GPU: `make test-nogpu`. Without it they are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.numbers import NOOP

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if NOOP:
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="needs the driver that does nothing: make test-nogpu"))
