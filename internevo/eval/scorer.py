"""How well a model predicts given tokens: the base of every evaluation here.

On one process, or over several that each have a part of every row's tokens (context parallelism), for rows that one
GPU cannot hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from internevo.config.schema import ContextConfig, ParallelConfig, Precision, StageConfig, TrainConfig, ZeroConfig
from internevo.files.errors import UserError
from internevo.hf.weights import check_finite
from internevo.model.documents import Documents
from internevo.parallel.build_rank_model import build_rank_model
from internevo.parallel.context import ContextCut
from internevo.parallel.layout import make_layout
from internevo.parallel.tensor import local
from internevo.parallel.world import World
from internevo.train.loss_model import LossModel
from internevo.train.micro_batch import MicroBatch
from internevo.train.stored_model import StoredModel

_CHUNK = 1024  # tokens whose logits are in memory at a time
_ROW = 2048  # about how many tokens a row has that short sequences share


@dataclass(frozen=True)
class Scored:
    """A sequence of `n` tokens, as the model saw it: `n - 1` predictions."""

    losses: np.ndarray  # nats, float32 `[n - 1]`: how surprised it was by the second token, the third, ...
    correct: np.ndarray  # bool `[n - 1]`: whether the likeliest token was the one that came


class ScoreModel(LossModel):
    """From a micro-batch to the loss, and whether the likeliest token was right, at every position."""

    def forward(self, micro: MicroBatch, summed: bool = False) -> Tensor:
        """fp32 `[2, rows, seq]`."""
        features = self.transformer.features(micro.tokens, micro.positions, micro.documents)
        weight = self.transformer.head.weight
        losses, correct = [], []
        parts = zip(features.flatten(0, 1).split(_CHUNK), micro.labels.flatten().split(_CHUNK), strict=True)
        for part, labels in parts:
            logits = (part @ weight.T).float()
            losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
            correct.append(logits.argmax(-1) == labels)
        return torch.stack([torch.cat(losses), torch.cat(correct).float()]).view(2, *micro.labels.shape)


class Scorer:
    """A model ready to score. Every rank of the world calls it with the same sequences, and has all results.

    `max_len` is the longest sequence that will come. Raises UserError when the world's ranks cannot share such rows.
    """

    def __init__(self, stored: StoredModel, world: World, max_len: int, precision: Precision = "fp32"):
        self.world, self.vocab = world, stored.config.vocab
        # a ring's ranks each have two pieces of every row
        self.multiple = 2 * world.size
        self.row = -(-max(max_len, min(_ROW, 8 * max_len)) // self.multiple) * self.multiple
        train = TrainConfig(seq_len=self.row, batch_tokens=self.row, precision=precision)
        parallel = ParallelConfig(context=ContextConfig(world.size), zero=ZeroConfig(3))
        stage = StageConfig(model=stored.config, train=train, parallel=parallel)
        mesh = world.mesh(make_layout(stage, world.size))
        self.model = build_rank_model(stage, mesh, ScoreModel)
        weights = {name: p.detach() for name, p in self.model.transformer.named_parameters()}
        stored.weights.fill(weights, world.control)
        for name, weight in weights.items():
            check_finite(f"{stored.name}: {name}", local(weight))
        self.cut = ContextCut(mesh) if world.size > 1 else None
        self.model.eval()

    @torch.no_grad()
    def score(self, sequences: Sequence[np.ndarray]) -> list[Scored]:
        """Score sequences of token ids, each by itself.

        Raises UserError for a sequence that is too long or too short, or has an id past the vocabulary.
        """
        for one in sequences:
            if not 2 <= len(one) <= self.row:
                raise UserError(f"a sequence to score has {len(one):,} tokens; it must have 2 to {self.row:,}")
            if one.max() >= self.vocab:
                raise UserError(f"token id {one.max()} is past the model's vocabulary of {self.vocab:,}")
        results: dict[int, Scored] = {}
        for numbers in self._rows(sequences):
            out = self._run([sequences[n] for n in numbers])
            at = 0
            for n in numbers:
                length = len(sequences[n])
                losses, correct = out[:, at : at + length - 1]
                results[n] = Scored(losses, correct > 0)
                at += length
        return [results[n] for n in range(len(sequences))]

    def _rows(self, sequences: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Numbers of sequences that share a row, long ones first."""
        row: list[int] = []
        used = 0
        for n in sorted(range(len(sequences)), key=lambda n: -len(sequences[n])):
            if row and used + len(sequences[n]) > self.row:
                yield row
                row, used = [], 0
            row.append(n)
            used += len(sequences[n])
        if row:
            yield row

    def _run(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """fp32 `[2, tokens]` of one row: losses and whether each was right."""
        lengths = [len(one) for one in sequences]
        used = sum(lengths)
        if padding := -used % self.multiple:
            lengths.append(padding)
        total = used + padding
        tokens = np.pad(np.concatenate(sequences), (0, padding)).astype(np.int64)[None]
        labels = np.roll(tokens, -1)  # what a sequence's last token predicts is not looked at
        positions = np.concatenate([np.arange(length) for length in lengths])[None]
        device = self.world.device
        if self.cut is None:
            index, documents = np.arange(total)[None], Documents.of(lengths, device)
        else:
            index, documents = self.cut([tuple(lengths)])
        here, said, at = (
            torch.from_numpy(np.take_along_axis(x, index, axis=1)).to(device) for x in (tokens, labels, positions)
        )
        out = self.model(MicroBatch(here, said, at, documents))[:, 0].float()
        whole = torch.zeros(2, total)
        whole[:, torch.from_numpy(index[0])] = out.cpu()
        if self.world.control is not None:
            dist.all_reduce(whole, group=self.world.control)
        return whole.numpy()
