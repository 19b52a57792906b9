"""An adapter as PEFT's files, `adapter_config.json` and `adapter_model.safetensors`, for a model of a family.

A matrix of theirs that is one of ours has the same factors. InternLM2's `wqkv` is three of ours, each with factors of
rank r. They are one adapter of rank 3r, and so is what the files hold, bit by bit:

    A = [Aq; Ak; Av]        B = the rows of wqkv, those of a query head [Bq 0 0], of a key [0 Bk 0], of a value [0 0 Bv]

PEFT divides `alpha` by the rank, so `alpha` is three times as large there too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internevo.config.schema import ModelConfig
from internevo.files.errors import UserError
from internevo.hf.export import folder_aside
from internevo.hf.families import FAMILIES, Row, choose_family
from internevo.hf.files import Entry, write_json, write_safetensors
from internevo.hf.weights import check_finite
from internevo.train.stored_model import Adapter, StoredModel


@dataclass(frozen=True)
class AdapterReport:
    """What was written."""

    family: str
    matrices: int
    bytes: int
    base: str

    def __str__(self) -> str:
        return f"an adapter of {self.matrices} matrices of a {self.family} model, {self.bytes / 1e6:,.1f} MB of float32"


@dataclass(frozen=True)
class _Factors:
    """Of one matrix of theirs."""

    module: str
    """What they call it: `model.layers.0.self_attn.q_proj`."""
    a: Tensor
    b: Tensor
    merged: int
    """How many of ours it holds."""


def export_adapter(stored: StoredModel, output: Path, format: str) -> AdapterReport:
    """Make the folder `output`, which `peft.PeftModel.from_pretrained` loads on a base of the family `format`.

    Weights are fp32, as they were trained. Raises UserError when the model has no adapter, `output` exists, or the
    family cannot hold the model.
    """
    if (adapter := stored.adapter) is None:
        raise UserError(f"{stored.name} has no adapter: it was not trained with train.lora. Leave --adapter out.")
    family = choose_family(format, stored.config)
    factors = list(_factors(adapter, stored.config, family))
    entries = [
        Entry(f"base_model.model.{one.module}.{name}.weight", tuple(value.shape), value.dtype, value.clone)
        for one in factors
        for name, value in (("lora_A", one.a), ("lora_B", one.b))
    ]
    with folder_aside(output) as aside:
        write_safetensors(aside / "adapter_model.safetensors", entries)
        write_json(aside / "adapter_config.json", _settings(adapter, factors))
    return AdapterReport(family, len(factors), sum(entry.nbytes for entry in entries), adapter.base)


def _settings(adapter: Adapter, factors: list[_Factors]) -> dict[str, Any]:
    """What PEFT needs to know, and what it would otherwise take from its own defaults."""
    rank, alpha = adapter.config.rank, adapter.config.alpha
    names = {one.module.rpartition(".")[2]: one.merged for one in factors}  # the same in all layers
    wider = {name: merged for name, merged in names.items() if merged > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(names),
        "rank_pattern": {name: rank * merged for name, merged in wider.items()},
        "alpha_pattern": {name: alpha * merged for name, merged in wider.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }


def _factors(adapter: Adapter, config: ModelConfig, family: str) -> Iterator[_Factors]:
    """The factors of every matrix of theirs that is adapted, in the order of the family's table."""
    for row, ours, theirs in FAMILIES[family].tensors(config):
        if adapted := [name for name in ours if name in adapter.weights.matrices]:
            a, b = _joined(adapter, config, row, ours, adapted)
            for factor in (a, b):
                check_finite(theirs, factor)
            yield _Factors(theirs.removesuffix(".weight"), a, b, len(adapted))


def _joined(
    adapter: Adapter, config: ModelConfig, row: Row, ours: tuple[str, ...], adapted: list[str]
) -> tuple[Tensor, Tensor]:
    """A `[rank * adapted, in]` and B `[out, rank * adapted]` of one matrix of theirs."""
    rank, weights = adapter.config.rank, adapter.weights
    pairs = {name: weights.factors(name) for name in adapted}
    columns = []
    for name in ours:
        height = pairs[name][1].shape[0] if name in pairs else weights.base.read(name).shape[0]
        wide = torch.zeros(height, rank * len(adapted))
        if name in pairs:
            first = rank * adapted.index(name)
            wide[:, first : first + rank] = pairs[name][1]
        columns.append(wide)
    return torch.cat([a for a, _ in pairs.values()]), row.layout.pack(columns, config)
