"""Every family, from transformers and back: the same logits, the same bytes, and layouts re-derived on their own."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from internevo.files.errors import UserError
from internevo.hf.compare import Mismatch, compare
from internevo.hf.export import export
from internevo.hf.families import FAMILIES
from internevo.hf.imports import import_model
from internevo.hf.weights import FolderWeights, load_model
from internevo.train.stored_model import StoredModel, open_model
from tests.hf.models import LLAMA3_ROPE, MODELS, SIZES, TOKENS, our_logits, save_theirs, their_model

names = pytest.mark.parametrize("name", MODELS)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_bytes(first: Path, second: Path) -> None:
    """The same names, dtypes, shapes and bytes."""
    before, after = tensors(first), tensors(second)
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape), name
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name


def export_again(stored: StoredModel, folder: Path) -> None:
    """Export as the family that it came from, weights as they are stored."""
    assert stored.family is not None
    export(stored.weights, stored.config, folder, stored.family, seq_len=stored.seq_len, tokenizer=None)


@names
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """transformers saves, we import: its logits. We export: its bytes. transformers loads that: its logits again."""
    theirs = save_theirs(name, tmp_path / "saved")
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    report = import_model(tmp_path / "saved", tmp_path / "imported")
    assert report.compared.difference < 1e-5
    stored = open_model(tmp_path / "imported")
    assert (our_logits(stored.load(), TOKENS) - expected).abs().max() < 1e-5
    export_again(stored, tmp_path / "exported")
    same_bytes(tmp_path / "saved", tmp_path / "exported")
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", output_loading_info=True, trust_remote_code=name == "internlm2"
    )
    assert type(again).__name__ == type(theirs).__name__
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    with torch.no_grad():
        assert (again(TOKENS).logits - expected).abs().max() < 1e-5


@names
def test_bf16_stays_bf16(name: str, tmp_path: Path) -> None:
    save_theirs(name, tmp_path / "saved", torch.bfloat16)
    import_model(tmp_path / "saved", tmp_path / "imported")
    export_again(open_model(tmp_path / "imported"), tmp_path / "exported")
    assert {tensor.dtype for tensor in tensors(tmp_path / "exported").values()} == {torch.bfloat16}
    same_bytes(tmp_path / "saved", tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_mixed_dtypes_stay(tmp_path: Path) -> None:
    model = save_theirs("llama 3", tmp_path / "saved", torch.bfloat16)
    mixed = {n: t.float() if "norm" in n else t for n, t in model.state_dict().items()}
    save_file({n: t.contiguous() for n, t in mixed.items()}, tmp_path / "saved" / "model.safetensors", {"format": "pt"})
    import_model(tmp_path / "saved", tmp_path / "imported")
    export_again(open_model(tmp_path / "imported"), tmp_path / "exported")
    same_bytes(tmp_path / "saved", tmp_path / "exported")


def by_hand(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A family's tensors under our names, written out again without the tables: what the layouts are by definition."""
    internlm2 = name == "internlm2"
    embed, head = ("model.tok_embeddings", "output") if internlm2 else ("model.embed_tokens", "lm_head")
    ours = {"embed.weight": state[f"{embed}.weight"], "norm.weight": state["model.norm.weight"]}
    ours["head.weight"] = state.get(f"{head}.weight", ours["embed.weight"])
    for n in range(SIZES["num_hidden_layers"]):
        there, here = f"model.layers.{n}", f"blocks.{n}"
        if internlm2:
            group = SIZES["num_attention_heads"] // SIZES["num_key_value_heads"]
            dim = SIZES["hidden_size"] // SIZES["num_attention_heads"]
            parts: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
            rows = state[f"{there}.attention.wqkv.weight"].split(dim)  # one head each
            for number, row in enumerate(rows):
                place = number % (group + 2)
                parts["q" if place < group else "kv"[place - group]].append(row)
            for x, heads in parts.items():
                ours[f"{here}.attention.w{x}.weight"] = torch.cat(heads)
            names = {
                "attention.wo": "attention.wo",
                "feed_forward.w1": "feed_forward.gate",
                "feed_forward.w3": "feed_forward.up",
                "feed_forward.w2": "feed_forward.down",
                "attention_norm": "attention_norm",
                "ffn_norm": "feed_forward_norm",
            }
        else:
            names = {
                **{f"self_attn.{x}_proj": f"attention.w{x}" for x in "qkvo"},
                **{f"self_attn.{x}_norm": f"attention.{x}_norm" for x in "qk"},
                **{f"mlp.{x}_proj": f"feed_forward.{x}" for x in ("gate", "up", "down")},
                "input_layernorm": "attention_norm",
                "post_attention_layernorm": "feed_forward_norm",
            }
        for theirs, mine in names.items():
            for kind in ("weight", "bias"):
                if (tensor := state.get(f"{there}.{theirs}.{kind}")) is not None:
                    ours[f"{here}.{mine}.{kind}"] = tensor
    return ours


@names
def test_layouts_by_definition(name: str, tmp_path: Path) -> None:
    state = save_theirs(name, tmp_path / "saved").state_dict()
    expected = by_hand(name, state)
    model = load_model(FolderWeights(tmp_path / "saved"), FolderWeights(tmp_path / "saved").config)
    assert set(expected) == set(model.state_dict())
    for ours, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[ours]), ours


