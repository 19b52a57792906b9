"""A tied head in another part of a pipeline than the embedding.

The rank with the last part has a copy of the embedding's weight, cut over its neighbours as the embedding is over those
of the first part. What is trained, saved and counted is the embedding alone. The copy's gradient goes to the embedding
when a step's backward passes are over, and the new weight comes back after the update:

    first rank    embed.weight += gradient       update    embed.weight
                                ^                                |
    last rank     head.weight --+                                +--> head.weight
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from internevo.parallel.mesh import Place
from internevo.parallel.tensor import local


class TiedHead:
    """What this rank has of the pair, which may be both.

    `owner` and `holder` are the ranks of the pipeline `place` with the first and the last part. Each method is called
    on all ranks of the pipeline.
    """

    def __init__(self, embedding: Tensor | None, head: Tensor | None, place: Place, owner: int, holder: int):
        self.embedding, self.head, self.place = embedding, head, place
        self.owner, self.holder = owner, holder

    @torch.no_grad()
    def give_gradient(self) -> None:
        """Add the copy's gradient to the embedding's; frozen ones have none."""
        if any(held is not None and not held.requires_grad for held in (self.embedding, self.head)):
            return
        found = None
        if self.head is not None:
            assert self.head.grad is not None
            found, self.head.grad = local(self.head.grad), None
        found = self._pass_on(found, self.embedding, self.holder, self.owner)
        if self.embedding is not None and found is not None:
            assert self.embedding.grad is not None
            local(self.embedding.grad).add_(found)

    @torch.no_grad()
    def take_weight(self) -> None:
        """Give the copy the embedding's weight."""
        weight = None if self.embedding is None else local(self.embedding.detach())
        weight = self._pass_on(weight, self.head, self.owner, self.holder)
        if self.head is not None and weight is not None:
            local(self.head.detach()).copy_(weight)

    def _pass_on(self, mine: Tensor | None, wanted: Tensor | None, source: int, target: int) -> Tensor | None:
        """What the rank `source` has, on the rank `target`; `wanted` is a parameter of that size."""
        if source == target:
            return mine
        held = mine if mine is not None else wanted
        if held is None or local(held.detach()).numel() == 0:  # ZeRO has left these ranks none of it
            return mine
        if mine is not None:
            dist.send(mine.contiguous(), group=self.place.group, group_dst=target)
        if wanted is None:
            return None
        received = torch.empty_like(local(wanted.detach()))
        dist.recv(received, group=self.place.group, group_src=source)
        return received
