"""What a refinery's folders were begun with, so that nothing resumes with another configuration or other input.

`OUTPUT/02-rules/plan.json` has the step's keys, the files that it depends on, and a digest of the plan before it. So
the end of a chain may be done anew without its beginning.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from internevo.files.durable import write_durable
from internevo.files.errors import UserError
from internevo.refine.config import Refinery
from internevo.refine.corpus_files import files_below
from internevo.refine.shards import KEPT, done
from internevo.refine.step import Place

PLAN = "plan.json"
_FORMAT = 2  # goes up when what an older version has done can no longer be resumed

Plan = dict[str, Any]


def step_folders(refinery: Refinery) -> list[Path]:
    """Each step's folder, `OUTPUT/01-extract` and so on."""
    return [refinery.output / f"{number:02}-{one.name}" for number, one in enumerate(refinery.steps, 1)]


def begin(refinery: Refinery) -> list[Place]:
    """Make the folders of all steps, or find them as they were begun; the link to the result goes until all is done.

    Returns where each step works. Raises UserError, with what to remove, when they were begun otherwise.
    """
    folders, plans = step_folders(refinery), _plans(refinery)
    missing: Path | None = None
    for place, (folder, plan) in enumerate(zip(folders, plans, strict=True)):
        if not (file := folder / PLAN).exists():
            missing = missing or folder
        elif missing:  # what it will keep may be other than what this one was made from
            gone = f"{folder.name}: {missing.name}, which comes before it, is gone"
            _refuse(refinery, folders.index(missing), [gone])
        elif changed := _changed(json.loads(file.read_text(encoding="utf-8")), plan, folder.name):
            _refuse(refinery, place, changed)
    if strange := [one for one in _existing(refinery.output) if one not in folders]:
        _refuse(refinery, len(folders), [f"{one.name} is no step of this configuration" for one in strange])
    places: list[Place] = []
    shards = refinery.inputs
    for one, folder, plan in zip(refinery.steps, folders, plans, strict=True):
        places.append(Place(shards, folder))
        shards = one.step.kept(places[-1])
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**plan, "shards": len(shards)}, indent=1, ensure_ascii=False) + "\n"
        write_durable(folder / PLAN, text)
    if unfinished(refinery.output):  # the folder that it points to may be one that is only begun
        (refinery.output / KEPT).unlink(missing_ok=True)
    return places


def unfinished(output: Path) -> list[str]:
    """The steps that have shards left to do, as `02-language: 1 of 3 shards`."""
    left = []
    for folder in begun_folders(output):
        of = shards_of(folder)
        if (count := sum(done(folder, number) for number in range(of))) < of:
            left.append(f"{folder.name}: {count:,} of {of:,} shards")
    return left


def begun_folders(output: Path) -> list[Path]:
    """Of the steps that a refinery was begun with, in order."""
    return [file.parent for file in sorted(output.glob(f"[0-9][0-9]-*/{PLAN}"))]


def shards_of(folder: Path) -> int:
    """How many shards a step has. Raises UserError for one that was begun without saying so."""
    of: int | None = json.loads((folder / PLAN).read_text(encoding="utf-8")).get("shards")
    if of is None:
        raise UserError(f"{folder} was begun by another version, without its number of shards. Run the refinery again.")
    return of


def check_inputs(refinery: Refinery) -> None:
    """Raises UserError when the input is no longer what the refinery was begun with."""
    begun = json.loads((step_folders(refinery)[0] / PLAN).read_text(encoding="utf-8"))
    for path, now in _input_identities(refinery).items():
        if begun["inputs"].get(path) != now:
            raise UserError(f"{path} was changed while it was read. Remove {refinery.output} and begin anew.")


def _plans(refinery: Refinery) -> list[Plan]:
    plans: list[Plan] = []
    for one in refinery.steps:
        plan: Plan = {"format": _FORMAT, "step": one.name, "keys": asdict(one.step)}  # type: ignore[call-overload]
        plan["files"] = {str(file): _identity(file) for file in one.step.files()}
        if plans:
            plan["after"] = hashlib.sha256(json.dumps(plans[-1], sort_keys=True).encode()).hexdigest()
        else:
            plan["inputs"] = _input_identities(refinery)
        plans.append(json.loads(json.dumps(plan)))  # keys become text, as they are when they are read again
    return plans


def _input_identities(refinery: Refinery) -> dict[str, Any]:
    links = refinery.steps[0].step.follows_links
    return {str(path): _identity(path, links) for path in refinery.inputs}


def _identity(path: Path, links: bool = False) -> Any:
    """Size and time of a file; of a folder a digest of those of all files below it, with `links` also through links."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in files_below(path, links=links):
            digest.update(f"{file.relative_to(path)}\0{_identity(file)}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _changed(begun: Plan, plan: Plan, name: str) -> list[str]:
    if begun["format"] != plan["format"]:
        return [f"{name}: it was made by another version"]
    changed = _differences(f"{name}: ", begun["keys"], plan["keys"])
    for what in ("inputs", "files"):
        before, now = begun.get(what, {}), plan.get(what, {})
        changed += [
            f"{name}: {path} came, went or changed" for path in {**before, **now} if before.get(path) != now.get(path)
        ]
        if not changed and list(before) != list(now):
            changed.append(f"{name}: the order of the {what}")
    if not changed and begun.get("after") != plan.get("after"):
        changed.append(f"{name}: it was made from what another configuration of the steps before had kept")
    return changed


def _differences(path: str, before: Plan, now: Plan) -> list[str]:
    """`02-language: at_least: was 0.6, is 0.7`, for each key that differs."""
    changed = []
    for key in {**before, **now}:
        if isinstance(before.get(key), dict) and isinstance(now.get(key), dict):
            changed += _differences(f"{path}{key}.", before[key], now[key])
        elif before.get(key) != now.get(key):
            changed.append(f"{path}{key}: was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}")
    return changed


def _existing(output: Path) -> list[Path]:
    return sorted(one for one in output.glob("[0-9][0-9]-?*") if one.is_dir())


def _refuse(refinery: Refinery, place: int, changed: Sequence[str]) -> None:
    """Raise UserError. All folders from that place on are to go."""
    output, folders = refinery.output, step_folders(refinery)
    stale = [one for one in _existing(output) if one not in folders[:place]]
    remove = f"rm -r {shlex.join(map(str, stale))}"
    raise UserError(
        f"{output} was begun otherwise, and cannot be resumed:\n  "
        + "\n  ".join(changed)
        + f"\nGive what it was begun with, choose another output, or do anew what depends on it: {remove}"
    )
