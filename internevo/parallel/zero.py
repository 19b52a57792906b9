"""ZeRO: optimizer state, gradients and weights sharded over the ranks that have the same weights, on FSDP2.

The weights are cut over `shard` ranks and repeated over the rest (hybrid ZeRO). The stages differ in when they
communicate:

| stage | weights gathered | gradients reduced | kept between micro-batches |
|---|---|---|---|
| 0, 1 | once a step | once a step | whole weights and gradients |
| 2 | once a step | every micro-batch | whole weights, sharded gradients |
| 3 | every block, forward and backward | every micro-batch | sharded weights and gradients |

Stage 0 is a shard of one rank. With `parallel.zero.offload` the sharded fp32 weights lie in host memory, from where
they are copied to be gathered, and reduced gradients are copied there. FSDP averages gradients over the ranks; the loss
is scaled up by their number, so that what comes out is the sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from internevo.config.schema import ZeroConfig
from internevo.parallel.mesh import Mesh, Place


def shard_module(module: nn.Module, mesh: Mesh, zero: ZeroConfig, dtype: torch.dtype, root: bool = False) -> None:
    """Shard the parameters of `module` that no part of it has sharded yet.

    It computes in `dtype`, with weights, gradients and their reduction in fp32. Those of the `root`, whose backward
    pass begins where its forward pass ends, stay whole between the two.
    """
    assert mesh.zero is not None
    offloaded = zero.offload.optimizer == "cpu"
    fully_shard(
        module,
        mesh=mesh.zero,
        reshard_after_forward=zero.stage == 3 and not root,
        offload_policy=CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda") if offloaded else OffloadPolicy(),
        # inputs are left alone: rotary tables stay fp32
        mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
    )


def reduce_all(root: nn.Module) -> None:
    """Let parameters that a rank did not use, as experts that none of its tokens chose, be reduced as zeros.

    Otherwise a rank leaves them out of its message, which then does not fit those of the others. torch before 2.13
    cannot do it.
    """
    assert isinstance(root, FSDPModule)
    if hasattr(root, "set_reduce_scatter_unused_params"):
        root.set_reduce_scatter_unused_params(True)


def gather_ahead(blocks: Iterable[nn.Module]) -> None:
    """Let a block's weights be gathered while its neighbour computes, forward and backward.

    With stage 3 one block more is whole at a time; gradients are reduced after the next block's backward pass anyway.
    """
    for first, second in pairwise(blocks):
        assert isinstance(first, FSDPModule)
        assert isinstance(second, FSDPModule)
        first.set_modules_to_forward_prefetch([second])
        second.set_modules_to_backward_prefetch([first])


def prepare_micro_batch(root: nn.Module, stage: int, last: bool) -> None:
    """Say what FSDP does after the next backward pass; `last` is the step's last micro-batch."""
    if not isinstance(root, FSDPModule):  # one process has all
        return
    root.set_requires_gradient_sync(last or stage >= 2)
    root.set_requires_all_reduce(last)
    root.set_reshard_after_backward(last or stage == 3)
    root.set_is_last_backward(last)


def reshard(root: nn.Module) -> None:
    """Give up whole weights that a forward pass without a backward pass has gathered."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def rows_by_rank(values: Tensor, place: Place) -> Tensor:
    """This rank's rows of what ZeRO shards over the group: equal parts, rounded up, until there are none left."""
    part = -(-len(values) // place.size)
    return values[place.rank * part :][:part]


def rows_to_shard(parameter: Tensor) -> int:
    """The rows of a sharded parameter over all the ranks that share its state, as tensor parallelism left them."""
    assert isinstance(parameter, DTensor)
    parts = 1
    for size, name, placement in zip(
        parameter.device_mesh.shape, parameter.device_mesh.mesh_dim_names or (), parameter.placements, strict=True
    ):
        if name == "tensor" and placement.is_shard(0):
            parts *= size
    return parameter.shape[0] // parts


@dataclass(frozen=True)
class Rectangle:
    """What a rank has of a parameter: where it begins in the whole one, and how long it is, along each dimension.

    10 rows over 4 ranks of tensor parallelism, each of whose parts ZeRO shares out over two ranks:

        rows  0 1 | 2 || 3 4 | 5 || 6 7 | 8 || 9 . | .      the last part is filled up
    """

    first: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, parameter: Tensor, whole: torch.Size, cut: int | None, mesh: Mesh) -> Rectangle:
        """`cut` is the dimension that tensor parallelism cuts."""
        assert isinstance(parameter, DTensor)
        held, rows = parameter.to_local().shape, rows_to_shard(parameter)
        first = [0] * len(whole)
        first[0] = min(rows, mesh.shard.rank * -(-rows // mesh.shard.size))
        if cut is not None:
            first[cut] += mesh.tensor.rank * (parameter.shape[cut] // mesh.tensor.size)
        lengths = [max(0, min(here, all - at)) for here, all, at in zip(held, whole, first, strict=True)]
        return cls(tuple(min(at, all) for at, all in zip(first, whole, strict=True)), tuple(lengths))

    def of_it(self, part: Tensor) -> Tensor:
        """A view without what only fills up."""
        return part[tuple(slice(length) for length in self.lengths)]

    def clear_rest(self, part: Tensor) -> None:
        """Set what only fills up to zero."""
        for dim, length in enumerate(self.lengths):
            part.narrow(dim, length, part.shape[dim] - length).zero_()


def cut_alike(part: Tensor, parameter: Tensor) -> DTensor:
    """This rank's part of something that is cut over the ranks as `parameter` is, as a distributed tensor."""
    assert isinstance(parameter, DTensor)
    return DTensor(part, parameter._spec, requires_grad=False)
