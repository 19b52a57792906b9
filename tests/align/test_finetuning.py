"""Finetuning on packed conversations is finetuning as transformers does it, each conversation in a padded row.

transformers' side has the base model that it saved itself, its own gradients, torch's AdamW and clipping, and masks and
weights from `chats.py`. All it takes from the package is which conversations are in a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from transformers import LlamaForCausalLM

from internevo.align.chat_store import prepare_chat
from internevo.config.load import load_config
from internevo.config.schema import ContextConfig, RunConfig, ZeroConfig
from internevo.data.batch import IGNORE, Batch
from internevo.data.loader import Loader, materialise
from internevo.data.mixing import Plan
from internevo.data.source_stream import Row
from internevo.hf.export import export
from internevo.monitor.metrics import read_metrics
from internevo.parallel.world import World
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.engine import TorchEngine
from internevo.train.initial_weights import begin_from
from internevo.train.run import train
from internevo.train.step import train_step
from internevo.train.stored_model import open_model
from tests.align.chats import FORMAT, Learnt, learnt, random_chats, write_chats
from tests.align.formats import write_tokenizer
from tests.hf.models import save_theirs
from tests.parallel.ranks import RankPool

SEQ_LEN, ROWS, STEPS, WARMUP, LR, CLIP, DECAY = 768, 4, 20, 4, 2e-3, 2.0, 0.1
BETAS, EPS = (0.9, 0.95), 1e-8
AVERAGES = ("token", "message", "conversation")
ALONE = World.alone(torch.device("cpu"))


@dataclass(frozen=True)
class Given:
    """What both sides begin with."""

    folder: Path
    by_ids: dict[tuple[int, ...], Learnt]
    """The conversations, by their tokens."""

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def store(self) -> Path:
        return self.folder / "chat"

    def config(self, folder: Path, average: str, **changes: Any) -> RunConfig:
        """One stage on the conversations, or on what `changes` says."""
        stage = {"seq_len": SEQ_LEN, "batch_tokens": ROWS * SEQ_LEN, "micro_batch": 2, "precision": "fp32"}
        tree = {
            "name": "run",
            "runs": str(folder),
            "model": {
                "hidden": 64,
                "layers": 3,
                "vocab": 512,
                "attention": {"heads": 4, "kv_heads": 2},
                "feed_forward": {"width": 160},
                "rope": {"base": 5e5},
            },
            "optimizer": {"lr": LR, "betas": list(BETAS), "eps": EPS, "weight_decay": DECAY, "clip": CLIP},
            "schedule": {"name": "constant", "warmup": WARMUP},
            "train": {**stage, "device": "cpu", "init_from": str(self.base), "average": average},
            "data": {"sources": [{"path": str(self.store)}]},
            "stages": [{"name": "finetune", "train": {"steps": STEPS}}],
            **changes,
        }
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        return load_config(path)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("finetuning")
    tokenizer, chats = write_tokenizer(folder / "tokenizer", FORMAT, 100), random_chats(400)
    save_theirs("llama 3", folder / "base")
    manifest = prepare_chat([write_chats(folder / "chats.jsonl", chats)], folder / "chat", tokenizer)
    found = [learnt(chat, tokenizer) for chat in chats]
    lengths = sorted(len(one.ids) for one in found)
    assert (manifest.documents, manifest.rejected) == (len(chats), 0)
    assert lengths[-1] <= SEQ_LEN  # a row holds each whole
    assert lengths[20] * 4 < lengths[-20]
    return Given(folder, {tuple(one.ids): one for one in found})


def conversations(batch: Batch) -> list[tuple[int, ...]]:
    """The tokens of a batch's conversations."""
    found = []
    for row, lengths, real in zip(batch.tokens.tolist(), batch.lengths, batch.real_tokens, strict=True):
        ends = np.cumsum(lengths).tolist()
        found += [tuple(row[end - n : end]) for end, n in zip(ends, lengths, strict=True) if end <= real]
    return found


