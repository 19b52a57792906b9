"""Sizes and places: what follows from a config and a number of processes, without any process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.pipelining import PipelineStage

from internevo.config.derive import parts_per_rank
from internevo.config.presets import model_preset
from internevo.config.schema import PipelineConfig
from internevo.files.errors import UserError
from internevo.parallel.layout import LayoutError, make_layout
from internevo.parallel.pipeline import _schedule, micro_batches_run, parts_of, split_layers
from internevo.train.build import check_engine
from tests.parallel.jobs import stage_of


def test_data_takes_what_is_left() -> None:
    layout = make_layout(stage_of({"tensor": 2, "context": 2, "ulysses": 1}), 8)
    assert (layout.data, layout.ring, layout.ulysses, layout.tensor, layout.pipeline) == (2, 2, 1, 2, 1)
    assert (layout.replicas, layout.shard, layout.world) == (4, 4, 8)


@pytest.mark.parametrize(
    ("heads", "context", "ulysses", "ring"), [(8, 4, 4, 1), (8, 3, 1, 3), (6, 4, 2, 2), (4, 16, 4, 4)]
)
def test_ulysses_takes_as_many_ranks_as_heads_can_be_shared_by(
    heads: int, context: int, ulysses: int, ring: int
) -> None:
    stage = stage_of({"context": context})
    stage.model = model_preset("tiny", hidden=heads * 16, attention={"heads": heads, "kv_heads": 2})
    layout = make_layout(stage, context)
    assert (layout.ulysses, layout.ring) == (ulysses, ring)


@pytest.mark.parametrize(
    ("changes", "world", "message"),
    [
        (
            {"tensor": 2, "pipeline": 2},
            6,
            r"context 1 x tensor 2 = 4, so its layout needs 4 processes or a multiple; there are 6. Start 4, 8",
        ),
        (
            {"shard": 4},
            2,
            r"shard 4 does not divide the 2 ranks with the same weights \(data 2 x context 1; 2 processes",
        ),
        (
            {},
            3,
            r"8 rows, which 3 data ranks with micro-batches of 1 cannot share .* near are batch_tokens 384 and 576",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_arithmetic(changes: dict[str, Any], world: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        make_layout(stage_of(changes), world)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 16), st.integers(0, 40), st.integers(16, 200_000))
def test_layers_are_split_by_cost(stages: int, more: int, vocab: int) -> None:
    model = model_preset("tiny", layers=stages + more, vocab=vocab)
    parts = split_layers(model, stages)
    assert [number for part in parts for number in part] == list(range(model.layers))
    assert all(len(part) >= 1 for part in parts)
    counts = [len(part) for part in parts]
    assert max(counts[:-1], default=0) - min(counts[:-1], default=0) <= 1
    assert counts[-1] <= max(counts)  # the head weighs on the last


def test_a_dear_head_leaves_the_last_stage_fewer_blocks() -> None:
    assert [len(part) for part in split_layers(model_preset("internlm2-1.8b"), 4)] == [7, 7, 7, 3]
    assert [len(part) for part in split_layers(model_preset("tiny", layers=8, vocab=2), 4)] == [2, 2, 2, 2]


@pytest.mark.parametrize(("schedule", "parts"), [("1f1b", None), ("interleaved", None), ("interleaved", 5), ("zbv", 2)])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_every_part_is_on_one_rank(schedule: Any, parts: int | None, size: int) -> None:
    pipeline = PipelineConfig(size, schedule, parts)
    numbers = [part for rank in range(size) for part in parts_of(rank, pipeline)]
    assert sorted(numbers) == list(range(size * parts_per_rank(pipeline)))
    if schedule == "zbv":
        assert parts_of(0, pipeline) == [0, 2 * size - 1]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv"])
def test_steps_are_filled_up_to_what_torch_runs(schedule: Any, size: int) -> None:
    """torch's own schedules say what they take."""
    pipeline = PipelineConfig(size, schedule)
    for count in range(1, 4 * size):
        run = micro_batches_run(pipeline, count)
        assert count <= run < count + size
        takes = [number for number in range(count, run + 1) if torch_takes(pipeline, number)]
        assert takes == [run]


def torch_takes(pipeline: PipelineConfig, count: int) -> bool:
    parts = [object.__new__(PipelineStage) for _ in range(parts_per_rank(pipeline))]
    for number, part in zip(parts_of(0, pipeline), parts, strict=True):
        part.__dict__.update(
            stage_index=number,
            num_stages=pipeline.size * len(parts),
            group_size=pipeline.size,
            group_rank=0,
            group=None,
            device=torch.device("cpu"),
            has_backward=True,
            submod=nn.Identity(),
        )
    try:
        _schedule(pipeline, parts, count)
    except ValueError:
        return False
    return True


def test_a_schedule_that_this_torch_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    zbv, other = (stage_of({"pipeline": 2, "schedule": name}) for name in ("zbv", "interleaved"))
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    with pytest.raises(UserError, match=r"torch 2\.11\.0\+cu130 cannot run .*schedule zbv.*use 1f1b or interleaved"):
        check_engine(zbv, 2, cpu)
    check_engine(other, 2, cpu)
    monkeypatch.setattr(torch, "__version__", "2.12.0")
    check_engine(zbv, 2, cpu)


def test_host_memory_wants_several_processes() -> None:
    stage = stage_of({"offload": "cpu"})
    with pytest.raises(UserError, match=r"offload\.optimizer needs several processes .*set parallel\.zero\.engine"):
        check_engine(stage, 1, torch.device("cpu"))
    check_engine(stage, 2, torch.device("cpu"))
