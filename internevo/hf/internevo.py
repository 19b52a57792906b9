"""InternEvo's own checkpoints of InternLM2 models, rewritten in the format of the InternLM2 release.

A checkpoint folder has `model_config.pt`, a dict, and a file for each part of the model: `model_tp{T}_pp{P}.pt`, or
`model_wp{W}_pp{P}.pt` where weights are cut instead of tokens. Each part numbers its layers from 0. Over `T`, matrices
are cut: `wqkv`, `w1`, `w3` and `output` by rows, `wo` and `w2` by columns, the embedding by either; norms are whole in
each file. Where a tensor was cut follows from its parts' shapes. Names and cuts are those of InternEvo's
`internlm/checkpoint/components.py` and `transformers/convert2hf_internlm2.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.config.schema import AttentionConfig, FeedForwardConfig, ModelConfig, RopeConfig
from internevo.files.errors import UserError, some
from internevo.hf.config_json import write_facts
from internevo.hf.families import FAMILIES
from internevo.hf.files import Entry, known_dtype, load_torch, shard_name, shards, write_index, write_safetensors
from internevo.hf.tokenizer_files import copy_tokenizer

SETTINGS = "model_config.pt"
_PART = re.compile(r"model_(?:tp|wp)(\d+)_pp(\d+)\.pt")
_ANY = re.compile(r"model_[tw]p\d+_pp\d+.*\.pt")
_LAYER = re.compile(r"layers\.(\d+)\.")
_DICTS = ("internlm.core.context.parallel_context.Config", "internlm.core.context.config.Config")
"""InternEvo's classes of its settings; a plain dict takes their place."""
_SHARD_BYTES = 5 * 10**9
_SEQ_LEN = 4096  # the row length that InternEvo's converter assumes
NOTE = f"an InternEvo checkpoint does not say how long its rows were; {_SEQ_LEN:,} is taken"
_NOT_HERE = {
    "norm_type": "rmsnorm",
    "no_bias": True,
    "num_chunks": 1,
    "apply_post_layer_norm": False,
    "use_dynamic_ntk_rope": False,
    "num_experts": 1,
}
"""Settings, and the only value of each that models here have."""


def is_internevo(folder: Path) -> bool:
    """Whether the folder is one of InternEvo's checkpoints."""
    return folder.is_dir() and any(is_part(file) for file in folder.iterdir())


def is_part(file: Path) -> bool:
    """Whether the file has the name of a part of one of InternEvo's checkpoints."""
    return bool(_ANY.fullmatch(file.name))


