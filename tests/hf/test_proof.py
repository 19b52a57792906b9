"""What a conversion's proof, and the use of a folder without one, must find: tensors and numbers that nobody reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from internevo.files.errors import UserError
from internevo.hf import compare as proof
from internevo.hf.compare import Mismatch, compare
from internevo.hf.export import export
from internevo.hf.imports import import_model
from internevo.hf.weights import FolderWeights
from internevo.train.stored_model import open_model
from tests.hf.models import TOKENS, our_logits, save_theirs

HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of a folder of one file; None takes one out."""
    file = folder / "model.safetensors"
    state = {**load_file(file), **changes}
    save_file({name: one.contiguous() for name, one in state.items() if one is not None}, file, {"format": "pt"})


def set_key(folder: Path, **values: object) -> None:
    """Put something else into config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A folder whose config.json says that the head is the embedding."""
    save_theirs("llama 3.2", tmp_path / "tied")
    return tmp_path / "tied"


def test_a_tied_flag_beside_another_head_is_refused_everywhere(tied: Path, tmp_path: Path) -> None:
    """transformers 5 computes with the stored head: logits would be off by several units."""
    before = open_model(tied).load()
    rewrite(tied, **{HEAD: torch.randn(512, 64)})
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tied)(TOKENS).logits
    assert (our_logits(before, TOKENS) - theirs).abs().max() > 1
    for use in (lambda: import_model(tied, tmp_path / "imported"), lambda: open_model(tied)):
        with pytest.raises(
            UserError, match=r"config\.json says tie_word_embeddings, but lm_head\.weight is not model\.emb"
        ):
            use()
    assert not (tmp_path / "imported").exists()
    set_key(tied, tie_word_embeddings=False)  # as the message says
    import_model(tied, tmp_path / "imported")
    assert (our_logits(open_model(tied).load(), TOKENS) - theirs).abs().max() < 1e-4  # of logits up to 30


def test_a_tied_head_that_is_stored_as_well_is_no_harm(tied: Path, tmp_path: Path) -> None:
    rewrite(tied, **{HEAD: load_file(tied / "model.safetensors")[EMBED].clone()})
    assert import_model(tied, tmp_path / "imported").compared.difference < 1e-5


