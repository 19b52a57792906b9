"""A model's weights by our names, read one at a time from a checkpoint or a Hugging Face folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from internevo.checkpoint.commit import MANIFEST
from internevo.checkpoint.tensors import StoredTensors, fill_tensors, read_tensors
from internevo.config.schema import ModelConfig
from internevo.files.errors import UserError, some
from internevo.hf.config_json import read_facts
from internevo.hf.families import FAMILIES, Layout, Row
from internevo.hf.files import TensorFiles
from internevo.model.initial import empty_model
from internevo.model.transformer import Transformer

_PREFIX = "model/"
_SAMPLED = 256
"""Numbers at each end of a tensor that a folder's fingerprint is made of."""
NO_WEIGHTS = re.compile(r"rotary_emb\.inv_freq$")  # what old checkpoints hold beside weights


class Weights(Protocol):
    """Where a model's weights can be read. It must be picklable: other processes get copies."""

    def dtype(self, name: str) -> torch.dtype:
        """What a weight is stored as."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A weight on the CPU, as it is stored or rounded to `dtype`."""

    def fill(self, into: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
        """Fill tensors of these names in place. All ranks of `group` call it together, each with its parts."""

    def fingerprint(self) -> str:
        """The same for the same stored weights, and another for others."""


class CheckpointWeights:
    """The weights of one of our checkpoints, whatever layout wrote it."""

    def __init__(self, folder: Path):
        self._stored = StoredTensors(folder)

    @property
    def names(self) -> list[str]:
        """Our names of all weights that it holds, in order."""
        return sorted(name.removeprefix(_PREFIX) for name in self._stored.names if name.startswith(_PREFIX))

    def fingerprint(self) -> str:
        """Of the checksums in its manifest."""
        return _hash([(self._stored.folder / MANIFEST).read_bytes()])

    def dtype(self, name: str) -> torch.dtype:
        return self._stored.dtype(f"{_PREFIX}{name}")

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self._stored.read(f"{_PREFIX}{name}", dtype)

    def fill(self, into: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
        read_tensors(self._stored.folder, {f"{_PREFIX}{name}": tensor for name, tensor in into.items()}, group)


class FolderWeights:
    """The weights of a Hugging Face folder, through its family's table.

    Raises UserError for a tensor that is missing, unknown or of another shape; reading, for one that is not finite.
    """

    def __init__(self, folder: Path):
        self.folder, self.facts = folder, read_facts(folder)
        self.config, self._files = self.facts.model, TensorFiles(folder)
        self._rows: dict[str, tuple[Row, str, int]] = {}
        wanted = []
        for row, ours, theirs in FAMILIES[self.facts.family].tensors(self.config):
            self._rows |= {name: (row, theirs, number) for number, name in enumerate(ours)}
            wanted.append(theirs)
        if self.config.tied:
            self._rows["head.weight"] = self._rows["embed.weight"]
        self._check_names(wanted)
        self._check_tied_head()
        self._shapes = self._check_shapes()
        self._unpacked: tuple[str, tuple[Tensor, ...]] = ("", ())
        self.nbytes = sum(self._files.view(name).numel() * self._files.dtype(name).itemsize for name in wanted)

    @property
    def names(self) -> list[str]:
        """Our names of all weights except a tied head."""
        return [name for name in self._rows if not (self.config.tied and name == "head.weight")]

    def stored_name(self, name: str) -> str:
        """The tensor of theirs that holds a weight."""
        return self._rows[name][1]

    def shape(self, name: str) -> tuple[int, ...]:
        """A weight's shape."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._files.dtype(self._rows[name][1])

    def read(self, name: str, dtype: torch.dtype | None = None, part: tuple[slice, ...] = ()) -> Tensor:
        row, theirs, number = self._rows[name]
        if type(row.layout) is Layout:  # as it is, so that a part can be read alone
            tensor = self._files.read(theirs, part)
        else:
            if self._unpacked[0] != theirs:  # its neighbours are asked for next
                self._unpacked = (theirs, tuple(row.layout.unpack(self._files.read(theirs), self.config)))
            tensor = self._unpacked[1][number][part]
        check_finite(f"{self.folder}: {theirs}", tensor)
        return tensor if dtype is None else tensor.to(dtype)

    def fill(self, into: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
        fill_tensors(self, into, group)

    def fingerprint(self) -> str:
        """Of every tensor's name, shape and dtype, and its first and last numbers: reading all would take minutes."""
        return _hash(self._samples())

    def _samples(self) -> Iterator[bytes]:
        for theirs in sorted({theirs for _, theirs, _ in self._rows.values()}):
            flat = self._files.view(theirs).view(-1)
            yield f"{theirs} {list(self._files.view(theirs).shape)} {flat.dtype} ".encode()
            for numbers in (flat[:_SAMPLED], flat[-_SAMPLED:]):
                yield numbers.view(torch.uint8).numpy().tobytes()

    def _check_names(self, wanted: list[str]) -> None:
        found = {name for name in self._files.where if not NO_WEIGHTS.search(name)}
        if any(name.removeprefix("model.") in found - set(wanted) for name in wanted):
            raise UserError(
                f"{self.folder} has the {self.facts.family} model's body alone: its tensors lack `model.` before their "
                "names, as when a base model is saved without its output head. Save the whole model, a "
                f"{FAMILIES[self.facts.family].architecture}."
            )
        spare = {_head(self.facts.family)} if self.config.tied else set()
        for what, names in (("lacks", set(wanted) - found), ("has, unknown here,", found - set(wanted) - spare)):
            if names:
                raise UserError(f"{self.folder}, a {self.facts.family} model, {what} {some(sorted(names))}")

    def _check_tied_head(self) -> None:
        """A tied head that is stored as well must be the embedding: versions of transformers differ in which counts."""
        head, embed = _head(self.facts.family), self._rows["embed.weight"][1]
        stored = self.config.tied and head in self._files.where
        if stored and not torch.equal(self._files.read(head), self._files.read(embed)):
            raise UserError(
                f"{self.folder}: config.json says tie_word_embeddings, but {head} is not {embed}. transformers 5 "
                f"computes with the stored head, transformers 4 with the embedding. Set tie_word_embeddings to false "
                f"in config.json to keep the head, or remove {head} from the files."
            )

    def _check_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of our weights, after checking those of the folder's tensors."""
        for theirs, wanted in FAMILIES[self.facts.family].shapes(self.config).items():
            if (found := self._files.view(theirs).shape) != wanted:
                sizes = f"has shape {list(found)}; config.json's sizes make it {list(wanted)}"
                raise UserError(f"{self.folder}: {theirs} {sizes}")
        with torch.device("meta"):
            return {name: tuple(weight.shape) for name, weight in Transformer(self.config).state_dict().items()}


def _hash(parts: Iterable[bytes]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def _head(family: str) -> str:
    """A family's name of the output head."""
    return next(row.theirs for row in FAMILIES[family].rows if row.ours == ("head.weight",))


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise UserError, which says `name`, when the tensor holds NaN or an infinite number."""
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():  # no copy of the tensor is made
        bad = tensor.numel() - int(tensor.isfinite().sum())
        raise UserError(
            f"{name} holds {bad:,} numbers that are not finite (NaN or infinite); these weights are damaged"
        )


def load_model(
    weights: Weights, config: ModelConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """The whole model, its weights rounded to `dtype`. Raises UserError when one holds a number that is not finite."""
    model = empty_model(config, device, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = weights.read(name)
            check_finite(name, weight)
            parameter.copy_(weight)
    return model
