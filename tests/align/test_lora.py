"""Low-rank adapters beside PEFT's: the same losses, gradients and weights; and what frozen weights cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.config.load import load_config
from internevo.config.presets import model_preset
from internevo.config.read import ConfigError
from internevo.config.schema import LoraConfig, OptimizerConfig, StageConfig, TrainConfig
from internevo.data.batch import Batch
from internevo.data.loader import evaluation_batches
from internevo.files.errors import UserError
from internevo.hf.config_json import read_facts
from internevo.hf.families import FAMILIES
from internevo.model.initial import initial_values
from internevo.model.lora import check_targets, factor_roles
from internevo.model.roles import Kind, Role
from internevo.optim.groups import width_rate
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.engine import TorchEngine
from internevo.train.initial_weights import begin_from
from internevo.train.step import train_step
from tests.hf.models import save_theirs
from tests.parallel.jobs import ALONE, engine_of, stage_of
from tests.train.runs import write_config

STEPS, SEQ_LEN, LR = 20, 64, 3e-3
FACTORS = {"lora_a": "lora_A", "lora_b": "lora_B"}


def adapted_engine(folder: Path, lora: LoraConfig, precision: str = "fp32") -> TorchEngine:
    """An engine that adapts the model of a Hugging Face folder."""
    stage = StageConfig(
        model=read_facts(folder).model,
        train=TrainConfig(precision=precision, micro_batch=2, init_from=str(folder), lora=lora),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(weight_decay=0.1),
    )
    engine = make_engine(stage, ALONE)
    begin_from(engine, stage, ALONE)
    assert isinstance(engine, TorchEngine)
    return engine


def their_names(engine: TorchEngine, family: str) -> dict[str, str]:
    """PEFT's name of each of our factors."""
    rows = {ours[0]: theirs for _, ours, theirs in FAMILIES[family].tensors(engine.stage.model)}
    found = {}
    for name in engine.learning():
        matrix, _, factor = name.rpartition(".")
        module = rows[f"{matrix}.weight"].removesuffix(".weight")
        found[name] = f"base_model.model.{module}.{FACTORS[factor]}.default.weight"
    return found


def batches(folder: Path) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    """For each step packed rows, and the documents in them."""
    rng = np.random.default_rng(0)
    for number in range(STEPS):
        documents = [rng.geometric(0.02, length) % 512 for length in rng.integers(1, SEQ_LEN + 1, 12)]
        with TokenStoreWriter(folder / str(number), np.uint16) as writer:
            for document in documents:
                writer.append(document)
        (batch,) = evaluation_batches("s", TokenStore(folder / str(number)), SEQ_LEN, 10**6, 10**9)
        yield batch, documents


