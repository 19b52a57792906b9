"""Named model shapes. Sources: the InternLM2 report (arXiv 2403.17297) and its released configurations; the
Llama 3 (arXiv 2407.21783), Qwen2.5 (arXiv 2412.15115) and Qwen3 (arXiv 2505.09388) reports."""

from __future__ import annotations

from typing import Any

from internevo.config.schema import ModelConfig

_INTERNLM2 = {"kv_heads": 8, "vocab": 92544, "norm_eps": 1e-5, "rope_base": 1_000_000.0}

PRESETS: dict[str, dict[str, Any]] = {
    "internlm2-1.8b": {"hidden": 2048, "layers": 24, "heads": 16, "ffn": 8192, **_INTERNLM2},
    "internlm2-7b": {"hidden": 4096, "layers": 32, "heads": 32, "ffn": 14336, **_INTERNLM2},
    "internlm2-20b": {"hidden": 6144, "layers": 48, "heads": 48, "ffn": 16384, **_INTERNLM2},
    "llama3-8b": {
        "hidden": 4096,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "ffn": 14336,
        "vocab": 128256,
        "rope_base": 500_000.0,
    },
    "qwen2.5-7b": {
        "hidden": 3584,
        "layers": 28,
        "heads": 28,
        "kv_heads": 4,
        "ffn": 18944,
        "vocab": 152064,
        "norm_eps": 1e-6,
        "rope_base": 1_000_000.0,
        "qkv_bias": True,
    },
    "qwen3-8b": {
        "hidden": 4096,
        "layers": 36,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "ffn": 12288,
        "vocab": 151936,
        "norm_eps": 1e-6,
        "rope_base": 1_000_000.0,
        "qk_norm": True,
    },
    "tiny": {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 160, "vocab": 512},
    "tiny-25m": {"hidden": 384, "layers": 8, "heads": 6, "kv_heads": 2, "ffn": 1024, "vocab": 16384},
}


def model_preset(name: str, **changes: Any) -> ModelConfig:
    """The shape called `name`, complete, with some fields changed.

    Raises KeyError for an unknown name.
    """
    fields = {**PRESETS[name], **changes}
    fields.setdefault("head_dim", fields["hidden"] // fields["heads"])
    return ModelConfig(preset=name, **fields)
