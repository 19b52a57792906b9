"""Twenty AdamW steps beside transformers: same weights, same documents, same losses and gradient norms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.data.loader import evaluation_batches
from internevo.hf.export import export
from internevo.model.initial import init_weights
from internevo.model.transformer import Transformer
from internevo.parallel.world import World
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.step import train_step
from tests.hf.models import ModelWeights

CPU = torch.device("cpu")
STEPS, SEQ_LEN, LR = 20, 64, 3e-3


def test_twenty_steps(tmp_path: Path) -> None:
    model = Transformer(model_preset("tiny"))
    init_weights(model, 0)
    export(ModelWeights(model), model.config, tmp_path / "start", "llama", seq_len=SEQ_LEN, tokenizer=None)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=torch.float32)
    stage = StageConfig(
        model=model.config,
        train=TrainConfig(precision="fp32", micro_batch=2),
        optimizer=OptimizerConfig(weight_decay=0.1),
    )
    engine = make_engine(stage, World.alone(CPU), model)
    matrices = [p for p in llama.parameters() if p.ndim > 1]
    vectors = [p for p in llama.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    rng = np.random.default_rng(0)
    for number in range(STEPS):
        lengths = rng.integers(1, SEQ_LEN + 1, 12)
        documents = [rng.geometric(0.02, length) % 512 for length in lengths]
        with TokenStoreWriter(tmp_path / str(number), np.uint16) as writer:
            for document in documents:
                writer.append(document)
        (batch,) = evaluation_batches("s", TokenStore(tmp_path / str(number)), SEQ_LEN, 10**6, 10**9)
        assert len(batch.tokens) < len(documents)  # ours are packed, theirs stand alone
        ours = train_step(engine, engine.stage_batch(batch), LR)
        loss, norm = llama_step(llama, reference, documents)
        assert ours.loss == pytest.approx(loss, abs=1e-4), number
        assert ours.grad_norm == pytest.approx(norm, rel=1e-3), number
    theirs = llama.state_dict()["model.layers.1.mlp.up_proj.weight"]
    torch.testing.assert_close(model.blocks[1].feed_forward.up.weight.detach(), theirs, atol=2e-4, rtol=0)


def llama_step(llama, optimizer, documents: list[np.ndarray]) -> tuple[float, float]:
    """One document a row, none padded; the mean over all labels of the step."""
    labels = sum(len(document) - 1 for document in documents)
    total = 0.0
    for document in documents:
        if len(document) > 1:
            tokens = torch.from_numpy(document)[None]
            logits = llama(tokens).logits[0, :-1]
            loss = F.cross_entropy(logits, tokens[0, 1:], reduction="sum") / labels
            loss.backward()
            total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total, norm.item()
