"""What a folder of work was begun with: options and inputs, by which a later run knows whether it may resume there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from internevo.files.durable import sync_folder, write_durable
from internevo.files.errors import UserError

PLAN = "plan.json"
INPUTS = ("inputs", "inputs that are held out")
_FORMAT = 3
"""Goes up when pieces or plans of an older version can no longer be resumed."""


def plan_of(files: Sequence[Path], held_files: Sequence[Path], **options: Any) -> dict[str, Any]:
    """What the pieces and shards depend on, in plain values. A file that is named twice is there twice."""
    inputs = {
        name: [_identity(file) for file in group] for name, group in zip(INPUTS, (files, held_files), strict=True)
    }
    return {"format": _FORMAT, **options, **inputs}


def begin_or_resume(folder: Path, plan: dict[str, Any]) -> None:
    """Keep the plan in the folder. Raises UserError when it was begun with another."""
    if (folder / PLAN).exists():
        _check_same(_read(folder), plan, folder)
    else:
        write_durable(folder / PLAN, json.dumps(plan).encode())
        sync_folder(folder.parent)


def check_unchanged(plan: dict[str, Any], folder: Path) -> None:
    """Raises UserError when a file is not what it was when the plan was made."""
    for name, *was in (one for group in INPUTS for one in plan[group]):
        file = Path(name)
        if not file.exists() or _identity(file) != [name, *was]:
            raise UserError(f"{file} was changed while it was read. Remove {folder} and begin anew.")


def _identity(file: Path) -> list[Any]:
    stat = file.stat()
    return [str(file), stat.st_size, stat.st_mtime_ns]


def _read(folder: Path) -> dict[str, Any]:
    try:
        if isinstance(found := json.loads((folder / PLAN).read_bytes()), dict):
            return found
        raise ValueError("it is no mapping")
    except ValueError as error:
        raise UserError(f"{folder / PLAN} is damaged: {error}. Remove {folder} to begin anew.") from None


def _check_same(begun: dict[str, Any], plan: dict[str, Any], folder: Path) -> None:
    options = [key for key in plan if key not in INPUTS]
    changed = [f"{key}: was {begun.get(key)}, is {plan[key]}" for key in options if begun.get(key) != plan[key]]
    for name in INPUTS if begun.get("format") == _FORMAT else ():
        before, now = ([tuple(one) for one in which[name]] for which in (begun, plan))
        counts = Counter(before)
        counts.subtract(now)
        if differing := list(dict.fromkeys(file for (file, *_), count in counts.items() if count)):
            more = f" and {len(differing) - 1:,} more" if len(differing) > 1 else ""
            changed.append(f"{name}: {differing[0]}{more} came, went or changed")
        elif before != now:
            changed.append(f"{name}: their order")
    if changed:
        raise UserError(
            f"{folder} was begun with other input or options, and cannot be resumed:\n  "
            + "\n  ".join(changed)
            + f"\nGive what it was begun with, or remove {folder} to begin anew."
        )
