"""Compiled tensor parallelism: no graph break, the same numbers, and messages where torch's async pass finds them.

The fused products themselves need GPUs that reach each other's memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parallel.jobs import ALONE, compile_and_look, train


@pytest.mark.heavy
def test_messages_lie_beside_products(store: Path, ranks: Any) -> None:
    """Forward: both gathers of a block feed products (of q, k, v, and gate and up), both scatters follow one."""
    expected = train(ALONE, {"micro_batch": 8}, store, 2)
    for seen in ranks(2).run(compile_and_look, {"tensor": 2}, store, 2):
        assert seen.breaks == {}
        assert seen.forward == ([3, 2], [True, True])
        assert seen.backward[0] == [1, 1]
        assert seen.losses == pytest.approx(expected.losses, rel=1e-5)
        assert seen.norms == pytest.approx(expected.norms, rel=1e-4)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "changes",
    [
        {"zero": 3, "recompute": "selective"},
        {"tensor": 2, "micro_batch": 2},
        {"context": 2, "ulysses": 2},
        {"context": 2, "ulysses": 1},
        {"pipeline": 2},
    ],
)
def test_compiled_layouts(changes: dict[str, Any], store: Path, ranks: Any) -> None:
    """The same numbers; no graph break but for the ring, whose messages depend on the documents; compiled once."""
    expected = train(ALONE, {"micro_batch": 8}, store, 4)
    for seen in ranks(2).run(compile_and_look, changes, store, 4):
        assert seen.breaks == {} or changes.get("ulysses") == 1
        assert seen.losses == pytest.approx(expected.losses, rel=1e-5)
        assert seen.norms == pytest.approx(expected.norms, rel=1e-4)
