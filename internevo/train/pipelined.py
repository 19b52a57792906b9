"""The runner of a pipeline: the parts of the model that a rank has, each laid out over ranks as without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from internevo.config.derive import parts_per_rank, step_sizes
from internevo.config.schema import StageConfig
from internevo.data.batch import IGNORE, Batch
from internevo.model.recompute import Policy
from internevo.model.rope import rotary_tables
from internevo.model.transformer import Transformer
from internevo.parallel.block_settings import compute_dtype
from internevo.parallel.build_rank_model import build_rank_model
from internevo.parallel.mesh import Mesh, Place
from internevo.parallel.pipeline import Pipeline, micro_batches_run, parts_of, split_layers
from internevo.parallel.tensor import Vocabulary
from internevo.parallel.tied import TiedHead
from internevo.parallel.zero import reshard
from internevo.train.engine import Losses, Runner
from internevo.train.micro_batch import MicroBatch, Staged
from internevo.train.objective import Objective, Predictions, make_objective
from internevo.train.recorder import Recorder


class PartModel(nn.Module):
    """One part: its blocks, before them the embedding if it is the first, after them the loss if it is the last."""

    def __init__(
        self,
        part: Transformer,
        last: bool,
        vocabulary: Vocabulary,
        compiled: bool,
        recorder: Recorder,
        objective: Objective,
        sharing: Sequence[Place],
    ):
        super().__init__()
        self.objective, self.sharing = objective, sharing
        self.part, self.last, self.vocabulary, self.compiled = part, last, vocabulary, compiled
        self.micros: Iterator[MicroBatch] = iter(())
        """What is still to come, in the order in which every schedule lets a part run micro-batches forward."""
        self.batch: Batch | None = None
        """The step that runs, which says what the summed loss is divided by; None for the loss at every position."""
        self.recorder = recorder

    def forward(self, x: Tensor | None = None) -> Tensor:
        micro = next(self.micros)
        if micro.filler:
            return self.recorder.pass_over(self.part, partial(self._run, x, micro))
        labels = 1 if self.batch is None else max(1, self.batch.label_count)
        return self.recorder.forward(self.part, partial(self._run, x, micro), micro.tokens.numel(), labels)

    def _run(self, x: Tensor | None, micro: MicroBatch) -> Tensor:
        part = self.part
        if x is None:
            x = part.embed(micro.tokens)
        rotary = rotary_tables(micro.positions, part.config)
        x = part.run_blocks(x, rotary, micro.documents)
        if not self.last:
            return x
        weight = self.vocabulary.rows(part.head.weight)
        predictions = Predictions(
            micro, part.norm(x), weight, part, self.vocabulary, compiled=self.compiled, sharing=self.sharing
        )
        if self.batch is None:
            return predictions.losses()
        divisor = self.objective.divisor(self.batch) or 1
        total = predictions.summed(None) if micro.filler else self.objective.loss(predictions)
        return total[None] * (self.recorder.replicas / divisor)  # ZeRO averages over them


class Pipelined(Runner):
    """A rank's parts of a model that is a pipeline."""

    def __init__(self, stage: StageConfig, mesh: Mesh, recorder: Recorder):
        self.mesh, config = mesh, stage.parallel.pipeline
        layers = split_layers(stage.model, config.size * parts_per_rank(config))
        self.models: dict[int, PartModel] = {}
        objective = make_objective(stage)
        for number in parts_of(mesh.pipeline.rank, config):
            run = partial(
                PartModel,
                last=number == len(layers) - 1,
                vocabulary=Vocabulary(mesh.tensor, stage.model.vocab),
                compiled=stage.train.compile,
                recorder=recorder,
                objective=objective,
                sharing=(mesh.ring, mesh.ulysses),
            )
            self.models[number] = build_rank_model(stage, mesh, run, layers[number])
        train = stage.train
        tokens = train.seq_len // mesh.layout.context
        tokens //= mesh.tensor.size if stage.parallel.sequence else 1
        hidden = torch.empty((train.micro_batch, tokens, stage.model.hidden), dtype=compute_dtype(stage), device="meta")
        modules: dict[int, nn.Module] = dict(self.models)
        whole = {number: reasons for number, one in self.models.items() if (reasons := _kept_whole(stage, one.part))}
        self.notes = tuple(_empty_micro_batches(stage, mesh.data.size))
        if config.schedule == "zbv" and whole:
            settings = ", ".join(dict.fromkeys(chain.from_iterable(whole.values())))
            self.notes += (
                f"pipeline: zbv does not split the backward passes of {len(whole)} of this rank's {len(modules)} "
                f"parts ({settings}); where it splits none, interleaved idles less",
            )
        self.pipeline = Pipeline(modules, config, mesh.pipeline, hidden, mesh.device, modules.keys() - whole.keys())

        self.tied = self._tied_head(stage) if stage.model.tied else None

    def _tied_head(self, stage: StageConfig) -> TiedHead:
        first, last = self.models.get(0), self.models.get(self.pipeline.total - 1)
        return TiedHead(
            None if first is None else first.part.embed.weight,
            None if last is None else last.part.head.weight,
            self.mesh.pipeline,
            owner=0,
            holder=self.pipeline.owner(self.pipeline.total - 1),
        )

    @property
    def transformers(self) -> list[Transformer]:
        return [model.part for model in self.models.values()]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        copy = None if self.tied is None else self.tied.head
        return {name: parameter for name, parameter in super().parameters.items() if parameter is not copy}

    def forward_backward(self, staged: Staged) -> Tensor:
        micros = list(staged)
        filler = replace(micros[0], labels=torch.full_like(micros[0].labels, IGNORE), filler=True)
        micros += [filler] * (micro_batches_run(self.pipeline.config, len(micros)) - len(micros))
        for model in self.models.values():
            model.micros, model.batch = iter(micros), staged.batch
        loss = self.pipeline.forward_backward(len(micros)) / self.mesh.replicas.size
        if self.tied is not None:
            self.tied.give_gradient()
        return loss

    def weights_changed(self) -> None:
        if self.tied is not None:
            self.tied.take_weight()

    def losses(self, staged: Staged) -> Losses:
        micros = list(staged)
        for model in self.models.values():
            model.micros, model.batch = iter(micros), None
        given = [self.pipeline.forward() for _ in micros]
        for model in self.models.values():
            reshard(model)
        return [(loss, micro) for loss, micro in zip(given, micros, strict=True) if loss is not None]


def _empty_micro_batches(stage: StageConfig, data: int) -> Iterator[str]:
    """A sentence where steps of the stage are filled up with micro-batches without labels."""
    pipeline, together = stage.parallel.pipeline, data * stage.train.micro_batch
    for count in dict.fromkeys(rows // together for rows in step_sizes(stage.train)):
        if (more := micro_batches_run(pipeline, count) - count) > 0:
            yield (
                f"pipeline: {pipeline.schedule} on {pipeline.size} ranks runs steps of {count} micro-batches a data "
                f"rank as {count + more}, of which {more} are empty"
            )


def _kept_whole(stage: StageConfig, part: Transformer) -> list[str]:
    """The settings for which torch cannot run a backward pass of this part in two halves, each operation once.

    A block, or a product in FP8, is one operation to torch then; or weights are given up between the halves.
    """
    train, zero = stage.train, stage.parallel.zero.stage
    reasons = {
        f"train.recompute={train.recompute}": any(block.policy != Policy.none for block in part.blocks.children()),
        "train.compile=true": train.compile,
        f"train.fp8={train.fp8}": train.fp8 != "none",
        f"parallel.zero.stage={zero}": zero == 3,
    }
    return [setting for setting, holds in reasons.items() if holds]
