"""Export: weights, configuration and tokenizer as a Hugging Face folder, and the check that it computes the same."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internevo.config.schema import ModelConfig
from internevo.files.errors import UserError
from internevo.files.processes import ctrl_c_held, worker_pool
from internevo.hf.compare import Comparison, compare
from internevo.hf.config_json import write_facts
from internevo.hf.families import FAMILIES, Row, choose_family
from internevo.hf.files import Entry, shard_name, shards, write_index, write_json, write_safetensors
from internevo.hf.tokenizer_files import ChatFiles, check_tokenizer, write_chat, write_tokenizer
from internevo.hf.weights import Weights, check_finite
from internevo.tokens.tokenizer import Tokenizer

SHARD_BYTES = 2_000_000_000  # largest file: many tools read a whole one into memory
_CHECKED_TOKENS = 256


class ExportError(UserError):
    """The exported files do not compute what the model does."""


@dataclass(frozen=True)
class ExportReport:
    family: str
    files: int
    bytes: int
    dtype: str  # what the weights are stored as
    compared: Comparison
    overflowed: int  # weights that are finite but too large for `dtype`, and became infinite
    seconds: float  # spent on reading and writing weights; comparing logits took the rest

    def __str__(self) -> str:
        return (
            f"{self.family}, {self.bytes / 1e6:,.1f} MB of {self.dtype} in {self.files} file{'s' * (self.files > 1)}; "
            f"written in {self.seconds:.1f} s; {self.compared}"
        )


@dataclass(frozen=True)
class _Job:
    """What every process that writes needs to know."""

    weights: Weights
    config: ModelConfig
    family: str
    dtype: torch.dtype | None
    folder: Path
    limit: int

    def shards(self, overflows: list[int]) -> list[list[Entry]]:
        """What each file holds; when a tensor is made, the number of its weights that overflow goes to `overflows`."""
        family, entries = FAMILIES[self.family], []
        shapes = family.shapes(self.config)
        for row, ours, theirs in family.tensors(self.config):
            dtype = self.dtype or self.weights.dtype(ours[0])
            entries.append(Entry(theirs, shapes[theirs], dtype, partial(self._make, row, ours, dtype, overflows)))
        return shards(entries, self.limit)

    def write(self, number: int) -> tuple[int, int]:
        """Write one file; its bytes of tensors, and the number of weights that became infinite."""
        overflows: list[int] = []
        groups = self.shards(overflows)
        write_safetensors(self.folder / shard_name(number + 1, len(groups)), groups[number])
        return sum(entry.nbytes for entry in groups[number]), sum(overflows)

    def _make(self, row: Row, ours: tuple[str, ...], dtype: torch.dtype, overflows: list[int]) -> Tensor:
        parts = []
        for name in ours:
            if dtype == torch.float16 and self.weights.dtype(name) != dtype:
                exact = self.weights.read(name)
                check_finite(name, exact)
                rounded = exact.to(dtype)
                overflows.append(int((rounded.isinf() & exact.isfinite()).sum()))
            else:
                rounded = self.weights.read(name, dtype)
                check_finite(name, rounded)
            parts.append(rounded)
        return row.layout.pack(parts, self.config)


def export(
    weights: Weights,
    config: ModelConfig,
    output: Path,
    format: str,
    *,
    seq_len: int,
    tokenizer: Tokenizer | None,
    chat: ChatFiles | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportReport:
    """Write the model that has `weights` to the new folder `output`, and compare logits.

    `format` is a family of `families.FAMILIES`, or `auto`: the plainest that holds the model. Weights are stored as
    `dtype`, or each as it is in `weights`. With `chat`, whoever loads the folder talks in its format, and stops at its
    stops. One tensor is in memory at a time; `workers` processes write a file each.
    `progress` is told bytes done and bytes in all. Raises UserError when `output` exists or the format cannot hold the
    model, and ExportError, with the files left in `output.failed`, when the logits differ.
    """
    family = choose_family(format, config)
    with folder_aside(output) as aside:
        start = time.perf_counter()
        job = _Job(weights, config, family, dtype=dtype, folder=aside, limit=max_shard_bytes)
        count, total, overflowed = _write_weights(job, workers, progress)
        seconds = time.perf_counter() - start
        stored = str(dtype or weights.dtype("embed.weight")).removeprefix("torch.")
        _write_settings(job, seq_len, stored, tokenizer, chat)
        try:
            tokens = _write_tokenizer(tokenizer, chat, aside, seq_len, config.vocab)
            compared = compare(weights, config, aside, tokens, dtype)
        except UserError as error:
            failed = output.with_name(output.name + ".failed")
            shutil.rmtree(failed, ignore_errors=True)
            aside.rename(failed)
            lost = f" {overflowed:,} weights are too large for {stored} and became infinite." if overflowed else ""
            raise ExportError(f"{error}.{lost} The files are left in {failed}.") from error
    return ExportReport(family, count, total, dtype=stored, compared=compared, overflowed=overflowed, seconds=seconds)


@contextmanager
def folder_aside(output: Path) -> Iterator[Path]:
    """A new folder that becomes `output`; after an error it is removed. Raises UserError when `output` is taken."""
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} exists already and is not empty; it is not overwritten. Choose another folder.")
    aside = output.with_name(output.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier one that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.rename(output)


def _write_settings(job: _Job, seq_len: int, stored: str, tokenizer: Tokenizer | None, chat: ChatFiles | None) -> None:
    """Write the configuration, and the model's code where it needs some."""
    config, family, folder = job.config, job.family, job.folder
    bos_id, eos_id = (tokenizer.bos_id, tokenizer.eos_id) if tokenizer else (None, None)
    facts = write_facts(family, config, seq_len=seq_len, dtype=stored, bos_id=bos_id, eos_id=eos_id)
    write_json(folder / "config.json", facts)
    generation: dict[str, Any] = {key: facts[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation["max_length"] = seq_len
    if chat is not None:  # several tokens may end a turn, and config.json has a place for one
        generation["eos_token_id"] = list(chat.stops)
    if tokenizer and (unused := tokenizer.unused(config.vocab)):
        generation["suppress_tokens"] = unused  # rows of the vocabulary without a piece are not to be sampled
    write_json(folder / "generation_config.json", generation)
    if family == "internlm2":
        for name in ("configuration_internlm2.py", "modeling_internlm2.py"):
            (folder / name).write_bytes(files("internevo.hf.internlm2").joinpath(name).read_bytes())


def _write_tokenizer(
    tokenizer: Tokenizer | None, chat: ChatFiles | None, folder: Path, seq_len: int, vocab: int
) -> Tensor:
    """Write and check it, if there is one; returns the tokens to compare logits on."""
    if tokenizer is None:
        return check_tokens(seq_len, vocab)
    text = files("internevo.hf").joinpath("sample.txt").read_text(encoding="utf-8")
    write_tokenizer(tokenizer, folder, seq_len)
    if chat is not None:
        write_chat(chat, folder)
    check_tokenizer(tokenizer, folder, [text, *text.splitlines(keepends=True), ""])
    return check_tokens(seq_len, vocab, [tokenizer.bos_id, *tokenizer.encode(text)])


def check_tokens(seq_len: int, vocab: int, ids: list[int] | None = None) -> Tensor:
    """Token ids `[1, seq]` to compare logits on: those given, or some of the whole vocabulary."""
    if ids is None:
        ids = torch.randint(0, vocab, (_CHECKED_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([ids[: min(seq_len, _CHECKED_TOKENS)]])


def _write_weights(job: _Job, workers: int, progress: Callable[[int, int], None]) -> tuple[int, int, int]:
    """Write all files; how many, their bytes of tensors, and the number of weights that became infinite."""
    groups = job.shards([])
    total, done, overflowed = sum(entry.nbytes for group in groups for entry in group), 0, 0
    with ExitStack() as stack:
        written: Iterator[tuple[int, int]] = map(job.write, range(len(groups)))
        if workers > 1:
            pool = stack.enter_context(worker_pool(min(workers, len(groups))))
            with ctrl_c_held():
                written = pool.map(job.write, range(len(groups)))
        for size, lost in written:
            done, overflowed = done + size, overflowed + lost
            progress(done, total)
    write_index(job.folder, groups)
    return len(groups), total, overflowed
