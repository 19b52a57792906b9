"""Sizes that follow from the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from internevo.config.schema import PipelineConfig, TrainConfig


@dataclass(frozen=True)
class Leg:
    """Steps of a stage that are equally large."""

    first: int
    """The first of them, from 0."""
    steps: int
    rows: int
    """Of each step."""


FEWEST_PARTS = {"1f1b": 1, "interleaved": 2, "zbv": 2}
"""Parts of the model that a pipeline's rank has at least, by its schedule."""


def parts_per_rank(pipeline: PipelineConfig) -> int:
    """Parts of the model that each rank of the pipeline has."""
    return pipeline.parts or FEWEST_PARTS[pipeline.schedule]


def rows_per_step(train: TrainConfig) -> int:
    """Rows of one optimizer step, over all ranks, where no ramp makes it smaller."""
    return train.batch_tokens // train.seq_len


def step_sizes(train: TrainConfig) -> list[int]:
    """All numbers of rows that a step of the stage may have: those of the ramp, then `rows_per_step`."""
    return [leg.batch_tokens // train.seq_len for leg in train.batch_ramp] + [rows_per_step(train)]


def legs(train: TrainConfig) -> list[Leg]:
    """The stage's steps by their size, in order."""
    return [leg for leg in _legs(train) if leg.steps]


def _legs(train: TrainConfig) -> Iterator[Leg]:
    ends: list[float] = [leg.until for leg in train.batch_ramp]
    last = math.inf if train.tokens is None else train.tokens
    most = math.inf if train.steps is None else train.steps
    step = places = 0
    for end, rows in zip([*ends, last], step_sizes(train), strict=True):
        left = max(0, min(end, last) - places)
        # whole numbers as long as they are finite: tokens may be more than a float can tell apart
        steps = most - step if left == math.inf else min(most - step, -(-left // (rows * train.seq_len)))
        yield (leg := Leg(step, int(steps), rows))
        step, places = step + leg.steps, places + leg.steps * rows * train.seq_len


def stage_steps(train: TrainConfig) -> int:
    """Optimizer steps of the stage: `steps`, or as many as `tokens` needs."""
    return sum(leg.steps for leg in legs(train))


def rows_at(train: TrainConfig, step: int) -> int:
    """Rows of step `step` of the stage, from 0; after the last step as many as it has."""
    rows = 0
    for leg in legs(train):
        if leg.first > step:
            break
        rows = leg.rows
    return rows


def places_before(train: TrainConfig, step: int) -> int:
    """Places for tokens, padding included, in the stage's steps before `step`."""
    return sum(max(0, min(leg.steps, step - leg.first)) * leg.rows for leg in legs(train)) * train.seq_len


def step_from(train: TrainConfig, tokens: int) -> int:
    """The first step of the stage before which it has had at least so many places for tokens."""
    places = 0
    for leg in legs(train):
        size = leg.rows * train.seq_len
        if places + leg.steps * size >= tokens:
            return leg.first + max(0, -(-(tokens - places) // size))
        places += leg.steps * size
    return stage_steps(train)
