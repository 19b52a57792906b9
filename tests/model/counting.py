"""Counting what the model does, also inside our own operators: floating-point operations and operators launched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from internevo.model.kernels import sdpa

aten, ours = torch.ops.aten, torch.ops.internevo


def count_flops() -> FlopCounterMode:
    """torch's counter, which looks into the `sdpa` kernel.

    Each call of the CPU's flash attention counts as the whole square of its sequence, twice forward and four times
    backward; what it recomputes does not count.
    """

    def square(products: int) -> Callable[..., int]:
        def formula(*shapes: Any, **_: Any) -> int:
            batch, heads, seq, dim = shapes[0]
            return products * 2 * batch * heads * seq * seq * dim

        return formula

    inside = {
        aten._scaled_dot_product_flash_attention_for_cpu: square(2),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: square(4),
    }

    def look_into(implementation: Callable[..., Any]) -> Callable[..., int]:
        def formula(*arguments: Any, **_: Any) -> int:
            with FlopCounterMode(display=False, custom_mapping=inside) as counter:
                implementation(*arguments)
            return counter.get_total_flops()

        formula._get_raw = True  # type: ignore[attr-defined]
        return formula

    operators = {ours.sdpa: look_into(sdpa._forward._init_fn), ours.sdpa_backward: look_into(sdpa._backward._init_fn)}
    return FlopCounterMode(display=False, custom_mapping=operators)


class Operators(TorchDispatchMode):
    """Counts operators as the dispatcher sees them, those inside our own too. Views launch nothing and do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function.namespace == "internevo":
            with self:
                implementation = sdpa._backward if "backward" in str(function) else sdpa._forward
                return implementation._init_fn(*arguments)
        if not function.is_view and function not in (aten.detach.default, aten.split.Tensor):
            self.counts[str(function)] += 1
        return function(*arguments, **(named or {}))
