"""`config.json` to our model's shape and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internevo.config.errors import UserError
from internevo.config.schema import ModelConfig, RopeScalingConfig
from internevo.hf.families import FAMILIES, Family

SIZES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
}
"""Our name and theirs of what every `config.json` must say."""

ROPE_KEYS = {
    "factor": "factor",
    "original_seq_len": "original_max_position_embeddings",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "temperature": "attention_factor",
}
ROPE_KEYS_OF = {
    "linear": ("factor",),
    "llama3": ("factor", "original_seq_len", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_seq_len", "beta_fast", "beta_slow", "temperature"),
}
"""Which of ROPE_KEYS a kind of scaling has."""


@dataclass(frozen=True)
class ModelFacts:
    """What a Hugging Face folder's `config.json` says of its model."""

    family: str
    model: ModelConfig
    seq_len: int
    """`max_position_embeddings`."""
    dtype: str | None
    """What it says that the weights are stored as, such as `bfloat16`."""
    notes: tuple[str, ...]
    """What a person should know: where the folder's model does something that ours does not."""


def read_facts(folder: Path) -> ModelFacts:
    """Read `folder/config.json`. Raises UserError for a family or a setting that this package has no counterpart of."""
    file = folder / "config.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{folder} is no Hugging Face folder: it has no config.json") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    name = found.get("model_type")
    if name not in FAMILIES:
        raise UserError(f"{file}: model_type {name!r} is not known here; known are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for key, wanted in {**family.needed, "hidden_act": "silu"}.items():
        if found.get(key, wanted) != wanted:
            raise UserError(f"{file}: {key} is {found[key]!r}; this package has {name} with {key} {wanted!r} only")
    if missing := [key for key in SIZES.values() if key not in found]:
        raise UserError(f"{file} does not say {', '.join(missing)}")
    notes: list[str] = []
    sizes = {ours: found[theirs] for ours, theirs in SIZES.items()}
    base, scaling = _rope(file, found, family, notes)
    seq_len = found.get("max_position_embeddings") or 4096
    window = found.get("sliding_window") if found.get("use_sliding_window", True) else None
    if window is not None and window < seq_len:
        notes.append(
            f"its attention reaches back {window:,} tokens (sliding_window); ours reaches the whole document, which is "
            f"the same up to rows of {window:,}"
        )
        seq_len = window
    model = ModelConfig(
        **sizes,
        kv_heads=found.get("num_key_value_heads") or sizes["heads"],
        head_dim=found.get("head_dim") or sizes["hidden"] // sizes["heads"],
        norm_eps=found.get("rms_norm_eps", 1e-6),
        rope_base=base,
        rope_scaling=scaling,
        tied=bool(found.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        init_std=found.get("initializer_range", 0.02),
    )
    return ModelFacts(name, model, seq_len, found.get("torch_dtype") or found.get("dtype"), tuple(notes))


def _rope(file: Path, found: dict[str, Any], family: Family, notes: list[str]) -> tuple[float, RopeScalingConfig]:
    """Base and scaling. transformers 5 writes both as `rope_parameters`; before, they were keys of their own."""
    said = dict(found.get("rope_parameters") or found.get("rope_scaling") or {})
    base = float(said.pop("rope_theta", None) or found.get("rope_theta") or 10000.0)
    kind = said.pop("rope_type", None) or said.pop("type", None) or "default"
    said.pop("type", None)
    if kind == "dynamic":
        longest = found.get("max_position_embeddings")
        notes.append(f"its dynamic rope_scaling, which changes rows longer than {longest:,} only, is left out")
    if kind in ("default", "dynamic"):
        return base, RopeScalingConfig()
    if kind not in family.scalings:
        raise UserError(f"{file}: rope_scaling of type {kind!r} is not known here; known are {family.scalings[1:]}")
    if kind == "yarn":
        said.setdefault("original_max_position_embeddings", found.get("max_position_embeddings"))
    values = {ours: said.pop(ROPE_KEYS[ours]) for ours in ROPE_KEYS_OF[kind] if said.get(ROPE_KEYS[ours]) is not None}
    if rest := {key: value for key, value in said.items() if value is not None and key not in ROPE_KEYS.values()}:
        raise UserError(f"{file}: rope_scaling of type {kind!r} says {rest}, which is not known here")
    return base, RopeScalingConfig(kind, **values)


def write_facts(
    family: str, config: ModelConfig, *, seq_len: int, dtype: str, bos_id: int | None, eos_id: int | None
) -> dict[str, Any]:
    """The `config.json` of a model, every field written out. `dtype` is torch's name, such as `bfloat16`."""
    return {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        **FAMILIES[family].settings,
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": seq_len,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": _written_scaling(config.rope_scaling),
        "tie_word_embeddings": config.tied,
        "use_cache": True,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "torch_dtype": dtype,
    }


def _written_scaling(scaling: RopeScalingConfig) -> dict[str, Any] | None:
    if scaling.kind == "none":
        return None
    values = {ROPE_KEYS[ours]: getattr(scaling, ours) for ours in ROPE_KEYS_OF[scaling.kind]}
    # older readers look for `type`, newer ones for `rope_type`
    return {
        "type": scaling.kind,
        "rope_type": scaling.kind,
        **{key: value for key, value in values.items() if value is not None},
    }
