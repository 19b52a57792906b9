"""Output head and cross-entropy in chunks of tokens, on one rank or with the vocabulary over several."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.data.batch import IGNORE
from internevo.parallel.collectives import largest_over, sum_over
from internevo.parallel.mesh import Place

LOGITS = {"cpu": 2**21, "cuda": 2**28}
"""Logits that exist at one time, by device. Each chunk adds to the whole weight's gradient, so that on a GPU few large
ones are faster; on a CPU small ones stay in its caches."""


def chunk_tokens(vocab: int, device: torch.device) -> int:
    """Tokens whose logits exist at one time: a power of two, at least 512."""
    logits = LOGITS.get(device.type, LOGITS["cuda"])
    return max(512, 1 << (logits // vocab).bit_length() - 1)


def chunked_cross_entropy(
    features: Tensor, weight: Tensor, labels: Tensor, vocabulary: Place | None = None, compiled: bool = False
) -> Tensor:
    """The summed loss of `features` `[tokens, hidden]`; other arguments as for `loss.summed_cross_entropy`."""
    return _LinearCrossEntropy.apply(features, weight, labels, vocabulary, compiled)


@torch.no_grad()
def label_losses(features: Tensor, weight: Tensor, labels: Tensor, vocabulary: Place | None = None) -> Tensor:
    """The cross-entropy at every position by itself, fp32 `[batch, seq]`; 0 where there is no label.

    Arguments as for `loss.summed_cross_entropy`; the full logits are never in memory here either.
    """
    size = chunk_tokens(len(weight), features.device)
    parts = zip(features.flatten(0, -2).split(size), labels.flatten().split(size), strict=True)
    done = [_chunk(part @ weight.T, target, torch.float32, vocabulary, differentiate=False) for part, target in parts]
    return torch.cat([losses for losses, _ in done]).view_as(labels)


def _chunk(
    logits: Tensor,
    labels: Tensor,
    accumulate: torch.dtype,
    vocabulary: Place | None,
    compiled: bool = False,
    differentiate: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The losses of some tokens, and their gradient by the logits: `softmax - one_hot(label)`, 0 without a label."""
    if vocabulary is not None and vocabulary.size > 1:
        return _chunk_over_ranks(logits.to(accumulate), labels, vocabulary, differentiate)
    return (_compiled() if compiled else _whole_chunk)(logits, labels, accumulate, differentiate)


def _whole_chunk(
    logits: Tensor, labels: Tensor, accumulate: torch.dtype, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    real, target = (labels != IGNORE).to(accumulate), labels.clamp(min=0)[:, None]
    log_probs = F.log_softmax(logits, dim=-1, dtype=accumulate)
    losses = -log_probs.gather(1, target)[:, 0] * real
    return losses, _gradient(log_probs, target, None, real) if differentiate else None


def _chunk_over_ranks(
    logits: Tensor, labels: Tensor, vocabulary: Place, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    real = (labels != IGNORE).to(logits.dtype)
    ids = labels.clamp(min=0)[:, None] - vocabulary.rank * logits.shape[1]
    ours = (ids >= 0) & (ids < logits.shape[1])
    target, hit = ids.where(ours, 0), ours.to(logits.dtype)
    logits = logits - largest_over(logits.max(dim=1, keepdim=True).values, vocabulary)
    chosen = logits.gather(1, target) * hit
    both = sum_over(torch.cat((logits.exp().sum(1, keepdim=True), chosen), dim=1), vocabulary)
    log_total, chosen = both[:, :1].log(), both[:, 1:]
    losses = (log_total - chosen)[:, 0] * real
    return losses, _gradient(logits - log_total, target, hit, real) if differentiate else None


def _gradient(log_probs: Tensor, target: Tensor, hit: Tensor | None, real: Tensor) -> Tensor:
    """Made in the memory of the log-probabilities, which are gone after it. `hit` says which labels are here."""
    one = real.new_ones(target.shape) if hit is None else hit
    return log_probs.exp_().scatter_add_(1, target, -one).mul_(real[:, None])


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The passes over the logits made into one or two kernels."""
    return torch.compile(_whole_chunk)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of a chunk's loss is at hand right after its softmax, so it is made there, in the memory of
    the chunk's logits; backward only scales it. (Liger-Kernel, arXiv 2410.10989, describes the idea.)"""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, labels: Tensor, vocabulary: Place | None, compiled: bool
    ) -> Tensor:
        accumulate = torch.promote_types(weight.dtype, torch.float32)
        total = torch.zeros((), dtype=accumulate, device=features.device)
        need_features, need_weight, *_ = ctx.needs_input_grad
        grad_features = torch.empty_like(features) if need_features else None
        grad_weight: Tensor | None = None
        size = chunk_tokens(len(weight), features.device)
        for start in range(0, len(features), size):
            part = slice(start, start + size)
            losses, by_logits = _chunk(
                features[part] @ weight.T, labels[part], accumulate, vocabulary, compiled, need_features or need_weight
            )
            total += losses.sum()
            if by_logits is None:
                continue
            grad = by_logits.to(features.dtype)
            if grad_features is not None:
                torch.mm(grad, weight, out=grad_features[part])
            if need_weight and grad_weight is None:
                grad_weight = (grad.T @ features[part]).to(accumulate)
            elif grad_weight is not None and grad_weight.dtype == grad.dtype:
                grad_weight.addmm_(grad.T, features[part])
            elif grad_weight is not None:
                grad_weight.add_(grad.T @ features[part])
        ctx.save_for_backward(grad_features, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        scaled = (None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        grad_features, grad_weight = scaled
        return grad_features, grad_weight, None, None, None
