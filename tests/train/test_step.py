"""One step: the gradient is that of the mean over real labels, however documents are packed and batches cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.data.batch import IGNORE, Batch
from internevo.data.loader import evaluation_batches
from internevo.model.documents import Documents
from internevo.model.initial import init_weights
from internevo.model.transformer import Transformer
from internevo.optim.optimizers import Given, Optimizers
from internevo.parallel.world import World
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.engine import TorchEngine
from internevo.train.step import StepResult, train_step

CPU = torch.device("cpu")


def pack(documents: list[np.ndarray], seq_len: int, folder) -> Batch:
    folder.mkdir(parents=True, exist_ok=True)
    with TokenStoreWriter(folder / "documents", np.uint16) as writer:
        for document in documents:
            writer.append(document)
    (batch,) = evaluation_batches("s", TokenStore(folder / "documents"), seq_len, 10**6, 10**9)
    return batch


def build(precision: str = "fp32", **changes) -> TorchEngine:
    model = Transformer(model_preset("tiny", **changes))
    init_weights(model, 0)
    stage = StageConfig(model=model.config, train=TrainConfig(precision=precision), optimizer=OptimizerConfig(clip=0.0))
    return make_engine(stage, World.alone(CPU), model)


def step(engine: TorchEngine, batch: Batch, micro_batch: int = 1, lr: float = 1e-3) -> StepResult:
    engine.stage.train.micro_batch = micro_batch
    return train_step(engine, engine.stage_batch(batch), lr)


def gradients_one_by_one(documents: list[np.ndarray]) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss and gradients with every document alone, by torch's plain loss, in float64."""
    engine = build()
    model = engine.runner.transformers[0].double()
    labels = sum(len(document) - 1 for document in documents)
    total = 0.0
    for document in documents:
        if len(document) == 1:
            continue
        tokens = torch.from_numpy(document.astype(np.int64))[None]
        logits = model(tokens, torch.arange(len(document))[None], Documents.of([len(document)]))
        loss = F.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum") / labels
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters()}


def watch_gradients(engine: TorchEngine) -> dict[str, torch.Tensor]:
    """The gradients that the next update sees."""
    seen: dict[str, torch.Tensor] = {}

    def keep(*_) -> None:
        seen.update({name: p.grad.clone() for name, p in engine.local.items()})

    engine.optimizers.all[0].register_step_pre_hook(keep)
    return seen


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 32), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 2**31))
def test_packed_step_equals_documents_one_by_one(tmp_path_factory, lengths, micro_batch, seed) -> None:
    if max(lengths) == 1:
        lengths.append(2)
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 512, length) for length in lengths]
    batch = pack(documents, 32, tmp_path_factory.mktemp("store"))
    engine = build()
    seen = watch_gradients(engine)
    result = step(engine, batch, micro_batch)
    loss, expected = gradients_one_by_one(documents)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    norm = torch.sqrt(sum(g.square().sum() for g in expected.values()))
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name].double(), gradient, atol=1e-6, rtol=1e-3)


def random_batch(seed: int, rows: int = 4, seq: int = 32) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 512, (rows, seq + 1))
    positions = np.tile(np.arange(seq), (rows, 1))
    inputs, labels = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    counts = ((seq,),) * rows, (seq,) * rows, ("s",) * rows
    return Batch(inputs, labels, positions, *counts, rows * seq, slice(0, rows))


def test_bf16_gradients_follow_fp32_ones() -> None:
    batch = random_batch(0)
    seen = {}
    for precision in ("fp32", "bf16"):
        engine = build(precision)
        seen[precision] = watch_gradients(engine)
        step(engine, batch)
    for name, gradient in seen["fp32"].items():
        assert seen["bf16"][name].dtype == torch.float32
        error = (seen["bf16"][name] - gradient).norm() / gradient.norm()
        assert error < 0.03, (name, error)


def test_bf16_updates_are_not_lost_to_rounding() -> None:
    """A step far below bf16's resolution still moves the fp32 weights, and the copy follows when it adds up."""
    engine = build("bf16")
    before = engine.parameters["blocks.0.feed_forward.up.weight"].detach().clone()
    for number in range(3):
        step(engine, random_batch(number), lr=1e-7)
    moved = (engine.parameters["blocks.0.feed_forward.up.weight"] - before).abs().max().item()
    assert 1e-8 < moved < 1e-6
    for copy, master in zip(engine.copies.values(), engine.parameters.values(), strict=True):
        assert torch.equal(copy, master.to(torch.bfloat16))
        assert copy.grad is None


def test_a_step_without_finite_gradient_changes_nothing() -> None:
    engine = build()
    step(engine, random_batch(0))
    with torch.no_grad():
        engine.parameters["blocks.0.feed_forward.up.weight"][0, 0] = torch.inf
    before = {k: v.clone() for k, v in engine.state().items()}
    result = step(engine, random_batch(1))
    assert result.skipped
    for name, tensor in engine.state().items():
        assert torch.equal(tensor, before[name]), name


def test_clipping_scales_to_the_norm() -> None:
    """A clipped step is the step with gradients divided by norm over bound, as torch's AdamW takes it."""
    batch, moved = random_batch(0), {}
    for clip in (0.0, 0.5, 100.0):
        engine = build()
        engine.stage.optimizer.clip = clip
        norm = step(engine, batch).grad_norm
        moved[clip] = engine.optimizers.state("norm.weight")["exp_avg"]
    torch.testing.assert_close(moved[0.5], moved[0.0] * (0.5 / norm))
    assert norm > 0.5
    assert torch.equal(moved[100.0], moved[0.0])


@pytest.mark.parametrize(("decay_embeddings", "tied"), [(True, False), (False, False), (False, True)])
def test_weight_decay_reaches_matrices_only(decay_embeddings: bool, tied: bool) -> None:
    model = Transformer(model_preset("tiny", tied=tied, attention={"bias": True}))
    init_weights(model, 0)
    stage = StageConfig()
    stage.optimizer.decay_embeddings = decay_embeddings
    (optimizer,) = Optimizers(Given(dict(model.named_parameters()), model.roles, stage.optimizer)).all
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        free = "norm" in name or "bias" in name
        free |= not decay_embeddings and name in ("embed.weight", "head.weight")
        assert decay[parameter] == (0.0 if free else 0.1), name


def test_padding_and_labelless_rows_do_not_count() -> None:
    batch = random_batch(0)
    batch.labels[1:] = IGNORE
    batch.labels[0, 10:] = IGNORE
    batch = replace(batch, label_count=10)
    engine = build()
    arrays = batch.tokens[:1], batch.labels[:1], batch.positions[:1]
    short = Batch(*arrays, batch.lengths[:1], (32,), ("s",), int((arrays[1] != IGNORE).sum()), slice(0, 1))
    assert step(engine, batch).loss == pytest.approx(step(build(), short).loss, rel=1e-6)


def test_a_model_is_for_one_process_alone() -> None:
    """Several would each need a part of it: they make their own from the seed."""
    model = Transformer(model_preset("tiny"))
    stage = StageConfig(model=model.config)
    with pytest.raises(ValueError, match="a model can be given to an engine of one process"):
        make_engine(stage, World(0, 2, CPU, None, None, None), model)
    stage.parallel.zero.engine = "deepspeed"
    with pytest.raises(ValueError, match="which is not DeepSpeed's"):
        make_engine(stage, World.alone(CPU), model)
