"""How our tensors are called and laid out elsewhere: one table a family, read in both directions.

`{n}` in a name stands for the layer. A row with several names on our side is stored as one tensor on theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from internevo.config.schema import ModelConfig

Pack = Callable[[Sequence[Tensor], ModelConfig], Tensor]
Unpack = Callable[[Tensor, ModelConfig], Sequence[Tensor]]


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    ours: tuple[str, ...]
    theirs: str
    pack: Pack = lambda tensors, config: tensors[0]
    unpack: Unpack = lambda tensor, config: (tensor,)


@dataclass(frozen=True)
class Family:
    """A model family of the Hugging Face world."""

    rows: tuple[Row, ...]
    settings: dict[str, Any]
    """What `config.json` says beside the sizes."""

    def tensors(self, config: ModelConfig) -> Iterator[tuple[Row, tuple[str, ...], str]]:
        """(row, our names, their name) of every tensor that a model of this shape has, in their order."""
        for row in self.rows:
            if "head.weight" in row.ours and config.tied:
                continue  # written once, as the embedding
            if row.ours[0].endswith("bias") and not config.qkv_bias:
                continue
            for n in range(config.layers if "{n}" in row.theirs else 1):
                yield row, tuple(name.format(n=n) for name in row.ours), row.theirs.format(n=n)


def pack_grouped_qkv(tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """InternLM2's `wqkv`: for each kv head its query heads, then its key, then its value.

    Weights `[heads * head_dim, hidden]`, `[kv_heads * head_dim, hidden]` twice, to
    `[(heads + 2 * kv_heads) * head_dim, hidden]`. Tensor parallelism can cut the result by rows.
    """
    heads = [tensor.unflatten(0, (config.kv_heads, -1, config.head_dim)) for tensor in tensors]
    return torch.cat(heads, dim=1).flatten(0, 2)


def unpack_grouped_qkv(tensor: Tensor, config: ModelConfig) -> Sequence[Tensor]:
    """The inverse of `pack_grouped_qkv`."""
    group = config.heads // config.kv_heads
    heads = tensor.unflatten(0, (config.kv_heads, group + 2, config.head_dim))
    return [part.flatten(0, 2) for part in heads.split([group, 1, 1], dim=1)]


def _llama_rows() -> tuple[Row, ...]:
    block = {
        "attention_norm.weight": "input_layernorm.weight",
        "attention.wq.weight": "self_attn.q_proj.weight",
        "attention.wq.bias": "self_attn.q_proj.bias",
        "attention.wk.weight": "self_attn.k_proj.weight",
        "attention.wk.bias": "self_attn.k_proj.bias",
        "attention.wv.weight": "self_attn.v_proj.weight",
        "attention.wv.bias": "self_attn.v_proj.bias",
        "attention.wo.weight": "self_attn.o_proj.weight",
        "feed_forward_norm.weight": "post_attention_layernorm.weight",
        "feed_forward.gate.weight": "mlp.gate_proj.weight",
        "feed_forward.up.weight": "mlp.up_proj.weight",
        "feed_forward.down.weight": "mlp.down_proj.weight",
    }
    return (
        Row(("embed.weight",), "model.embed_tokens.weight"),
        *(Row((f"blocks.{{n}}.{ours}",), f"model.layers.{{n}}.{theirs}") for ours, theirs in block.items()),
        Row(("norm.weight",), "model.norm.weight"),
        Row(("head.weight",), "lm_head.weight"),
    )


def _internlm2_rows() -> tuple[Row, ...]:
    qkv = tuple(f"blocks.{{n}}.attention.{name}.weight" for name in ("wq", "wk", "wv"))
    block = {
        "attention_norm.weight": "attention_norm.weight",
        "attention.wo.weight": "attention.wo.weight",
        "feed_forward_norm.weight": "ffn_norm.weight",
        "feed_forward.gate.weight": "feed_forward.w1.weight",
        "feed_forward.up.weight": "feed_forward.w3.weight",
        "feed_forward.down.weight": "feed_forward.w2.weight",
    }
    return (
        Row(("embed.weight",), "model.tok_embeddings.weight"),
        Row(qkv, "model.layers.{n}.attention.wqkv.weight", pack_grouped_qkv, unpack_grouped_qkv),
        *(Row((f"blocks.{{n}}.{ours}",), f"model.layers.{{n}}.{theirs}") for ours, theirs in block.items()),
        Row(("norm.weight",), "model.norm.weight"),
        Row(("head.weight",), "output.weight"),
    )


FAMILIES: dict[str, Family] = {
    "llama": Family(
        _llama_rows(),
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "pretraining_tp": 1,
        },
    ),
    "qwen2": Family(
        _llama_rows(),
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "attention_dropout": 0.0,
            "use_sliding_window": False,
        },
    ),
    "internlm2": Family(
        _internlm2_rows(),
        {
            "architectures": ["InternLM2ForCausalLM"],
            "model_type": "internlm2",
            "attn_implementation": "eager",
            "bias": False,
            "pretraining_tp": 1,
        },
    ),
}


def family_config(
    name: str, config: ModelConfig, *, seq_len: int, dtype: str, bos_id: int | None, eos_id: int | None
) -> dict[str, Any]:
    """The `config.json` of a model, every field written out. `dtype` is torch's name, such as `bfloat16`."""
    return {
        **FAMILIES[name].settings,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": seq_len,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "tie_word_embeddings": config.tied,
        "use_cache": True,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "torch_dtype": dtype,
    }