def padded_loss(model: Any, some: list[Learnt], average: str) -> torch.Tensor:
    """The weighted mean of transformers' losses; each conversation is a row, padded to the longest."""
    width = max(len(one.ids) for one in some)
    tokens, mask = torch.zeros(len(some), width, dtype=torch.long), torch.zeros(len(some), width, dtype=torch.long)
    weights = torch.zeros(len(some), width)
    for row, one in enumerate(some):
        tokens[row, : len(one.ids)], mask[row, : len(one.ids)] = torch.tensor(one.ids), 1
        weights[row, : len(one.ids)] = torch.tensor(one.weights(average))
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def train_theirs(given: Given, steps: list[list[Learnt]], average: str) -> tuple[list[float], list[float], Any]:
    """Losses and gradient norms of each step, and the model after them."""
    model = LlamaForCausalLM.from_pretrained(given.base).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS)
    losses, norms = [], []
    for number, some in enumerate(steps, 1):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, number / WARMUP)
        loss = padded_loss(model, some, average)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms, model


@pytest.mark.slow
@pytest.mark.parametrize("average", AVERAGES)
def test_twenty_steps_are_those_of_transformers(given: Given, tmp_path: Path, average: str) -> None:
    """A whole run, from the folder that transformers saved to one that transformers loads."""
    config = given.config(tmp_path, average)
    with Loader(Plan.of(config.stages[0]), seed=config.train.seed) as loader:
        steps = [conversations(loader.next()) for _ in range(STEPS)]
    assert max(Counter(one for some in steps for one in some).values()) == 1  # less than an epoch
    assert train(config, ["test"]) is None
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses, norms, theirs = train_theirs(given, [[given.by_ids[one] for one in some] for some in steps], average)
    assert [line["documents"] for line in lines] == [len(some) for some in steps]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-3)
    assert losses[-1] < losses[0] - 1
    assert max(norms) > CLIP > min(norms)
    stored = open_model(tmp_path / "run")
    export(stored.weights, stored.config, tmp_path / "out", "llama", seq_len=SEQ_LEN, tokenizer=None)
    begun = LlamaForCausalLM.from_pretrained(given.base).state_dict()
    ours, theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict(), theirs.state_dict()
    for name, weight in theirs.items():
        assert (ours[name] - weight).norm() < 1e-3 * (weight - begun[name]).norm(), name


def test_the_averages_differ(given: Given) -> None:
    """On these conversations no average passes for another within the tolerance of 1e-4."""
    model = LlamaForCausalLM.from_pretrained(given.base)
    some = list(given.by_ids.values())[:20]
    with torch.no_grad():
        found = sorted(padded_loss(model, some, average).item() for average in AVERAGES)
    assert min(np.diff(found)) > 3e-4 * found[0]


def engine_of(config: RunConfig, world: World = ALONE) -> TorchEngine:
    """The engine of the only stage, with the base model's weights."""
    (stage,) = config.stages
    engine = make_engine(stage, world)
    assert isinstance(engine, TorchEngine)
    begin_from(engine, stage, world)
    return engine


