"""A transformer with the loss of its stage's objective: from a micro-batch to a number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from internevo.config.schema import StageConfig
from internevo.model.transformer import Transformer
from internevo.parallel.mesh import Mesh, Place
from internevo.parallel.tensor import Vocabulary
from internevo.train.loss import WHOLE, choose_loss
from internevo.train.micro_batch import MicroBatch
from internevo.train.objective import Objective, Predictions, make_objective


class LossModel(nn.Module):
    """From a micro-batch to its part of the step's sum, or with `summed=False` to the loss at every position.

    `vocabulary` says which of the head's rows are here; `kind` and `compiled` say how the cross-entropy is computed,
    and `objective` what becomes of it: without one, it is added up. `sharing` are the groups of ranks that share rows.
    """

    def __init__(
        self,
        transformer: Transformer,
        vocabulary: Vocabulary = WHOLE,
        kind: str = "chunked",
        compiled: bool = False,
        objective: Objective | None = None,
        sharing: Sequence[Place] = (),
    ):
        super().__init__()
        self.transformer = transformer
        self.vocabulary, self.kind, self.compiled = vocabulary, kind, compiled
        self.objective, self.sharing = objective, sharing

    def forward(self, micro: MicroBatch, summed: bool = True) -> Tensor:
        features = self.transformer.features(micro.tokens, micro.positions, micro.documents)
        weight = self.vocabulary.rows(self.transformer.head.weight)
        predictions = Predictions(
            micro, features, weight, self.transformer, self.vocabulary, self.kind, self.compiled, self.sharing
        )
        if not summed:
            return predictions.losses()
        if self.objective is None or micro.filler:
            return predictions.summed(micro.weights)
        return self.objective.loss(predictions)


def loss_model(
    transformer: Transformer, stage: StageConfig, device: torch.device, mesh: Mesh | None = None
) -> LossModel:
    """The model with the objective of the stage, on a mesh or one process.

    Raises UserError when its loss cannot be computed here.
    """
    place = mesh.tensor if mesh is not None else WHOLE.place
    kind = choose_loss(stage.train.loss, device, place.size, stage.train.average)
    sharing = (mesh.ring, mesh.ulysses) if mesh is not None else ()
    vocabulary = Vocabulary(place, stage.model.vocab)
    return LossModel(transformer, vocabulary, kind, stage.train.compile, make_objective(stage), sharing)
