"""Import: a Hugging Face folder as a checkpoint of ours, and the check that it computes the same."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor

from internevo.checkpoint.commit import PARTIAL, STATE, commit, step_name, write_json
from internevo.checkpoint.finite import not_finite_on_disk
from internevo.checkpoint.tensors import copy_tensors
from internevo.config.schema import ModelConfig
from internevo.config.typed import build
from internevo.files.errors import UserError
from internevo.files.processes import ctrl_c_held
from internevo.hf.compare import Comparison, compare
from internevo.hf.config_json import ModelFacts
from internevo.hf.export import check_tokens, folder_aside
from internevo.hf.foreign import described
from internevo.hf.internevo import NOTE, is_internevo, write_release
from internevo.hf.tokenizer_files import copy_tokenizer
from internevo.hf.weights import CheckpointWeights, FolderWeights
from internevo.tokens.tokenizer import load_tokenizer

_POLL_S = 0.2
MODEL_FILE = "model.yaml"
"""What an imported folder has instead of a run's config.yaml: a base for configs that continue from it."""


@dataclass(frozen=True)
class ImportReport:
    facts: ModelFacts
    tensors: int
    bytes: int
    seconds: float  # spent on reading and writing weights; checksums and comparing logits took the rest
    compared: Comparison

    def __str__(self) -> str:
        return (
            f"{self.facts.family}, {self.tensors:,} tensors, {self.bytes / 1e6:,.1f} MB copied in "
            f"{self.seconds:.1f} s; {self.compared}"
        )


def import_model(
    folder: Path, output: Path, *, workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> ImportReport:
    """Make `output` from a Hugging Face folder: a checkpoint, the tokenizer, and `model.yaml` to begin a config with.

    A checkpoint of InternEvo's own is first rewritten as such a folder, which is removed at the end.
    Weights are kept as they are stored. One tensor is in memory at a time; `workers` processes share them out.
    `progress` is told bytes done and bytes in all. Raises UserError when `output` exists, or when `folder` has no model
    that this package knows; and Mismatch, with nothing left, when our model does not compute what theirs does.
    """
    with folder_aside(output) as aside:
        if is_internevo(folder):
            released = aside / "internlm2"
            released.mkdir()
            write_release(folder, released)
            report = _import(released, aside, output, workers, progress)
            report = replace(report, facts=replace(report.facts, notes=(*report.facts.notes, NOTE)))
            shutil.rmtree(released)
        elif what := described(folder):
            raise UserError(f"{what}.")
        else:
            report = _import(folder, aside, output, workers, progress)
    return report


def _import(
    folder: Path, aside: Path, output: Path, workers: int, progress: Callable[[int, int], None]
) -> ImportReport:
    """Write into `aside` what `output` is to hold."""
    weights = FolderWeights(folder)
    facts = weights.facts
    checkpoint = aside / "checkpoints" / step_name(0)
    partial = checkpoint.with_name(checkpoint.name + PARTIAL)
    partial.mkdir(parents=True)
    start = time.perf_counter()
    _copy(weights, partial, workers, progress)
    seconds = time.perf_counter() - start
    compared = compare(CheckpointWeights(partial), facts.model, folder, check_tokens(facts.seq_len, facts.model.vocab))
    tokenizer = _copy_tokenizer(folder, aside)
    record = {
        "family": facts.family,
        "model": asdict(facts.model),
        "seq_len": facts.seq_len,
        "tokenizer": "tokenizer" if tokenizer else None,
        "notes": facts.notes,
    }
    write_json(partial / STATE, {"step": 0, "stage": "import", "imported": record})
    commit(partial, checkpoint, permanent=True, finite=not not_finite_on_disk(partial))
    (aside / MODEL_FILE).write_text(_base_config(facts, output, tokenizer), encoding="utf-8")
    return ImportReport(facts, len(weights.names), weights.nbytes, seconds=seconds, compared=compared)


def read_record(record: dict[str, Any]) -> tuple[ModelConfig, int]:
    """The shape and the row length in an imported checkpoint's state."""
    if "attention" not in record["model"]:
        raise UserError("this model was imported by an earlier version of internevo; import it again")
    return build(ModelConfig, record["model"]), record["seq_len"]


def _base_config(facts: ModelFacts, output: Path, tokenizer: bool) -> str:
    model = {key: value for key, value in asdict(facts.model).items() if key != "preset"}
    tree: dict[str, Any] = {"model": model}
    if tokenizer:
        tree["tokenizer"] = (output / "tokenizer").as_posix()
    tree["train"] = {"init_from": output.as_posix()}
    head = f"# From a {facts.family} model of rows up to {facts.seq_len:,} tokens. Begin a config with:\n"
    return f"{head}#   _base_: {output.as_posix()}/{MODEL_FILE}\n" + yaml.safe_dump(tree, sort_keys=False)


def _copy_tokenizer(folder: Path, output: Path) -> bool:
    """Copy the tokenizer's files; whether there was one."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return False
    (output / "tokenizer").mkdir()
    copy_tokenizer(folder, output / "tokenizer")
    load_tokenizer(output / "tokenizer")
    return True


class _Counted:
    """Weights that report how many bytes were read."""

    def __init__(self, weights: FolderWeights, progress: Callable[[int, int], None]):
        self.weights, self.progress, self.done = weights, progress, 0
        self.shape, self.dtype = weights.shape, weights.dtype

    def read(self, name: str, dtype: torch.dtype | None = None, part: tuple[slice, ...] = ()) -> Tensor:
        """The weight, counted."""
        tensor = self.weights.read(name, dtype, part)
        self.done += tensor.nbytes
        self.progress(self.done, self.weights.nbytes)
        return tensor


def _copy(weights: FolderWeights, folder: Path, workers: int, progress: Callable[[int, int], None]) -> None:
    if workers == 1:
        copy_tensors(_Counted(weights, progress), weights.names, folder, "model/")
        return
    with tempfile.TemporaryDirectory() as meeting:
        shares = [(weights.folder, folder, rank, workers, meeting) for rank in range(workers)]
        processes = [get_context("spawn").Process(target=_copy_share, args=one, daemon=True) for one in shares]
        with ctrl_c_held():
            for process in processes:
                process.start()
        while any(process.is_alive() for process in processes):
            progress(sum(file.stat().st_size for file in folder.glob("*.distcp")), weights.nbytes)
            time.sleep(_POLL_S)
        for said in Path(meeting).glob("*.error"):
            raise UserError(said.read_text(encoding="utf-8"))
    if any(process.exitcode for process in processes):
        raise UserError("a process that copied weights failed; see its message above")


def _copy_share(source: Path, folder: Path, rank: int, workers: int, meeting: str) -> None:
    """One of several processes: its share of the tensors."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    weights = FolderWeights(source)
    groups = groupby(weights.names, key=weights.stored_name)  # what lies in one tensor of theirs stays together
    mine = [name for turn, (_, names) in enumerate(groups) if turn % workers == rank for name in names]
    place, patience = f"file://{meeting}/ranks", timedelta(hours=2)
    dist.init_process_group("gloo", place, rank=rank, world_size=workers, timeout=patience)
    try:
        copy_tensors(weights, mine, folder, "model/", dist.group.WORLD)
    except UserError as error:  # for the process that waits, to tell once
        Path(meeting, f"{rank}.error").write_text(str(error), encoding="utf-8")
    finally:
        dist.destroy_process_group()