def write_release(folder: Path, output: Path) -> None:
    """Write the checkpoint `folder` as the Hugging Face folder `output`; one tensor is in memory at a time.

    Raises UserError for a part that is missing, damaged or of another layout, and for a model that is no InternLM2.
    """
    parts = _parts(folder)
    settings = _settings(folder)
    tensors = dict(_named(folder, parts))
    config = _model(folder, settings, tensors)
    shapes = FAMILIES["internlm2"].shapes(config)
    # by InternEvo's names, which have no `model.` before them
    released = {name.removeprefix("model."): name for name in shapes}
    if missing := [name for name in released if name not in tensors]:
        raise UserError(f"{folder} lacks {some(missing)}")
    if unknown := [name for name in tensors if name not in released]:
        raise UserError(f"{folder} has tensors that an InternLM2 model does not have: {some(unknown)}")
    entries = []
    for name, theirs in released.items():
        cut = _cut(folder, name, tensors[name], shapes[theirs])
        stored = known_dtype(tensors[name][0].dtype, f"{folder}: {name}")
        make = partial(_join, name, tensors[name], cut, config, settings)
        entries.append(Entry(theirs, shapes[theirs], stored, make))
    groups = shards(entries, _SHARD_BYTES)
    for number, group in enumerate(groups, 1):
        write_safetensors(output / shard_name(number, len(groups)), group)
    write_index(output, groups)
    dtype = str(entries[0].dtype).removeprefix("torch.")
    facts = write_facts("internlm2", config, seq_len=_SEQ_LEN, dtype=dtype, bos_id=1, eos_id=2)
    (output / "config.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    copy_tokenizer(folder, output)


def _parts(folder: Path) -> list[list[Path]]:
    """The files by pipeline part, and in each by tensor part."""
    found = {match: file for file in folder.iterdir() if (match := _PART.fullmatch(file.name))}
    known = {SETTINGS, *(file.name for file in found.values())}
    if other := sorted(file.name for file in folder.glob("model_*.pt") if file.name not in known):
        raise UserError(
            f"{folder} has {some(other)}: parts of a mixture of experts, or cut by FSDP, which are not read. Save the "
            "checkpoint without FSDP in InternEvo, or convert it with InternEvo's own tools."
        )
    files = {(int(match[2]), int(match[1])): file for match, file in found.items()}
    pipeline, tensor = (max(place[i] for place in files) + 1 for i in range(2))
    if lost := [(p, t) for p in range(pipeline) for t in range(tensor) if (p, t) not in files]:
        there = next(iter(files.values())).name
        names = [re.sub(r"p\d+_pp\d+", f"p{t}_pp{p}", there) for p, t in lost]
        raise UserError(f"{folder} lacks {some(names)}, of {tensor} x {pipeline} parts. Fetch them.")
    return [[files[p, t] for t in range(tensor)] for p in range(pipeline)]


def _settings(folder: Path) -> dict[str, Any]:
    if not (folder / SETTINGS).is_file():
        raise UserError(
            f"{folder} lacks {SETTINGS}, which says what shape the model has. InternEvo writes it beside the parts."
        )
    settings = _load(folder / SETTINGS)
    for key, wanted in _NOT_HERE.items():
        if (found := settings.get(key, wanted)) != wanted:
            what = f"{key} is {found!r}; only models with {key} {wanted!r} can be imported"
            raise UserError(f"{folder / SETTINGS}: {what}")
    needed = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size")
    if missing := [key for key in needed if key not in settings]:
        raise UserError(f"{folder / SETTINGS} does not say {', '.join(missing)}")
    for key in (*needed, *(["num_kv_attention_heads"] if settings.get("num_kv_attention_heads") else [])):
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise UserError(f"{folder / SETTINGS}: {key} is {settings[key]!r}, not a whole number of 1 or more")
    return settings


def _load(file: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([(dict, name) for name in _DICTS]):
        found = load_torch(file)
    if not isinstance(found, dict):
        raise UserError(f"{file} holds a {type(found).__name__}, not a dict")
    return found


def _named(folder: Path, parts: list[list[Path]]) -> Iterator[tuple[str, list[Tensor]]]:
    """Each tensor's parts, by InternEvo's name with the model's number of the layer."""
    before = 0
    for files in parts:
        states = [_load(file) for file in files]
        layers = 0
        for key, value in states[0].items():
            if not isinstance(value, Tensor) or key.endswith("inv_freq"):
                continue
            if re.match(r"(model\.)?\d+\.", key):
                raise UserError(
                    f"{files[0]} has {key}: the parts of an interleaved pipeline, which are not read. Save the "
                    "checkpoint with num_chunks 1."
                )
            if lost := [file.name for file, state in zip(files, states, strict=True) if key not in state]:
                raise UserError(f"{folder}: {some(lost)} lacks {key}, which {files[0].name} has")
            name = key.removeprefix("model.").replace(".word_embeddings", "").replace(".Wqkv.", ".wqkv.")
            if match := _LAYER.match(name):
                layers = max(layers, int(match[1]) + 1)
                name = f"layers.{before + int(match[1])}.{name[match.end() :]}"
            yield name, [state[key] for state in states]
        before += layers


def _model(folder: Path, settings: dict[str, Any], tensors: dict[str, list[Tensor]]) -> ModelConfig:
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    first = tensors.get("layers.0.feed_forward.w1.weight")
    if first is None:
        raise UserError(f"{folder} has no layers.0.feed_forward.w1.weight: it is no InternLM2 model")
    return ModelConfig(
        hidden=hidden,
        layers=settings["num_layers"],
        vocab=settings["vocab_size"],
        attention=AttentionConfig(
            heads=heads, kv_heads=settings.get("num_kv_attention_heads") or heads, head_dim=hidden // heads
        ),
        feed_forward=FeedForwardConfig(width=sum(len(part) for part in first)),
        rope=RopeConfig(base=float(settings.get("rope_base", 10000))),
        norm_eps=settings.get("layer_norm_epsilon", 1e-5),
    )


def _cut(folder: Path, name: str, parts: list[Tensor], shape: tuple[int, ...]) -> int | None:
    """The dimension that the parts are joined along; None where each is the whole."""
    sizes = [tuple(part.shape) for part in parts]
    if all(size == shape for size in sizes):
        if any(not torch.equal(part, parts[0]) for part in parts[1:]):
            raise UserError(f"{folder}: {name} is whole in each part, but not the same: the parts are of several saves")
        return None
    for dim, whole in enumerate(shape):
        others = (*shape[:dim], *shape[dim + 1 :])
        alike = all(len(size) == len(shape) and (*size[:dim], *size[dim + 1 :]) == others for size in sizes)
        if alike and sum(size[dim] for size in sizes) == whole:
            return dim
    found = ", ".join(str(list(size)) for size in sizes)
    raise UserError(
        f"{folder}: {name} has parts of {found}, which do not make {list(shape)}, as {SETTINGS} has it: "
        "a part is missing, or one is of another model"
    )


def _join(name: str, parts: list[Tensor], cut: int | None, config: ModelConfig, settings: dict[str, Any]) -> Tensor:
    whole = parts[0].clone() if cut is None else torch.cat(parts, dim=cut)
    if name == "output.weight" and settings.get("norm_head"):
        whole = F.normalize(whole.float(), dim=-1).to(whole.dtype)
    if name.endswith("wqkv.weight") and (not settings.get("adapt_hf", True) or settings.get("qk_interleaved")):
        # pairs of channels that are turned together stand beside each other; in the release, half a head apart
        heads = whole.unflatten(0, (config.attention.kv_heads, -1, config.attention.head_dim))
        turned = torch.cat([heads[:, :-1, ::2], heads[:, :-1, 1::2]], dim=2)
        whole = torch.cat([turned, heads[:, -1:]], dim=1).flatten(0, 2)
    return whole
