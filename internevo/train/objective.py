"""What a step makes smaller: the next-token loss, or a loss of one's own (`train.objective`).

An objective sees what the model predicts of a micro-batch without logits: the loss of every label, and their weighted
sum with its gradient. It says what the sum over all micro-batches and ranks is divided by, and what it has to know of
each place beside token and label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from internevo.config.choices import choose
from internevo.config.schema import StageConfig
from internevo.data.batch import Batch
from internevo.data.loader import Extras
from internevo.files.errors import UserError
from internevo.model.metrics import Combination, Combine, record
from internevo.parallel.collectives import sum_over
from internevo.parallel.mesh import Place
from internevo.parallel.tensor import Vocabulary
from internevo.parallel.world import World
from internevo.train.loss import WHOLE, label_losses, summed_cross_entropy
from internevo.train.micro_batch import MicroBatch


@dataclass(frozen=True)
class Predictions:
    """What a model predicts of the labels of a micro-batch. The full logits are never in memory."""

    micro: MicroBatch
    features: Tensor
    """`[rows, seq, hidden]`: the model's last hidden states."""
    head: Tensor
    """`[vocab, hidden]`: this rank's rows of it."""
    owner: Any
    """The module on which values are recorded."""
    vocabulary: Vocabulary = WHOLE
    kind: str = "chunked"
    compiled: bool = False
    sharing: Sequence[Place] = field(default=())
    """The groups of ranks among which each row's tokens are shared out."""

    def losses(self) -> Tensor:
        """Nats of each label, fp32 `[rows, seq]`, 0 where there is none; without gradient."""
        return label_losses(self.features, self.head, self.micro.labels, self.vocabulary)

    def summed(self, weights: Tensor | None) -> Tensor:
        """The losses times `weights` (fp32 `[rows, seq]`, None for 1 everywhere), summed, with its gradient."""
        labels = self.micro.labels
        return summed_cross_entropy(
            self.features, self.head, labels, weights, self.vocabulary, self.kind, self.compiled
        )

    @property
    def ranks(self) -> int:
        """How many ranks have tokens of the same rows."""
        total = 1
        for place in self.sharing:
            total *= place.size
        return total

    def record(self, name: str, value: Tensor, weight: Tensor, combine: Combination = Combine.mean) -> None:
        """Report a number of the step, as `model.metrics.record` does. All ranks of a row must have the same."""
        record(self.owner, name, value, combine, weight)


def sum_over_rows(values: Tensor, sharing: Sequence[Place]) -> Tensor:
    """The sum, in place, over the ranks that have other tokens of the same rows; no gradient."""
    for place in sharing:
        values = sum_over(values, place)
    return values


class Objective(ABC):
    """What a step makes smaller: a sum over micro-batches and ranks, divided by something that is known before.

    It is made from a stage's settings, on every rank. Raises UserError for settings that it cannot have.
    """

    measured: tuple[str, ...] = ()
    """The names of what it reports of held-out data, beside their loss."""

    def __init__(self, stage: StageConfig):
        self.stage = stage

    @abstractmethod
    def loss(self, predictions: Predictions) -> Tensor:
        """This rank's part of a micro-batch's sum, a scalar, with the gradient by which the weights are to move.

        The parts of all ranks that read different tokens are added up; ranks with the same tokens have the same value.
        """

    @abstractmethod
    def divisor(self, batch: Batch) -> int | float:
        """By which the sum over all rows of a step is divided; 0 where there is nothing to learn."""

    def extras(self, world: World) -> Extras | None:
        """What it has to know of each place of a row. All ranks call it together, before anything is trained.

        Raises UserError when the stage's data lack it.
        """
        return None

    def held_out(self, losses: Tensor, micro: MicroBatch, sharing: Sequence[Place]) -> Tensor:
        """Sums and weights, float64 `[measured, 2]`, of a held-out micro-batch with its extras, from each label's loss.

        A mean is the sum over the weight, each added up over micro-batches and ranks.
        """
        raise NotImplementedError


class NextToken(Objective):
    """The cross-entropy of the labels, by their weights."""

    def __init__(self, stage: StageConfig):
        super().__init__(stage)
        check_options(stage, ())

    def loss(self, predictions: Predictions) -> Tensor:
        return predictions.summed(predictions.micro.weights)

    def divisor(self, batch: Batch) -> int | float:
        return batch.divisor


OBJECTIVES: Mapping[str, type[Objective]] = {"next_token": NextToken}
"""Those of `train.objective.kind` that are not named PACKAGE.MODULE:NAME."""


def make_objective(stage: StageConfig) -> Objective:
    """The objective of a stage. Raises UserError when it cannot be imported, or has other settings."""
    kind = choose(stage.train.objective.kind, OBJECTIVES)
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise UserError(f"train.objective.kind: {stage.train.objective.kind} is no internevo.train.objective.Objective")
    return kind(stage)


def check_options(stage: StageConfig, known: Sequence[str]) -> None:
    """Raise UserError for an option of `train.objective` that is not known."""
    for name in stage.train.objective.options:
        if name not in known:
            names = ", ".join(known) or "none"
            raise UserError(
                f"train.objective.options.{name}: {stage.train.objective.kind} has no such option; known are {names}"
            )
