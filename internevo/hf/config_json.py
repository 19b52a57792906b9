"""`config.json` to our model's shape and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from internevo.config.schema import AttentionConfig, FeedForwardConfig, ModelConfig, RopeConfig
from internevo.files.errors import UserError
from internevo.hf.families import FAMILIES, Family
from internevo.hf.rope_json import read_rope, write_scaling
from internevo.hf.values import number, truth, whole

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
"""Keys that every `config.json` must have, beside the row length."""

_UNCHANGING = {
    **dict.fromkeys(("quantization_config", "compression_config", "per_layer_config", "transformers_weights")),
    "is_causal": True,
}
"""Keys that make transformers compute something else or read other files, unless they have these values."""


@dataclass(frozen=True)
class ModelFacts:
    """The model that a Hugging Face folder's `config.json` describes."""

    family: str
    model: ModelConfig
    seq_len: int  # `max_position_embeddings`
    dtype: str | None  # the dtype of the weights by `config.json`, such as `bfloat16`
    notes: tuple[str, ...]  # where the folder's model does something that ours does not


def read_facts(folder: Path) -> ModelFacts:
    """Read `folder/config.json` as transformers does. Raises UserError, with the key, for what is unknown here."""
    file = folder / "config.json"
    said = _read(folder, file)
    name = said.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{file}: model_type {name!r} is not known here; known are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    found = {**family.defaults, **said}
    for key, wanted in {**family.needed, "hidden_act": "silu"}.items():
        if found.get(key, wanted) != wanted:
            raise UserError(f"{file}: {key} is {found[key]!r}; this package has {name} with {key} {wanted!r} only")
    for key, wanted in _UNCHANGING.items():
        if found.get(key, wanted) != wanted:
            raise UserError(f"{file}: {key} is {found[key]!r}, which this package does not know how to compute with")
    if missing := [key for key in (*_SIZES, "max_position_embeddings") if key not in found]:
        raise UserError(f"{file} does not say {', '.join(missing)}")
    hidden, layers, heads, width, vocab = (whole(file, key, found[key]) for key in _SIZES)
    seq_len = whole(file, "max_position_embeddings", found["max_position_embeddings"])
    kv_heads = found.get("num_key_value_heads")
    head_dim = found.get("head_dim")
    base, scaling, left_out = read_rope(file, found, family.scalings)
    model = ModelConfig(
        hidden=hidden,
        layers=layers,
        vocab=vocab,
        attention=AttentionConfig(
            heads=heads,
            kv_heads=heads if kv_heads is None else whole(file, "num_key_value_heads", kv_heads),
            head_dim=hidden // heads if head_dim is None else whole(file, "head_dim", head_dim),
            bias=family.qkv_bias,
            qk_norm=family.qk_norm,
        ),
        feed_forward=FeedForwardConfig(width=width),
        rope=RopeConfig(base, scaling),
        norm_eps=number(file, "rms_norm_eps", found.get("rms_norm_eps", 1e-6), least=0),
        tied=truth(file, "tie_word_embeddings", found.get("tie_word_embeddings", False)),
        init_std=number(file, "initializer_range", found.get("initializer_range", 0.02), least=0),
    )
    if heads % model.attention.kv_heads:
        raise UserError(f"{file}: {model.attention.kv_heads} num_key_value_heads cannot serve {heads} heads evenly")
    if model.attention.head_dim % 2:
        raise UserError(f"{file}: head_dim is {model.attention.head_dim}; rotary positions need an even one")
    notes = [left_out] if left_out else []
    window = _window(file, found, family, model.layers)
    if window is not None and window < seq_len:
        notes.append(
            f"its attention reaches back {window:,} tokens (sliding_window); ours reaches the whole document, which is "
            f"the same up to rows of {window:,}"
        )
        seq_len = window
    if code := _foreign_code(folder, said):
        notes.append(f"its own code ({code}) was not run; this package computes what it knows as {name}")
    dtype = found.get("torch_dtype") or found.get("dtype")
    return ModelFacts(name, model, seq_len=seq_len, dtype=dtype, notes=tuple(notes))


def _read(folder: Path, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except OSError:
        raise UserError(f"{folder} is no Hugging Face folder: it has no config.json") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds {type(found).__name__}, not the settings of a model")
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} holds an adapter (adapter_config.json), which transformers would add to the weights. Merge it "
            "into them first, with peft's merge_and_unload."
        )
    return found


def _window(file: Path, found: dict[str, Any], family: Family, layers: int) -> int | None:
    """How many tokens back the layers with a sliding window reach; None when there are none."""
    if "sliding_window" not in family.settings:
        return None  # the key means nothing there
    wanted = "use_sliding_window" not in family.settings or found["use_sliding_window"]
    window = whole(file, "sliding_window", found["sliding_window"]) if wanted and found["sliding_window"] else None
    if "use_sliding_window" not in family.settings:
        return window
    kinds = found.get("layer_types")
    if kinds is None:
        return window if window is not None and found["max_window_layers"] < layers else None
    known = isinstance(kinds, list) and all(kind in ("full_attention", "sliding_attention") for kind in kinds)
    if not known or len(kinds) != layers:
        wanted_kinds = f"full_attention or sliding_attention {layers} times"
        raise UserError(f"{file}: layer_types is {kinds!r}; it must say {wanted_kinds}")
    if "sliding_attention" not in kinds:
        return None
    if window is None:
        raise UserError(f"{file}: layer_types says sliding_attention, but there is no sliding_window in use")
    return window


def _foreign_code(folder: Path, said: dict[str, Any]) -> str:
    """Python files that the folder's config.json wants to run, except those of our own exports."""
    named = said.get("auto_map")
    values = [one for one in named.values() if isinstance(one, str)] if isinstance(named, dict) else []
    modules = sorted({one.rpartition("--")[2].partition(".")[0] for one in values})

    def is_ours(name: str) -> bool:
        ours, theirs = files("internevo.hf.internlm2").joinpath(name), folder / name
        return ours.is_file() and theirs.is_file() and ours.read_bytes() == theirs.read_bytes()

    return ", ".join(name for module in modules if not is_ours(name := f"{module}.py"))


def write_facts(
    family: str, config: ModelConfig, *, seq_len: int, dtype: str, bos_id: int | None, eos_id: int | None
) -> dict[str, Any]:
    """The `config.json` of a model, every field written out. `dtype` is torch's name, such as `bfloat16`."""
    return {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        **FAMILIES[family].settings,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.attention.heads,
        "intermediate_size": config.feed_forward.width,
        "vocab_size": config.vocab,
        "num_key_value_heads": config.attention.kv_heads,
        "head_dim": config.attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": seq_len,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.base,
        "rope_scaling": write_scaling(config.rope.scaling, FAMILIES[family].scaling_keys),
        "tie_word_embeddings": config.tied,
        "use_cache": True,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "torch_dtype": dtype,
    }
