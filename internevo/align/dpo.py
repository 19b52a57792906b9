"""Direct preference optimisation (Rafailov et al., arXiv 2305.18290): `train.objective.kind: internevo.align.dpo:DPO`.

With `p` the log-probability of an answer, the sum over its trained tokens, under the model that is trained, and `ref`
the same under the model that it began as, the loss of a pair is (equation 7)

    margin = beta * ((p_chosen - ref_chosen) - (p_rejected - ref_rejected))
    loss = -log sigmoid(margin)

and its gradient is that of the tokens' cross-entropy, each token of the chosen side with the weight
`beta * sigmoid(-margin)` and each of the rejected side with the negative of that. So a first pass over the labels,
without gradient, gives the margins, and a second the gradient: the head's logits are made twice, and exist for some
tokens at a time only. Everything before the head runs once.

The sides of a pair lie side by side in one row as two documents, which never see each other. Two numbers of each place
come with a batch: to which side it belongs, and at each side's first place the side's `ref`.

Each step reports `pairs/accuracy`, the share of pairs whose margin is above 0; `pairs/margin`, its mean; and by how
much the log-probabilities have grown, `pairs/chosen` and `pairs/rejected`. Where a stage has several sources, accuracy
and margin of each: a domain that is to be watched, or weighted, is a source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.align.reference import References
from internevo.config.schema import StageConfig
from internevo.data.batch import IGNORE, Batch
from internevo.data.loader import Extras
from internevo.data.mixing import source_name
from internevo.files.errors import UserError
from internevo.model.documents import to_device
from internevo.parallel.mesh import Place
from internevo.parallel.world import World
from internevo.train.micro_batch import MicroBatch
from internevo.train.objective import Objective, Predictions, check_options, sum_over_rows

LEAST = 4
"""Tokens of the shortest pair: each side has a token to predict, and one before it."""


class DPO(Objective):
    """The loss of equation 7, the mean over the pairs of a step.

    Options: `beta` (0.1), and `reference`, the name of the reference model as `internevo data reference` prints it, by
    default that of the model in `train.init_from`.
    """

    measured = ("pairs/accuracy", "pairs/margin", "pairs/loss")

    def __init__(self, stage: StageConfig):
        super().__init__(stage)
        check_options(stage, ("beta", "reference"))
        options, train = stage.train.objective.options, stage.train
        self.beta = options.get("beta", 0.1)
        if isinstance(self.beta, bool) or not isinstance(self.beta, int | float) or not 0 < self.beta < 1e6:
            raise UserError(f"train.objective.options.beta: must be a number above 0, found {self.beta!r}")
        if train.average != "token":
            raise UserError(f"train.average: {train.average} has no meaning for pairs, which count alike; leave it out")
        if train.loss == "liger":
            raise UserError("train.loss: liger gives all tokens the same weight; use chunked for DPO")
        if train.init_from is None and options.get("reference") is None:
            raise UserError(
                "train.init_from: DPO begins with a model, which is its reference too; name it, and run "
                "`internevo data reference STORE --model MODEL` for each source"
            )
        self.sources = [source_name(source) for source in self.stage.data.sources]
        self.per_row = max(1, train.seq_len // LEAST)  # the most pairs that a row can have

    def divisor(self, batch: Batch) -> int:
        return batch.documents

    def extras(self, world: World) -> Extras:
        return References.of(self.stage, world).extras

    def loss(self, predictions: Predictions) -> Tensor:
        side = predictions.micro.extras["side"]  # [rows, seq]: 2 n + 1 and 2 n + 2 for pair n, 0 elsewhere
        # [rows, pairs, 2], [rows, pairs]
        gained, there = self._gained(predictions.losses(), predictions.micro, predictions.sharing)
        margin = self.beta * (gained[..., 0] - gained[..., 1])
        losses = -F.logsigmoid(margin) * there
        self._report(predictions, margin, gained, there)
        push = self.beta * torch.sigmoid(-margin) * there
        by_side = F.pad(torch.stack([push, -push], -1).flatten(1), (1, 0))  # [rows, 1 + 2 pairs]
        total = predictions.summed(by_side.gather(1, side).float())
        # the value is the loss of the row's pairs, once for all ranks that share the row; the gradient is the total's
        return total - total.detach() + losses.sum().to(total.dtype) / predictions.ranks

    def _report(self, predictions: Predictions, margin: Tensor, gained: Tensor, there: Tensor) -> None:
        """Accuracy and margins of the pairs, over all and of each source."""
        values = {"accuracy": (margin > 0).double(), "margin": margin}
        rows = torch.tensor([[self.sources.index(source)] for source in predictions.micro.sources])
        rows = to_device(rows, there.device)
        for number, source in enumerate(self.sources if len(self.sources) > 1 else ()):
            _record(predictions, values, there & (rows == number), f" {_in_letters(source)}")
        _record(predictions, {**values, "chosen": gained[..., 0], "rejected": gained[..., 1]}, there, "")

    def held_out(self, losses: Tensor, micro: MicroBatch, sharing: Sequence[Place]) -> Tensor:
        gained, there = self._gained(losses, micro, sharing)
        margin = self.beta * (gained[..., 0] - gained[..., 1])
        values = torch.stack([(margin > 0).double(), margin, -F.logsigmoid(margin)])
        sums = (values * there).flatten(1).sum(1)
        return torch.stack([sums, there.sum().expand_as(sums)], 1)

    def _gained(self, losses: Tensor, micro: MicroBatch, sharing: Sequence[Place]) -> tuple[Tensor, Tensor]:
        """By how much each side's log-probability has grown, float64 `[rows, pairs, 2]`, and which pairs there are.

        Log-probabilities are sums of thousands of tokens, of which small differences count.
        """
        side, labels = micro.extras["side"], micro.labels != IGNORE
        places = torch.stack([-losses, micro.extras["reference"], labels.float()])
        sums = torch.zeros(3, len(side), 1 + 2 * self.per_row, dtype=torch.float64, device=side.device)
        sums.scatter_add_(2, side.expand(3, -1, -1), places.double())
        log_probs, references, counts = sum_over_rows(sums, sharing)[..., 1:].unflatten(-1, (self.per_row, 2))
        return log_probs - references, counts.amin(-1) > 0


def _record(predictions: Predictions, values: Mapping[str, Tensor], which: Tensor, of: str) -> None:
    count = which.sum()
    for name, value in values.items():
        predictions.record(f"pairs/{name}{of}", (value * which).sum() / count.clamp(min=1), count)


def _in_letters(source: str) -> str:
    """The name of a source as a metric may have it."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", source)[:40].strip("_.-") or "source"
