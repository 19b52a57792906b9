"""The mesh of ranks of one layout: its process groups, and this process's place in each.

Ranks are numbered with tensor parallelism innermost (its messages are the most, so they go over the fastest links),
then Ulysses, ring and data, and the pipeline outermost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from internevo.parallel.layout import Layout


@dataclass(frozen=True)
class Place:
    """A group of ranks and where this process stands in it."""

    group: dist.ProcessGroup | None
    """None for this process alone."""
    rank: int
    size: int


ONE_RANK = Place(None, 0, 1)
"""The place of a process that is alone."""


class Mesh:
    """All groups of a layout; dimensions of one rank have none, and one process is a mesh of one.

    Activations are cut along `pipeline`, `data`, `ring`, `ulysses` and `tensor`. `parameters` is the same ranks by what
    they hold of the weights, `pipeline`, `replicate`, `shard` and `tensor`: FSDP and DTensors live on it.
    """

    def __init__(
        self,
        layout: Layout,
        device: torch.device,
        control: dist.ProcessGroup | None = None,
        groups: bool | None = None,
    ):
        self.layout, self.device = layout, device
        self.alone = not (layout.world > 1 if groups is None else groups)
        """Whether there are no groups. With `groups`, one process has them too: to try there what runs on several."""
        self.control = control
        """A CPU group of all ranks for small messages."""
        self.parameters: DeviceMesh | None = None
        self.zero: DeviceMesh | None = None
        """Ranks with the same weights and different tokens, by what ZeRO lets each hold."""
        if self.alone:
            self.pipeline = self.data = self.ring = self.ulysses = self.tensor = ONE_RANK
            self.shard = self.everyone = self.replicas = ONE_RANK
            return
        names = ("pipeline", "data", "ring", "ulysses", "tensor")
        activations = _mesh(device, {name: getattr(layout, name) for name in names})
        self.pipeline, self.data, self.ring, self.ulysses, self.tensor = (_place(activations, name) for name in names)
        replicate = layout.replicas // layout.shard
        sizes = {"pipeline": layout.pipeline, "replicate": replicate, "shard": layout.shard, "tensor": layout.tensor}
        self.parameters = _mesh(device, sizes, always="shard")
        assert self.parameters is not None
        self.zero = self.parameters["replicate", "shard"] if replicate > 1 else self.parameters["shard"]
        self.shard = _place(self.parameters, "shard")
        self.everyone = Place(dist.group.WORLD, dist.get_rank(), dist.get_world_size())
        self.replicas = self.shard
        if replicate > 1:
            together = self.zero._flatten("replicas")
            self.replicas = Place(together.get_group(), together.get_local_rank(), together.size())


def _mesh(device: torch.device, sizes: dict[str, int], always: str = "") -> DeviceMesh | None:
    """A mesh of the dimensions with more than one rank: a group takes threads, and with NCCL buffers."""
    sizes = {name: size for name, size in sizes.items() if size > 1 or name == always}
    return init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes)) if sizes else None


def _place(mesh: DeviceMesh | None, name: str) -> Place:
    if mesh is None or name not in (mesh.mesh_dim_names or ()):
        return ONE_RANK
    return Place(mesh.get_group(name), mesh.get_local_rank(name), mesh[name].size())
