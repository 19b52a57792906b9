"""The learning rate as a pure function of the run's configuration and the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from internevo.config.derive import stage_steps
from internevo.config.schema import ScheduleConfig, StageConfig


def learning_rate(stages: Sequence[StageConfig], stage: int, step: int) -> float:
    """The learning rate of step `step` (0-based, inside the stage) of stage number `stage`.

    Warmup climbs from where the stage before ended, so a change of stage never makes a jump that nobody asked
    for. The decay reaches its final value at the last step.
    """
    config = stages[stage]
    schedule, peak = config.schedule, config.optimizer.lr
    steps, warmup, start = stage_steps(config.train), schedule.warmup, 0.0
    if schedule.over == "run":
        step += sum(stage_steps(earlier.train) for earlier in stages[:stage])
        steps = sum(stage_steps(every.train) for every in stages)
    elif stage > 0 and warmup > 0:
        start = learning_rate(stages, stage - 1, stage_steps(stages[stage - 1].train) - 1)
    if step < warmup:
        return start + (peak - start) * (step + 1) / warmup
    # progress runs from 0 at the first step after warmup to 1 at the last step
    return peak * _shape(schedule, (step - warmup) / max(1, steps - 1 - warmup))


def _shape(schedule: ScheduleConfig, progress: float) -> float:
    """The share of the peak after warmup, at `progress` 0..1 through the rest."""
    final = schedule.final
    match schedule.name:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - final) * progress
        case "cosine":
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "wsd":  # arXiv 2404.06395, with a linear decay
            return 1.0 - (1.0 - final) * max(0.0, progress - (1.0 - schedule.decay)) / schedule.decay
    raise ValueError(f"unknown schedule {schedule.name!r}")
