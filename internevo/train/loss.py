"""The cross-entropy of labels: who computes it, and our own: head and cross-entropy in chunks of tokens, on one rank or
with the vocabulary over several."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.data.batch import IGNORE
from internevo.files.errors import UserError
from internevo.files.quiet import quiet
from internevo.parallel.collectives import largest_over, sum_over
from internevo.parallel.mesh import ONE_RANK
from internevo.parallel.tensor import Vocabulary

WHOLE = Vocabulary(ONE_RANK, 0)
"""That of a rank with all of the head."""
LOGITS = {"cpu": 2**21, "cuda": 2**28}
"""Logits that exist at one time, by device. Each chunk adds to the whole weight's gradient, so that on a GPU few large
ones are faster; on a CPU small ones stay in its caches."""


def summed_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    vocabulary: Vocabulary = WHOLE,
    kind: str = "chunked",
    compiled: bool = False,
) -> Tensor:
    """Cross-entropy in nats of `softmax(features @ weight.T)`, summed over the real labels, each times its weight.

    features: `[batch, seq, hidden]`, the model's last hidden states; weight: the head's `[vocab, hidden]`, same
    dtype; labels: int64 `[batch, seq]` with IGNORE where there is none; weights: fp32 `[batch, seq]`, or None for 1
    everywhere. Returns an fp32 scalar (float64 for float64 inputs); softmax and sum are in that precision.

    With a `vocabulary` over ranks, each of them holds its part of the head's rows: the loss is that of the whole
    vocabulary, the features' gradient this rank's part of a sum, and two numbers a token are what is exchanged.

    `kind` is what `choose_loss` gave; `compiled` lets torch.compile join the passes over the logits.

    The sum is what ranks and micro-batches add up; whoever knows the number of real labels in the *global* batch, or
    the sum of their weights, divides by it, so that the loss does not depend on how a batch was split.
    """
    features, labels = features.flatten(0, -2), labels.flatten()
    weights = None if weights is None else weights.flatten()
    if kind == "chunked":
        return chunked_cross_entropy(features, weight, labels, weights, vocabulary, compiled)
    if kind == "liger":
        assert weights is None, "choose_loss refuses it"
        return _liger(features, weight, labels)
    return {"plain": _plain, "torch": _torch}[kind](features, weight, labels, weights)


def choose_loss(name: str, device: torch.device, tensor: int = 1, average: str = "token") -> str:
    """Who computes the loss that `train.loss` means. Raises UserError when what it asks for is not there.

    `auto` is our own: torch's gives a 16-bit loss (off by up to 2% at 8,000 nats), Liger's chunks are small; both have
    one rank's vocabulary only. `tensor` is the number of ranks that share the vocabulary, `average` is `train.average`.
    """
    if name in ("auto", "chunked"):
        return "chunked"
    if tensor > 1:
        raise UserError(f"train.loss: {name} cannot share the vocabulary over {tensor} ranks; use chunked.")
    if name == "torch" and not hasattr(F, "linear_cross_entropy"):
        raise UserError(f"train.loss: torch {torch.__version__} has no linear_cross_entropy; use chunked.")
    if name == "liger":
        if average != "token":
            raise UserError(f"train.loss: liger gives all tokens the same weight; use chunked for average={average}.")
        if find_spec("liger_kernel") is None:
            raise UserError("train.loss: liger needs liger-kernel: pip install liger-kernel, or use chunked.")
        if device.type == "cpu":
            raise UserError("train.loss: liger needs a GPU; use chunked.")
    return name


def _plain(features: Tensor, weight: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """All logits at once: what the others are compared with."""
    logits = (features @ weight.T).to(torch.promote_types(weight.dtype, torch.float32))
    if weights is None:
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return (F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none") * weights).sum()


def _torch(features: Tensor, weight: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    # its sum would have the dtype of the features, so in 16 bits tokens' losses are added up here
    summed = weights is None and features.dtype in (torch.float32, torch.float64)
    losses: Tensor = F.linear_cross_entropy(  # type: ignore[attr-defined, unused-ignore]
        features, weight, labels, reduction="sum" if summed else "none", ignore_index=IGNORE, options=options
    )
    if summed:
        return losses
    losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
    return (losses if weights is None else losses * weights).sum()


def _liger(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    with quiet():  # the first time, transformers comes along
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(
        features, weight, labels, ignore_index=IGNORE, reduction="sum", accum_dtype=torch.float32
    )


def chunk_tokens(vocab: int, device: torch.device) -> int:
    """Tokens whose logits exist at one time: a power of two, at least 512. All ranks that share a vocabulary must have
    the same: they exchange numbers of each chunk."""
    logits = LOGITS.get(device.type, LOGITS["cuda"])
    return max(512, 1 << (logits // vocab).bit_length() - 1)


def chunked_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    vocabulary: Vocabulary = WHOLE,
    compiled: bool = False,
) -> Tensor:
    """The summed loss of `features` `[tokens, hidden]`; other arguments as for `summed_cross_entropy`."""
    return _LinearCrossEntropy.apply(features, weight, labels, weights, vocabulary, compiled)


@torch.no_grad()
def label_losses(features: Tensor, weight: Tensor, labels: Tensor, vocabulary: Vocabulary = WHOLE) -> Tensor:
    """The cross-entropy at every position by itself, fp32 `[batch, seq]`; 0 where there is no label.

    Arguments as for `summed_cross_entropy`; the full logits are never in memory here either.
    """
    size = chunk_tokens(vocabulary.each or len(weight), features.device)
    parts = zip(features.flatten(0, -2).split(size), labels.flatten().split(size), strict=True)
    done = [
        _chunk(part @ weight.T, target, None, torch.float32, vocabulary, differentiate=False) for part, target in parts
    ]
    return torch.cat([losses for losses, _ in done]).view_as(labels)


def _chunk(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    accumulate: torch.dtype,
    vocabulary: Vocabulary,
    compiled: bool = False,
    differentiate: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The losses of some tokens, and their gradient by the logits: `softmax - one_hot(label)`, 0 without a label; both
    times the tokens' weights."""
    if vocabulary.place.size > 1:
        return _chunk_over_ranks(logits.to(accumulate), labels, weights, vocabulary, differentiate)
    return (_compiled() if compiled else _whole_chunk)(logits, labels, weights, accumulate, differentiate)


