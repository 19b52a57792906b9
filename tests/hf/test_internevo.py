"""InternEvo's own checkpoints, cut here by other hands: the import has the logits of the model that was cut."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.files.errors import UserError
from internevo.hf.imports import import_model
from internevo.model.transformer import Transformer
from internevo.train.stored_model import open_model
from tests.hf.models import TOKENS, our_logits, our_model, save_theirs

ROPE_BASE = 50_000.0


def model(**changes: Any) -> Transformer:
    """Two layers, 4 heads in 2 groups of 16 channels, a vocabulary of 512."""
    return our_model(
        hidden=64,
        vocab=512,
        attention={"heads": 4, "kv_heads": 2, "head_dim": 16},
        feed_forward={"width": 96},
        rope={"base": ROPE_BASE},
        **changes,
    )


def settings(of: Transformer, **changes: Any) -> dict[str, Any]:
    """What `model_config.pt` says."""
    config = of.config
    said = {
        "num_layers": config.layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.attention.heads,
        "num_kv_attention_heads": config.attention.kv_heads,
        "vocab_size": config.vocab,
        "mlp_ratio": 1.5,
        "layer_norm_epsilon": config.norm_eps,
        "norm_type": "rmsnorm",
        "no_bias": True,
        "embed_split_hidden": True,
        "rope_base": config.rope.base,
        "num_chunks": 1,
        "dtype": torch.bfloat16,
    }
    return {**said, **changes}


def parts_of(of: Transformer, tensor: int, pipeline: int, embed_rows: bool = False) -> Iterator[tuple[int, int, dict]]:
    """(tensor rank, pipeline rank, state): heads of a kv group go to one rank, one head after the other."""
    state, config = of.state_dict(), of.config
    wide, group = config.attention.head_dim, config.attention.heads // config.attention.kv_heads
    layers = config.layers // pipeline
    for p in range(pipeline):
        for t in range(tensor):
            part: dict[str, Tensor] = {}

            def rows(whole: Tensor, t: int = t) -> Tensor:
                size = len(whole) // tensor
                return whole[t * size : (t + 1) * size].clone()

            def columns(whole: Tensor, rows: Callable[[Tensor], Tensor] = rows) -> Tensor:
                return rows(whole.T).T.contiguous()

            if p == 0:
                part["model.tok_embeddings.weight"] = (rows if embed_rows else columns)(state["embed.weight"])
            for n in range(layers):
                ours, theirs = f"blocks.{p * layers + n}", f"model.layers.{n}"
                q, k, v = (state[f"{ours}.attention.w{x}.weight"] for x in "qkv")
                stacked = []
                for kv in range(config.attention.kv_heads):
                    stacked += [q[(kv * group + g) * wide : (kv * group + g + 1) * wide] for g in range(group)]
                    stacked += [k[kv * wide : (kv + 1) * wide], v[kv * wide : (kv + 1) * wide]]
                part[f"{theirs}.attention.wqkv.weight"] = rows(torch.cat(stacked))
                part[f"{theirs}.attention.wo.weight"] = columns(state[f"{ours}.attention.wo.weight"])
                part[f"{theirs}.attention_norm.weight"] = state[f"{ours}.attention_norm.weight"].clone()
                part[f"{theirs}.ffn_norm.weight"] = state[f"{ours}.feed_forward_norm.weight"].clone()
                part[f"{theirs}.feed_forward.w1.weight"] = rows(state[f"{ours}.feed_forward.gate.weight"])
                part[f"{theirs}.feed_forward.w3.weight"] = rows(state[f"{ours}.feed_forward.up.weight"])
                part[f"{theirs}.feed_forward.w2.weight"] = columns(state[f"{ours}.feed_forward.down.weight"])
                part[f"{theirs}.attention.rotary_emb.inv_freq"] = torch.ones(8)
            if p == pipeline - 1:
                part["model.norm.weight"] = state["norm.weight"].clone()
                part["model.output.weight"] = rows(state["head.weight"])
            yield t, p, part


def save(folder: Path, of: Transformer, tensor: int = 1, pipeline: int = 1, **changes: Any) -> Path:
    folder.mkdir()
    for t, p, part in parts_of(of, tensor, pipeline):
        torch.save(part, folder / f"model_tp{t}_pp{p}.pt")
    torch.save(settings(of, **changes), folder / "model_config.pt")
    (folder / "optimizer_tp0_pp0_zo0.pt").write_bytes(b"not read")
    return folder


def check(folder: Path, output: Path, of: Transformer) -> None:
    import_model(folder, output)
    stored = open_model(output)
    assert stored.config.rope.base == ROPE_BASE
    assert (our_logits(stored.load(), TOKENS) - our_logits(of, TOKENS)).abs().max() < 1e-5
    assert [one.name for one in output.parent.iterdir() if one.name.startswith(f"{output.name}.")] == []


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_an_import_has_the_logits_of_the_model_that_was_cut(tensor: int, pipeline: int, tmp_path: Path) -> None:
    whole = model()
    check(save(tmp_path / "1000", whole, tensor, pipeline), tmp_path / "imported", whole)


def test_what_older_and_other_layouts_have(tmp_path: Path) -> None:
    """Other names, an embedding cut by rows, weights cut instead of tokens, names without a prefix."""
    whole = model()
    folder = tmp_path / "old"
    folder.mkdir()
    for t, p, part in parts_of(whole, 2, 1, embed_rows=True):
        named = {
            key.removeprefix("model.")
            .replace("wqkv", "Wqkv")
            .replace("tok_embeddings", "tok_embeddings.word_embeddings"): one
            for key, one in part.items()
        }
        torch.save(named, folder / f"model_wp{t}_pp{p}.pt")
    torch.save(settings(whole), folder / "model_config.pt")
    check(folder, tmp_path / "imported", whole)


def test_rotations_of_neighbouring_channels_and_a_head_of_unit_rows(tmp_path: Path) -> None:
    """`adapt_hf: false` turns channels 2i and 2i + 1 together, where the release turns i and i + half a head."""
    whole = model()
    with torch.no_grad():
        for block in whole.blocks:
            for matrix in (block.attention.wq, block.attention.wk):
                heads = matrix.weight.unflatten(0, (-1, 16)).clone()
                apart = torch.empty_like(heads)
                for i in range(8):
                    apart[:, 2 * i], apart[:, 2 * i + 1] = heads[:, i], heads[:, i + 8]
                matrix.weight.copy_(apart.flatten(0, 1))
    folder = save(tmp_path / "1000", whole, 2, adapt_hf=False, norm_head=True)
    with torch.no_grad():
        for block in whole.blocks:
            for matrix in (block.attention.wq, block.attention.wk):
                heads = matrix.weight.unflatten(0, (-1, 16))
                matrix.weight.copy_(torch.cat([heads[:, ::2], heads[:, 1::2]], 1).flatten(0, 1))
        whole.head.weight.copy_(F.normalize(whole.head.weight, dim=-1))
    check(folder, tmp_path / "imported", whole)


def test_settings_that_internevo_pickled_as_its_own_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as a plain dict; nothing of the file is run, and nothing else is let in."""
    whole = model()
    folder = save(tmp_path / "1000", whole)
    path = "internlm.core.context.parallel_context"
    theirs = types.ModuleType(path)
    theirs.Config = type("Config", (dict,), {"__module__": path, "__setattr__": dict.__setitem__})
    theirs.Other = type("Other", (dict,), {"__module__": path})
    with monkeypatch.context() as patch:
        for parent in ("internlm", "internlm.core", "internlm.core.context"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, path, theirs)
        torch.save(theirs.Config(settings(whole)), folder / "model_config.pt")
        torch.save(theirs.Other(settings(whole)), tmp_path / "other.pt")
    check(folder, tmp_path / "imported", whole)
    (tmp_path / "other.pt").rename(folder / "model_config.pt")
    with pytest.raises(UserError, match=r"model_config\.pt is damaged, or holds more than tensors"):
        import_model(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def change(file: Path, act: Callable[[dict], Any]) -> None:
    state = torch.load(file, weights_only=True)
    act(state)
    torch.save(state, file)


NORM = "model.layers.0.ffn_norm.weight"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a part is missing": (lambda f: (f / "model_tp1_pp1.pt").unlink(), "lacks model_tp1_pp1.pt, of 2 x 2 parts"),
    "the first part is missing": (
        lambda f: (f / "model_tp0_pp0.pt").unlink(),
        "lacks model_tp0_pp0.pt, of 2 x 2 parts",
    ),
    "the last parts are missing": (
        lambda f: [(f / f"model_tp1_pp{p}.pt").unlink() for p in range(2)],
        "which do not make [512, 64], as model_config.pt has it: a part is missing",
    ),
    "a width in quotes": (
        lambda f: change(f / "model_config.pt", lambda s: s.update(hidden_size="64")),
        "hidden_size is '64', not a whole number of 1 or more",
    ),
    "no heads": (
        lambda f: change(f / "model_config.pt", lambda s: s.update(num_attention_heads=0)),
        "num_attention_heads is 0, not a whole number",
    ),
    "quantised": (
        lambda f: [
            change(f / f"model_tp{t}_pp0.pt", lambda s: s.update({NORM: s[NORM].to(torch.int8)})) for t in range(2)
        ],
        "layers.0.ffn_norm.weight is stored as torch.int8; known are torch.float64",
    ),
    "an object in a part": (
        lambda f: torch.save({"path": f}, f / "model_tp0_pp0.pt"),
        "model_tp0_pp0.pt is damaged, or holds more than tensors (UnpicklingError). Fetch it again.",
    ),
    "no settings": (lambda f: (f / "model_config.pt").unlink(), "lacks model_config.pt, which says what shape"),
    "biases": (
        lambda f: change(f / "model_config.pt", lambda s: s.update(no_bias=False)),
        "no_bias is False; only models with no_bias True can be imported",
    ),
    "another tensor": (
        lambda f: [
            change(file, lambda s: s.update({"model.extra": torch.ones(1)})) for file in f.glob("model_tp?_pp1.pt")
        ],
        "has tensors that an InternLM2 model does not have: extra",
    ),
    "another number of layers": (
        lambda f: change(f / "model_config.pt", lambda s: s.update(num_layers=3)),
        "lacks layers.2.attention.wqkv.weight, layers.2.attention_norm.weight",
    ),
    "norms of several saves": (
        lambda f: change(f / "model_tp1_pp0.pt", lambda s: s["model.layers.0.ffn_norm.weight"].add_(1)),
        "layers.0.ffn_norm.weight is whole in each part, but not the same",
    ),
    "another width": (
        lambda f: change(f / "model_config.pt", lambda s: s.update(vocab_size=500)),
        "tok_embeddings.weight has parts of [512, 32], [512, 32], which do not make [500, 64]",
    ),
    "an interleaved pipeline": (
        lambda f: [
            torch.save({f"{i % 2}.{key}": one for i, (key, one) in enumerate(torch.load(file).items())}, file)
            for file in f.glob("model_tp?_pp?.pt")
        ],
        "the parts of an interleaved pipeline, which are not read",
    ),
    "cut by FSDP": (
        lambda f: (f / "model_tp0_pp0.pt").rename(f / "model_tp0_pp0_dp0.pt"),
        "model_tp0_pp0_dp0.pt: parts of a mixture of experts, or cut by FSDP",
    ),
    "a torn part": (lambda f: (f / "model_tp0_pp0.pt").write_bytes(b"PK\x03\x04"), "model_tp0_pp0.pt is damaged"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_imported_is_told(case: str, tmp_path: Path) -> None:
    spoil, message = WRONG[case]
    folder = save(tmp_path / "1000", model(), 2, 2)
    spoil(folder)
    with pytest.raises(UserError) as caught:
        import_model(folder, tmp_path / "imported")
    assert message in str(caught.value)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["1000"]  # nothing is left


def test_other_verbs_say_that_it_is_to_be_imported(tmp_path: Path) -> None:
    folder = save(tmp_path / "1000", model())
    with pytest.raises(UserError, match=r"1000 is a checkpoint of InternEvo's: `internevo import .*1000 OUTPUT`"):
        open_model(folder)


def test_a_part_is_told_to_be_one(tmp_path: Path) -> None:
    folder = save(tmp_path / "1000", model())
    with pytest.raises(UserError, match=r"model_tp0_pp0\.pt is a part of a checkpoint .* name its folder, .*1000\."):
        import_model(folder / "model_tp0_pp0.pt", tmp_path / "imported")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["1000/model_tp0_pp0.pt", "2000/model_tp0_pp0.pt"], r"holds checkpoints of InternEvo's; name one .*m/2000\."),
        (["adapter_config.json"], "is a LoRA adapter without its base model; merge the two first"),
        (["consolidated.00.pth", "params.json"], "is a checkpoint in Meta's own format, which is not read"),
        (
            ["iter_0000010/x", "latest_checkpointed_iteration.txt"],
            "is a checkpoint of Megatron-LM's, which is not read",
        ),
        (["ckpt.pt"], "is a checkpoint of nanoGPT's, a GPT-2 model"),
        (["model-Q4_K_M.gguf"], "holds a GGUF file, which is for inference"),
    ],
)
def test_models_of_other_tools_are_told_by_their_names(files: list[str], message: str, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / "m" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / file).touch()
    for use in (lambda: import_model(tmp_path / "m", tmp_path / "imported"), lambda: open_model(tmp_path / "m")):
        with pytest.raises(UserError, match=message):
            use()


@pytest.mark.parametrize("name", ["llama 3", "internlm2", "qwen2"])
def test_a_body_without_its_head_is_told(name: str, tmp_path: Path) -> None:
    """What transformers saves of a base model: no `model.` before the names."""
    theirs = save_theirs(name, tmp_path / "whole")
    theirs.model.save_pretrained(tmp_path / "body")
    with pytest.raises(UserError, match=r"body has the \w+ model's body alone: its tensors lack `model\.` before"):
        import_model(tmp_path / "body", tmp_path / "imported")
    assert not (tmp_path / "imported").exists()
