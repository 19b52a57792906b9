"""Rows of the vocabulary without a piece of the tokenizer: never sampled, here or from an export, and shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from internevo.files.errors import UserError
from internevo.hf.export import export
from internevo.model.generate import generate
from internevo.model.transformer import Transformer
from internevo.tokens.tokenizer import Tokenizer, load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from internevo.train.sample import sample_text
from internevo.train.stored_model import open_model
from tests.hf.models import ModelWeights, our_model

PIECES = 360


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    return load_tokenizer(train_tokenizer([Path(__file__).read_text(encoding="utf-8")], path, PIECES))


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Its likeliest tokens are nearly always among the rows that have no piece."""
    model = our_model()
    with torch.no_grad():
        model.head.weight[PIECES:] *= 50
    return model


@pytest.fixture(scope="module")
def folder(model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(ModelWeights(model), model.config, folder, "llama", seq_len=64, tokenizer=tokenizer)
    return folder


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generate_masks_them(temperature: float, model: Transformer, tokenizer: Tokenizer) -> None:
    never = tokenizer.unused(model.config.vocab)
    assert never == list(range(PIECES, 512))
    options = {"temperature": temperature, "generator": torch.Generator().manual_seed(0)}
    assert max(generate(model, [1, 5], 20, **options)) >= PIECES
    assert max(generate(model, [1, 5], 20, never=never, **options)) < PIECES


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_is_sampled(temperature: float, folder: Path) -> None:
    """Of the export's own tokenizer.json."""
    text = "".join(sample_text(open_model(folder), "def", 20, temperature, 1.0, seed=0))
    assert text.startswith("def")
    assert "<id" not in text


@pytest.mark.parametrize("sample", [False, True])
def test_transformers_does_not_sample_them_from_an_export(sample: bool, folder: Path, tokenizer: Tokenizer) -> None:
    said = json.loads((folder / "generation_config.json").read_text())
    assert said["suppress_tokens"] == list(range(PIECES, 512))
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    prompt = [tokenizer.bos_id, *tokenizer.encode("def")]
    torch.manual_seed(0)
    out = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=sample, eos_token_id=None)[0].tolist()
    assert max(out) < PIECES
    if not sample:
        model = open_model(folder).load()
        never = tokenizer.unused(model.config.vocab)
        assert list(generate(model, prompt, 20, temperature=0, never=never)) == out[len(prompt) :]


def test_an_export_without_such_rows_suppresses_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model(vocab=PIECES)
    export(ModelWeights(model), model.config, tmp_path / "out", "llama", seq_len=64, tokenizer=tokenizer)
    assert "suppress_tokens" not in json.loads((tmp_path / "out" / "generation_config.json").read_text())


def test_they_are_decoded_with_a_mark(tokenizer: Tokenizer, folder: Path) -> None:
    ids = tokenizer.encode("def main")
    for one in (tokenizer, load_tokenizer(folder)):
        assert one.decode([*ids, 4093, 400, *ids]) == "def main<id 4093><id 400>def main"
        assert one.decode([-1]) == "<id -1>"
        assert one.decode(ids) == "def main"


def test_a_gap_among_the_pieces_is_one_too(folder: Path, tmp_path: Path) -> None:
    """Added tokens may stand behind a gap, as in models whose embedding was padded before they came."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    said = json.loads((tmp_path / "tokenizer.json").read_text())
    said["model"]["vocab"]["<late>"] = 400
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    gapped = load_tokenizer(tmp_path)
    assert gapped.unused(410) == [i for i in range(PIECES, 410) if i != 400]
    assert gapped.decode([399]) == "<id 399>"


def test_a_prompt_past_the_vocabulary_is_refused(model: Transformer) -> None:
    with pytest.raises(UserError, match="the prompt has token id 512, past the model's vocabulary of 512"):
        next(generate(model, [1, 512], 1))


@pytest.mark.slow
def test_the_verb(folder: Path) -> None:
    command = [sys.executable, "-m", "internevo", "generate", str(folder), "--prompt", "def", "--tokens", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("def")
