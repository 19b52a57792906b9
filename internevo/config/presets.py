"""Named model shapes. Sources: the InternLM2 report (arXiv 2403.17297) and its released configurations; the
Llama 3 (arXiv 2407.21783), Qwen2.5 (arXiv 2412.15115) and Qwen3 (arXiv 2505.09388) reports."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from internevo.config.read import merge
from internevo.config.schema import ModelConfig
from internevo.config.typed import build


def _shape(hidden: int, layers: int, heads: int, kv_heads: int, width: int, vocab: int, **more: Any) -> dict[str, Any]:
    shape = {
        "hidden": hidden,
        "layers": layers,
        "vocab": vocab,
        "attention": {"heads": heads, "kv_heads": kv_heads},
        "feed_forward": {"width": width},
    }
    return merge(shape, more)


_ROPE_1M = {"base": 1_000_000.0}

# hidden, layers, heads, kv heads, width of the feed-forward, vocabulary
PRESETS: dict[str, dict[str, Any]] = {
    "internlm2-1.8b": _shape(2048, 24, 16, 8, 8192, 92544, rope=_ROPE_1M),
    "internlm2-7b": _shape(4096, 32, 32, 8, 14336, 92544, rope=_ROPE_1M),
    "internlm2-20b": _shape(6144, 48, 48, 8, 16384, 92544, rope=_ROPE_1M),
    "llama3-8b": _shape(4096, 32, 32, 8, 14336, 128256, rope={"base": 500_000.0}),
    "qwen2.5-7b": _shape(3584, 28, 28, 4, 18944, 152064, norm_eps=1e-6, rope=_ROPE_1M, attention={"bias": True}),
    "qwen3-8b": _shape(
        4096, 36, 32, 8, 12288, 151936, norm_eps=1e-6, rope=_ROPE_1M, attention={"head_dim": 128, "qk_norm": True}
    ),
    "tiny": _shape(64, 2, 4, 2, 160, 512),
    "tiny-25m": _shape(384, 8, 6, 2, 1024, 16384),
}


def model_preset(name: str, **changes: Any) -> ModelConfig:
    """The shape called `name`, complete, with some fields changed: `attention={"kv_heads": 4}` changes one of its.

    Raises KeyError for an unknown name.
    """
    shape = merge(deepcopy({"preset": name, **PRESETS[name]}), changes)
    shape["attention"].setdefault("head_dim", shape["hidden"] // shape["attention"]["heads"])
    return build(ModelConfig, shape)
