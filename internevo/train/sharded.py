"""The engine over many ranks: data, context, tensor parallelism and ZeRO."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from internevo.config.schema import StageConfig
from internevo.data.batch import Batch, combine_digests, row_digest
from internevo.data.loader import Part
from internevo.parallel.apply import build_sharded, compute_dtype
from internevo.parallel.collectives import gather_dim, sum_over
from internevo.parallel.context import ContextCut
from internevo.parallel.gradients import clip_gradients
from internevo.parallel.mesh import Mesh, Place
from internevo.parallel.tensor import TensorParallel, complete_gradients
from internevo.parallel.zero import prepare_micro_batch, reshard, shard_module
from internevo.train.engine import TorchEngine
from internevo.train.loss_model import LossModel
from internevo.train.micro_batch import MicroBatch, micro_batches
from internevo.train.optimizer import build_optimizer


class ShardedEngine(TorchEngine):
    """A stage's model, laid out over a mesh."""

    def __init__(self, stage: StageConfig, mesh: Mesh):
        self._prepare(stage, mesh)
        self.model = LossModel(build_sharded(stage, mesh), mesh.tensor)
        shard_module(self.model, mesh, self.zero_stage, compute_dtype(stage), root=True)
        self.optimizer = build_optimizer(self.named_parameters(), stage.optimizer)

    def _prepare(self, stage: StageConfig, mesh: Mesh) -> None:
        self.stage, self.mesh, self.device = stage, mesh, mesh.device
        self.part = Part(mesh.data.rank, mesh.data.size)
        self.zero_stage = stage.parallel.zero.stage
        self.tensor = TensorParallel(mesh.tensor, stage.parallel.sequence)
        self.cut = ContextCut(mesh) if mesh.layout.context > 1 else None

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.transformer.named_parameters())

    def forward_backward(self, batch: Batch) -> Tensor:
        labels = max(1, batch.label_count)
        micros = self._micro_batches(batch)
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micros):
            prepare_micro_batch(self.model, self.zero_stage, last=number == len(micros) - 1)
            loss = self.model(micro) / labels
            (loss * self.mesh.replicas.size).backward()  # ZeRO averages over them
            total += loss.detach()
        complete_gradients(self.named_parameters(), self.tensor)
        return sum_over(total, self.mesh.replicas)

    def clip_gradients(self, max_norm: float) -> Tensor:
        return clip_gradients(self.named_parameters(), max_norm, self.mesh)

    @torch.no_grad()
    def losses(self, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        micros = self._micro_batches(batch)
        losses = [(self.model(one, summed=False), one.labels, one.positions) for one in micros]
        reshard(self.model)
        return losses

    def digest(self, batch: Batch) -> str:
        return joint_digest(batch, self.mesh.data, self.device)

    def add_up(self, values: Tensor) -> Tensor:
        return sum_over(values, self.mesh.replicas)

    def _micro_batches(self, batch: Batch) -> list[MicroBatch]:
        return list(micro_batches(batch, self.stage.train.micro_batch, self.device, self.cut))


def joint_digest(batch: Batch, readers: Place, device: torch.device) -> str:
    """The fingerprint of a step's token ids, of which each rank of `readers` has its rows; the same on all."""
    hashes = np.frombuffer(b"".join(row_digest(row) for row in batch.tokens), np.uint8)
    everyones = gather_dim(torch.from_numpy(hashes.copy()).to(device), 0, readers)
    return combine_digests([everyones.cpu().numpy().tobytes()])
