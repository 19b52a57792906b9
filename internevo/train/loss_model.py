"""A transformer with its loss: what runs forward and backward as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from internevo.config.schema import StageConfig
from internevo.model.transformer import Transformer
from internevo.parallel.mesh import Place
from internevo.parallel.tensor import local
from internevo.train.chunked_loss import label_losses
from internevo.train.loss import choose_loss, summed_cross_entropy
from internevo.train.micro_batch import MicroBatch


class LossModel(nn.Module):
    """From a micro-batch to the sum of its losses, or with `summed=False` to the loss at every position.

    `vocabulary` is the group over which the head's rows are cut, if they are; `kind` and `compiled` say how the loss is
    computed.
    """

    def __init__(
        self,
        transformer: Transformer,
        vocabulary: Place | None = None,
        kind: str = "chunked",
        compiled: bool = False,
    ):
        super().__init__()
        self.transformer = transformer
        self.vocabulary, self.kind, self.compiled = vocabulary, kind, compiled

    def forward(self, micro: MicroBatch, summed: bool = True) -> Tensor:
        features = self.transformer.features(micro.tokens, micro.positions, micro.documents)
        weight = local(self.transformer.head.weight)
        if not summed:
            return label_losses(features, weight, micro.labels, self.vocabulary)
        return summed_cross_entropy(features, weight, micro.labels, self.vocabulary, self.kind, self.compiled)


def loss_model(
    transformer: Transformer, stage: StageConfig, device: torch.device, vocabulary: Place | None = None
) -> LossModel:
    """The model with the loss that the stage asks for. Raises UserError when that cannot be computed here."""
    kind = choose_loss(stage.train.loss, device, 1 if vocabulary is None else vocabulary.size)
    return LossModel(transformer, vocabulary, kind, stage.train.compile)
