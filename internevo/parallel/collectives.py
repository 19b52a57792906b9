"""Collectives with gradients, on plain tensors: what tensor and context parallelism are made of.

Each is the transpose of another, so each is the other's backward pass: gather and scatter of a dimension, and the pair
of identity and sum. All are no-ops in a group of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

from internevo.parallel.mesh import Place


def sum_over(tensor: Tensor, place: Place) -> Tensor:
    """The sum over the group, in place; no gradient."""
    if place.size > 1:
        dist.all_reduce(tensor, group=place.group)
    return tensor


def largest_over(tensor: Tensor, place: Place) -> Tensor:
    """The largest over the group, in place; no gradient."""
    if place.size > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=place.group)
    return tensor


def gather_dim(tensor: Tensor, dim: int, place: Place) -> Tensor:
    """Every rank's part joined along `dim`; no gradient."""
    if place.size == 1:
        return tensor
    if torch.compiler.is_compiling():
        return _in_matrix_form(functional.all_gather_tensor, tensor, dim, place)
    tensor = tensor.movedim(dim, 0).contiguous()
    out = tensor.new_empty(place.size * tensor.shape[0], *tensor.shape[1:])
    _all_gather(out, tensor, group=place.group)
    return out.movedim(0, dim).contiguous()  # pipelines send only what is


def scatter_sum_dim(tensor: Tensor, dim: int, place: Place) -> Tensor:
    """This rank's part along `dim` of the sum over the group; no gradient."""
    if place.size == 1:
        return tensor
    if torch.compiler.is_compiling():
        return _in_matrix_form(_functional_reduce_scatter, tensor, dim, place)
    tensor = tensor.movedim(dim, 0).contiguous()
    out = tensor.new_empty(tensor.shape[0] // place.size, *tensor.shape[1:])
    _reduce_scatter(out, tensor, group=place.group)
    return out.movedim(0, dim).contiguous()  # pipelines send only what is


def _in_matrix_form(collective: Callable[..., Tensor], tensor: Tensor, dim: int, place: Place) -> Tensor:
    """A collective in compiled code.

    With one row a micro-batch it is put along the first of two dimensions, right beside the matrix product: torch's
    async tensor parallelism knows them in this form only.
    """
    if dim == 1 and tensor.shape[0] == 1:
        out = collective(tensor.view(tensor.shape[1:]), 0, place.group)
        return out.view(1, *out.shape)
    return collective(tensor, dim, place.group)


def _functional_reduce_scatter(tensor: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    return functional.reduce_scatter_tensor(tensor, "sum", dim, group)


def exchange_dims(tensor: Tensor, cut: int, joined: int, place: Place) -> Tensor:
    """All-to-all: cut `dim` `cut` into parts, one for each rank, and join what comes along `joined`; no gradient."""
    if place.size == 1:
        return tensor
    # with one row a micro-batch, either the parts or what comes already lies in memory as it is wanted
    parts = tensor.unflatten(cut, (place.size, -1)).movedim(cut, 0).contiguous()
    out = torch.empty_like(parts)
    dist.all_to_all_single(out, parts, group=place.group)
    return out.movedim(0, joined).flatten(joined, joined + 1)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, place: Place) -> Tensor:
        ctx.dim, ctx.place = dim, place
        return gather_dim(tensor, dim, place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return scatter_sum_dim(grads[0], ctx.dim, ctx.place), None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, place: Place) -> Tensor:
        ctx.dim, ctx.place = dim, place
        return scatter_sum_dim(tensor, dim, place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return gather_dim(grads[0], ctx.dim, ctx.place), None, None


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, place: Place) -> Tensor:
        ctx.place = place
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return sum_over(grads[0].clone(memory_format=torch.contiguous_format), ctx.place), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, place: Place) -> Tensor:
        return sum_over(tensor.clone(memory_format=torch.contiguous_format), place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, cut: int, joined: int, place: Place) -> Tensor:
        ctx.dims, ctx.place = (cut, joined), place
        return exchange_dims(tensor, cut, joined, place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cut, joined = ctx.dims
        return exchange_dims(grads[0], joined, cut, ctx.place), None, None, None


def gather(tensor: Tensor, dim: int, place: Place) -> Tensor:
    """Join the ranks' parts along `dim`; the gradient is summed and cut again."""
    return tensor if place.size == 1 else _Gather.apply(tensor, dim, place)


def scatter_sum(tensor: Tensor, dim: int, place: Place) -> Tensor:
    """Sum over the ranks and keep this rank's part along `dim`; the gradient is gathered."""
    return tensor if place.size == 1 else _ScatterSum.apply(tensor, dim, place)


def sum_gradient(tensor: Tensor, place: Place) -> Tensor:
    """The tensor itself, which all ranks have; its gradient, of which each has a part, is summed."""
    return tensor if place.size == 1 else _SumGradient.apply(tensor, place)


def sum_parts(tensor: Tensor, place: Place) -> Tensor:
    """The sum of the ranks' parts; its gradient, which all ranks have, is that of each part."""
    return tensor if place.size == 1 else _Sum.apply(tensor, place)


def exchange(tensor: Tensor, cut: int, joined: int, place: Place) -> Tensor:
    """All-to-all between two dimensions; the gradient goes the way back."""
    return tensor if place.size == 1 else _Exchange.apply(tensor, cut, joined, place)


# torch 2.13 renames these two and warns of the old names, which 2.11 has alone
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
