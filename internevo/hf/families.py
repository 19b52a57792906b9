"""Names and layouts of models in the Hugging Face world: one table for each family, read in both directions.

A family is data: the names of its tensors, the shape of its models, and its `config.json`. `{n}` in a name stands for
the layer. A row with several of our names is stored as one of their tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from internevo.config.schema import ModelConfig
from internevo.files.errors import UserError
from internevo.model.transformer import Transformer


class Layout:
    """One tensor of theirs is one of ours."""

    def pack(self, ours: Sequence[Tensor], config: ModelConfig) -> Tensor:
        """Theirs, from ours."""
        return ours[0]

    def unpack(self, theirs: Tensor, config: ModelConfig) -> Sequence[Tensor]:
        """The inverse of `pack`."""
        return (theirs,)


class GroupedQKV(Layout):
    """InternLM2's `wqkv`: for each kv head its query heads, then its key, then its value.

    Weights `[heads * head_dim, hidden]`, `[kv_heads * head_dim, hidden]` twice, to
    `[(heads + 2 * kv_heads) * head_dim, hidden]`. Tensor parallelism can cut the result by rows.
    """

    def pack(self, ours: Sequence[Tensor], config: ModelConfig) -> Tensor:
        heads = [tensor.unflatten(0, (config.attention.kv_heads, -1, config.attention.head_dim)) for tensor in ours]
        return torch.cat(heads, dim=1).flatten(0, 2)

    def unpack(self, theirs: Tensor, config: ModelConfig) -> Sequence[Tensor]:
        group = config.attention.heads // config.attention.kv_heads
        heads = theirs.unflatten(0, (config.attention.kv_heads, group + 2, config.attention.head_dim))
        return [part.flatten(0, 2) for part in heads.split([group, 1, 1], dim=1)]


AS_IT_IS, GROUPED_QKV = Layout(), GroupedQKV()


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    ours: tuple[str, ...]
    theirs: str
    layout: Layout = AS_IT_IS


@dataclass(frozen=True)
class Family:
    """A model family of the Hugging Face world."""

    architecture: str  # the class in transformers
    rows: tuple[Row, ...]
    qkv_bias: bool = False
    qk_norm: bool = False
    settings: dict[str, Any] = field(default_factory=dict)  # what `config.json` says beside the sizes
    needed: dict[str, Any] = field(default_factory=dict)
    """Settings with another value for models of another kind: an import refuses any other value."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """What transformers assumes for keys missing in `config.json`, where the families differ."""
    scalings: tuple[str, ...] = ("none", "linear", "llama3", "yarn")  # the kinds of `rope_scaling` that the family has
    wide_heads: bool = True
    """Whether `head_dim` may differ from hidden / heads; where not, readers compute it and ignore the key."""
    scaling_keys: tuple[str, ...] = ("type", "rope_type")
    """Keys of a scaling's kind: older readers look for the first, newer ones for the second."""

    def why_not(self, config: ModelConfig) -> str | None:
        """Why the family cannot hold a model of this shape; None when it can."""
        attention = config.attention
        for ours, theirs, what in (
            (attention.bias, self.qkv_bias, "q, k and v biases"),
            (attention.qk_norm, self.qk_norm, "norms on queries and keys"),
        ):
            if ours != theirs:
                return f"it has no {what}, and this model has" if ours else f"it has {what}, and this model has not"
        if config.rope.scaling.kind not in self.scalings:
            return f"it does not know rotary scaling of the kind {config.rope.scaling.kind}"
        if not self.wide_heads and attention.head_dim * attention.heads != config.hidden:
            sizes = f"{config.hidden:,} / {attention.heads}, and this model's is {attention.head_dim}"
            return f"its head_dim is hidden / heads, {sizes}"
        if config.feed_forward.kind != "dense" or attention.kind != "gqa":
            return f"it has no attention {attention.kind} with a feed-forward {config.feed_forward.kind}"
        return None

    def tensors(self, config: ModelConfig) -> Iterator[tuple[Row, tuple[str, ...], str]]:
        """(row, our names, their name) of every tensor that a model of this shape has, in their order."""
        for row in self.rows:
            if "head.weight" in row.ours and config.tied:
                continue  # written once, as the embedding
            for n in range(config.layers if "{n}" in row.theirs else 1):
                yield row, tuple(name.format(n=n) for name in row.ours), row.theirs.format(n=n)

    def shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """The shape of each of these tensors, by their names."""
        with torch.device("meta"):
            empty = Transformer(config).state_dict()
        return {
            theirs: tuple(row.layout.pack([empty[name] for name in ours], config).shape)
            for row, ours, theirs in self.tensors(config)
        }


