"""A small real run on text, with its tokenizer, for evaluations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml

from internevo.config.load import load_config
from internevo.tokens.prepare import prepare
from internevo.tokens.train_tokenizer import train_tokenizer
from internevo.train.run import train

LIBRARY = Path(os.__file__).parent
VOCAB = 512


def texts() -> list[Path]:
    """Some of the interpreter's own library."""
    return sorted(LIBRARY.glob("[a-c]*.py"))[:24]


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny model on text: its folder, with `tokenizer.model` and `tokens/` two levels up."""
    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("text")
    corpus = [path.read_text(encoding="utf-8") for path in texts()]
    tokenizer = train_tokenizer(corpus, folder / "tokenizer.model", VOCAB)
    prepare(texts(), folder / "tokens", tokenizer, held_out=0.2)
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "name": "text",
                "runs": str(folder / "runs"),
                "model": {"preset": "tiny", "vocab": VOCAB},
                "tokenizer": str(tokenizer),
                "optimizer": {"lr": 3e-3},
                "train": {
                    "seq_len": 128,
                    "batch_tokens": 2048,
                    "micro_batch": 8,
                    "precision": "fp32",
                    "device": "cpu",
                    "steps": 40,
                },
                "checkpoint": {"every": 20, "keep": 0},
                "data": {
                    "eval_tokens": 4000,
                    "eval_every": 20,
                    "sources": [{"path": str(folder / "tokens"), "name": "library"}],
                },
            }
        )
    )
    assert train(load_config(config), ["test"]) is None
    return folder / "runs" / "text"


@pytest.fixture(scope="session")
def exported(text_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as a Hugging Face folder."""
    from internevo.hf.export import export
    from internevo.train.stored_model import open_model

    stored = open_model(text_run)
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export(
        stored.weights, stored.config, folder, "llama", seq_len=stored.seq_len, tokenizer=stored.tokenizer, dtype=None
    )
    return folder
