"""A run's folder: its paths, its lock, and the configuration it was started with."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from internevo.config.load import load_config
from internevo.config.render import differences, render
from internevo.config.schema import RunConfig
from internevo.files.durable import write_durable
from internevo.files.errors import UserError
from internevo.files.lock import locked
from internevo.monitor.environment import code_version

# What a run cannot change once it has begun: the weights, the tokens or their order would no longer fit.
FIXED = ("model.", "train.seed", "train.lora", "optimizer.name", "data.block")
FREE = ("model.rope",)


class RunFolder:
    """`runs/NAME/`, held by one process at a time.

    Use it as a context manager: entering locks the folder, and raises UserError when another process has it. No
    record in the folder changes by it, until the run begins.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.evals = path / "evals.jsonl"
        self.environment = path / "environment.json"
        self.tokenizer = path / "tokenizer"
        self.chat = path / "chat.json"
        self.log = path / "logs" / "rank-0000.log"
        self._held = ExitStack()

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """The folder that the configuration names."""
        return cls(Path(config.runs) / config.name)

    def __enter__(self) -> RunFolder:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        remedy = "Wait for it, stop it, or give this run another name."
        self._held.enter_context(locked(self.path / ".lock", remedy))
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def changes(self, config: RunConfig) -> list[str]:
        """A line for each key of `config` that differs from the one that the run has.

        Raises UserError if a key differs that a begun run cannot change.
        """
        if not self.config_file.exists():
            return []
        changes = differences(load_config(self.config_file, check_data=False, check_values=False), config)
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
        text = f"# {code_version()}; every key, defaults included\n{render(config)}"
        write_durable(self.config_file, text)


def _fixed(key: str) -> bool:
    return key.startswith(FIXED) and not key.startswith(FREE)
