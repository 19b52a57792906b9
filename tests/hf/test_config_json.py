"""`config.json`, read as transformers reads it: the same rotary angles and sizes, or a refusal that names the key."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from internevo.files.errors import UserError
from internevo.files.quiet import quiet_transformers
from internevo.hf.config_json import read_facts
from internevo.hf.families import FAMILIES
from internevo.model.rope import rotary_tables
from tests.hf.models import SIZES

FAMILY_NAMES = ("llama", "mistral", "qwen2", "qwen3")
POSITIONS = torch.tensor([[0, 1, 7, 100, 255]])


def write(folder: Path, family: str, **changes: Any) -> Path:
    """A folder with nothing but the config.json of a small model; a change to `...` removes the key."""
    said = {"model_type": family, "hidden_act": "silu", **SIZES, "head_dim": 16, **changes}
    folder.mkdir(exist_ok=True)
    kept = {key: value for key, value in said.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def their_angles(folder: Path, family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `[1, positions, head_dim / 2]` of transformers' own rotary embedding for the folder."""
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder)
        module = getattr(transformers.models, family)
        rotary = getattr(getattr(module, f"modeling_{family}"), f"{family.title()}RotaryEmbedding")(config)
        cos, sin = rotary(torch.zeros(1), POSITIONS)
    half = cos.shape[-1] // 2
    return cos[..., :half], sin[..., :half]


def random_rope(rng: random.Random) -> dict[str, Any]:
    """Keys about rotary positions as people write them, and as they should not."""

    good: dict[str, list[Any]] = {
        "factor": [1.0, 2, 4.0, 8.0],
        "original_max_position_embeddings": [16, 64, 128],
        "low_freq_factor": [1.0, 2, 0.5],
        "high_freq_factor": [4.0, 8],
        "attention_factor": [0.7, 1.2, None],
        "beta_fast": [32, 16.0, 0, None],
        "beta_slow": [1, 2.0, None],
        "rope_theta": [500.0, 1e4, 1e6, 2.0],
        "partial_rotary_factor": [1.0],
        "truncate": [True],
    }
    bad: dict[str, list[Any]] = {
        "factor": [0.5, None, "4"],
        "original_max_position_embeddings": [64.5, None],
        "low_freq_factor": [None, 4.0],
        "high_freq_factor": [1.0],
        "beta_fast": [0.5],
        "rope_theta": ["10000", None],
        "partial_rotary_factor": [0.5],
        "truncate": [False],
        "mscale": [1.0],
        "mscale_all_dim": [0.5],
    }

    def scaling() -> dict[str, Any]:
        said = {key: rng.choice(values) for key, values in good.items() if rng.random() < 0.8}
        if rng.random() < 0.2:
            key = rng.choice(list(bad))
            said[key] = rng.choice(bad[key])
        if rng.random() < 0.95:
            kinds = [
                "default",
                "linear",
                "linear",
                "llama3",
                "llama3",
                "llama3",
                "yarn",
                "yarn",
                "dynamic",
                "longrope",
                None,
            ]
            said[rng.choice(["rope_type", "rope_type", "type"])] = rng.choice(kinds)
        return said

    said: dict[str, Any] = {}
    if rng.random() < 0.6:
        said["rope_parameters"] = scaling()
    if rng.random() < 0.5:
        said["rope_scaling"] = rng.choice([scaling(), None])
    if rng.random() < 0.1 and said.get("rope_parameters"):
        said["rope_scaling"] = said["rope_parameters"]
    if rng.random() < 0.4:
        said["rope_theta"] = rng.choice([500.0, 1e4, 1e6, 1e7, 0.5])
    if rng.random() < 0.1:
        said["original_max_position_embeddings"] = rng.choice([64, 128])
    if rng.random() < 0.05:
        said["partial_rotary_factor"] = rng.choice([1.0, 0.5])
    return said


def test_random_rotary_settings_are_read_alike_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    for number in range(500):
        family = rng.choice(FAMILY_NAMES)
        said = random_rope(rng)
        folder = write(tmp_path / family, family, head_dim=rng.choice([16, 32, 128]), **said)
        try:
            facts = read_facts(folder)
        except UserError as refusal:
            seen["refused"] += str(folder / "config.json") in str(refusal)
            continue
        cos, sin = (table[:, :, 0] for table in rotary_tables(POSITIONS, facts.model))
        theirs = their_angles(folder, family)  # what transformers refuses, we must
        assert torch.allclose(cos, theirs[0], atol=2e-4), (number, family, said)
        assert torch.allclose(sin, theirs[1], atol=2e-4), (number, family, said)
        seen[facts.model.rope.scaling.kind] += 1
    assert all(seen[kind] > 20 for kind in ("none", "linear", "llama3", "yarn", "refused")), seen
    assert seen.total() - seen["refused"] > 200, seen


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    "said",
    [
        {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "original_max_position_embeddings": 64},
        {"rope_scaling": {"type": "linear", "factor": 4}, "rope_parameters": {"type": "linear", "factor": 4}},
        {"rope_parameters": {**YARN, "beta_fast": None, "beta_slow": 0, "truncate": True}},
        {"rope_parameters": {**YARN, "original_max_position_embeddings": 8, "rope_theta": 2.0}},
    ],
)
def test_settings_that_are_easily_read_otherwise(said: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "llama", **said)
    cos, sin = (table[:, :, 0] for table in rotary_tables(POSITIONS, read_facts(folder).model))
    theirs = their_angles(folder, "llama")
    assert torch.allclose(cos, theirs[0], atol=2e-4)
    assert torch.allclose(sin, theirs[1], atol=2e-4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            },
            "rope_scaling and rope_parameters say different things",
        ),
        ({"rope_scaling": {"factor": 4.0}}, "but no rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor must be a number, found None"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor must be at least 1, found 0.5"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, "high_freq_factor must be above low_freq_factor"),
        ({"rope_scaling": {**YARN, "beta_fast": 0.5}}, "beta_fast must not be below beta_slow"),
        ({"rope_scaling": {**YARN, "mscale": 1.0}}, "mscale.* is not known here"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "truncate.* is not known here"),
        (
            {"rope_scaling": {**YARN, "original_max_position_embeddings": 64}, "original_max_position_embeddings": 32},
            "original_max_position_embeddings is 32, and in rope_scaling 64",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one setting for all layers only"),
        ({"rope_theta": "10000"}, "rope_theta must be a number, found '10000'"),
        ({"rope_theta": None}, "rope_theta must be a number, found None"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be a whole number from 1 on, found '3'"),
        ({"num_key_value_heads": 3}, "3 num_key_value_heads cannot serve 4 heads"),
        ({"head_dim": 15}, "head_dim is 15; rotary positions need an even one"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"max_position_embeddings": ...}, "does not say max_position_embeddings"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config is"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights is"),
        ({"is_causal": False}, "is_causal is False"),
    ],
)
def test_what_would_be_read_in_two_ways_is_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "llama", **said)
    with pytest.raises(UserError, match=message):
        read_facts(folder)


