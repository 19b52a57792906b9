"""Pipeline parallelism: consecutive blocks on different ranks, micro-batches going through them.

A rank has one stage (`1f1b`) or two (`interleaved`, `zbv`), so a model has `size` or `2 * size` stages. The schedules
are those of torch.distributed.pipelining. Only hidden states travel: every rank of a pipeline reads the same rows, so
tokens, labels and the documents' borders are at hand everywhere. Each stage runs micro-batches forward in order, under
every schedule: torch relies on that for its losses and messages. So a stage counts them itself. A number given to the
schedule would have to be a tensor, which FSDP moves to the GPU, and the stage would wait to read it.

`zbv` splits a backward pass in two: the gradient by a stage's input, which the stage before waits for, and later the
gradients by its weights, which fill what would be idle time. torch splits by walking over the graph of single
operations. A recomputed or compiled block is one node there, and ZeRO 3 gives weights other memory between the halves.
Such a stage runs its whole backward pass in the first half's place and nothing in the second's.
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

from internevo.config.schema import ModelConfig
from internevo.model.transformer import Block, Transformer
from internevo.parallel.mesh import Place

STAGES_PER_RANK = {"1f1b": 1, "interleaved": 2, "zbv": 2}


def stages_of(rank: int, size: int, schedule: str) -> list[int]:
    """The numbers of a rank's stages. `zbv` goes down the ranks and back up: the first has the last stage too."""
    if schedule == "zbv":
        return [rank, 2 * size - 1 - rank]
    return [rank + size * number for number in range(STAGES_PER_RANK[schedule])]


def in_flight(schedule: str, size: int, micro_batches: int) -> int:
    """For how many micro-batches a rank's stages keep activations at most, added up over its stages.

    A micro-batch counts from a stage's forward pass until its backward pass begins. Counted by running the schedules.
    """
    most = {"1f1b": size, "interleaved": 3 * size - 1, "zbv": 2 * size}[schedule]
    return min(most, micro_batches * STAGES_PER_RANK[schedule])


def split_layers(model: ModelConfig, stages: int) -> list[range]:
    """The blocks of each stage, such that the dearest stage is as cheap as can be.

    Cost is that of the matrix products; the head counts for the last stage. Every stage has at least one block. Raises
    ValueError when there are fewer blocks than stages.
    """
    if model.layers < stages:
        raise ValueError(f"{model.layers} blocks cannot make {stages} stages")
    head = _head_in_blocks(model)
    # the last stage has `last` blocks, the others share the rest evenly: try all
    best = min(
        range(1, model.layers - stages + 2),
        key=lambda last: (max(last + head, -(-(model.layers - last) // (stages - 1)) if stages > 1 else 0), -last),
    )
    last = model.layers if stages == 1 else best
    counts = [(model.layers - last) // (stages - 1)] * (stages - 1) if stages > 1 else []
    for number in range(model.layers - last - sum(counts)):
        counts[number] += 1
    ends = [sum([*counts, last][: number + 1]) for number in range(stages)]
    return [range(end - count, end) for end, count in zip(ends, [*counts, last], strict=True)]


def _head_in_blocks(model: ModelConfig) -> float:
    """What the head costs, in blocks."""
    return Transformer.head_cost(model).products / Block.cost(model).products


class Pipeline:
    """This rank's stages and their schedule.

    `modules` are its stages by number: called with the hidden states of the stage before (none for the first), for one
    micro-batch after the other; the last gives the loss, `[1]`. `hidden` is an example of hidden states, on the meta
    device. `split` are the numbers of those whose backward pass `zbv` may split in two.
    """

    def __init__(
        self,
        modules: dict[int, nn.Module],
        schedule: str,
        place: Place,
        hidden: Tensor,
        device: torch.device,
        split: Collection[int],
    ):
        self.place, self.schedule_name, self.device = place, schedule, device
        self.modules, self.hidden = modules, hidden
        self.total = place.size * STAGES_PER_RANK[schedule]
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
                # torch runs the whole backward pass first where a stage says what to do in the second half
                dw_builder=_nothing_left if schedule == "zbv" and number not in split else None,
            )
            for number, module in sorted(modules.items())
        ]
        self._schedule: Any = None
        self._count = 0

    @property
    def has_last(self) -> bool:
        """Whether this rank has the stage that gives the loss."""
        return self.total - 1 in self.modules

    def forward_backward(self, count: int) -> Tensor:
        """Run `count` micro-batches; the sum of their losses where the last stage is, 0 elsewhere."""
        if count != self._count:  # a schedule is made for one number
            self._schedule, self._count = _schedule(self.schedule_name, self._stages, count), count
        losses: list[Tensor] = []
        # torch computes losses from targets, one for each micro-batch; here the last stage has done so
        self._schedule.step(target=torch.zeros(count), losses=losses if self.has_last else None)
        return torch.stack([loss.detach() for loss in losses]).sum() if losses else torch.zeros((), device=self.device)

    def forward(self) -> Tensor | None:
        """The next micro-batch through all stages, one after the other; what the last gives, where it is."""
        hidden: Tensor | None = None
        for stage in range(self.total):
            if stage in self.modules:
                if stage > 0 and stage - 1 not in self.modules:
                    hidden = torch.empty(self.hidden.shape, dtype=self.hidden.dtype, device=self.device)
                    torch.distributed.recv(hidden, group=self.place.group, group_src=self._owner(stage - 1))
                hidden = self.modules[stage]() if hidden is None else self.modules[stage](hidden)
                if stage + 1 < self.total and stage + 1 not in self.modules:
                    torch.distributed.send(
                        hidden.contiguous(), group=self.place.group, group_dst=self._owner(stage + 1)
                    )
        return hidden if self.has_last else None

    def _owner(self, stage: int) -> int:
        ranks = range(self.place.size)
        return next(rank for rank in ranks if stage in stages_of(rank, self.place.size, self.schedule_name))


def _nothing_left() -> Callable[[], None]:
    """What the second half of a backward pass does when the first was all of it."""
    return lambda: None


def _schedule(name: str, stages: Sequence[PipelineStage], micro_batches: int) -> Any:
    kinds: dict[str, Callable[..., Any]] = {
        "1f1b": Schedule1F1B,
        "interleaved": ScheduleInterleaved1F1B,
        "zbv": ScheduleZBVZeroBubble,
    }
    # losses are scaled by who makes them: torch must not divide gradients by the number of micro-batches
    mine = list(stages) if STAGES_PER_RANK[name] > 1 else stages[0]
    return kinds[name](mine, micro_batches, loss_fn=lambda output, target: output, scale_grads=False)
