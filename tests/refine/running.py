"""Steps of the refinery without its frame: shards in, every phase's tasks, shards out. Whole chains by the command."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from internevo.refine.shards import DROPPED, KEPT, Document, ShardWriter, read_shard, shard_name
from internevo.refine.step import Place, Step


def place_of(folder: Path, documents: Sequence[Document], shards: int) -> Place:
    """The documents in shards of about the same size, in order, and a folder for the step."""
    borders = [len(documents) * number // shards for number in range(shards + 1)]
    for number in range(shards):
        with ShardWriter(folder / "input", number) as out:
            for document in documents[borders[number] : borders[number + 1]]:
                out.write(document)
    paths = tuple(folder / "input" / KEPT / shard_name(number) for number in range(shards))
    return Place(paths, folder / "step")


def run_phases(step: Step, place: Place, chance: random.Random | None = None) -> None:
    """All tasks of each phase, in order, or in any order where `chance` is given."""
    for phase in step.phases(place):
        tasks = list(range(phase.tasks))
        if chance:
            chance.shuffle(tasks)
        for task in tasks:
            phase.run(task)


def run_phases_in_processes(step: Step, place: Place, processes: int) -> None:
    """The same in processes side by side."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for phase in step.phases(place):
            pool.map(phase.run, range(phase.tasks), chunksize=1)


def run_until_killed(step: Step, place: Place, moment: int) -> None:
    """Runs the phases, until files of the step have been opened, renamed or removed so many times, and dies there."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            seen += str(place.folder) in str(arguments[0])
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run_phases(step, place)


def documents_of(place: Place, which: str) -> list[Document]:
    """What the step has kept or dropped, in order."""
    return [document for path in sorted((place.folder / which).glob("*.zst")) for document in read_shard(path)]


def kept(place: Place) -> list[Document]:
    """What the step has kept."""
    return documents_of(place, KEPT)


def dropped(place: Place) -> list[Document]:
    """What it has dropped."""
    return documents_of(place, DROPPED)


def output(place: Place) -> dict[str, bytes]:
    """Every file of a step but those of its work, byte for byte."""
    files = [path for path in sorted(place.folder.rglob("*")) if path.is_file()]
    named = {str(path.relative_to(place.folder)): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith("work/")}


def internevo(*words: str | Path) -> str:
    """Runs the command, which must succeed; what it said."""
    command = [sys.executable, "-m", "internevo", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refined(folder: Path, inputs: Sequence[Path], steps: Sequence[Any]) -> Path:
    """Writes a configuration and runs it; the output."""
    output = folder / "refined"
    tree = {"name": "real", "input": [*map(str, inputs)], "output": str(output), "executor": {"workers": 2}}
    (folder / "refine.yaml").write_text(yaml.safe_dump({**tree, "steps": list(steps)}, allow_unicode=True))
    internevo("data", "refine", folder / "refine.yaml")
    return output


def step_documents(output: Path, step: str, which: str) -> list[Document]:
    """What a step of a chain, such as `03-rules`, has kept or dropped."""
    return [one for file in sorted((output / step / which).iterdir()) for one in read_shard(file)]