@pytest.mark.parametrize("limit", [1 << 40, 0], ids=["whole", "streamed"])
def test_the_proof_itself_sees_the_other_head(
    limit: int, tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check that comes before it: transformers' side asks no reader of ours."""
    monkeypatch.setattr(proof, "WHOLE_BYTES", limit)
    weights = FolderWeights(tied)
    assert compare(weights, weights.config, tied, TOKENS[:1]).streamed == (limit == 0)
    rewrite(tied, **{HEAD: torch.randn(512, 64)})
    with pytest.raises(Mismatch, match="the first part to differ is the output head"):
        compare(weights, weights.config, tied, TOKENS[:1])


@pytest.mark.parametrize("limit", [1 << 40, 0], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "more",
    ["model.layers.1.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight", "model.layers.0.lora_A.weight"],
)
def test_a_tensor_that_transformers_does_not_use_is_a_mismatch(
    more: str, limit: int, tied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "WHOLE_BYTES", limit)
    weights = FolderWeights(tied)
    rewrite(tied, **{more: torch.ones(64)})
    with pytest.raises(Mismatch, match=f"transformers does not use {more}"):
        compare(weights, weights.config, tied, TOKENS[:1])
    with pytest.raises(UserError, match=f"has, unknown here, {more}"):
        FolderWeights(tied)


@pytest.mark.parametrize("limit", [1 << 40, 0], ids=["whole", "streamed"])
def test_a_tensor_that_transformers_misses_is_a_mismatch(
    limit: int, tied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "WHOLE_BYTES", limit)
    weights = FolderWeights(tied)
    rewrite(tied, **{"model.norm.weight": None})

    class Whole(FolderWeights):
        def __init__(self) -> None: ...

        def read(self, name: str, *rest, **named):
            return torch.ones(64) if name == "norm.weight" else weights.read(name, *rest, **named)

    with pytest.raises(Mismatch, match=r"transformers does not find model\.norm\.weight"):
        compare(Whole(), weights.config, tied, TOKENS[:1])


def sharded(folder: Path) -> dict[str, str]:
    """A folder of several files, and its index."""
    theirs = save_theirs("llama 3", folder)
    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder, max_shard_size="200KB")
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def write_index(folder: Path, index: dict[str, str]) -> None:
    """Let the index say this."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_a_folder_that_transformers_refuses_is_a_mismatch(tmp_path: Path) -> None:
    """Whatever class its error has: huggingface_hub has some of its own for fields of configurations."""
    save_theirs("qwen3", tmp_path / "theirs", head_dim=16)
    set_key(tmp_path / "theirs", head_dim=None)
    with pytest.raises(Mismatch, match="transformers cannot load"):
        import_model(tmp_path / "theirs", tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_an_index_that_is_not_what_its_files_hold_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    index = sharded(folder)
    name, place = next(one for one in index.items() if list(index.values()).count(one[1]) > 1)
    others = sorted(set(index.values()) - {place})
    open_model(folder)

    write_index(folder, {**index, name: others[0]})
    with pytest.raises(UserError, match=f"{name} is listed in {others[0]} and stored in {place}"):
        open_model(folder)
    write_index(folder, {key: value for key, value in index.items() if key != name})
    with pytest.raises(UserError, match=f"{name} is not listed and stored in {place}"):
        open_model(folder)
    write_index(folder, {**index, "model.layers.0.extra": place})
    with pytest.raises(UserError, match=f"extra is listed in {place} and stored in none of its files"):
        open_model(folder)
    write_index(folder, index)
    twice = {**load_file(folder / others[0]), name: torch.zeros_like(load_file(folder / place)[name])}
    save_file(twice, folder / others[0], {"format": "pt"})
    with pytest.raises(UserError, match=f"{name} is in .* and in .*; remove one of them"):
        open_model(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="is not an index of weights"):
        open_model(folder)


def test_one_file_comes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    """An old index left beside a new file, or the other way round: both libraries read the file."""
    sharded(tmp_path / "saved")
    theirs = save_theirs("llama 3", tmp_path / "saved", num_hidden_layers=3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(0.5)
        save_file(theirs.state_dict(), tmp_path / "saved" / "model.safetensors", {"format": "pt"})
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(TOKENS).logits
    assert (our_logits(open_model(tmp_path / "saved").load(), TOKENS) - expected).abs().max() < 1e-5


def test_pickled_weights_that_are_more_than_tensors_or_damaged_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_theirs("llama 3", folder)
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    file.write_bytes(b"not a pickle")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged, or holds more than tensors"):
        open_model(folder)
    torch.save({"x": Path}, file)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged, or holds more than tensors"):
        open_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused_where_they_are_read(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Also in a row of the embedding that no compared token asks for."""
    folder = tmp_path / "saved"
    save_theirs("llama 3", folder, dtype)
    embed = load_file(folder / "model.safetensors")[EMBED]
    embed[7, :3] = value
    rewrite(folder, **{EMBED: embed})
    message = f"{EMBED} holds 3 numbers that are not finite"
    with pytest.raises(UserError, match=message):
        open_model(folder).load()
    stored = open_model(folder)
    with pytest.raises(UserError, match=message):
        stored.weights.fill({"embed.weight": torch.empty(512, 64)}, None)
    with pytest.raises(UserError, match=message):
        import_model(folder, tmp_path / "imported")
    with pytest.raises(UserError, match=message):
        export(stored.weights, stored.config, tmp_path / "out", "llama", seq_len=64, tokenizer=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]


@pytest.mark.slow
def test_several_processes_tell_it_too(tmp_path: Path) -> None:
    save_theirs("llama 3", tmp_path / "saved")
    rewrite(tmp_path / "saved", **{"model.norm.weight": torch.full((64,), float("nan"))})
    with pytest.raises(UserError, match=r"model.norm.weight holds 64 numbers that are not finite"):
        import_model(tmp_path / "saved", tmp_path / "imported", workers=2)


def test_notes_outlive_an_import(tmp_path: Path) -> None:
    save_theirs("mistral", tmp_path / "saved", sliding_window=64)
    import_model(tmp_path / "saved", tmp_path / "imported")
    for folder in ("saved", "imported"):
        stored = open_model(tmp_path / folder)
        assert "reaches back 64 tokens" in stored.notes[0]
        assert stored.seq_len == 64
