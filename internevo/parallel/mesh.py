"""The mesh of ranks of one stage: its process groups, and this process's place in each.

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

    group: dist.ProcessGroup
    rank: int
    size: int


class Mesh:
    """All groups of a layout.

    `activations` has the dimensions along which data is cut; `parameters` is the same ranks by what they hold of the
    weights. FSDP and DTensors live on `parameters`.
    """

    def __init__(self, layout: Layout, device: torch.device):
        self.layout, self.device = layout, device
        self.activations = init_device_mesh(
            device.type,
            (layout.pipeline, layout.data, layout.ring, layout.ulysses, layout.tensor),
            mesh_dim_names=("pipeline", "data", "ring", "ulysses", "tensor"),
        )
        self.parameters = init_device_mesh(
            device.type,
            (layout.pipeline, layout.replicas // layout.shard, layout.shard, layout.tensor),
            mesh_dim_names=("pipeline", "replicate", "shard", "tensor"),
        )
        self.pipeline = _place(self.activations["pipeline"])
        self.data = _place(self.activations["data"])
        self.ring = _place(self.activations["ring"])
        self.ulysses = _place(self.activations["ulysses"])
        self.tensor = _place(self.activations["tensor"])
        self.shard = _place(self.parameters["shard"])
        # ranks with the same weights and different tokens
        self.replicas = _place(self.parameters["replicate", "shard"]._flatten("replicas"))


def _place(mesh: DeviceMesh) -> Place:
    return Place(mesh.get_group(), mesh.get_local_rank(), mesh.size())
