"""What is looked at on every node before the first step, so that a run does not fail, or crawl, hours later.

Each rank tells what it sees, the main process compares, and one table shows it all.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from internevo.config.schema import RunConfig
from internevo.data.check_stores import check_stores, store_problems
from internevo.files.errors import UserError
from internevo.monitor.environment import code_version
from internevo.parallel.world import World

_MEBIBYTES = {"cuda": 64, "cpu": 4}
_REPEATS = 4
SKEW_S = 2.0
"""Clocks further apart than this make logs hard to compare; it is told, and stops nothing."""
FREE_GIB = 20.0
"""A run folder's disk with less than this is told."""


@dataclass(frozen=True)
class Facts:
    """What one rank sees."""

    node: str
    gpus: int
    gpu: str
    versions: dict[str, str]
    free_gib: float
    unusable: tuple[str, ...]
    """What is wrong with the token stores here."""
    clock: float
    """Seconds since 1970, read when all ranks had just met."""
    gb_per_s: float
    """All-reduce over all ranks: bytes of one rank's buffer a second."""


def preflight(world: World, config: RunConfig) -> str | None:
    """Look at every node; the table as text. None in a world of one process, where only token stores are looked at.

    All ranks call it together. Raises UserError when the run could not work: versions differ, a rank has no GPU of its
    own, or a token store cannot be trained on.
    """
    if world.size == 1:
        check_stores(config.stages)
        return None
    mine = _look(world, config)
    everyone: list[Facts | None] = [None] * world.size
    dist.all_gather_object(everyone, mine, group=world.control)
    ranks = [one for one in everyone if one is not None]
    return world.on_main(lambda: f"{_title(ranks)}\n{as_text(judge(ranks, world.device))}")


def _look(world: World, config: RunConfig) -> Facts:
    speed = _speed(world)
    dist.barrier(group=world.control)
    clock = time.time()
    cuda = world.device.type == "cuda"
    runs = Path(config.runs).absolute()  # may not be there yet
    disk = next(folder for folder in (runs, *runs.parents) if folder.exists())
    return Facts(
        node=os.environ.get("SLURMD_NODENAME") or platform.node(),
        gpus=torch.cuda.device_count(),
        gpu=torch.cuda.get_device_name(world.device) if cuda else "",
        versions=_versions(cuda),
        free_gib=shutil.disk_usage(disk).free / 2**30,
        unusable=tuple(store_problems(config.stages)),
        clock=clock,
        gb_per_s=speed,
    )


def _versions(cuda: bool) -> dict[str, str]:
    versions = {
        "internevo": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "package": str(Path(__file__).parents[1]),
    }
    if cuda:
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return versions


def _speed(world: World) -> float:
    """All-reduce on the training device; the best of a few."""
    buffer = torch.ones(_MEBIBYTES[world.device.type] * 2**18, device=world.device)
    best = float("inf")
    for _ in range(_REPEATS):
        dist.barrier(group=world.control)
        start = time.perf_counter()
        dist.all_reduce(buffer)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        best = min(best, time.perf_counter() - start)
    return buffer.nbytes / best / 1e9


def judge(ranks: list[Facts], device: torch.device) -> Table:
    """The table of all nodes. Raises UserError with everything that cannot work."""
    nodes: dict[str, list[Facts]] = {}
    for one in ranks:
        nodes.setdefault(one.node, []).append(one)
    first = ranks[0]
    wrong, told = [], []
    table = Table("node", "ranks", "GPUs", "disk free", "clock", "all-reduce")
    for name, here in nodes.items():
        least = min(here, key=lambda one: one.gb_per_s)
        skew = here[0].clock - first.clock
        gpus = f"{here[0].gpus} {here[0].gpu}".strip() if device.type == "cuda" else "none used"
        table.add_row(
            name,
            str(len(here)),
            gpus,
            f"{here[0].free_gib:,.0f} GiB",
            f"{skew:+.2f} s",
            f"{least.gb_per_s:.1f} GB/s",
        )
        if device.type == "cuda" and here[0].gpus < len(here):
            wrong.append(f"{name} has {here[0].gpus} GPUs for {len(here)} ranks")
        if abs(skew) > SKEW_S:
            told.append(f"the clock of {name} is {skew:+.1f} s off that of {first.node}")
        if here[0].free_gib < FREE_GIB:
            told.append(f"{name}: {here[0].free_gib:.1f} GiB are free where runs are written")
        wrong += [f"on {name}: {problem}" for problem in here[0].unusable]
        for what, version in here[0].versions.items():
            if version != first.versions.get(what):
                wrong.append(f"{what} on {name} is {version}, on {first.node} {first.versions.get(what)}")
    if wrong:
        raise UserError("the nodes cannot train together:\n  " + "\n  ".join(wrong))
    if told:
        table.caption = "\n".join(told)
    return table


def _title(ranks: list[Facts]) -> str:
    versions = ranks[0].versions
    nccl = f", NCCL {versions['nccl']}" if "nccl" in versions else ""
    return f"preflight: {len(ranks)} ranks; {versions['internevo']}; torch {versions['torch']}{nccl}"


def as_text(table: Table) -> str:
    """The table in plain letters, for a terminal and for logs."""
    text = io.StringIO()
    Console(file=text, width=110).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
