"""The order in which work is launched: messages early enough to travel beside it, micro-batches few enough to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from internevo.config.schema import PipelineConfig
from internevo.parallel.pipeline import in_flight
from tests.parallel.jobs import most_in_flight, order_of_work


def test_gathers_ahead_and_reduces_behind(store: Path, ranks: Any) -> None:
    """Weights gathered (g), attention forward (a) and backward (b), gradients reduced (r), of four blocks and the root.

    Before each block's attention the next block's weights are on their way, and backward those of the block before; a
    block's gradients leave before the next block's backward pass has begun.
    """
    for order in ranks(2).run(order_of_work, {"zero": 3}, store):
        assert order == "ggg" + "ag" + "ag" + "a" + "a" + "gg" + "brg" + "brg" + "br" + "br" + "r"


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv"])
def test_micro_batches_in_flight(schedule: str, store: Path, ranks: Any) -> None:
    """What a budget of memory counts on: of eight micro-batches, no rank keeps more, and one keeps as many."""
    seen = ranks(2).run(most_in_flight, {"pipeline": 2, "schedule": schedule}, store)
    assert max(seen) == in_flight(PipelineConfig(2, schedule), 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{}, {"recompute": "selective"}, {"recompute": "full"}, {"zero": 3}])
def test_a_split_backward_pass_does_nothing_twice(changes: dict[str, Any], store: Path, ranks: Any) -> None:
    """Attention of a rank's two blocks and eight micro-batches: forward, once more if recomputed, backward."""
    pipeline = {"pipeline": 2, "schedule": "zbv", "micro_batch": 1}
    forward = 2 if changes.get("recompute") == "full" else 1  # attention's results are kept by the selective one
    for order in ranks(2).run(order_of_work, {**pipeline, **changes}, store):
        assert (order.count("a"), order.count("b")) == (forward * 2 * 8, 2 * 8)


@pytest.mark.heavy
@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv"])
def test_a_pipeline_reduces_gradients_once_a_step(schedule: str, zero: int, store: Path, ranks: Any) -> None:
    """Those of each block, of the embedding and of the head, on each of two data ranks."""
    changes = {"pipeline": 2, "schedule": schedule, "zero": zero, "micro_batch": 1}
    seen = ranks(4).run(order_of_work, changes, store)
    assert sum(order.count("r") for order in seen) == 2 * (4 + 2)
