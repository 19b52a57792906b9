"""Any layout begins with the weights of a Hugging Face folder, each rank reading its part, and is exported to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from internevo.hf.export import export
from internevo.hf.weights import CheckpointWeights, FolderWeights
from tests.hf.models import ModelWeights, our_model
from tests.parallel.jobs import ALONE, begun, save, stage_of, write_documents

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "dp2, zero 3": (2, {"zero": 3}),
    "tp2": (2, {"tensor": 2}),
    "tp2, odd sizes": (2, {"tensor": 2, "width": 161, "vocab": 513}),
    "pp2, zbv": (2, {"pipeline": 2, "schedule": "zbv"}),
    "dp2 x tp2, zero 3": (4, {"tensor": 2, "zero": 3}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.heavy] * (w > 2)) for n, (w, _) in LAYOUTS.items()]
)
@pytest.mark.parametrize("format", ["llama", "internlm2"])
def test_any_layout_begins_from_a_hugging_face_folder(name: str, format: str, tmp_path: Path, ranks: Any) -> None:
    world, changes = LAYOUTS[name]
    config = stage_of(changes).model
    model = our_model(
        layers=config.layers,
        vocab=config.vocab,
        attention={"heads": config.attention.heads, "kv_heads": config.attention.kv_heads},
        feed_forward={"width": config.feed_forward.width},
    )
    export(ModelWeights(model), model.config, tmp_path / "hf", format, seq_len=64, tokenizer=None)
    arguments = (changes, str(tmp_path / "hf"))
    state = begun(ALONE, *arguments) if world == 1 else ranks(world).run(begun, *arguments)[0]
    for key, weight in model.state_dict().items():
        assert torch.equal(state[f"model/{key}"], weight), key
    moments = [tensor for key, tensor in state.items() if key.startswith("optimizer/")]
    assert moments
    assert all(not tensor.any() for tensor in moments)


def test_what_an_optimizer_begins_with_is_kept(tmp_path: Path) -> None:
    changes = {"optimizer": "tests.seams.test_third_party_optimizer:signs"}
    config = stage_of(changes).model
    shape = {"heads": config.attention.heads, "kv_heads": config.attention.kv_heads}
    model = our_model(layers=config.layers, attention=shape)
    export(ModelWeights(model), model.config, tmp_path / "hf", "llama", seq_len=64, tokenizer=None)
    state = begun(ALONE, changes, str(tmp_path / "hf"))
    assert torch.equal(state["model/head.weight"], model.head.weight)
    assert torch.equal(state["optimizer/head.weight/rows"], torch.ones(3))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.heavy] * (w > 2)) for n, (w, _) in LAYOUTS.items()]
)
def test_any_layout_is_exported(name: str, tmp_path: Path, ranks: Any) -> None:
    world, changes = LAYOUTS[name]
    store = write_documents(tmp_path / "documents")
    arguments = (changes, store, tmp_path / "checkpoint", 1)
    saved = save(ALONE, *arguments) if world == 1 else ranks(world).run(save, *arguments)[0]
    config = stage_of(changes).model
    weights = CheckpointWeights(tmp_path / "checkpoint")
    export(weights, config, tmp_path / "hf", "internlm2", seq_len=64, tokenizer=None)
    back = FolderWeights(tmp_path / "hf")
    for key in back.names:
        assert torch.equal(back.read(key), saved[f"model/{key}"]), key