def test_a_config_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="holds list, not the settings of a model"):
        read_facts(tmp_path)


def test_a_folder_with_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "llama")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        read_facts(folder)


WINDOWS: list[tuple[str, dict[str, Any], int | None]] = [
    ("mistral", {"sliding_window": 64}, 64),
    ("mistral", {"sliding_window": ..., "max_position_embeddings": 8192}, 4096),
    ("mistral", {"sliding_window": None}, None),
    ("llama", {"sliding_window": 64}, None),
    ("qwen2", {"sliding_window": 64}, None),
    ("qwen2", {"sliding_window": 64, "use_sliding_window": True}, None),
    ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2}, 64),
    ("qwen3", {"sliding_window": 64, "use_sliding_window": True, "layer_types": ["full_attention"] * 3}, None),
    (
        "qwen3",
        {
            "sliding_window": 64,
            "use_sliding_window": True,
            "layer_types": ["full_attention"] * 2 + ["sliding_attention"],
        },
        64,
    ),
]


@pytest.mark.parametrize(("family", "said", "window"), WINDOWS)
def test_a_window_is_one_where_transformers_has_one(
    family: str, said: dict[str, Any], window: int | None, tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", family, **said)
    facts = read_facts(folder)
    length = said.get("max_position_embeddings", SIZES["max_position_embeddings"])
    assert facts.seq_len == (window or length)
    assert [f"reaches back {window:,} tokens" in note for note in facts.notes] == [True] * (window is not None)
    config = AutoConfig.from_pretrained(folder)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * (family != "llama")
    theirs = config.sliding_window if "sliding_attention" in kinds else None
    assert theirs == window


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_what_a_silent_config_json_means(family: str, tmp_path: Path) -> None:
    """Keys that are absent have transformers' defaults, which are not those of another family."""
    sizes = {"num_attention_heads": 64, "hidden_size": 64 * 32, "num_key_value_heads": ..., "rms_norm_eps": ...}
    facts = read_facts(write(tmp_path / "model", family, head_dim=..., **sizes))
    config = AutoConfig.from_pretrained(tmp_path / "model")
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ours = (facts.model.attention.kv_heads, facts.model.attention.head_dim, facts.model.norm_eps, facts.model.tied)
    assert ours == (config.num_key_value_heads, dim, config.rms_norm_eps, config.tie_word_embeddings)


READ = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "rope_parameters", "hidden_act"),
    *("sliding_window", "layer_types", "attention_bias", "mlp_bias", "is_causal"),
}
WITHOUT_EFFECT = {
    *("pad_token_id", "attention_dropout", "_attn_implementation", "use_cache", "output_attentions", "pretraining_tp"),
    "attention_chunk_size",  # for a kind of layer that is refused
}


def test_no_key_that_transformers_computes_with_is_overlooked() -> None:
    """Whatever the families' code takes from its configuration is read here, refused, or known to change nothing."""
    root = Path(transformers.__file__).parent
    files = [root / "masking_utils.py", *(root / f"models/{one}/modeling_{one}.py" for one in FAMILY_NAMES)]
    used: set[str] = set()
    for file in files:
        text = file.read_text(encoding="utf-8")
        used |= set(re.findall(r"\bconfig\.([a-z_]+)", text))
        used |= set(re.findall(r"getattr\((?:self\.)?config, \"([a-z_]+)\"", text))
    methods = {"get_text_config", "layer_types"}
    assert used - READ - WITHOUT_EFFECT - methods == set()


def test_foreign_code_is_told_and_our_own_is_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "internlm2", auto_map=FAMILIES["internlm2"].settings["auto_map"])
    assert "its own code (configuration_internlm2.py, modeling_internlm2.py) was not run" in read_facts(folder).notes[0]
    ours = Path(read_facts.__code__.co_filename).parent / "internlm2"
    for name in ("configuration_internlm2.py", "modeling_internlm2.py"):
        (folder / name).write_bytes((ours / name).read_bytes())
    assert read_facts(folder).notes == ()


def test_a_nan_in_json_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rms_norm_eps must be a number, found nan"):
        read_facts(write(tmp_path / "model", "llama", rms_norm_eps=math.nan))
