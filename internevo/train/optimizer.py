"""AdamW over named parameters, its state as named tensors, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import torch
from torch import Tensor, nn

from internevo.config.schema import OptimizerConfig


def build_optimizer(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with decoupled decay on matrices and none on norms and biases.

    Whether the embedding and the output head decay is `optimizer.decay_embeddings`. State is made at once, not
    at the first step, so that a checkpoint can be loaded into it.
    """
    matrices = {name for name, parameter in parameters.items() if parameter.ndim > 1}
    optimizer = adamw(parameters, matrices, config)
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def adamw(parameters: Mapping[str, nn.Parameter], matrices: Set[str], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW without state yet; `matrices` names the parameters that are some."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        decays = name in matrices and (config.decay_embeddings or not name.startswith(("embed.", "head.")))
        (decayed if decays else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], betas=(beta1, beta2), eps=config.eps, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_tensors(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a checkpoint holds of model and optimizer, by name: the live tensors, not copies.

    `model/NAME` is a weight, `optimizer/NAME/KIND` its optimizer state.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"model/{name}"] = parameter.detach()
        for kind, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{kind}"] = value
    return tensors


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients down to a global 2-norm of `max_norm` if it is larger; 0 only measures.

    Returns the norm before clipping, a scalar tensor.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
