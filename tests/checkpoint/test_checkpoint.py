"""Checkpoints: what goes in comes out, a torn one is never used, and none can run code."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from internevo.checkpoint.commit import (
    checkpoints,
    commit,
    find_latest,
    problems,
    read_state,
    step_name,
)
from internevo.checkpoint.errors import CheckpointError
from internevo.checkpoint.staging import HostCopies, Staging
from internevo.checkpoint.tensors import LazyTensors, _MetadataUnpickler, read_tensors, stored_tensors
from internevo.checkpoint.writer import CheckpointWriter


def some_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model/a": torch.randn(5, 7, generator=generator),
        "model/b": torch.randn(3, generator=generator).to(torch.bfloat16),
        "optimizer/a/step": torch.tensor(float(seed)),
    }


def save(folder: Path, *steps: int, keep: int = 0, permanent: tuple[int, ...] = ()) -> None:
    writer = CheckpointWriter(folder, keep=keep, asynchronous=False)
    for step in steps:
        writer.save(step, some_tensors(step), {"step": step}, permanent=step in permanent)
    writer.close()


def zeros() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in some_tensors(0).items()}


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    save(tmp_path, 3)
    found = find_latest(tmp_path)
    assert found.path == tmp_path / "step-000003"
    assert read_state(found.path) == {"step": 3}
    loaded = zeros()
    read_tensors(found.path, loaded)
    for name, tensor in some_tensors(3).items():
        assert torch.equal(loaded[name], tensor), name
    assert stored_tensors(found.path)["model/b"].properties.dtype == torch.bfloat16


def test_an_asynchronous_save_keeps_the_values_it_was_given(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=0, asynchronous=True)
    tensors = some_tensors(1)
    writer.save(1, tensors, {}, permanent=False)
    for tensor in tensors.values():
        tensor.zero_()
    writer.close()
    loaded = zeros()
    read_tensors(tmp_path / step_name(1), loaded)
    assert torch.equal(loaded["model/a"], some_tensors(1)["model/a"])


@pytest.mark.parametrize("asynchronous", [True, False])
def test_views_scalars_and_empty_tensors_come_out_of_torchs_own_reader(tmp_path: Path, asynchronous: bool) -> None:
    large = torch.arange(24.0).view(4, 6)
    tensors = {"view": large[1:3], "turned": large.T, "strided": large[:, ::2], "none": large[:0], "one": large[0, 1]}
    writer = CheckpointWriter(tmp_path, keep=0, asynchronous=asynchronous)
    writer.save(1, tensors, {}, permanent=False)
    writer.close()
    loaded = {name: torch.full_like(tensor, -1) for name, tensor in tensors.items()}
    dcp.load(loaded, checkpoint_id=tmp_path / step_name(1), no_dist=True)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
    (written,) = (tmp_path / step_name(1)).glob("*.distcp")
    assert written.stat().st_size < 10_000  # no tensor is written with what it is a view of


def test_tensors_are_made_one_at_a_time_when_their_turn_comes(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def make(name: str) -> torch.Tensor:
        assert not any(one() is not None for one in alive), "two are in memory"
        tensor = torch.full((3,), float(name))
        alive.append(weakref.ref(tensor))
        return tensor

    names = ["1", "2", "3"]
    writer = CheckpointWriter(tmp_path, keep=0, asynchronous=False)
    writer.save(1, LazyTensors({name: torch.empty(3, device="meta") for name in names}, make), {}, permanent=False)
    writer.close()
    assert len(alive) == 2 * len(names)  # each was made once to be looked at, and once to be written
    loaded = {name: torch.zeros(3) for name in names}
    read_tensors(tmp_path / step_name(1), loaded)
    assert [tensor[0].item() for tensor in loaded.values()] == [1, 2, 3]


def test_what_nobody_else_has_is_not_copied() -> None:
    given = HostCopies(a=torch.zeros(3))
    assert Staging().copy(given)["a"] is given["a"]


def test_memory_is_used_again_and_grows() -> None:
    staging = Staging()
    places = []
    for size in (100, 50, 100, 1000):
        copies = staging.copy({"a": torch.arange(size), "b": torch.ones(size, dtype=torch.bfloat16)})
        assert torch.equal(copies["a"], torch.arange(size))
        assert torch.equal(copies["b"], torch.ones(size, dtype=torch.bfloat16))
        places.append(copies["a"].data_ptr())
    assert places[0] == places[1] == places[2]
    staging.release()


def test_an_error_in_the_background_reaches_the_caller(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=0, asynchronous=True)
    (tmp_path / "step-000001.partial").write_text("a file where the folder should go")
    writer.save(1, some_tensors(1), {}, permanent=False)
    with pytest.raises(CheckpointError, match=r"step 1 is not saved: .*step-000001\.partial: File exists"):
        writer.close()


def test_old_checkpoints_go_and_permanent_ones_stay(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, keep=2, permanent=(2,))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002", "step-000004", "step-000005"]


def damage_missing(path: Path) -> None:
    (path / "__0_0.distcp").unlink()


def damage_truncate(path: Path) -> None:
    os.truncate(path / "__0_0.distcp", 100)


def damage_flip_a_bit(path: Path) -> None:
    data = bytearray((path / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "__0_0.distcp").write_bytes(data)


def damage_state(path: Path) -> None:
    (path / "state.json").write_text('{"step": 9}')


def damage_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"files": ')


@pytest.mark.parametrize("damage", [damage_missing, damage_truncate, damage_flip_a_bit, damage_state, damage_manifest])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_used(tmp_path: Path, damage) -> None:
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-000002")
    assert problems(tmp_path / "step-000002")
    found = find_latest(tmp_path)
    assert found.path == tmp_path / "step-000001"
    assert len(found.refused) == 1
    assert "step-000002" in found.refused[0]
    assert (tmp_path / "step-000002.corrupt").is_dir()  # nothing is deleted
    save(tmp_path, 2)  # the run gets there again
    assert find_latest(tmp_path).path == tmp_path / "step-000002"


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    assert find_latest(tmp_path / "absent").path is None
    assert find_latest(tmp_path).path is None


def test_wrong_names_and_shapes_are_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no tensor called model/c"):
        read_tensors(tmp_path / step_name(1), {"model/c": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"model/a has shape \[5, 7\], the model wants \[5, 8\]"):
        read_tensors(tmp_path / step_name(1), {"model/a": torch.zeros(5, 8)})


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch bomb",))


def test_opening_a_checkpoint_runs_no_code_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, 1)
    path = tmp_path / step_name(1)
    (path / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="has no place in a checkpoint"):
        read_tensors(path, zeros())
    assert not (tmp_path / "bomb").exists()


class ByGetattr:
    """Pickled as a call of getattr, as Python 3.11.2 does with enums."""

    def __init__(self, owner: type, name: str):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def test_metadata_of_older_pythons_can_be_read() -> None:
    content = pickle.dumps(ByGetattr(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT"))
    assert _MetadataUnpickler(io.BytesIO(content)).load() is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    with pytest.raises(pickle.UnpicklingError, match="has no place"):
        _MetadataUnpickler(io.BytesIO(pickle.dumps(ByGetattr(torch.Size, "numel")))).load()


KILLED_WRITER = """
import sys, torch
from pathlib import Path
from internevo.checkpoint.writer import CheckpointWriter
writer = CheckpointWriter(Path(sys.argv[1]), keep=2, asynchronous=True)
for step in range(1, 10_000):
    writer.save(step, {"a": torch.full((200_000,), float(step))}, {"step": step}, permanent=False)
    print(step, flush=True)
"""


@pytest.mark.parametrize("kill_after", [0.02, 0.05, 0.09])
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, kill_after: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(kill_after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = find_latest(tmp_path)
    assert found.path is not None
    assert not found.refused  # a commit is one rename: a kill cannot leave a damaged one
    tensors = {"a": torch.zeros(200_000)}
    read_tensors(found.path, tensors)
    assert torch.all(tensors["a"] == read_state(found.path)["step"])


def test_commit_lists_every_file(tmp_path: Path) -> None:
    partial = tmp_path / "step-000001.partial"
    (partial / "sub").mkdir(parents=True)
    (partial / "sub" / "x").write_text("x")
    commit(partial, tmp_path / "step-000001", permanent=True)
    assert not problems(tmp_path / "step-000001")
    (tmp_path / "step-000001" / "sub" / "x").write_text("y")
    assert problems(tmp_path / "step-000001") == ["sub/x does not match its checksum"]