@pytest.mark.parametrize("targets", [["all"], ["wq", "wv"]])
def test_twenty_steps_beside_peft(targets: list[str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    theirs = save_theirs("llama 3", tmp_path / "base")
    engine = adapted_engine(tmp_path / "base", LoraConfig(rank=4, alpha=12.0, targets=targets))
    names = their_names(engine, "llama")
    modules = sorted({name.split(".")[-4] for name in names.values()})
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=12, target_modules=modules)).train()
    parameters = dict(theirs.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == set(names.values())
    with torch.no_grad():
        for name, parameter in engine.learning().items():
            parameters[names[name]].copy_(parameter)
    ours_now: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        ours_now.update({name: p.grad.clone() for name, p in engine.local.items() if p.grad is not None})

    engine.optimizers.all[0].register_step_pre_hook(keep)
    moved = [p for p in parameters.values() if p.requires_grad]
    reference = torch.optim.AdamW(moved, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for number, (batch, documents) in enumerate(batches(tmp_path)):
        ours = train_step(engine, engine.stage_batch(batch), LR)
        loss, norm, gradients = their_step(theirs, reference, documents)
        assert ours.loss == pytest.approx(loss, abs=1e-4), number
        assert ours.grad_norm == pytest.approx(norm, rel=1e-3), number
        assert ours_now.keys() == names.keys()
        if number < 3:  # in the first, those of A are zero
            for name, gradient in ours_now.items():
                difference = (gradient - gradients[names[name]]).norm()
                assert difference <= 1e-3 * gradient.norm(), (number, name)
    for name, parameter in engine.learning().items():
        torch.testing.assert_close(parameter.detach(), parameters[names[name]].detach(), atol=3e-4, rtol=0)


def their_step(
    model: Any, optimizer: torch.optim.Optimizer, documents: list[np.ndarray]
) -> tuple[float, float, dict[str, Tensor]]:
    """One document a row, none padded; the mean over all labels. Loss, gradient norm, and the gradients before it."""
    labels = sum(len(document) - 1 for document in documents)
    total = 0.0
    for document in documents:
        if len(document) > 1:
            tokens = torch.from_numpy(document)[None]
            loss = F.cross_entropy(model(input_ids=tokens).logits[0, :-1], tokens[0, 1:], reduction="sum") / labels
            loss.backward()
            total += loss.item()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total, norm.item(), gradients


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_frozen_costs_its_weights_alone(precision: str, tmp_path: Path) -> None:
    """Bytes counted: no gradient, no optimizer state, no fp32 copy, and not a byte of it moves."""
    save_theirs("llama 3", tmp_path / "base")
    engine = adapted_engine(tmp_path / "base", LoraConfig(rank=4), precision)
    frozen = {name: p for name, p in engine.parameters.items() if not p.requires_grad}
    learning = engine.learning()
    assert len(learning) == 3 * 7 * 2
    before = {name: p.detach().clone() for name, p in frozen.items()}
    batch, _ = next(batches(tmp_path))
    staged = engine.stage_batch(batch)
    loss = engine.forward_backward(staged)
    held = {id(p): p for p in (*engine.parameters.values(), *engine.runner.parameters.values())}
    gradients = sum(p.grad.nbytes for p in held.values() if p.grad is not None)
    gradients += sum(p.grad.nbytes for p in engine.local.values() if p.grad is not None and precision == "bf16")
    few = sum(p.numel() for p in learning.values())
    many = sum(p.numel() for p in frozen.values())
    assert gradients == 4 * few
    engine.update(loss, LR)
    size = 2 if precision == "bf16" else 4
    copies = 2 * few if precision == "bf16" else 0
    assert sum(p.nbytes for p in held.values()) == size * many + 4 * few + copies
    state = [t for one in engine.optimizers.all for kinds in one.state.values() for t in kinds.values() if t.ndim]
    assert sum(t.nbytes for t in state) == 8 * few
    assert all(torch.equal(p, before[name]) for name, p in frozen.items())
    assert not any(p.grad is not None for p in frozen.values())
    assert {key.rpartition(".")[2].partition("/")[0] for key in engine.state()} == set(FACTORS)


def test_it_begins_as_the_model_was_and_as_pefts_do() -> None:
    lora = LoraConfig(rank=8)
    engine = engine_of(stage_of({"lora": {"rank": 8}}), ALONE)
    name = "blocks.1.feed_forward.down.lora"
    a, b = (engine.parameters[f"{name}_{factor}"] for factor in "ab")
    assert not b.any()
    inner = a.shape[1]
    theirs = torch.nn.init.kaiming_uniform_(torch.empty(4000, inner), a=5**0.5)  # what PEFT calls
    role = engine.roles[f"{name}_a"]
    ours = initial_values("any", torch.Size((4000, inner)), role, engine.stage.model, 1)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=1e-2)
    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=1e-3)
    assert engine.runner.transformers[0].blocks[0].attention.wq.scale == lora.alpha / 8  # type: ignore[union-attr]


def test_a_factor_whose_input_is_narrow_keeps_its_learning_rate() -> None:
    """Under `model.width_base`: A has an input as wide as the model, as other matrices have."""
    role = Role(Kind.matrix, cut=0)
    rate = width_rate(model_preset("tiny", width_base=16))
    assert [rate(one) for one in (role, *factor_roles(role))] == [0.25, 0.25, 1.0]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.lora.targets: the blocks have no matrix 'wqq'; did you mean wq"):
        check_targets(stage_of({}).model, LoraConfig(rank=4, targets=["wqq"]))
    path = write_config(tmp_path, model={"preset": "tiny"})
    for overrides, said in (
        ([], r"train.lora: needs train.init_from"),
        (["train.fp8=rowwise", "train.precision=bf16"], r"train.fp8: must be none with train.lora"),
        (["optimizer.state=split", "train.precision=bf16"], r"optimizer.state: must be fp32 with train.lora"),
        (["parallel.zero.engine=deepspeed", "parallel.zero.stage=3"], r"parallel.zero.engine: must be fsdp"),
        (["stages.long.train.lora.rank=8"], r"stages.long.train.lora: a stage cannot change it"),
        (["train.lora.targets=wq"], r"train.lora.targets: expected a list"),
        (["train.lora.targets=[]"], r"train.lora.targets: name matrices"),
        (["train.lora.dropout=0.1"], r"train.lora.dropout: must be 0.0 with train.lora, found 0.1"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(path, ["train.lora.rank=4", *overrides])
