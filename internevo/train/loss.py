"""The next-token loss, and who computes it."""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.data.batch import IGNORE
from internevo.files.errors import UserError
from internevo.files.quiet import quiet
from internevo.parallel.mesh import Place
from internevo.train.chunked_loss import chunked_cross_entropy


def summed_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocabulary: Place | None = None,
    kind: str = "chunked",
    compiled: bool = False,
) -> Tensor:
    """Cross-entropy in nats of `softmax(features @ weight.T)`, summed over the real labels.

    features: `[batch, seq, hidden]`, the model's last hidden states; weight: the head's `[vocab, hidden]`, same
    dtype; labels: int64 `[batch, seq]` with IGNORE where there is none. Returns an fp32 scalar (float64 for
    float64 inputs); softmax and sum are in that precision.

    With `vocabulary`, each rank of that group holds its part of the head's rows: the loss is that of the whole
    vocabulary, the features' gradient this rank's part of a sum, and two numbers a token are what is exchanged.

    `kind` is what `choose_loss` gave; `compiled` lets torch.compile join the passes over the logits.

    The sum is what ranks and micro-batches add up; whoever knows the number of real labels in the *global* batch
    divides by it, so that the loss does not depend on how a batch was split.
    """
    features, labels = features.flatten(0, -2), labels.flatten()
    if kind == "chunked":
        return chunked_cross_entropy(features, weight, labels, vocabulary, compiled)
    return {"plain": _plain, "torch": _torch, "liger": _liger}[kind](features, weight, labels)


def choose_loss(name: str, device: torch.device, tensor: int = 1) -> str:
    """Who computes the loss that `train.loss` means. Raises UserError when what it asks for is not there.

    `auto` is our own: torch's gives a 16-bit loss (off by up to 2% at 8,000 nats), Liger's chunks are small; both have
    one rank's vocabulary only. `tensor` is the number of ranks that share the vocabulary.
    """
    if name in ("auto", "chunked"):
        return "chunked"
    if tensor > 1:
        raise UserError(f"train.loss: {name} cannot share the vocabulary over {tensor} ranks; use chunked.")
    if name == "torch" and not hasattr(F, "linear_cross_entropy"):
        raise UserError(f"train.loss: torch {torch.__version__} has no linear_cross_entropy; use chunked.")
    if name == "liger":
        if find_spec("liger_kernel") is None:
            raise UserError("train.loss: liger needs liger-kernel: pip install liger-kernel, or use chunked.")
        if device.type == "cpu":
            raise UserError("train.loss: liger needs a GPU; use chunked.")
    return name


def _plain(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """All logits at once: what the others are compared with."""
    logits = (features @ weight.T).to(torch.promote_types(weight.dtype, torch.float32))
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def _torch(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    # its sum would have the dtype of the features, so in 16 bits tokens' losses are added up here
    reduction = "sum" if features.dtype in (torch.float32, torch.float64) else "none"
    losses = F.linear_cross_entropy(  # type: ignore[attr-defined, unused-ignore]
        features, weight, labels, reduction=reduction, ignore_index=IGNORE, options=options
    )
    return losses.float().sum() if reduction == "none" else losses


def _liger(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    with quiet():  # the first time, transformers comes along
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(
        features, weight, labels, ignore_index=IGNORE, reduction="sum", accum_dtype=torch.float32
    )
