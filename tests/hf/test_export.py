"""Exports: what `transformers`, or an independent reading of the files, computes from them is what we compute."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from internevo.files.errors import UserError
from internevo.hf import config_json, families
from internevo.hf.export import ExportError, export
from internevo.hf.families import GroupedQKV
from internevo.hf.weights import FolderWeights, load_model
from internevo.model.transformer import Transformer
from internevo.tokens.tokenizer import load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from tests.hf.models import TOKENS, ModelWeights, our_logits, our_model

SHAPES = {
    "grouped": {"attention": {"kv_heads": 2}},
    "multi-head": {"attention": {"kv_heads": 4}},
    "one kv head": {"attention": {"kv_heads": 1}},
    "tied": {"tied": True},
    "wide heads": {"attention": {"head_dim": 32}},
    "rotary base": {"rope": {"base": 1e6}},
}


def write(model: Transformer, folder: Path, format: str, **options):
    return export(ModelWeights(model), model.config, folder, format, seq_len=64, tokenizer=None, **options)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_llama_loads_in_transformers_with_our_logits(tmp_path: Path, changes: dict) -> None:
    model = our_model(**changes)
    write(model, tmp_path / "out", "llama")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        theirs = loaded(TOKENS).logits
    assert (our_logits(model, TOKENS) - theirs).abs().max() < 1e-4


def test_biases_go_out_as_qwen2(tmp_path: Path) -> None:
    model = our_model(attention={"bias": True})
    assert write(model, tmp_path / "out", "auto").family == "qwen2"
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded).__name__ == "Qwen2ForCausalLM"
    assert not info["missing_keys"]
    with torch.no_grad():
        assert (our_logits(model, TOKENS) - loaded(TOKENS).logits).abs().max() < 1e-4
    with pytest.raises(UserError, match=r"internlm2 cannot hold this model: it has no q, k and v biases.* can: qwen2"):
        write(model, tmp_path / "other", "internlm2")


def test_a_family_that_lacks_or_wants_more_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="qwen3 cannot hold this model: it has norms on queries and keys, and this"):
        write(our_model(), tmp_path / "out", "qwen3")
    both = our_model(attention={"qk_norm": True, "bias": True})
    with pytest.raises(UserError, match="No family here can"):
        write(both, tmp_path / "out", "auto")
    assert write(our_model(attention={"qk_norm": True}), tmp_path / "out", "auto").family == "qwen3"


def llama_from_internlm2(folder: Path) -> LlamaForCausalLM:
    """Reads the InternLM2 layout on its own: no code of the exporter."""
    facts = json.loads((folder / "config.json").read_text())
    heads, kv_heads = facts["num_attention_heads"], facts["num_key_value_heads"]
    hidden, dim = facts["hidden_size"], facts["head_dim"]
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=facts["vocab_size"],
            hidden_size=hidden,
            head_dim=dim,
            intermediate_size=facts["intermediate_size"],
            num_hidden_layers=facts["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=facts["rms_norm_eps"],
            rope_theta=facts["rope_theta"],
            tie_word_embeddings=facts["tie_word_embeddings"],
        )
    )
    theirs = load_file(folder / "model.safetensors")
    state = {"model.embed_tokens.weight": theirs["model.tok_embeddings.weight"]}
    state["model.norm.weight"] = theirs["model.norm.weight"]
    state["lm_head.weight"] = theirs.get("output.weight", theirs["model.tok_embeddings.weight"])
    for n in range(facts["num_hidden_layers"]):
        old, new = f"model.layers.{n}.", f"model.layers.{n}."
        wqkv = theirs[old + "attention.wqkv.weight"]
        q, k, v = [], [], []
        row = 0
        for _ in range(kv_heads):
            for part, count in ((q, heads // kv_heads), (k, 1), (v, 1)):
                part.append(wqkv[row : row + count * dim])
                row += count * dim
        assert row == len(wqkv)
        for name, parts in (("q", q), ("k", k), ("v", v)):
            state[f"{new}self_attn.{name}_proj.weight"] = torch.cat(parts)
        for ours, name in (
            ("self_attn.o_proj", "attention.wo"),
            ("mlp.gate_proj", "feed_forward.w1"),
            ("mlp.up_proj", "feed_forward.w3"),
            ("mlp.down_proj", "feed_forward.w2"),
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            state[f"{new}{ours}.weight"] = theirs[f"{old}{name}.weight"]
    llama.load_state_dict(state)
    return llama


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"wide heads"}))
def test_internlm2_read_independently(tmp_path: Path, name: str) -> None:
    model = our_model(**SHAPES[name])
    write(model, tmp_path / "out", "internlm2")
    with torch.no_grad():
        theirs = llama_from_internlm2(tmp_path / "out")(TOKENS).logits
    assert (our_logits(model, TOKENS) - theirs).abs().max() < 1e-4
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    assert facts["architectures"] == ["InternLM2ForCausalLM"]
    assert facts["model_type"] == "internlm2"


@pytest.mark.parametrize("format", ["llama", "internlm2"])
def test_shards(tmp_path: Path, format: str) -> None:
    model = our_model()
    report = write(model, tmp_path / "out", format, max_shard_bytes=100_000)
    assert report.files > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        tensors = load_file(file)
        assert sum(t.nbytes for t in tensors.values()) <= 140_000  # the embedding alone is 131,072
        held |= dict.fromkeys(tensors, file.name)
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == sum(p.numel() for p in model.parameters()) * 4
    written = FolderWeights(tmp_path / "out")
    restored = load_model(written, written.config)
    for name, parameter in model.state_dict().items():
        assert torch.equal(restored.state_dict()[name], parameter), name


def test_bf16_is_stored_as_bf16(tmp_path: Path) -> None:
    model = our_model()
    write(model, tmp_path / "out", "llama", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


class Swapped(GroupedQKV):
    """A wrong layout that passes every check of names and shapes: the heads' key and value change places."""

    def pack(self, ours, config):
        q, k, v = ours
        return super().pack((q, v, k), config)


def test_a_wrong_layout_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = families.FAMILIES["internlm2"]
    rows = tuple(replace(row, layout=Swapped()) if "wqkv" in row.theirs else row for row in family.rows)
    monkeypatch.setitem(families.FAMILIES, "internlm2", replace(family, rows=rows))
    with pytest.raises(ExportError, match="the first part to differ is layer 0"):
        write(our_model(), tmp_path / "out", "internlm2")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.failed").is_dir()


def test_a_wrong_rotary_base_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = config_json.write_facts
    monkeypatch.setattr("internevo.hf.export.write_facts", lambda *a, **k: {**true(*a, **k), "rope_theta": 500.0})
    with pytest.raises(ExportError, match="logits differ"):
        write(our_model(), tmp_path / "out", "llama")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not overwritten"):
        write(our_model(), tmp_path / "out", "llama")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_what_a_killed_export_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "model.safetensors").write_bytes(b"half")
    write(our_model(), tmp_path / "out", "llama")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_tokenizer_and_generation_config_go_along(tmp_path: Path) -> None:
    text = Path(__file__).read_text(encoding="utf-8") + Path(families.__file__).read_text(encoding="utf-8")
    tokenizer = load_tokenizer(train_tokenizer([text], tmp_path / "t.model", 512))
    model = our_model()
    report = export(ModelWeights(model), model.config, tmp_path / "out", "llama", seq_len=64, tokenizer=tokenizer)
    assert report.compared.tokens == 64
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.generation_config.eos_token_id == 2
