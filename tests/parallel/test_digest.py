"""A step's digest: what it covers, and that no layout changes it. tests/data/test_loader.py looks at each number."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.jobs import ALONE, digests


@pytest.mark.parametrize(
    "changes",
    [{"zero": 3}, {"tensor": 2}, {"context": 2, "ulysses": 1}, {"pipeline": 2, "schedule": "interleaved"}],
    ids=["data", "tensor", "context", "pipeline"],
)
def test_every_layout_has_the_same_digests(changes: dict[str, Any], ranks: Any) -> None:
    """Of the same ids with another label, position or border too, and of all these another one."""
    expected = digests(ALONE, {})
    assert len(set(expected.values())) == len(expected) == 5
    for found in ranks(2).run(digests, changes):
        assert found == expected
