"""A model to use: out of a run, an import or a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from internevo.checkpoint.commit import checkpoints, problems, read_state, step_name
from internevo.config.load import load_config
from internevo.config.schema import LoraConfig, ModelConfig, TrainConfig
from internevo.files.errors import UserError
from internevo.hf.adapted_weights import AdaptedWeights
from internevo.hf.foreign import described
from internevo.hf.imports import MODEL_FILE, read_record
from internevo.hf.internevo import is_internevo
from internevo.hf.weights import CheckpointWeights, FolderWeights, Weights, load_model
from internevo.model.transformer import Transformer
from internevo.parallel.block_settings import compute_dtype
from internevo.tokens.tokenizer import Tokenizer, load_tokenizer
from internevo.train.folder import RunFolder
from internevo.train.own_files import StoreChat, kept_tokenizer, read_chats

Facts = dict[str, Any]
"""Plain values, as `state.json` holds them."""


@dataclass(frozen=True)
class Adapter:
    """What a run with `train.lora` has trained."""

    config: LoraConfig
    weights: AdaptedWeights
    """The base's weights with its own."""
    base: str
    """The path of the model that it adapts."""


@dataclass(frozen=True)
class StoredModel:
    """A model on disk, not read yet but for its shape."""

    name: str
    """How a person would call it: `runs/tiny, step 40`."""
    weights: Weights
    config: ModelConfig
    """Its shape, with the rotary base of the stage that it was saved in."""
    seq_len: int
    """The rows that it was trained on."""
    tokenizer_path: Path | None
    family: str | None
    """What it was imported from, or is in a Hugging Face folder."""
    dtype: torch.dtype | None
    """What it was trained in; None keeps each weight as it is stored."""
    step: int
    adapter: Adapter | None = None
    """Where `weights` are those of a base with an adapter merged in."""
    notes: tuple[str, ...] = ()
    """What a person should know: where transformers computes something else from the folder that it comes from."""
    chats: tuple[StoreChat, ...] = ()
    """How the stores of conversations that it was trained on were written, by stages up to its own."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer, if it names one."""
        return load_tokenizer(self.tokenizer_path) if self.tokenizer_path else None

    def needs_tokenizer(self) -> Tokenizer:
        """Its tokenizer. Raises UserError when it names none."""
        if (tokenizer := self.tokenizer) is None:
            raise UserError(f"{self.name} names no tokenizer; set `tokenizer` in its config to turn text into tokens")
        return tokenizer

    def load(self, device: torch.device | str = "cpu") -> Transformer:
        """The model with fp32 weights."""
        return load_model(self.weights, self.config, device).eval()


def open_model(path: Path | str, step: int | None = None) -> StoredModel:
    """The model of a run or import (of its newest whole checkpoint, or that of `step`), or of a Hugging Face folder.

    Reads only, so it is safe beside a run in progress. Raises UserError when `path` is none of these, or has no such
    checkpoint.
    """
    path = Path(path)
    if RunFolder(path).config_file.is_file():
        return _of_run(path, step)
    if (path / MODEL_FILE).is_file():
        return _of_import(path, step)
    if (path / "config.json").is_file():
        return _of_folder(path)
    if is_internevo(path):
        raise UserError(f"{path} is a checkpoint of InternEvo's: `internevo import {path} OUTPUT` makes a model of it.")
    if what := described(path):
        raise UserError(f"{what}.")
    raise UserError(
        f"{path} has no model: it is no run folder (runs/NAME, with config.yaml), no import (with {MODEL_FILE}) and no "
        "Hugging Face folder (with config.json)."
    )


