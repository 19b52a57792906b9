"""The tensors in a Hugging Face folder: read one at a time, written as a stream, with one of them in memory."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from internevo.files.errors import UserError

INDEX = "model.safetensors.index.json"
_FILES = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights may be: transformers takes the first of these that is there."""
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls dtypes."""
_SLICE_BYTES = 128 << 20  # bytes of a tensor that are read at a time


class TensorFiles:
    """The tensors of a folder, in safetensors or in PyTorch's own files, by name.

    Raises UserError when the folder has neither, when a file is damaged, and when an index differs from its files:
    transformers reads the files whatever the index says, so a tensor could be read from two places.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        there = [file for name in _FILES if (file := folder / name).is_file()]
        if not there:
            raise UserError(f"{folder} has no weights: none of {', '.join(_FILES)}")
        first = there[0]
        self.where = self._indexed(first) if first.suffix == ".json" else dict.fromkeys(self._names(first), first)

    def _indexed(self, index: Path) -> dict[str, Path]:
        try:
            said: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index} is not an index of weights ({error!r}); fetch it again") from None
        files = sorted(set(said.values()))
        if lost := [file for file in files if not (self.folder / file).is_file()]:
            raise UserError(f"{self.folder} lacks {', '.join(lost)}, which its {index.name} lists")
        found: dict[str, str] = {}
        for file in files:
            for tensor in self._names(self.folder / file):
                if tensor in found:
                    raise UserError(f"{self.folder}: {tensor} is in {found[tensor]} and in {file}; remove one of them")
                found[tensor] = file
        for tensor in sorted(said.keys() | found.keys()):
            if said.get(tensor) != found.get(tensor):
                listed = f"listed in {said[tensor]}" if tensor in said else "not listed"
                stored = f"stored in {found[tensor]}" if tensor in found else "stored in none of its files"
                raise UserError(f"{index}: {tensor} is {listed} and {stored}; fetch the folder again")
        return {tensor: self.folder / file for tensor, file in found.items()}

    def _names(self, file: Path) -> list[str]:
        if file.suffix == ".bin":
            return list(load_torch(file))
        with _opened(file) as opened:
            return list(opened.keys())

    def view(self, name: str) -> Tensor:
        """A tensor as it lies in its file, mapped into memory: its shape and dtype are known without reading it."""
        file = self.where[name]
        if file.suffix == ".bin":
            return load_torch(file)[name]
        with _opened(file) as opened:
            return opened.get_tensor(name)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype. Raises UserError for one that cannot be written again."""
        return known_dtype(self.view(name).dtype, f"{self.where[name]}: {name}")

    def read(self, name: str, part: tuple[slice, ...] = ()) -> Tensor:
        """A tensor, or a part of it, in memory of its own; the file is closed again."""
        view = self.view(name)
        if part or view.nbytes <= _SLICE_BYTES:
            return view[part].clone()
        tensor = torch.empty_like(view)
        del view  # while there is a view, the pages of the file that were read count as memory
        rows = max(1, _SLICE_BYTES * len(tensor) // tensor.nbytes)
        for first in range(0, len(tensor), rows):
            tensor[first : first + rows] = self.view(name)[first : first + rows]
        return tensor


def known_dtype(dtype: torch.dtype, where: str) -> torch.dtype:
    """The dtype, if tensors of it can be written. Otherwise raises UserError, which begins with `where`."""
    if dtype not in NAMES:
        raise UserError(f"{where} is stored as {dtype}; known are {', '.join(map(str, NAMES))}")
    return dtype


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def load_torch(file: Path) -> Any:
    """The content of a file in PyTorch's own format, mapped into memory; no code in it is run."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        # what torch says tells programmers how to run what is in it
        raise UserError(
            f"{file} is damaged, or holds more than tensors ({type(error).__name__}). Fetch it again."
        ) from None


@dataclass(frozen=True)
class Entry:
    """A tensor to be written, made only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


def shards(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """The entries in order, in groups of at most `limit` bytes; a larger tensor is a group of its own."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    return groups


def shard_name(number: int, of: int) -> str:
    """What transformers calls the file, counted from 1."""
    return "model.safetensors" if of == 1 else f"model-{number:05d}-of-{of:05d}.safetensors"


def write_safetensors(path: Path, entries: Sequence[Entry]) -> None:
    """Write the entries one after the other; one tensor is in memory at a time.

    That is 8 bytes for the length of a JSON header, the header, the tensors: safetensors' own writer wants all at once.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.make()
            assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), entry.name
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def write_index(folder: Path, groups: Sequence[Sequence[Entry]]) -> None:
    """Write the index of several shards: which tensor is in which. A single shard has none."""
    if len(groups) == 1:
        return
    names = [shard_name(number, len(groups)) for number in range(1, len(groups) + 1)]
    weight_map = {entry.name: name for name, group in zip(names, groups, strict=True) for entry in group}
    total = sum(entry.nbytes for group in groups for entry in group)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX, index)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as transformers does."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
