"""A run's folder: its paths, its lock, and the configuration it was started with."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from internevo.config.load import load_config
from internevo.config.render import differences, render
from internevo.config.schema import RunConfig
from internevo.files.errors import UserError
from internevo.monitor.environment import code_version

# What a run cannot change once it has begun: the weights, the tokens or their order would no longer fit.
FIXED = ("model.", "train.seed", "optimizer.name", "data.block")
FREE = ("model.rope_base", "model.rope_scaling")


class RunFolder:
    """`runs/NAME/`, held by one process at a time.

    Use it as a context manager: entering locks the folder, and raises UserError when another process has it. Nothing
    that is in the folder changes by it, until the run begins.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.evals = path / "evals.jsonl"
        self.environment = path / "environment.json"
        self.log = path / "logs" / "rank-0000.log"
        self._lock: TextIO | None = None

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """The folder that the configuration names."""
        return cls(Path(config.runs) / config.name)

    def __enter__(self) -> RunFolder:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _open_lock(self.path / ".lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            raise UserError(
                f"{self.path} is being trained by {holder}. Wait for it, stop it, or give this run another name."
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._lock is not None
        self._lock.close()

    def sign(self) -> None:
        """Let those who find the folder locked know who holds it."""
        assert self._lock is not None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()}")
        self._lock.flush()

    def changes(self, config: RunConfig) -> list[str]:
        """A line for each key of `config` that differs from the one that the run has.

        Raises UserError if a key differs that a begun run cannot change.
        """
        if not self.config_file.exists():
            return []
        changes = differences(load_config(self.config_file, check_data=False), config)
        fixed = [line for line in changes if _fixed(line.split(":")[0])]
        if fixed:
            raise UserError(
                f"{self.path} was begun with another configuration that cannot change on resume:\n  "
                + "\n  ".join(fixed)
                + "\nGive this run another name, or put these keys back."
            )
        return changes

    def adopt(self, config: RunConfig) -> None:
        """Make `config` the run's configuration; one that differed is kept beside it."""
        if self.config_file.exists():
            if not self.changes(config):
                return
            number = len(list(self.path.glob("config-*.yaml"))) + 1
            self.config_file.rename(self.path / f"config-{number:03d}.yaml")
        aside = self.config_file.with_suffix(".partial")
        aside.write_text(f"# {code_version()}; every key, defaults included\n{render(config)}", encoding="utf-8")
        aside.rename(self.config_file)


def _open_lock(path: Path) -> TextIO:
    """The lock's file, which whoever may write into the folder may write too, whatever the first one's umask was."""
    new = not path.exists()
    file = path.open("a+", encoding="utf-8")
    if new:
        path.chmod(path.parent.stat().st_mode & 0o666)
    return file


def _fixed(key: str) -> bool:
    return key.startswith(FIXED) and not key.startswith(FREE)
