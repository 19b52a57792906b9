"""Pipeline parallelism: consecutive blocks on different ranks, micro-batches going through them.

A rank has one part of the model (`1f1b`), two (`zbv`) or more (`interleaved`). The schedules are those of
torch.distributed.pipelining, which calls a part a stage. Only hidden states travel: every rank of a pipeline reads the
same rows, so tokens, labels and the documents' borders are at hand everywhere. Each part runs micro-batches forward in
order, under every schedule: torch relies on that for its losses and messages. So a part counts them itself. A number
given to the schedule would have to be a tensor, which FSDP moves to the GPU, and the part would wait to read it.

Two ranks with two parts each, and the parts of the model in order:

    interleaved: rank 0 has parts 0 and 2, rank 1 has 1 and 3     zbv: rank 0 has 0 and 3, rank 1 has 1 and 2

`zbv` splits a backward pass in two: the gradient by a part's input, which the part before waits for, and later the
gradients by its weights, which fill what would be idle time. torch splits by walking over the graph of single
operations. A recomputed or compiled block is one node there, and ZeRO 3 gives weights other memory between the halves.
Such a part runs its whole backward pass in the first half's place and nothing in the second's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from internevo.config.derive import parts_per_rank
from internevo.config.schema import ModelConfig, PipelineConfig
from internevo.model.transformer import Block, Transformer
from internevo.parallel.mesh import Place


def parts_of(rank: int, pipeline: PipelineConfig) -> list[int]:
    """The numbers of a rank's parts. `zbv` goes down the ranks and back up: the first has the last part too."""
    if pipeline.schedule == "zbv":
        return [rank, 2 * pipeline.size - 1 - rank]
    return [rank + pipeline.size * number for number in range(parts_per_rank(pipeline))]


