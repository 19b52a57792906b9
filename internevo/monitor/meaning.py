"""What a configuration comes to: parameters, and for each stage its steps and tokens."""

from __future__ import annotations

from collections.abc import Iterator

from internevo.config.derive import legs, places_before, stage_steps
from internevo.config.schema import RunConfig, StageConfig
from internevo.model.flops import parameters
from internevo.model.transformer import Block


def meaning(config: RunConfig) -> Iterator[str]:
    """A line for the model, one for each stage, and one for all stages where there are several.

    Tokens are the places that rows have for them; padding takes a few.
    """
    model = config.model
    blocks = model.layers * Block.cost(model).parameters
    rest = parameters(model) - blocks
    yield f"model: {parameters(model):,} parameters, {blocks:,} in blocks and {rest:,} in embedding, head and last norm"
    for stage in config.stages:
        steps, tokens = _totals(stage)
        yield f"stage {stage.name}: {steps:,} steps of {_batches(stage)}: {tokens:,} tokens"
    if len(config.stages) > 1:
        steps, tokens = (sum(numbers) for numbers in zip(*map(_totals, config.stages), strict=True))
        yield f"in all: {steps:,} steps, {tokens:,} tokens"


def _totals(stage: StageConfig) -> tuple[int, int]:
    """Steps and tokens."""
    steps = stage_steps(stage.train)
    return steps, places_before(stage.train, steps)


def _batches(stage: StageConfig) -> str:
    train = stage.train
    rows = [leg.rows for leg in legs(train)]
    sizes = sorted({rows[0], rows[-1]})
    tokens = " to ".join(f"{size * train.seq_len:,}" for size in sizes)
    return f"{tokens} tokens ({' to '.join(f'{size:,}' for size in sizes)} rows of {train.seq_len:,})"
