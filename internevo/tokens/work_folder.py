"""The folder that `data prepare` works in: one process at a time, with the options and inputs of its `plan.json`."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from internevo.files.durable import ASIDE, sync_folder, write_durable
from internevo.files.errors import UserError, some
from internevo.files.lock import locked
from internevo.tokens.shards import Joined
from internevo.tokens.tokenise import TokenisedPiece

LOCK = "lock"
PLAN = "plan.json"
INPUTS = ("inputs", "inputs that are held out")
_FORMAT = 3  # goes up when pieces or plans of an older version can no longer be resumed


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; make it when it is missing. A disk's errors become UserErrors."""
    with _as_user_error(folder), locked(folder / LOCK):
        yield


@contextmanager
def _as_user_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"no space is left for {folder}. Make some"
        elif error.filename is not None:
            what = f"{error.filename}: {error.strerror}. Fix it"
        else:
            raise
        raise UserError(f"{what} and run the same command again: it resumes.") from None


@contextmanager
def working_in(partial: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the folder of work for this process alone, begun now or earlier with the same plan; remove it at the end.

    Raises UserError for a folder that this command did not make, and one that was begun with another plan.
    """
    with _as_user_error(partial):
        _check_ours(partial)
    try:
        with alone_in(partial):
            _begin_or_resume(partial, plan)
            try:
                yield
            except UserError:
                if not _worth_keeping(partial):  # a mistake in the command is fixed by another command
                    _empty(partial)
                raise
            _empty(partial)
    finally:
        # when the lock is let go: until then NFS keeps its file
        with suppress(OSError):  # it is not empty where there is work to resume
            partial.rmdir()


def _check_ours(partial: Path) -> None:
    """A folder with other files and no plan may be somebody's own."""
    names = {path.name for path in partial.iterdir()} if partial.is_dir() else set()
    if PLAN not in names and (others := sorted(names - {LOCK, PLAN + ASIDE})):
        raise UserError(
            f"{partial} is needed to work in and has no {PLAN}, so it was not begun by this command; it holds "
            f"{some(others, 1)}. Move it away, or choose another name for the output."
        )


def _empty(partial: Path) -> None:
    """Remove what is in a folder of work, the plan last: as long as anything is there, the plan says what it is."""
    try:
        for path in partial.iterdir():
            if path.name in (PLAN, LOCK):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_folder(partial)
        (partial / PLAN).unlink()
        (partial / LOCK).unlink()
    except OSError as error:  # no reason for work that is done to end with an error
        warnings.warn(f"{partial} is not needed any more, but could not be removed: {error}", stacklevel=2)


def _worth_keeping(partial: Path) -> bool:
    """Whether anything in a folder of work was tokenised."""
    joined = Joined.load(partial / "joined.json").counts
    if joined.documents + joined.heldout_documents:
        return True
    pieces = (TokenisedPiece.find(path) for path in (partial / "pieces").glob("*/*.npz"))
    return any(len(piece.train_lengths) + len(piece.heldout_lengths) for piece in pieces if piece is not None)


def plan_of(files: Sequence[Path], held_files: Sequence[Path], **options: Any) -> dict[str, Any]:
    """What the pieces and shards depend on, in plain values. A file that is named twice is there twice."""
    inputs = [[_identity(file) for file in group] for group in (files, held_files)]
    return {"format": _FORMAT, **options, **dict(zip(INPUTS, inputs, strict=True))}


def _begin_or_resume(folder: Path, plan: dict[str, Any]) -> None:
    file = folder / PLAN
    if not file.exists():
        write_durable(file, json.dumps(plan))
        sync_folder(folder.parent)
        return
    try:
        begun = json.loads(file.read_bytes())
        if not isinstance(begun, dict):
            raise ValueError("it is no mapping")
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}. Remove {folder} to begin anew.") from None
    _check_same(begun, plan, folder)


def check_unchanged(plan: dict[str, Any], folder: Path) -> None:
    """Raises UserError when a file is not what it was when the plan was made."""
    for name, *was in (one for group in INPUTS for one in plan[group]):
        file = Path(name)
        if not file.exists() or _identity(file) != [name, *was]:
            raise UserError(f"{file} was changed while it was read. Remove {folder} and begin anew.")


def _identity(file: Path) -> list[Any]:
    stat = file.stat()
    return [str(file), stat.st_size, stat.st_mtime_ns]


def _check_same(begun: dict[str, Any], plan: dict[str, Any], folder: Path) -> None:
    options = [key for key in plan if key not in INPUTS]
    changed = [f"{key}: was {begun.get(key)}, is {plan[key]}" for key in options if begun.get(key) != plan[key]]
    for name in INPUTS if begun.get("format") == _FORMAT else ():
        before, now = ([tuple(one) for one in which[name]] for which in (begun, plan))
        counts = Counter(before)
        counts.subtract(now)
        if differing := list(dict.fromkeys(file for (file, *_), count in counts.items() if count)):
            changed.append(f"{name}: {some(differing, 1)} came, went or changed")
        elif before != now:
            changed.append(f"{name}: their order")
    if changed:
        raise UserError(
            f"{folder} was begun with other input or options, and cannot be resumed:\n  "
            + "\n  ".join(changed)
            + f"\nGive what it was begun with, or remove {folder} to begin anew."
        )
