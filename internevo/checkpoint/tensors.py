"""Named tensors to and from disk through torch.distributed.checkpoint, whose files do not depend on a layout.

Only tensors go through it: its metadata file is a pickle, which is read here with an unpickler that knows the
metadata's own classes and nothing else, so that opening a checkpoint cannot run code from it.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

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
