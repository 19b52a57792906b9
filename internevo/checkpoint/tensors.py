"""Named tensors to and from disk through torch.distributed.checkpoint, whose files do not depend on a layout.

Only tensors go through it: its metadata file is a pickle, which is read here with an unpickler that knows the
metadata's own classes and nothing else, so that opening a checkpoint cannot run code from it.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItem
from torch.futures import Future

from internevo.checkpoint.commit import CheckpointError

# One process saving alone is what is meant, not an accident that torch should remark on at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


def _enum_member(cls: type, name: str) -> Enum:
    """What Python before 3.11.4 pickles an enum's member as is `getattr(cls, name)`: that, for enums only."""
    if not issubclass(cls, Enum):
        raise pickle.UnpicklingError(f"an attribute of {cls} has no place in a checkpoint")
    return cls[name]


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


class SafeReader(dcp.FileSystemReader):
    """A file-system reader that runs no code from the checkpoint. Tensor data is read with `weights_only`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} is not readable as checkpoint metadata: {error}") from error
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Write the tensors into `folder`; distributed tensors are written by the ranks that hold their parts.

    All ranks of `group` call it together; None is a process alone.
    """
    dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder), process_group=group, no_dist=group is None)


def read_tensors(folder: Path, into: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill the tensors of `into` in place, whatever layout they were written under.

    All ranks of `group` call it together, each with the tensors that it holds a part of; None is a process alone.
    Raises CheckpointError when a name is missing or a shape differs; a checkpoint may hold more names.
    """
    stored = stored_tensors(folder)
    for name, tensor in into.items():
        if name not in stored:
            raise CheckpointError(f"{folder} has no tensor called {name}")
        if stored[name].size != tensor.shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {list(stored[name].size)}, the model wants {list(tensor.shape)}"
            )
    dcp.load(dict(into), storage_reader=SafeReader(folder), process_group=group, no_dist=group is None)


def stored_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Names, global shapes and dtypes of the tensors in a checkpoint, without reading their data."""
    entries = SafeReader(folder).read_metadata().state_dict_metadata
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


class StoredTensors:
    """The tensors of a checkpoint, read one at a time by one process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._known = stored_tensors(folder)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's whole shape."""
        return tuple(self._get(name).size)

    def dtype(self, name: str) -> torch.dtype:
        """What it is stored as."""
        return self._get(name).properties.dtype

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The whole tensor on the CPU; rounded to `dtype` on the way, if that is given."""
        tensor = torch.empty(self.shape(name), dtype=dtype or self.dtype(name))
        read_tensors(self.folder, {name: tensor})
        return tensor

    def _get(self, name: str) -> TensorStorageMetadata:
        if name not in self._known:
            raise CheckpointError(f"{self.folder} has no tensor called {name}")
        return self._known[name]


class TensorSource(Protocol):
    """Named tensors that lie elsewhere, in whatever form."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's whole shape."""

    def dtype(self, name: str) -> torch.dtype:
        """What it is stored as."""

    def read(self, name: str, dtype: torch.dtype | None = None, part: tuple[slice, ...] = ()) -> Tensor:
        """The tensor, or a part of it, on the CPU."""


def copy_tensors(
    source: TensorSource, names: Sequence[str], folder: Path, rename: str, group: dist.ProcessGroup | None = None
) -> None:
    """Write tensors of `source` into `folder` as a checkpoint, under their names with `rename` put before.

    One tensor is in memory at a time. Over the ranks of `group`, each with names of its own, or on a process alone.
    """
    tensors = {rename + one: torch.empty(source.shape(one), dtype=source.dtype(one), device="meta") for one in names}
    # a file of its own for each tensor: the writer keeps what it has put into a file until the file is complete
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=False)
    planner = _OneByOne(lambda name: source.read(name.removeprefix(rename)))
    dcp.save(tensors, storage_writer=writer, planner=planner, process_group=group, no_dist=group is None)


class _OneByOne(dcp.DefaultSavePlanner):
    """Gets a tensor when its turn to be written comes."""

    def __init__(self, read: Callable[[str], Tensor]):
        super().__init__()
        self._read = read

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._read(write_item.index.fqn)


def fill_tensors(source: TensorSource, into: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill the tensors of `into` in place, each rank its part, from the tensors of these names in `source`.

    All ranks of `group` call it together; None is a process alone. A rank reads what it needs of a tensor, where the
    source can do that.
    """
    dcp.load(dict(into), storage_reader=_SourceReader(source, list(into)), process_group=group, no_dist=group is None)


class _SourceReader(dcp.StorageReader):
    """Whatever lies elsewhere, as torch.distributed.checkpoint reads its own files."""

    def __init__(self, source: TensorSource, names: Sequence[str]):
        self.source, self.names = source, names

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        def entry(name: str) -> TensorStorageMetadata:
            size = torch.Size(self.source.shape(name))
            whole = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
            return TensorStorageMetadata(TensorProperties(self.source.dtype(name)), size, [whole])

        return Metadata({name: entry(name) for name in self.names})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: dcp.LoadPlan) -> dcp.LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[dcp.LoadPlan]) -> list[dcp.LoadPlan]:
        return plans

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> Future[None]:
        for item in plan.items:
            bounds = zip(item.storage_offsets, item.lengths, strict=True)
            part = tuple(slice(first, first + length) for first, length in bounds)
            target = planner.resolve_tensor(item).detach()
            target.copy_(self.source.read(item.storage_index.fqn, part=part))
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done
