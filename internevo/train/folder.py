"""A run's folder: its paths, its lock, and the configuration it was started with."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from internevo.config.errors import UserError
from internevo.config.load import load_config
from internevo.config.render import differences, render
from internevo.config.schema import RunConfig
from internevo.monitor.environment import code_version

# What a run cannot change once it has begun: the weights, the tokens or their order would no longer fit.
FIXED = ("model.", "train.seed", "optimizer.name", "data.block")
FREE = ("model.rope_base", "model.rope_scaling")


class RunFolder:
    """`runs/NAME/`, held by one process at a time.

    Use it as a context manager: entering locks the folder, and raises UserError when another process has it.
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
        self._lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            raise UserError(
                f"{self.path} is being trained by {holder}. Wait for it, stop it, or give this run another name."
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()}")
        self._lock.flush()
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._lock is not None
        self._lock.close()

    def adopt(self, config: RunConfig) -> list[str]:
        """Make `config` the run's configuration.

        Returns a line for each key that differs from the one that the run had; the old file is kept beside the
        new one. Raises UserError if a key differs that a begun run cannot change.
        """
        if not self.config_file.exists():
            self._write(config)
            return []
        changes = differences(load_config(self.config_file, check_data=False), config)
        fixed = [line for line in changes if _fixed(line.split(":")[0])]
        if fixed:
            raise UserError(
                f"{self.path} was begun with another configuration that cannot change on resume:\n  "
                + "\n  ".join(fixed)
                + "\nGive this run another name, or put these keys back."
            )
        if changes:
            number = len(list(self.path.glob("config-*.yaml"))) + 1
            self.config_file.rename(self.path / f"config-{number:03d}.yaml")
            self._write(config)
        return changes

    def _write(self, config: RunConfig) -> None:
        aside = self.config_file.with_suffix(".partial")
        aside.write_text(f"# {code_version()}; every key, defaults included\n{render(config)}", encoding="utf-8")
        aside.rename(self.config_file)


def _fixed(key: str) -> bool:
    return key.startswith(FIXED) and not key.startswith(FREE)