def _rows(embed: str, block: dict[str, str], head: str, *more: Row) -> tuple[Row, ...]:
    """A table, from the names in it that the families do not share; `block` has what each layer is made of."""
    return (
        Row(("embed.weight",), f"model.{embed}.weight"),
        *more,
        *(Row((f"blocks.{{n}}.{ours}",), f"model.layers.{{n}}.{theirs}") for ours, theirs in block.items()),
        Row(("norm.weight",), "model.norm.weight"),
        Row(("head.weight",), f"{head}.weight"),
    )


def _llama_rows(qkv_bias: bool = False, qk_norm: bool = False) -> tuple[Row, ...]:
    biases = {f"attention.w{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"} if qkv_bias else {}
    norms = {f"attention.{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"} if qk_norm else {}
    block = {
        "attention_norm.weight": "input_layernorm.weight",
        "attention.wq.weight": "self_attn.q_proj.weight",
        "attention.wk.weight": "self_attn.k_proj.weight",
        "attention.wv.weight": "self_attn.v_proj.weight",
        **biases,
        **norms,
        "attention.wo.weight": "self_attn.o_proj.weight",
        "feed_forward_norm.weight": "post_attention_layernorm.weight",
        "feed_forward.gate.weight": "mlp.gate_proj.weight",
        "feed_forward.up.weight": "mlp.up_proj.weight",
        "feed_forward.down.weight": "mlp.down_proj.weight",
    }
    return _rows("embed_tokens", block, "lm_head")


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
    return _rows("tok_embeddings", block, "output", Row(qkv, "model.layers.{n}.attention.wqkv.weight", GROUPED_QKV))


_QWEN_SETTINGS = {"attention_dropout": 0.0, "sliding_window": None, "use_sliding_window": False}
_QWEN_DEFAULTS = {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

FAMILIES: dict[str, Family] = {
    "internlm2": Family(
        "InternLM2ForCausalLM",
        _internlm2_rows(),
        settings={
            "attn_implementation": "eager",
            "auto_map": {
                "AutoConfig": "configuration_internlm2.InternLM2Config",
                "AutoModel": "modeling_internlm2.InternLM2Model",
                "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
            },
            "bias": False,
            "pretraining_tp": 1,
        },
        needed={"bias": False},
        scalings=("none", "linear"),
        wide_heads=False,
        scaling_keys=("type",),  # the release's own configuration allows `type` and `factor`, and nothing beside them
    ),
    "llama": Family(
        "LlamaForCausalLM",
        _llama_rows(),
        settings={"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1},
        needed={"attention_bias": False, "mlp_bias": False},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        _llama_rows(),
        settings={"attention_dropout": 0.0, "sliding_window": None},
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _llama_rows(qkv_bias=True),
        qkv_bias=True,
        settings=_QWEN_SETTINGS,
        defaults=_QWEN_DEFAULTS,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _llama_rows(qk_norm=True),
        qk_norm=True,
        settings={"attention_bias": False, **_QWEN_SETTINGS},
        needed={"attention_bias": False},
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
    ),
}
"""By `model_type`. Llama 2, 3 and 3.1, Qwen2 and Qwen2.5 differ in sizes and rotary settings only."""


FORMATS = ("auto", *FAMILIES)


def choose_family(name: str, config: ModelConfig) -> str:
    """The family called `name`, or with `auto` the plainest that holds the model.

    Raises UserError where there is no such family, or with the reason when it cannot hold the model.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}; known are {', '.join(FORMATS)}")
    if name == "auto":
        order = ("llama", "qwen2", "qwen3")
        name = next((one for one in order if FAMILIES[one].why_not(config) is None), "llama")
    if (reason := FAMILIES[name].why_not(config)) is not None:
        holds = [one for one in FAMILIES if FAMILIES[one].why_not(config) is None]
        others = f"What can: {', '.join(holds)}." if holds else "No family here can."
        raise UserError(f"{name} cannot hold this model: {reason}. {others}")
    return name
