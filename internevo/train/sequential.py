"""The runner without a pipeline: micro-batches go through the whole model, one after the other."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from internevo.config.schema import StageConfig
from internevo.model.transformer import Transformer
from internevo.parallel.block_settings import prepare_model
from internevo.parallel.build_rank_model import build_rank_model
from internevo.parallel.mesh import Mesh
from internevo.parallel.zero import prepare_micro_batch, reshard
from internevo.train.engine import Losses, Runner
from internevo.train.loss_model import loss_model
from internevo.train.micro_batch import Staged
from internevo.train.objective import make_objective
from internevo.train.recorder import Recorder


class Sequential(Runner):
    """Of `model` itself, on one process, or of one made for the stage."""

    def __init__(self, stage: StageConfig, mesh: Mesh, recorder: Recorder, model: Transformer | None = None):
        self.mesh, self.recorder, self.zero_stage = mesh, recorder, stage.parallel.zero.stage
        self.objective = make_objective(stage)
        with_loss = partial(loss_model, stage=stage, device=mesh.device, mesh=mesh)
        if model is None:
            self.model = build_rank_model(stage, mesh, with_loss)
        else:
            prepare_model(model, stage, mesh.device)
            self.model = with_loss(model)

    @property
    def transformers(self) -> list[Transformer]:
        return [self.model.transformer]

    def forward_backward(self, staged: Staged) -> Tensor:
        labels, divisor = max(1, staged.batch.label_count), self.objective.divisor(staged.batch) or 1
        total = torch.zeros((), device=self.mesh.device)
        for number, micro in enumerate(staged):
            prepare_micro_batch(self.model, self.zero_stage, last=number == len(staged) - 1)
            run = partial(self.model, micro)
            loss = self.recorder.forward(self.model, run, micro.tokens.numel(), labels) / divisor
            (loss * self.mesh.replicas.size).backward()  # ZeRO averages over them
            total += loss.detach()
        return total

    def losses(self, staged: Staged) -> Losses:
        losses = [(self.model(one, summed=False), one) for one in staged]
        reshard(self.model)
        return losses
