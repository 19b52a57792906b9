"""The processes of a run: how many there are, which one this is, and how they agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from internevo.files.errors import UserError
from internevo.parallel.layout import Layout
from internevo.parallel.mesh import Mesh

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for another in training before it takes it for lost."""
PATIENCE = timedelta(hours=3)
"""The same while the main process works alone, or checkpoints are written: there may be terabytes to check."""

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None
    """A CPU group for small messages, apart from those that training uses. None in a world of one."""
    patient: dist.ProcessGroup | None
    """The same for waiting on the main process."""
    saving: dist.ProcessGroup | None
    """The same for checkpoints, which are written by a thread of their own."""
    _meshes: dict[Layout, Mesh] = field(default_factory=dict)

    @classmethod
    def alone(cls, device: torch.device) -> World:
        """A world of this process."""
        return cls(0, 1, device, None, None, None)

    @property
    def main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def mesh(self, layout: Layout) -> Mesh:
        """The groups of a layout. Equal layouts share them: groups stay until the processes end."""
        if layout not in self._meshes:
            self._meshes[layout] = Mesh(layout, self.device, self.control)
        return self._meshes[layout]

    def largest(self, number: int) -> int:
        """The largest of every process's number."""
        if self.control is None:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return int(tensor)

    def from_main(self, value: T) -> T:
        """The main process's value, on all."""
        if self.patient is None:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=self.patient)
        return values[0]

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` returns on the main process, on all; it is run there alone.

        Its UserError is raised there, and so is what the system says of a file; the other processes leave quietly with
        the same exit code.
        """
        outcome: tuple[T | None, UserError | OSError | None] = (None, None)
        if self.main:
            try:
                outcome = (action(), None)
            except (UserError, OSError) as error:
                outcome = (None, error)
        value, failure = self.from_main(outcome)
        if failure is not None:
            raise failure if self.main else SystemExit(2)
        return cast(T, value)


_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process, beside how many there are."""


def _size() -> int:
    """How many processes there are. Raises UserError when the environment tells only a part of what it must."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"WORLD_SIZE in the environment must be a number of processes, found {text!r}; unset it")
    if int(text) > 1 and (missing := [name for name in _NEEDED if not os.environ.get(name)]):
        raise UserError(
            f"WORLD_SIZE is {text} in the environment, but {', '.join(missing)} is not set: a job's script has set one "
            "without the others. Unset WORLD_SIZE for a single process, or start all of them with `internevo launch`."
        )
    return int(text)


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The world that torchrun's environment variables tell of; a world of one without them.

    `device` is `cpu` or `cuda`; of several GPUs, this process takes that of its local rank.
    """
    size = _size()
    if size == 1:
        try:
            yield World.alone(device)
        finally:
            if dist.is_initialized():  # by an engine that wants a group even for one process
                dist.destroy_process_group()
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    start_groups(device)
    try:
        control, patient, saving = (dist.new_group(backend="gloo", timeout=t) for t in (TIMEOUT, PATIENCE, PATIENCE))
        yield World(dist.get_rank(), size, device, control, patient, saving)
    finally:
        dist.destroy_process_group()  # without it, gloo now and then aborts at exit


def start_groups(device: torch.device, **arguments: Any) -> None:
    """Make the group of all processes, which others come from; `arguments` when the environment does not tell."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, **arguments)
