"""Held-out loss, per source and per position."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from internevo.data.batch import IGNORE, Batch
from internevo.tokens.statistics import frequency_loss
from internevo.train.engine import Engine
from internevo.train.guard import check_ids
from internevo.train.objective import make_objective


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss over held-out documents, in nats per label."""

    loss: float
    labels: int
    frequencies: float | None
    """What a model that knows only how often each token comes in training would score on the same labels; None for a
    source that nothing is trained on."""
    by_position: list[tuple[int, int, float, int]]
    """(first position, last exclusive, loss, labels): positions count from the document's start in its row."""
    measured: dict[str, float] = field(default_factory=dict)
    """What the stage's objective reports besides, by name."""


def position_edges(seq_len: int) -> list[int]:
    """0, 64, 128, 256, ... up to `seq_len`: where position buckets begin and end."""
    edges = [0]
    while (edge := max(64, 2 * edges[-1])) < seq_len:
        edges.append(edge)
    return [*edges, seq_len]


def held_out_loss(engine: Engine, batches: Iterable[Batch], training: np.ndarray | None) -> HeldOutLoss | None:
    """Run the model over held-out batches, of which each rank has its part; None where they hold no label.

    `training` has for each id how often it is a label in the training documents, `[vocab]`; None where there are none.
    Raises UserError for an id past the vocabulary.
    """
    edges = torch.tensor(position_edges(engine.stage.train.seq_len), device=engine.device)
    sums = torch.zeros(2, len(edges) - 1, dtype=torch.float64, device=engine.device)
    counts = torch.zeros(engine.stage.model.vocab, dtype=torch.float64, device=engine.device)
    objective = make_objective(engine.stage)
    measured = torch.zeros(len(objective.measured), 2, dtype=torch.float64, device=engine.device)
    for batch in batches:
        check_ids(batch, engine.stage.model.vocab)
        for losses, micro in engine.losses(batch):
            real = micro.labels != IGNORE
            bucket = torch.bucketize(micro.positions[real], edges, right=True) - 1
            sums[0].index_add_(0, bucket, losses[real].double())
            sums[1].index_add_(0, bucket, torch.ones_like(bucket, dtype=torch.float64))
            counts += torch.bincount(micro.labels[real], minlength=len(counts))
            if objective.measured and micro.extras:
                measured += objective.held_out(losses, micro, engine.sharing)
    loss, labels = engine.add_up(sums).tolist()
    if not sum(labels):
        return None
    buckets = [
        (first, last, total / count, int(count))
        for (first, last), total, count in zip(pairwise(edges.tolist()), loss, labels, strict=True)
        if count
    ]
    seen = engine.add_up(counts).cpu().numpy()
    alone = None if training is None else frequency_loss(seen, training)
    found = zip(objective.measured, engine.add_up(measured).tolist(), strict=True)
    means = {name: total / weight for name, (total, weight) in found if weight}
    return HeldOutLoss(sum(loss) / sum(labels), int(sum(labels)), alone, buckets, means)
