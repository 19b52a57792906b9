"""A transformer with its loss: what runs forward and backward as one module."""

from __future__ import annotations

from torch import Tensor, nn

from internevo.model.transformer import Transformer
from internevo.parallel.mesh import Place
from internevo.parallel.tensor import local
from internevo.train.loss import label_losses, summed_cross_entropy
from internevo.train.micro_batch import MicroBatch


class LossModel(nn.Module):
    """From a micro-batch to the sum of its losses, or with `summed=False` to the loss at every position.

    `vocabulary` is the group over which the head's rows are cut, if they are.
    """

    def __init__(self, transformer: Transformer, vocabulary: Place | None = None):
        super().__init__()
        self.transformer = transformer
        self.vocabulary = vocabulary

    def forward(self, micro: MicroBatch, summed: bool = True) -> Tensor:
        features = self.transformer.features(micro.tokens, micro.positions, micro.documents)
        loss = summed_cross_entropy if summed else label_losses
        return loss(features, local(self.transformer.head.weight), micro.labels, self.vocabulary)