def micro_batches_run(pipeline: PipelineConfig, count: int) -> int:
    """How many micro-batches a step of `count` runs: as many, or some more, empty, where the schedule needs them.

    torch's `1f1b` needs one for each rank. Its `interleaved` runs as many equal rounds as `count` is times the ranks:
    5 on 2 ranks would be 2 rounds, which cannot share them, and 6 are run.
    """
    if pipeline.schedule == "1f1b":
        return max(count, pipeline.size)
    if pipeline.schedule == "interleaved":
        while count % max(1, count // pipeline.size):
            count += 1
    return count


def in_flight(pipeline: PipelineConfig, count: int) -> int:
    """For how many micro-batches a rank's parts keep activations at most, added up, in a step of `count`.

    A micro-batch counts from a part's forward pass until its backward pass begins. Counted by running the schedules.
    """
    size, parts = pipeline.size, parts_per_rank(pipeline)
    most = {"1f1b": size, "interleaved": (parts + 1) * size - 1, "zbv": 2 * size}[pipeline.schedule]
    return min(most, micro_batches_run(pipeline, count) * parts)


def split_layers(model: ModelConfig, parts: int) -> list[range]:
    """The blocks of each part, such that the dearest part is as cheap as can be.

    Cost is that of the matrix products; the head counts for the last part. Every part has at least one block. Raises
    ValueError when there are fewer blocks than parts.
    """
    if model.layers < parts:
        raise ValueError(f"{model.layers} blocks cannot make {parts} parts")
    head = _head_in_blocks(model)
    # the last part has `last` blocks, the others share the rest evenly: try all
    best = min(
        range(1, model.layers - parts + 2),
        key=lambda last: (max(last + head, -(-(model.layers - last) // (parts - 1)) if parts > 1 else 0), -last),
    )
    last = model.layers if parts == 1 else best
    counts = [(model.layers - last) // (parts - 1)] * (parts - 1) if parts > 1 else []
    for number in range(model.layers - last - sum(counts)):
        counts[number] += 1
    ends = [sum([*counts, last][: number + 1]) for number in range(parts)]
    return [range(end - count, end) for end, count in zip(ends, [*counts, last], strict=True)]


def _head_in_blocks(model: ModelConfig) -> float:
    """What the head costs, in blocks."""
    return Transformer.head_cost(model).products / Block.cost(model).products


class Pipeline:
    """This rank's parts and their schedule.

    `modules` are its parts by number: called with the hidden states of the part before (none for the first), for one
    micro-batch after the other; the last gives the loss, `[1]`. `hidden` is an example of hidden states, on the meta
    device. `split` are the numbers of those whose backward pass `zbv` may split in two.
    """

    def __init__(
        self,
        modules: dict[int, nn.Module],
        config: PipelineConfig,
        place: Place,
        hidden: Tensor,
        device: torch.device,
        split: Collection[int],
    ):
        self.place, self.config, self.device = place, config, device
        self.modules, self.hidden = modules, hidden
        self.total = place.size * parts_per_rank(config)
        # torch sends gradients back for examples that ask for them
        hidden = hidden.requires_grad_()
        loss = torch.empty(1, dtype=torch.float32, device="meta", requires_grad=True)
        self._stages = [
            PipelineStage(
                module,
                number,
                self.total,
                device,
                input_args=() if number == 0 else (hidden,),
                output_args=(loss if number == self.total - 1 else hidden,),
                group=place.group,
                # torch runs the whole backward pass first where a part says what to do in the second half
                dw_builder=_nothing_left if config.schedule == "zbv" and number not in split else None,
            )
            for number, module in sorted(modules.items())
        ]
        self._schedule: Any = None
        self._count = 0

    @property
    def has_last(self) -> bool:
        """Whether this rank has the part that gives the loss."""
        return self.total - 1 in self.modules

    def forward_backward(self, count: int) -> Tensor:
        """Run `count` micro-batches; the sum of their losses where the last part is, 0 elsewhere."""
        if count != self._count:  # a schedule is made for one number
            self._schedule, self._count = _schedule(self.config, self._stages, count), count
        losses: list[Tensor] = []
        # torch computes losses from targets, one for each micro-batch; here the last part has done so
        self._schedule.step(target=torch.zeros(count), losses=losses if self.has_last else None)
        return torch.stack([loss.detach() for loss in losses]).sum() if losses else torch.zeros((), device=self.device)

    def forward(self) -> Tensor | None:
        """The next micro-batch through all parts, one after the other; what the last gives, where it is."""
        hidden: Tensor | None = None
        for part in range(self.total):
            if part in self.modules:
                if part > 0 and part - 1 not in self.modules:
                    hidden = torch.empty(self.hidden.shape, dtype=self.hidden.dtype, device=self.device)
                    torch.distributed.recv(hidden, group=self.place.group, group_src=self.owner(part - 1))
                hidden = self.modules[part]() if hidden is None else self.modules[part](hidden)
                if part + 1 < self.total and part + 1 not in self.modules:
                    torch.distributed.send(hidden.contiguous(), group=self.place.group, group_dst=self.owner(part + 1))
        return hidden if self.has_last else None

    def owner(self, part: int) -> int:
        """The rank of the pipeline that has a part."""
        ranks = range(self.place.size)
        return next(rank for rank in ranks if part in parts_of(rank, self.config))


def _nothing_left() -> Callable[[], None]:
    """What the second half of a backward pass does when the first was all of it."""
    return lambda: None


def _schedule(config: PipelineConfig, stages: Sequence[PipelineStage], micro_batches: int) -> Any:
    kinds: dict[str, Callable[..., Any]] = {
        "1f1b": Schedule1F1B,
        "interleaved": ScheduleInterleaved1F1B,
        "zbv": ScheduleZBVZeroBubble,
    }
    # losses are scaled by who makes them: torch must not divide gradients by the number of micro-batches
    mine = list(stages) if parts_per_rank(config) > 1 else stages[0]
    return kinds[config.schedule](mine, micro_batches, loss_fn=lambda output, target: output, scale_grads=False)
