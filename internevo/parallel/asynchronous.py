"""Async tensor parallelism: messages cut into pieces that travel while matrix products of other pieces run.

It is torch's compiler that does it (arXiv 2305.06942 describes the idea): it finds gathers before products and products
before scatters, and puts fused ones on symmetric memory in their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass

from internevo.files.errors import UserError
from internevo.files.quiet import quiet
from internevo.parallel.mesh import Place

aten = torch.ops.aten


def enable_async_tensor_parallel(place: Place, device: torch.device) -> None:
    """Let blocks compiled with `compile_options` overlap this group's messages. Raises UserError without GPUs."""
    if device.type != "cuda":
        raise UserError("parallel.asynchronous: needs GPUs that reach each other's memory; set it to false.")
    assert place.group is not None
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    with (
        quiet()
    ):  # torch calls it no longer needed, but its compiler still passes over groups that it was not called for
        enable_symm_mem_for_group(place.group.group_name)


def compile_options() -> dict[str, Any]:
    """What torch.compile is told about blocks that overlap messages; other compiled code is left as it is."""
    return {"_micro_pipeline_tp": True, "post_grad_custom_pre_pass": _FOLD}


class FoldReshapes(CustomGraphPass):
    """Takes out pairs of reshapes that come back to the first shape.

    A linear layer reshapes its input to a matrix. Where that was one before, the pair hides from the compiler that the
    product follows right after the gather.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is not aten.reshape.default or not isinstance(node.args[0], torch.fx.Node):
                continue
            first = node.args[0]
            source = first.args[0] if first.target is aten.reshape.default else None
            if isinstance(source, torch.fx.Node) and source.meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(source)
                graph.erase_node(node)
        graph.eliminate_dead_code()

    def uuid(self) -> Any:
        return "internevo: fold reshapes"


_FOLD = FoldReshapes()
"""One for all blocks: those with different options would not share what is compiled."""
