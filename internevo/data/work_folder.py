"""The folder that `data prepare` works in: one process at a time, and only on what it was begun with."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from internevo.config.errors import UserError
from internevo.data.join import Joined
from internevo.data.tokenise import TokenisedPiece

_FORMAT = 1
"""Goes up when pieces or plans of an older version can no longer be gone on with."""


def plan_of(files: Sequence[Path], held_files: Sequence[Path], **options: Any) -> dict[str, Any]:
    """What the pieces and shards depend on, in plain values."""
    stats = {name: {str(file): _identity(file) for file in group} for name, group in _named(files, held_files)}
    return {"format": _FORMAT, **options, **stats}


def _named(files: Sequence[Path], held_files: Sequence[Path]) -> list[tuple[str, Sequence[Path]]]:
    return [("inputs", files), ("inputs that are held out", held_files)]


def _identity(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


@contextmanager
def working_in(partial: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the folder of work for this process alone; begin it, or go on in it when it was begun with the same plan."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work in {partial}.") from None
        file = partial / "plan.json"
        if file.exists():
            _check_plan(json.loads(file.read_text()), plan, partial)
        else:
            file.with_suffix(".partial").write_text(json.dumps(plan))
            file.with_suffix(".partial").rename(file)
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"no space is left for {partial}. Make some and run the same command again: it goes on."
            ) from None
        except UserError:
            if not _worth_keeping(partial):  # a mistake in the command is mended by another command
                shutil.rmtree(partial)
            raise


def _worth_keeping(partial: Path) -> bool:
    """Whether anything in a folder of work was tokenised."""
    joined = Joined.load(partial / "joined.json").counts
    if joined.documents + joined.heldout_documents:
        return True
    pieces = (TokenisedPiece.load(path) for path in (partial / "pieces").glob("*/*.npz"))
    return any(len(piece.train_lengths) + len(piece.heldout_lengths) for piece in pieces)


def _check_plan(begun: dict[str, Any], plan: dict[str, Any], partial: Path) -> None:
    options = [key for key, value in plan.items() if not isinstance(value, dict)]
    changed = [f"{key}: was {begun.get(key)}, is {plan[key]}" for key in options if begun.get(key) != plan[key]]
    for name in ("inputs", "inputs that are held out"):
        before, now = begun.get(name, {}), plan[name]
        differing = [file for file in {**before, **now} if before.get(file) != now.get(file)]
        if differing:
            more = f" and {len(differing) - 1:,} more" if len(differing) > 1 else ""
            changed.append(f"{name}: {differing[0]}{more} came, went or changed")
        elif list(before) != list(now):
            changed.append(f"{name}: their order")
    if changed:
        raise UserError(
            f"{partial} was begun with other input or options, and cannot be gone on with:\n  "
            + "\n  ".join(changed)
            + f"\nGive what it was begun with, or remove {partial} to begin anew."
        )


def check_unchanged(plan: dict[str, Any], files: Sequence[Path], held_files: Sequence[Path], partial: Path) -> None:
    for name, group in _named(files, held_files):
        for file in group:
            if _identity(file) != plan[name][str(file)]:
                raise UserError(f"{file} was changed while it was read. Remove {partial} and begin anew.")
