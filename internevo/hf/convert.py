"""Export: weights, configuration and tokenizer as a Hugging Face folder, and the proof that it computes the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from internevo.config.errors import UserError
from internevo.config.schema import ModelConfig
from internevo.data.tokenizer import Tokenizer
from internevo.hf.mapping import FAMILIES, Row, family_config
from internevo.hf.tokenizer_files import check_tokenizer, quiet_transformers, write_tokenizer
from internevo.model.documents import Documents
from internevo.model.transformer import Transformer

FORMATS = ("llama", "internlm2")
TOLERANCE = 1e-4
"""Largest difference of logits in fp32, as a share of the largest logit where that is above one."""
_CHECKED_TOKENS = 512
_INDEX = "model.safetensors.index.json"


class ExportMismatch(UserError):
    """The exported files do not compute what the model computes."""


@dataclass(frozen=True)
class ExportReport:
    """What an export made, and how far its logits were from ours."""

    family: str
    files: int
    bytes: int
    tokens: int
    """Tokens of real text that the logits were compared on."""
    difference: float
    """The largest difference between two logits, in fp32."""

    def __str__(self) -> str:
        return (
            f"{self.family}, {self.bytes / 1e6:,.1f} MB in {self.files} file{'s' * (self.files > 1)}; logits on "
            f"{self.tokens} tokens of text differ by at most {self.difference:.1e}"
        )


@torch.no_grad()
def export(
    model: Transformer,
    output: Path,
    format: str,
    *,
    seq_len: int,
    tokenizer: Tokenizer | None,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = 5_000_000_000,
) -> ExportReport:
    """Write `model` (fp32 on the CPU) to the new folder `output` and compare logits.

    `llama` loads with plain transformers; a model with q, k and v biases is written as Qwen2, the family that has
    them. `internlm2` has the names and the grouped `wqkv` of the InternLM2 release. `dtype` is what the weights
    are stored as; the model's own weights are rounded to it in place, so that both sides of the comparison have
    the same. Raises UserError when `output` exists or the format cannot hold the model, and ExportMismatch, with
    the files left in `output.failed`, when the logits differ.
    """
    config = model.config
    family = _family(format, config)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} exists already and is not empty; it is not overwritten. Choose another folder.")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))
    shards = _write_weights(model.state_dict(), config, family, partial, dtype, max_shard_bytes)
    ids = (tokenizer.bos_id, tokenizer.eos_id) if tokenizer else (None, None)
    name = str(dtype).removeprefix("torch.")
    facts = family_config(family, config, seq_len=seq_len, dtype=name, bos_id=ids[0], eos_id=ids[1])
    _write_json(partial / "config.json", facts)
    _write_json(
        partial / "generation_config.json",
        {"bos_token_id": ids[0], "eos_token_id": ids[1], "pad_token_id": ids[1], "max_length": seq_len},
    )
    text = files("internevo.hf").joinpath("sample.txt").read_text()
    tokens = torch.arange(min(seq_len, config.vocab))[None]
    try:
        if tokenizer is not None:
            write_tokenizer(tokenizer, partial, seq_len)
            check_tokenizer(tokenizer, partial, [text, *text.splitlines(keepends=True), ""])
            tokens = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)][: min(seq_len, _CHECKED_TOKENS)]])
        difference = _compare(model, partial, family, tokens)
    except UserError as error:
        failed = output.with_name(output.name + ".failed")
        shutil.rmtree(failed, ignore_errors=True)
        partial.rename(failed)
        raise ExportMismatch(f"{error}. The files are left in {failed}.") from error
    if output.exists():
        output.rmdir()
    partial.rename(output)
    written = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    return ExportReport(family, shards, written, tokens.shape[1], difference)


def read_export(folder: Path, family: str, config: ModelConfig) -> Transformer:
    """An exported folder as our model again, fp32, through the family's table backwards."""
    where = _tensor_files(folder)
    state: dict[str, Tensor] = {}
    for row, ours, theirs in FAMILIES[family].tensors(config):
        with safe_open(where[theirs], "pt") as file:
            state |= zip(ours, row.unpack(file.get_tensor(theirs).float(), config), strict=True)
    if config.tied:
        state["head.weight"] = state["embed.weight"]
    model = Transformer(config)
    model.load_state_dict(state)
    return model


def _family(format: str, config: ModelConfig) -> str:
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    if format == "internlm2" and config.qkv_bias:
        raise UserError("InternLM2 has no q, k and v biases, and this model has: export it with --format llama")
    return "qwen2" if config.qkv_bias else format


def _write_weights(
    state: dict[str, Tensor], config: ModelConfig, family: str, folder: Path, dtype: torch.dtype, limit: int
) -> int:
    """Write the tensors shard by shard, one shard in memory at a time; returns the number of shards."""
    shards = list(_shards(state, config, family, dtype.itemsize, limit))
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            theirs: row.pack([state[one] for one in ours], config).to(dtype).contiguous() for row, ours, theirs in shard
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return len(shards)


def _shards(
    state: dict[str, Tensor], config: ModelConfig, family: str, itemsize: int, limit: int
) -> Iterator[list[tuple[Row, tuple[str, ...], str]]]:
    shard: list[tuple[Row, tuple[str, ...], str]] = []
    size = 0
    for entry in FAMILIES[family].tensors(config):
        nbytes = itemsize * sum(state[name].numel() for name in entry[1])
        if shard and size + nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += nbytes
    yield shard


def _compare(model: Transformer, folder: Path, family: str, tokens: Tensor) -> float:
    """The largest difference of logits; raises ExportMismatch when it is too large."""
    length = tokens.shape[1]
    positions, documents = torch.arange(length)[None], Documents.of([length])
    ours = model(tokens, positions, documents)
    if family == "internlm2":
        theirs = read_export(folder, family, model.config)(tokens, positions, documents)
    else:
        from transformers import AutoModelForCausalLM

        with quiet_transformers():
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
    difference = (ours - theirs).abs().max().item()
    allowed = TOLERANCE * max(1.0, ours.abs().max().item())
    if not difference <= allowed:
        raise ExportMismatch(f"the exported model's logits differ by {difference:.2e}; {allowed:.0e} is allowed")
    return difference


def _tensor_files(folder: Path) -> dict[str, Path]:
    index = folder / _INDEX
    if index.exists():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    single = folder / "model.safetensors"
    with safe_open(single, "pt") as file:
        return dict.fromkeys(file.keys(), single)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
