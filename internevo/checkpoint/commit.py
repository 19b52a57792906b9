"""What makes a folder of files a checkpoint: its name, its manifest, and the rename that commits it.

checkpoints/
  step-000500/           committed: everything in it is listed in manifest.json with size and SHA-256
  step-000750.partial/   being written, or left by a run that was killed; never read
  step-000250.corrupt/   refused once, kept for a person to look at
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internevo.checkpoint.errors import CheckpointError
from internevo.checkpoint.finite import name_some, not_finite_on_disk
from internevo.files.json_files import is_number, read_mapping

MANIFEST, STATE = "manifest.json", "state.json"
TENSORS = ".metadata"
"""torch.distributed.checkpoint's list of the tensors."""
PARTIAL, CORRUPT = ".partial", ".corrupt"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Found:
    """What a search for the newest usable checkpoint gave."""

    path: Path | None
    refused: tuple[str, ...]
    """One sentence for each newer checkpoint that was torn, corrupt or not finite, and was set aside."""


def step_name(step: int) -> str:
    """The folder name of the checkpoint after `step` steps."""
    return f"step-{step:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    named = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return [path for _, path in sorted(named)]


def commit(partial: Path, final: Path, permanent: bool, finite: bool = False) -> None:
    """Turn the finished files in `partial` into the checkpoint `final`.

    Checksums every file, writes the manifest, flushes all of it to disk, and renames. A crash at any moment
    leaves either no checkpoint called `final` or a whole one. `permanent` exempts it from `prune`. `finite` says that
    all its numbers are known to be finite; without it, they are read again whenever the checkpoint is.
    """
    files = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in _files(partial)}
    write_json(partial / MANIFEST, {"permanent": permanent, "finite": finite, "files": files})
    for path in (*(path for _, path in _files(partial)), partial / MANIFEST, partial):
        _flush(path)
    partial.rename(final)
    _flush(final.parent)


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint: nothing for a whole one with finite numbers. Reads every byte."""
    manifest = read_mapping(path / MANIFEST)
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not all(isinstance(facts, dict) for facts in listed.values()):
        return [f"{MANIFEST} is missing or unreadable"]
    if not listed:
        return [f"{MANIFEST} lists no files"]
    found = dict(_files(path))
    wrong = []
    for name, facts in listed.items():
        if name not in found:
            wrong.append(f"{name} is missing")
        elif (size := found[name].stat().st_size) != facts.get("bytes"):
            wrong.append(f"{name} has {size:,} bytes, the manifest says {facts.get('bytes')}")
        elif _sha256(found[name]) != facts.get("sha256"):
            wrong.append(f"{name} does not match its checksum")
    # what was written before manifests said `finite` may hold NaN
    if not wrong and TENSORS in listed and not manifest.get("finite") and (bad := not_finite_on_disk(path)):
        wrong.append(f"NaN or infinity in {name_some(bad)}")
    return wrong


def find_latest(folder: Path) -> Found:
    """The newest whole checkpoint in `folder`. Newer ones that are not, or not finite, are renamed to `*.corrupt`."""
    refused: list[str] = []
    for path in reversed(checkpoints(folder)):
        wrong = problems(path)
        if not wrong:
            return Found(path, tuple(refused))
        aside = _unused(path.with_name(path.name + CORRUPT))
        path.rename(aside)
        refused.append(f"{path.name} is damaged and was set aside as {aside.name}: {'; '.join(wrong)}")
    return Found(None, tuple(refused))


def clean(folder: Path) -> None:
    """Remove what killed writers left behind."""
    for leftover in folder.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(leftover)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` of the checkpoints that are not permanent; 0 deletes none."""
    passing = [path for path in checkpoints(folder) if not _permanent(path)]
    for path in passing[:-keep] if keep else []:
        doomed = path.rename(path.with_name(path.name + PARTIAL))  # never seen half deleted
        shutil.rmtree(doomed)


def read_state(path: Path) -> dict[str, Any]:
    """The checkpoint's `state.json`: everything in it that is not a tensor.

    Raises CheckpointError when it is damaged.
    """
    state = read_mapping(path / STATE)
    if not is_number(state.get("step")) or not isinstance(state.get("stage", ""), str):
        raise CheckpointError(
            f"{path / STATE} is missing or damaged. `internevo verify` tells which checkpoints are whole."
        )
    return dict(state)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            yield path.relative_to(folder).as_posix(), path


def _permanent(path: Path) -> bool:
    try:
        return bool(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["permanent"])
    except (OSError, ValueError, KeyError, TypeError):
        return True  # damaged: not ours to delete


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unused(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
