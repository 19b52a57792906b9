"""The next-token loss, fused with the output head so that the full logits are never in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.data.batch import IGNORE
from internevo.parallel.collectives import largest_over, sum_over
from internevo.parallel.mesh import Place

CHUNK = 512
"""Tokens whose logits exist at one time. Larger products gain nothing from here on; memory grows with it."""


def summed_cross_entropy(features: Tensor, weight: Tensor, labels: Tensor, vocabulary: Place | None = None) -> Tensor:
    """Cross-entropy in nats of `softmax(features @ weight.T)`, summed over the real labels.

    features: `[batch, seq, hidden]`, the model's last hidden states; weight: the head's `[vocab, hidden]`, same
    dtype; labels: int64 `[batch, seq]` with IGNORE where there is none. Returns an fp32 scalar (float64 for
    float64 inputs); softmax and sum are in that precision.

    With `vocabulary`, each rank of that group holds its part of the head's rows: the loss is that of the whole
    vocabulary, the features' gradient this rank's part of a sum, and two numbers a token are what is exchanged.

    The sum is what ranks and micro-batches add up; whoever knows the number of real labels in the *global* batch
    divides by it, so that the loss does not depend on how a batch was split.
    """
    return _LinearCrossEntropy.apply(features.flatten(0, -2), weight, labels.flatten(), vocabulary)


@torch.no_grad()
def label_losses(features: Tensor, weight: Tensor, labels: Tensor, vocabulary: Place | None = None) -> Tensor:
    """The cross-entropy at every position by itself, fp32 `[batch, seq]`; 0 where there is no label.

    Arguments as for `summed_cross_entropy`; the full logits are never in memory here either.
    """
    parts = zip(features.flatten(0, -2).split(CHUNK), labels.flatten().split(CHUNK), strict=True)
    losses = [_Chunk(part @ weight.T, target, torch.float32, vocabulary).losses for part, target in parts]
    return torch.cat(losses).view_as(labels)


class _Chunk:
    """The losses of some tokens, and their gradient by the logits in the memory of the logits."""

    def __init__(self, logits: Tensor, labels: Tensor, accumulate: torch.dtype, vocabulary: Place | None):
        self.real = (labels != IGNORE).to(accumulate)
        self.target = labels.clamp(min=0)[:, None]
        self.hit: Tensor | float = 1.0
        if vocabulary is None or vocabulary.size == 1:
            self.log_probs = F.log_softmax(logits, dim=-1, dtype=accumulate)
            chosen = self.log_probs.gather(1, self.target)[:, 0]
        else:
            self.log_probs, chosen = self._over_ranks(logits.to(accumulate), vocabulary)
        self.losses = -chosen * self.real

    def _over_ranks(self, logits: Tensor, vocabulary: Place) -> tuple[Tensor, Tensor]:
        ids = self.target - vocabulary.rank * logits.shape[1]
        ours = (ids >= 0) & (ids < logits.shape[1])
        self.target, self.hit = ids.where(ours, 0), ours.to(logits.dtype)
        logits = logits - largest_over(logits.max(dim=1, keepdim=True).values, vocabulary)
        chosen = logits.gather(1, self.target) * self.hit
        both = sum_over(torch.cat((logits.exp().sum(1, keepdim=True), chosen), dim=1), vocabulary)
        log_total, chosen = both[:, :1].log(), both[:, 1:]
        return logits - log_total, (chosen - log_total)[:, 0]

    def gradient(self) -> Tensor:
        """`softmax - one_hot(label)`, zero where there is no label. The log-probabilities are gone after it."""
        minus = torch.full_like(self.target, -1.0, dtype=self.log_probs.dtype) * self.hit
        return self.log_probs.exp_().scatter_add_(1, self.target, minus).mul_(self.real[:, None])


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of a chunk's loss is at hand right after its softmax, so it is made there, in the memory of
    the chunk's logits; backward only scales it. (Liger-Kernel, arXiv 2410.10989, describes the idea.)"""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, labels: Tensor, vocabulary: Place | None) -> Tensor:
        accumulate = torch.promote_types(weight.dtype, torch.float32)
        total = torch.zeros((), dtype=accumulate, device=features.device)
        need_features, need_weight, *_ = ctx.needs_input_grad
        grad_features = torch.empty_like(features) if need_features else None
        grad_weight = torch.zeros_like(weight, dtype=accumulate) if need_weight else None
        for start in range(0, len(features), CHUNK):
            part = slice(start, start + CHUNK)
            chunk = _Chunk(features[part] @ weight.T, labels[part], accumulate, vocabulary)
            total += chunk.losses.sum()
            if not (need_features or need_weight):
                continue
            grad = chunk.gradient().to(features.dtype)
            if grad_features is not None:
                torch.mm(grad, weight, out=grad_features[part])
            if grad_weight is not None and grad_weight.dtype == grad.dtype:
                grad_weight.addmm_(grad.T, features[part])
            elif grad_weight is not None:
                grad_weight.add_(grad.T @ features[part])
        ctx.save_for_backward(grad_features, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        scaled = (None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        grad_features, grad_weight = scaled
        return grad_features, grad_weight, None, None
