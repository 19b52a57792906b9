"""Low-rank adapters (LoRA, arXiv 2106.09685): beside a frozen matrix, the product of two small ones that learn.

    y = x W^T + (alpha / rank) (x A^T) B^T        W [out, in] frozen, A [rank, in], B [out, rank]

The matrix keeps its name, `wq.weight`, and its module has two more parameters, `wq.lora_a` and `wq.lora_b`. Their roles
follow from its own, so that each rank's product is the part of the whole one that its part of the matrix gives:

| W is cut along | A | B |
|---|---|---|
| 0, its outputs | whole, of which each rank sees a part of the gradient | cut along 0, in the pieces of W |
| 1, its inputs | cut along 1 | whole, of which each rank sees a part of the gradient |
| nothing | whole, likewise | whole, likewise |

B begins at zero, so that the model begins as it was; A begins as PEFT's.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internevo.config.schema import LoraConfig, ModelConfig
from internevo.config.typed import did_you_mean
from internevo.files.errors import UserError
from internevo.model.roles import First, Kind, Role, declare, roles_of
from internevo.model.transformer import Transformer

FACTORS = ("lora_a", "lora_b")
"""What a module calls its A and B."""
ALL = "all"


class AdaptedLinear(nn.Linear):
    """The linear layer `base`, whose parameters it takes over, with a product of rank `config.rank` beside it."""

    def __init__(self, base: nn.Linear, config: LoraConfig):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = scale_of(config)
        self.lora_a = nn.Parameter(self.weight.new_empty(config.rank, base.in_features))
        self.lora_b = nn.Parameter(self.weight.new_empty(base.out_features, config.rank))
        roles = roles_of(base)
        lora_a, lora_b = factor_roles(roles["weight"])
        declare(self, **roles, lora_a=lora_a, lora_b=lora_b)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_a)  # [..., in] -> [..., rank]
        return super().forward(x) + F.linear(low, self.lora_b) * self.scale  # [..., out]


def scale_of(config: LoraConfig) -> float:
    """What the product of the two factors is multiplied by."""
    return config.alpha / config.rank


def factor_roles(base: Role) -> tuple[Role, Role]:
    """The roles of A and B beside a matrix of this role."""
    by_rows, by_columns = base.cut == 0, base.cut == 1
    a = Role(Kind.matrix, cut=1 if by_columns else None, partial=not by_columns, first=First.fan_in)
    b = Role(Kind.matrix, cut=0 if by_rows else None, partial=not by_rows, first=First.zero, wide=False)
    return (replace(a, pieces=base.pieces), b) if by_columns else (a, replace(b, pieces=base.pieces))


def add_adapters(model: Transformer, config: LoraConfig) -> None:
    """Freeze the model and put adapters beside its matrices, in place. Raises UserError as `check_targets` does."""
    model.requires_grad_(False)
    matrices = _chosen(model, config)
    for path, matrix in matrices.items():
        owner, _, name = path.rpartition(".")
        setattr(model.blocks.get_submodule(owner), name, AdaptedLinear(matrix, config))
    model.take_stock()


def check_targets(model: ModelConfig, config: LoraConfig) -> None:
    """Raise UserError for a target that no matrix of such a model is called."""
    adapter_parameters(model, config)


def adapter_parameters(model: ModelConfig, config: LoraConfig) -> int:
    """How many numbers learn in such a model; 0 without adapters."""
    if not config.rank:
        return 0
    with torch.device("meta"):
        chosen = _chosen(Transformer(replace(model, layers=1)), config).values()
    return model.layers * config.rank * sum(matrix.in_features + matrix.out_features for matrix in chosen)


def _chosen(model: Transformer, config: LoraConfig) -> dict[str, nn.Linear]:
    """The linear layers of the blocks that get an adapter, by their paths below `blocks`."""
    found = {
        path: module
        for path, module in model.blocks.named_modules()
        if isinstance(module, nn.Linear) and roles_of(module)["weight"].kind is Kind.matrix
    }
    known = list(dict.fromkeys(path.rpartition(".")[2] for path in found))
    for target in config.targets:
        if target != ALL and target not in known:
            raise UserError(f"train.lora.targets: the blocks have no matrix {target!r}{did_you_mean(target, known)}")
    wanted = known if ALL in config.targets else config.targets
    return {path: module for path, module in found.items() if path.rpartition(".")[2] in wanted}
