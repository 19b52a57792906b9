"""ZeRO's messages begin early enough to travel beside the work: their order, as it is launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.parallel.jobs import order_of_work
from tests.parallel.test_layouts import store  # noqa: F401


def test_gathers_ahead_and_reduces_behind(store: Path, ranks: Any) -> None:  # noqa: F811
    """Weights gathered (g), attention forward (a) and backward (b), gradients reduced (r), of four blocks and the root.

    Before each block's attention the next block's weights are on their way, and backward those of the block before; a
    block's gradients leave before the next block's backward pass has begun.
    """
    for order in ranks(2).run(order_of_work, {"zero": 3}, store):
        assert order == "ggg" + "ag" + "ag" + "a" + "a" + "gg" + "brg" + "brg" + "br" + "br" + "r"
