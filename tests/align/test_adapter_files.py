"""Exports of adapters: PEFT loads the files on the base, and merged ones load as any model; the logits are ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from internevo.align.adapter_files import export_adapter
from internevo.config.load import load_config
from internevo.files.errors import UserError
from internevo.train.run import train
from internevo.train.stored_model import open_model
from tests.align.test_lora_runs import SHAPE, adapting
from tests.hf.models import TOKENS, our_logits, save_theirs, their_model
from tests.train.runs import finish, start

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3": ("llama", {}),
    "qwen2": ("qwen2", {"rope": {"base": 1e4}, "tied": True, "attention": {"heads": 4, "kv_heads": 2, "bias": True}}),
    "internlm2": ("internlm2", {"rope": {"base": 1e6}}),
}


def adapted(folder: Path, base: str, **lora: Any) -> Path:
    """A run that has trained an adapter hard enough that logits differ."""
    save_theirs(base, folder / "base")
    path = adapting(folder / "runs", folder / "base", shape={**SHAPE, **BASES[base][1]}, **lora)
    train(load_config(path, ["optimizer.lr=0.03", "data.eval_tokens=0"]), ["test"], until=4)
    return folder / "runs" / "runs" / "run"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("targets", [["all"], ["wq", "wv", "down"]])
def test_peft_loads_it_with_equal_logits(base: str, targets: list[str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    run = adapted(tmp_path, base, targets=targets)
    stored = open_model(run)
    report = export_adapter(stored, tmp_path / "adapter", "auto" if stored.family is None else stored.family)
    assert report.family == BASES[base][0]
    theirs = their_model(base)  # the weights that were saved
    with torch.no_grad():
        before = theirs(input_ids=TOKENS).logits
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
        unmatched = [name for name, p in theirs.named_parameters() if "lora_B" in name and not p.any()]
        logits = theirs(input_ids=TOKENS).logits
        merged = theirs.merge_and_unload()(input_ids=TOKENS).logits
    assert not unmatched
    ours = our_logits(stored.load(), TOKENS)
    assert (ours - before).abs().max() > 0.05
    torch.testing.assert_close(logits, ours, atol=5e-5, rtol=0)
    torch.testing.assert_close(merged, ours, atol=5e-5, rtol=0)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"]) == (4, 16.0)


def test_the_command(tmp_path: Path) -> None:
    """Merged, and as files; what has no adapter is refused."""
    run = adapted(tmp_path, "llama 3")
    assert "differ from transformers" in finish(start("export", run, tmp_path / "merged", "--dtype", "fp32"))
    again = open_model(tmp_path / "merged").load()
    torch.testing.assert_close(our_logits(again, TOKENS), our_logits(open_model(run).load(), TOKENS), atol=1e-5, rtol=0)
    out = finish(start("export", run, tmp_path / "adapter", "--adapter"))
    assert "an adapter of 21 matrices of a llama model" in out
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "it was not trained with train.lora" in finish(
        start("export", tmp_path / "base", tmp_path / "x", "--adapter")
    )
    with pytest.raises(UserError, match="exists already"):
        export_adapter(open_model(run), tmp_path / "adapter", "llama")