def _of_run(path: Path, step: int | None) -> StoredModel:
    folder = RunFolder(path)
    checkpoint = choose_checkpoint(folder.checkpoints, step)
    config = load_config(folder.config_file, check_data=False, check_values=False)
    state = read_state(checkpoint)
    number = next((i for i, stage in enumerate(config.stages) if stage.name == state["stage"]), None)
    if number is None:
        raise UserError(f"{checkpoint} belongs to stage {state['stage']!r}, which {folder.config_file} lacks.")
    stage = config.stages[number]
    stored = StoredModel(
        name=f"{path}, step {state['step']:,}",
        weights=CheckpointWeights(checkpoint),
        config=stage.model,
        seq_len=stage.train.seq_len,
        tokenizer_path=kept_tokenizer(folder) or (Path(stage.tokenizer) if stage.tokenizer else None),
        family=None,
        dtype=compute_dtype(stage),
        step=state["step"],
        chats=read_chats(folder, config.stages[: number + 1]),
    )
    return _with_base(stored, stage.train, state.get("base"), folder) if stage.train.lora.rank else stored


def _with_base(stored: StoredModel, train: TrainConfig, saved: Facts | None, folder: RunFolder) -> StoredModel:
    """The run's adapter on the model that it adapts. Raises UserError when that is gone, or another one."""
    assert train.init_from is not None
    assert isinstance(stored.weights, CheckpointWeights)
    try:
        base = open_base(train.init_from, saved)
    except UserError as error:
        where = f"the base that train.init_from names in {folder.config_file} cannot be used"
        raise UserError(f"{folder.path} holds an adapter alone, and {where}: {error}") from None
    weights = AdaptedWeights(base.weights, stored.weights, train.lora)
    return replace(
        stored,
        weights=weights,
        family=base.family,
        tokenizer_path=stored.tokenizer_path or base.tokenizer_path,
        adapter=Adapter(train.lora, weights, train.init_from),
        notes=base.notes,
    )


def open_base(path: str, saved: Facts | None) -> StoredModel:
    """The model that adapters are trained on; with what a checkpoint has `saved` of it, that very one.

    Raises UserError when it is gone, or another one.
    """
    if saved is None:
        return open_model(path)
    is_run = RunFolder(Path(path)).config_file.is_file()
    stored = open_model(path, saved["step"] if is_run else None)  # a run may have newer ones by now
    if base_facts(stored)["fingerprint"] != saved["fingerprint"]:
        raise UserError(
            f"{path} holds other weights than {saved['name']} had, which the adapter was trained on. Put those back, "
            "or name their place in train.init_from."
        )
    return stored


def base_facts(stored: StoredModel) -> Facts:
    """What a checkpoint of adapters says of their base."""
    return {"name": stored.name, "step": stored.step, "fingerprint": stored.weights.fingerprint()}


def _of_import(path: Path, step: int | None) -> StoredModel:
    checkpoint = choose_checkpoint(path / "checkpoints", step)
    record = read_state(checkpoint)["imported"]
    config, seq_len = read_record(record)
    tokenizer = path / record["tokenizer"] if record["tokenizer"] else None
    return StoredModel(
        name=str(path),
        weights=CheckpointWeights(checkpoint),
        config=config,
        seq_len=seq_len,
        tokenizer_path=tokenizer,
        family=record["family"],
        dtype=None,
        step=0,
        notes=tuple(record.get("notes", ())),
    )


def _of_folder(path: Path) -> StoredModel:
    weights = FolderWeights(path)
    facts = weights.facts
    found = any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = path if found else None
    return StoredModel(
        name=str(path),
        weights=weights,
        config=facts.model,
        seq_len=facts.seq_len,
        tokenizer_path=tokenizer,
        family=facts.family,
        dtype=None,
        step=0,
        notes=facts.notes,
    )


def choose_checkpoint(folder: Path, step: int | None) -> Path:
    """The newest whole checkpoint of `folder`, or that of `step`. Raises UserError when there is none."""
    if step is not None:
        path = folder / step_name(step)
        if not path.is_dir():
            known = ", ".join(p.name for p in checkpoints(folder)) or "none"
            raise UserError(f"there is no checkpoint {path}; the run has: {known}.")
        if wrong := problems(path):
            raise UserError(f"{path} is damaged: {'; '.join(wrong)}")
        return path
    for path in reversed(checkpoints(folder)):
        if not problems(path):
            return path
    raise UserError(
        f"{folder} holds no whole checkpoint yet. `internevo train` writes one every checkpoint.every steps."
    )