@pytest.mark.parametrize("name", ["internlm2", pytest.param("qwen3", marks=pytest.mark.heavy)])
def test_several_files_and_several_processes(name: str, tmp_path: Path) -> None:
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    assert (tmp_path / "saved" / "model.safetensors.index.json").exists()
    import_model(tmp_path / "saved", tmp_path / "imported", workers=2)
    stored = open_model(tmp_path / "imported")
    report = export(
        stored.weights,
        stored.config,
        tmp_path / "exported",
        name,
        seq_len=stored.seq_len,
        tokenizer=None,
        max_shard_bytes=200_000,
        workers=2,
    )
    assert report.files > 3
    same_bytes(tmp_path / "saved", tmp_path / "exported")


def test_pickled_weights_are_read(tmp_path: Path) -> None:
    theirs = save_theirs("llama 2", tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").unlink()
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}  # what old checkpoints hold
    torch.save({**theirs.state_dict(), **old}, tmp_path / "saved" / "pytorch_model.bin")
    model = open_model(tmp_path / "saved").load()
    with torch.no_grad():
        assert (our_logits(model, TOKENS) - theirs(TOKENS).logits).abs().max() < 1e-5


def change(folder: Path, **values: object) -> None:
    """Put something else into config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not known here; known are internlm2, llama"),
        ({"attention_bias": True}, "attention_bias is True; this package has llama with attention_bias False only"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_scaling of type 'longrope' is not known here"),
        ({"num_hidden_layers": 2}, r"has, unknown here, model.layers.2.input_layernorm.weight.* and 4 more"),
        ({"num_hidden_layers": 4}, r"lacks model.layers.3"),
        ({"intermediate_size": 128}, r"mlp.gate_proj.weight has shape \[160, 64\]; config.json's sizes make"),
        ({"num_key_value_heads": 4}, r"self_attn.k_proj.weight has shape \[32, 64\]"),
    ],
)
def test_what_is_not_known_is_refused(values: dict, message: str, tmp_path: Path) -> None:
    save_theirs("llama 3", tmp_path / "saved")
    change(tmp_path / "saved", **values)
    with pytest.raises(UserError, match=message):
        import_model(tmp_path / "saved", tmp_path / "imported")
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "imported.partial").exists()


def test_a_sliding_window_is_told(tmp_path: Path) -> None:
    save_theirs("mistral", tmp_path / "saved", sliding_window=64)
    report = import_model(tmp_path / "saved", tmp_path / "imported")
    assert "reaches back 64 tokens" in report.facts.notes[0]
    assert open_model(tmp_path / "imported").seq_len == 64


def test_old_and_new_configurations_are_read_alike(tmp_path: Path) -> None:
    """transformers 5 writes rope_parameters; before, rope_theta and rope_scaling stood alone."""
    save_theirs("llama 3.1", tmp_path / "saved")
    new = FolderWeights(tmp_path / "saved").config
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    change(tmp_path / "saved", rope_parameters=None, rope_theta=500000.0, rope_scaling=scaling)
    assert FolderWeights(tmp_path / "saved").config == new
    assert (new.rope.base, new.rope.scaling.kind, new.rope.scaling.original_seq_len) == (5e5, "llama3", 64)


@pytest.mark.parametrize("layer", [0, 2])
def test_the_first_wrong_layer_is_named(layer: int, tmp_path: Path) -> None:
    """Key and value of one layer change places: no check of names or shapes sees it."""
    save_theirs("llama 3", tmp_path / "saved")
    weights = FolderWeights(tmp_path / "saved")

    class Swapped(FolderWeights):
        def read(self, name: str, *rest, **named):
            if name.startswith(f"blocks.{layer}.attention"):
                name = name.replace("wk", "wx").replace("wv", "wk").replace("wx", "wv")
            return super().read(name, *rest, **named)

    assert compare(weights, weights.config, tmp_path / "saved", TOKENS[:1]).difference < 1e-5
    with pytest.raises(Mismatch, match=rf"the first part to differ is layer {layer} \(by "):
        compare(Swapped(tmp_path / "saved"), weights.config, tmp_path / "saved", TOKENS[:1])


def test_fp16_overflows_are_counted(tmp_path: Path) -> None:
    save_theirs("llama 3", tmp_path / "saved", torch.bfloat16)
    state = tensors(tmp_path / "saved")
    state["model.embed_tokens.weight"][7, :3] = 7e4
    save_file(state, tmp_path / "saved" / "model.safetensors", {"format": "pt"})
    stored = open_model(tmp_path / "saved")
    tokens_without_it = stored.seq_len
    report = export(
        stored.weights,
        stored.config,
        tmp_path / "exported",
        "llama",
        seq_len=tokens_without_it,
        tokenizer=None,
        dtype=torch.float16,
    )
    assert report.overflowed == 3
    assert {tensor.dtype for tensor in tensors(tmp_path / "exported").values()} == {torch.float16}


def test_everything_in_config_json_is_read_by_transformers(tmp_path: Path) -> None:
    """No field that an export writes means something else to transformers, or is left to its defaults."""
    for name in MODELS:
        folder = tmp_path / name.replace(" ", "")
        save_theirs(name, folder / "saved")
        stored = open_model(folder / "saved")
        export_again(stored, folder / "exported")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            before, after = (
                AutoConfig.from_pretrained(folder / one, trust_remote_code=True).to_dict()
                if name != "internlm2"
                else json.loads((folder / one / "config.json").read_text())
                for one in ("saved", "exported")
            )
        written = json.loads((folder / "exported" / "config.json").read_text())
        for key in ("vocab_size", "hidden_size", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"):
            assert key in written
            assert before[key] == after[key], (name, key)
        if name != "internlm2":
            rope = {k: v for k, v in after["rope_parameters"].items() if k != "type"}
            expected = before["rope_parameters"]
            assert {k: v for k, v in rope.items() if k in expected} == expected, name
        assert written["architectures"] == [FAMILIES[written["model_type"]].architecture]
