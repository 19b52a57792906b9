"""What it takes to build a rank's part of a model: one parameter's whole values, and the memory of the parts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.jobs import build_and_look


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (2, {"zero": 0}),
        (2, {"zero": 3}),
        (2, {"tensor": 2, "qk_norm": True}),
        (2, {"pipeline": 2, "schedule": "zbv"}),
        (4, {"tensor": 2, "zero": 3}),
    ],
)
def test_parts_keep_nothing_whole(world: int, changes: dict[str, Any], ranks: Any) -> None:
    for built in ranks(world).run(build_and_look, changes):
        assert built.whole_at_once == 1
        assert not any(built.excess.values()), built.excess