def _whole_chunk(
    logits: Tensor, labels: Tensor, weights: Tensor | None, accumulate: torch.dtype, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    counts, target = _counts(labels, weights, accumulate), labels.clamp(min=0)[:, None]
    log_probs = F.log_softmax(logits, dim=-1, dtype=accumulate)
    losses = -log_probs.gather(1, target)[:, 0] * counts
    return losses, _gradient(log_probs, target, None, counts) if differentiate else None


def _counts(labels: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """How much each token counts: 0 without a label."""
    real = (labels != IGNORE).to(dtype)
    return real if weights is None else real * weights


def _chunk_over_ranks(
    logits: Tensor, labels: Tensor, weights: Tensor | None, vocabulary: Vocabulary, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    counts = _counts(labels, weights, logits.dtype)
    ids = labels.clamp(min=0)[:, None] - vocabulary.first
    ours = (ids >= 0) & (ids < logits.shape[1])
    target, hit = ids.where(ours, 0), ours.to(logits.dtype)
    logits = logits - largest_over(logits.max(dim=1, keepdim=True).values, vocabulary.place)
    chosen = logits.gather(1, target) * hit
    both = sum_over(torch.cat((logits.exp().sum(1, keepdim=True), chosen), dim=1), vocabulary.place)
    log_total, chosen = both[:, :1].log(), both[:, 1:]
    losses = (log_total - chosen)[:, 0] * counts
    return losses, _gradient(logits - log_total, target, hit, counts) if differentiate else None


def _gradient(log_probs: Tensor, target: Tensor, hit: Tensor | None, counts: Tensor) -> Tensor:
    """Made in the memory of the log-probabilities, which are gone after it. `hit` says which labels are here."""
    one = counts.new_ones(target.shape) if hit is None else hit
    return log_probs.exp_().scatter_add_(1, target, -one).mul_(counts[:, None])


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The passes over the logits made into one or two kernels."""
    return torch.compile(_whole_chunk)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of a chunk's loss is at hand right after its softmax, so it is made there, in the memory of
    the chunk's logits; backward only scales it. (Liger-Kernel, arXiv 2410.10989, describes the idea.)"""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        vocabulary: Vocabulary,
        compiled: bool,
    ) -> Tensor:
        accumulate = torch.promote_types(weight.dtype, torch.float32)
        total = torch.zeros((), dtype=accumulate, device=features.device)
        need_features, need_weight, *_ = ctx.needs_input_grad
        grad_features = torch.empty_like(features) if need_features else None
        grad_weight: Tensor | None = None
        size = chunk_tokens(vocabulary.each or len(weight), features.device)
        for start in range(0, len(features), size):
            part = slice(start, start + size)
            losses, by_logits = _chunk(
                features[part] @ weight.T,
                labels[part],
                None if weights is None else weights[part],
                accumulate,
                vocabulary,
                compiled,
                need_features or need_weight,
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
        return grad_features, grad_weight, None, None, None, None