def gradients(config: RunConfig, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of one step, and all gradients."""
    engine = engine_of(config)
    loss = engine.forward_backward(engine.stage_batch(batch)).item()
    return loss, {name: p.grad for name, p in engine.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("average", AVERAGES)
def test_packed_is_unpacked(given: Given, tmp_path: Path, average: str) -> None:
    """One step on packed rows, and on the same conversations in a row each."""
    config = given.config(tmp_path, average)
    with Loader(Plan.of(config.stages[0]), seed=config.train.seed) as loader:
        packed = loader.next()
    store = TokenStore.open_source(given.store)
    lengths = store.lengths(np.arange(len(store)))
    begins = store.starts(np.arange(len(store)))
    wanted = set(conversations(packed))
    rows = []
    for number, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist(), strict=True)):
        if tuple(store.ids(store.slice(begin, begin + length)).tolist()) in wanted:
            rows.append(("chat", store, Row(*(np.array([one]) for one in (begin, 0, length, length, number)))))
    unpacked = materialise(rows, SEQ_LEN, average=average)
    assert sorted(conversations(unpacked)) == sorted(conversations(packed))
    assert len(unpacked.tokens) > 2 * len(packed.tokens) == 2 * ROWS
    loss, expected = gradients(config, unpacked)
    found, ours = gradients(config, packed)
    assert found == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() < 1e-5 * gradient.norm(), name


def test_a_conversation_never_sees_another(given: Given, tmp_path: Path) -> None:
    """One of a row says something else: the losses of the others are the same numbers."""
    config = given.config(tmp_path, "token")
    engine = engine_of(config)
    with Loader(Plan.of(config.stages[0]), seed=config.train.seed) as loader:
        batch = loader.next()
    row = max(range(len(batch.lengths)), key=lambda one: len(batch.lengths[one]))
    first = batch.lengths[row][0]  # which the others of the row could see
    assert first < batch.real_tokens[row]
    tokens = batch.tokens.copy()
    tokens[row, :first] = tokens[row, :first][::-1]
    changed = replace(batch, tokens=tokens)

    def losses(batch: Batch) -> torch.Tensor:
        return torch.cat([losses for losses, *_ in engine.losses(batch)])

    others = torch.ones(batch.labels.shape, dtype=torch.bool)
    others[row, :first] = False
    others &= torch.from_numpy(batch.labels != IGNORE)
    before, after = losses(batch), losses(changed)
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before, after)
    # without the borders it would be seen
    joined = tuple((sum(lengths),) for lengths in batch.lengths)
    seen = [losses(replace(one, lengths=joined))[others] for one in (batch, changed)]
    assert not torch.equal(*seen)


def write_long_texts(folder: Path) -> Path:
    """Texts without masks, most of them several rows long."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with TokenStoreWriter(folder / "train", np.uint16) as writer:
        for _ in range(60):
            writer.append(3 + rng.geometric(0.05, rng.integers(SEQ_LEN // 2, 6 * SEQ_LEN)) % 300)
    return folder


def steps_of(world: World, config: RunConfig, parallel: dict[str, Any]) -> list[tuple[str, float, dict[str, int]]]:
    """Digest, loss and tokens by source of each step of the only stage."""
    for key, value in parallel.items():
        setattr(config.stages[0].parallel, key, value)
    engine = engine_of(config, world)
    found = []
    with Loader(Plan.of(config.stages[0]), seed=config.train.seed, part=engine.part) as loader:
        for _ in range(6):
            batch = loader.next()
            by_source: Counter[str] = Counter()
            for name, tokens in zip(batch.sources, batch.real_tokens, strict=True):
                by_source[name] += tokens
            done = train_step(engine, engine.stage_batch(batch), LR)
            found.append((engine.digest(batch), done.loss, dict(by_source)))
    return found


@pytest.mark.parametrize("average", ["token", "conversation"])
def test_long_texts_beside_conversations(
    given: Given, tmp_path: Path, average: str, ranks: Callable[[int], RankPool]
) -> None:
    """Shares are of tokens, masked ones too, within a row at every step; the data do not depend on ranks."""
    sources = [
        {"path": str(given.store), "weight": 0.7},
        {"path": str(write_long_texts(tmp_path / "long")), "weight": 0.3},
    ]
    config = given.config(tmp_path, average, data={"sources": sources})
    alone = steps_of(ALONE, config, {})
    drawn: Counter[str] = Counter()
    for _, _, by_source in alone:
        drawn.update(by_source)
        assert abs(drawn["long"] - 0.3 * drawn.total()) <= SEQ_LEN
    assert alone[-1][1] < alone[0][1]
    for parallel in ({"zero": ZeroConfig(stage=3)}, {"context": ContextConfig(size=2)}):
        for found in ranks(2).run(steps_of, config, parallel):
            assert [digest for digest, *_ in found] == [digest for digest, *_ in alone]
            assert [loss for _, loss, _ in found] == pytest.approx([loss for _, loss, _ in alone], rel=1e-4)
