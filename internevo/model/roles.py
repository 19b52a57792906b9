"""What each parameter of a model is: said beside the parameter, read by all that treats parameters differently.

Initial values, tensor parallelism, gradient norms, weight decay, Muon, width scaling and FP8 ask a parameter's role,
never its name. A new part of a model says what its parameters are where it makes them. One that does not learn has
`requires_grad` off, as everywhere in torch:

    self.router = declare(nn.Linear(hidden, experts, bias=False), weight=Role(Kind.matrix))
    self.experts = nn.Parameter(torch.empty(experts, ffn, hidden))
    declare(self, experts=Role(Kind.matrix, cut=1, fp8=False))
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from torch import nn

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


def declare(module: Module, **roles: Role) -> Module:
    """Say what the module's own parameters are, by their names in it. Returns the module."""
    known = dict(module.named_parameters(recurse=False))
    if unknown := roles.keys() - known.keys():
        raise TypeError(f"{type(module).__name__} has no parameter {', '.join(sorted(unknown))}")
    object.__setattr__(module, "_roles", roles)
    return module


def roles_of(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter below the model, by its full name. Raises TypeError for one without a role."""
    found = {}
    for path, module in model.named_modules():
        own: dict[str, Role] = module.__dict__.get("_roles", {})
        for name, _ in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if name not in own:
                raise TypeError(f"{full} has no role: say what it is with `declare`, beside where it is made")
            found[full] = own[name]
    return found
