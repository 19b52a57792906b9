"""The engine over many ranks: data, context, tensor parallelism and ZeRO."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from internevo.config.schema import StageConfig
from internevo.data.batch import Batch, combine_digests
from internevo.data.loader import Part
from internevo.model.roles import Role
from internevo.optim.groups import width_rate
from internevo.optim.optimizers import Given, Optimizers
from internevo.parallel.block_settings import compute_dtype
from internevo.parallel.build_rank_model import build_sharded, give_first_weights
from internevo.parallel.collectives import gather_dim, sum_over
from internevo.parallel.context import ContextCut
from internevo.parallel.gradients import gradient_norm
from internevo.parallel.mesh import Mesh, Place
from internevo.parallel.tensor import TensorParallel, complete_gradients, local
from internevo.parallel.whole_matrices import WholeMatrices
from internevo.parallel.zero import cut_alike, prepare_micro_batch, reshard, rows_to_shard
from internevo.train.engine import TorchEngine
from internevo.train.loss_model import loss_model
from internevo.train.micro_batch import Staged
from internevo.train.recorder import Recorder


class ShardedEngine(TorchEngine):
    """A stage's model, laid out over a mesh."""

    def __init__(self, stage: StageConfig, mesh: Mesh):
        self._prepare(stage, mesh)
        self.model = build_sharded(stage, mesh, lambda model: loss_model(model, stage, mesh.device, mesh.tensor))
        give_first_weights(self.model.transformer, stage, mesh)
        self._build_optimizers()

    def _build_optimizers(self) -> None:
        """Optimizers move each rank's parts, as plain tensors that share the parameters' memory."""
        parameters = self.learning()
        self.local = {name: nn.Parameter(local(p.detach())) for name, p in parameters.items()}
        rows = {name: rows_to_shard(p) for name, p in parameters.items()}
        stage, roles = self.stage, self.roles
        given = Given(self.local, roles, stage.optimizer, width_rate(stage.model), compute_dtype(stage))
        self.optimizers = Optimizers(replace(given, on_whole=WholeMatrices(self.mesh, rows, roles)))

    def _prepare(self, stage: StageConfig, mesh: Mesh) -> None:
        self.stage, self.mesh, self.device = stage, mesh, mesh.device
        self.part = Part(mesh.data.rank, mesh.data.size)
        self.zero_stage = stage.parallel.zero.stage
        self.tensor = TensorParallel(mesh.tensor, stage.parallel.sequence)
        self.cut = ContextCut(mesh) if mesh.layout.context > 1 else None
        self.recorder = Recorder(mesh.everyone, mesh.tensor, mesh.replicas.size, stage.parallel.sequence, mesh.control)

    @property
    def roles(self) -> dict[str, Role]:
        """What each parameter is, by its name."""
        return self.model.transformer.roles

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.transformer.named_parameters())

    def forward_backward(self, staged: Staged) -> Tensor:
        labels = max(1, staged.batch.label_count)
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(staged):
            prepare_micro_batch(self.model, self.zero_stage, last=number == len(staged) - 1)
            run = partial(self.model, micro)
            loss = self.recorder.forward(self.model, run, micro.tokens.numel(), labels) / labels
            (loss * self.mesh.replicas.size).backward()  # ZeRO averages over them
            total += loss.detach()
        complete_gradients(self.named_parameters(), self.roles, self.tensor)
        return sum_over(total, self.mesh.replicas)

    def gradient_norm(self) -> Tensor:
        return gradient_norm(self.named_parameters(), self.roles, self.mesh)

    def before_update(self) -> None:
        for name, parameter in self.learning().items():
            assert parameter.grad is not None
            self.local[name].grad = local(parameter.grad)

    def updated(self) -> None:
        for parameter in self.local.values():
            parameter.grad = None

    def as_parameter(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        # of another shape: about the whole parameter, and the same on all ranks
        return cut_alike(value, parameter) if value.shape == local(parameter).shape else value

    @torch.no_grad()
    def losses(self, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        losses = [(self.model(one, summed=False), one.labels, one.positions) for one in self.stage_batch(batch)]
        reshard(self.model)
        return losses

    def digest(self, batch: Batch) -> str:
        return joint_digest(batch, self.mesh.data, self.device)

    def add_up(self, values: Tensor) -> Tensor:
        return sum_over(values, self.mesh.replicas)


def joint_digest(batch: Batch, readers: Place, device: torch.device) -> str:
    """`data.batch.digest` of a step of which each rank of `readers` has its rows; the same on all. Waits for them."""
    hashes = torch.frombuffer(bytearray(batch.row_digests), dtype=torch.uint8)
    everyones = gather_dim(hashes.to(device), 0, readers)
    return combine_digests([everyones.cpu().numpy().tobytes()], batch.label_count)
