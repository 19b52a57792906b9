"""What each parameter of a model is: said beside the parameter, read by all that treats parameters differently.

Initial values, tensor parallelism, gradient norms, weight decay, Muon, width scaling and FP8 ask a parameter's role,
never its name. A new part of a model says what its parameters are where it makes them. One that does not learn has
`requires_grad` off, as everywhere in torch:

    self.router = declare(nn.Linear(hidden, experts, bias=False), weight=Role(Kind.matrix, partial=True))
    self.experts = nn.Parameter(torch.empty(experts, ffn, hidden))
    declare(self, experts=Role(Kind.matrix, cut=1, fp8=False))
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from torch import nn

from internevo.files.errors import UserError

Module = TypeVar("Module", bound=nn.Module)


class Kind(StrEnum):
    """How a parameter begins and learns."""

    matrix = "matrix"
    """Of a block: begins normal, decays, and is what Muon is for. Its input is as wide as the model."""
    embedding = "embedding"
    """A row for each id: begins normal, and decays where `optimizer.decay_embeddings` says so."""
    head = "head"
    """The output head: the same, with an input as wide as the model."""
    scale = "scale"
    """Of a norm: begins at one and does not decay."""
    bias = "bias"
    """Begins at zero and does not decay."""


class First(StrEnum):
    """What a parameter begins with."""

    usual = "usual"
    """What its kind says."""
    zero = "zero"
    fan_in = "fan_in"
    """Uniform within one over the root of its columns, as torch's own linear layers and PEFT's factors."""


@dataclass(frozen=True)
class Role:
    """What a parameter is."""

    kind: Kind
    cut: int | None = None
    """The dimension along which tensor parallelism cuts it; None: every rank has all of it. Where ranks cannot share it
    evenly, the last part is filled up with zeros: what they give must not count, as in a mean over that dimension."""
    pieces: int | None = None
    """The equal pieces that it can be cut into, such as key and value heads. More ranks than pieces all hold the whole,
    and each computes with its piece. None: as many as there are ranks."""
    partial: bool = False
    """Whether a rank's gradient is of its own heads alone, though it has all of the parameter."""
    into_residual: bool = False
    """Whether what it gives is added to the residual stream."""
    fp8: bool = False
    """Whether its products may be computed in FP8."""
    first: First = First.usual
    """What it begins with, where that is not what its kind says."""
    wide: bool = True
    """Whether its input is as wide as the model. Where it is not, `model.width_base` scales nothing of it."""


def declare(module: Module, **roles: Role) -> Module:
    """Say what the module's own parameters are, by their names in it, beside what was said before. Returns it."""
    known = dict(module.named_parameters(recurse=False))
    if unknown := roles.keys() - known.keys():
        raise TypeError(f"{type(module).__name__} has no parameter {', '.join(sorted(unknown))}")
    object.__setattr__(module, "_roles", {**module.__dict__.get("_roles", {}), **roles})
    return module


def check_half(half: nn.Module, path: str) -> None:
    """Raise UserError for a parameter of an attention or feed-forward that says neither how it is cut nor `partial`.

    Tensor parallelism adds up what the ranks' halves give, so each sees a part of the gradient of what all have whole.
    """
    for name, role in roles_of(half).items():
        if role.cut is None and not role.partial:
            raise UserError(
                f"{path}.{name} is cut along no dimension: every tensor rank has it, and a part of its gradient. "
                "Say `partial=True` in its role. What is added to the output, as a bias, has no place in a half."
            )


def roles_of(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter below the model, by its full name. Raises UserError for one without a role, or whose
    role it cannot have, and for a buffer."""
    found = {}
    for path, module in model.named_modules():
        own: dict[str, Role] = module.__dict__.get("_roles", {})
        if buffers := list(module.named_buffers(path, recurse=False)):
            raise UserError(f"{buffers[0][0]} is a buffer, which no checkpoint would hold: make it in `forward`")
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if name not in own:
                raise UserError(f"{full} has no role: say what it is with `declare`, beside where it is made")
            emptied = parameter.numel() == 0  # by DeepSpeed's stage 3, which takes the values as a module is made
            if not emptied and parameter.ndim < (2 if own[name].kind is Kind.matrix else 1):
                shape = list(parameter.shape)
                raise UserError(f"{full} is of the kind {own[name].kind} and has the shape {shape}: too few dimensions")
            found[full] = own[name]
    return found
