"""Named tensors to and from disk through torch.distributed.checkpoint, whose files do not depend on a layout.

Only tensors go through it: its metadata file is a pickle, which is read here with an unpickler that knows the
metadata's own classes and nothing else, so that opening a checkpoint cannot run code from it.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, Any, Protocol, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from internevo.checkpoint.errors import CheckpointError
from internevo.files.errors import UserError

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
        except Exception as error:  # a damaged pickle may raise whatever its instructions come to
            raise CheckpointError(f"{path} is not readable as checkpoint metadata: {error}") from error
        if not isinstance(metadata, Metadata) or not isinstance(metadata.state_dict_metadata, dict):
            raise CheckpointError(f"{path} is not readable as checkpoint metadata: it holds something else")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class LazyTensors(Mapping[str, Tensor]):
    """Named tensors. Those that `like` has on the meta device are made by `make`, anew at each look-up."""

    def __init__(self, like: Mapping[str, Tensor], make: Callable[[str], Tensor]):
        self.like, self._make = like, make

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.like[name]
        return self._make(name) if tensor.is_meta else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


def shapes_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of the same names, shapes and dtypes, without making any."""
    return tensors.like if isinstance(tensors, LazyTensors) else tensors


class Piece(Tensor):
    """A tensor of which this process has a rectangle, where a distributed tensor cannot say which.

    `part` is in plain memory; `first` is where it begins in the whole, along each dimension. `like` is a distributed
    tensor that is held by the same ranks. torch.distributed.checkpoint asks for the three methods at the end.
    """

    part: Tensor
    first: torch.Size
    like: DTensor

    @staticmethod
    def __new__(cls, part: Tensor, first: Sequence[int], whole: torch.Size, like: DTensor) -> Piece:
        made: Piece = Tensor._make_wrapper_subclass(cls, whole, dtype=part.dtype, device=part.device)
        made.part, made.first, made.like = part, torch.Size(first), like
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return arguments[0]
        raise NotImplementedError(f"{function} on a rectangle of a tensor")

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        if not self.part.numel():
            return []
        properties = TensorProperties.create_from_tensor(self.part)
        data = TensorWriteData(chunk=self._chunk, properties=properties, size=self.shape)
        return [WriteItem(MetadataIndex(name, self.first), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk] if self.part.numel() else []

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self.part

    @property
    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(self.first, self.part.shape)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, or its part of a distributed one."""
    if isinstance(tensor, Piece):
        return tensor.part
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def names_to_write(tensors: Mapping[str, Tensor]) -> list[str]:
    """The tensors that this process writes. Processes that hold the same part of distributed tensors take turns."""
    names, turn = [], 0
    for name, tensor in shapes_of(tensors).items():
        held = tensor.like if isinstance(tensor, Piece) else tensor
        if isinstance(held, DTensor):
            mesh = held.device_mesh
            dimensions = zip(mesh.get_coordinate() or (), mesh.shape, held.placements, strict=True)
            if all(rank == turn % size for rank, size, placement in dimensions if placement.is_replicate()):
                names.append(name)
            turn += 1
        else:
            names.append(name)
    return names


def write_tensors(
    tensors: Mapping[str, Tensor],
    folder: Path,
    group: dist.ProcessGroup | None = None,
    copies: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the tensors into `folder`; distributed tensors are written by the ranks that hold their parts.

    All ranks of `group` call it together; None is a process alone. Raises OSError on all of them for what the system
    refuses one. One tensor at a time is made, and copied from the
    device. `copies` are written instead where given: of the `names_to_write`, this process's parts in host memory.
    """
    source = tensors if copies is None else copies
    names = names_to_write(tensors) if copies is None else list(copies)
    like = shapes_of(tensors)
    try:
        dcp.save(
            {name: like[name] for name in names},
            storage_writer=_OneByOneWriter(folder),
            planner=_OneByOnePlanner(source),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:  # torch's own, of the errors of all ranks
        refused = [one for one, _ in error.failures.values() if isinstance(one, OSError)]
        if not refused:
            raise
        refused[0].filename = refused[0].filename or str(folder)  # a file that is full does not say which it is
        raise refused[0] from None


class _OneByOnePlanner(dcp.DefaultSavePlanner):
    """Gets a tensor when its turn to be written comes."""

    def __init__(self, source: Mapping[str, Tensor]):
        super().__init__()
        self._source = source

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return local_part(self._source[write_item.index.fqn])


def _save(tensor: Tensor, file: IO[bytes]) -> None:
    try:
        torch.save(_in_host_memory(tensor), file)
    except RuntimeError as error:  # torch's archive, which misses its bytes after what the system refused
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


class _OneByOneWriter(dcp.FileSystemWriter):
    """Writes one file a process. torch's own writer keeps every tensor of a file until the file is complete."""

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Future[list[WriteResult]]:
        name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
        results = []
        with (Path(self.path) / name).open("wb") as file:  # `commit` flushes it to disk
            for item in plan.items:
                start = file.tell()
                _save(cast("Tensor", planner.resolve_data(item)), file)  # no name here keeps it alive
                length = file.tell() - start
                results.append(WriteResult(item.index, length, _StorageInfo(name, start, length)))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def _in_host_memory(tensor: Tensor) -> Tensor:
    """The tensor in host memory, alone in its storage, of which torch.save writes all."""
    host = tensor.detach().to("cpu", non_blocking=True)  # from a GPU: into pinned memory
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
    return host if host.untyped_storage().nbytes() == host.nbytes else host.clone()


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
    try:
        dcp.load(dict(into), storage_reader=SafeReader(folder), process_group=group, no_dist=group is None)
    except CheckpointException as error:
        reasons = dict.fromkeys(str(cause) or type(cause).__name__ for cause, _ in error.failures.values())
        raise CheckpointError(f"the tensors in {folder} cannot be read: {'; '.join(reasons)}") from error


def stored_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Names, global shapes and dtypes of the tensors in a checkpoint, without reading their data."""
    entries = SafeReader(folder).read_metadata().state_dict_metadata
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


class StoredTensors:
    """The tensors of a checkpoint, read one at a time by one process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._known = stored_tensors(folder)

    @property
    def names(self) -> list[str]:
        """What it holds."""
        return list(self._known)

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

    One tensor is in memory at a time. Over the ranks of `group`, each with names of its own, or on a process alone. A
    UserError of the source is raised on all ranks.
    """
    like = {rename + one: torch.empty(source.shape(one), dtype=source.dtype(one), device="meta") for one in names}
    with _errors_of_the_source():
        write_tensors(LazyTensors(like, lambda name: source.read(name.removeprefix(rename))), folder, group)


def fill_tensors(source: TensorSource, into: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill the tensors of `into` in place, each rank its part, from the tensors of these names in `source`.

    All ranks of `group` call it together; None is a process alone. A rank reads what it needs of a tensor, where the
    source can do that. A UserError of the source is raised on all ranks.
    """
    with _errors_of_the_source():
        dcp.load(
            dict(into), storage_reader=_SourceReader(source, list(into)), process_group=group, no_dist=group is None
        )


@contextmanager
def _errors_of_the_source() -> Iterator[None]:
    """torch collects what any rank raises in an exception of its own: give out the sentence for people in it."""
    try:
        yield
    except dcp.CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, UserError):
                raise failure from None
        raise


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
