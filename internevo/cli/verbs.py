"""All verbs: each file has those of one concern. They parse, call and print; no logic lives there."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from internevo import __version__
from internevo.cli import data, evaluate, launch, models, refine, runs, sweep
from internevo.cli.shared import app, out, plain
from internevo.config.errors import UserError

__all__ = ["app", "data", "evaluate", "launch", "models", "refine", "runs", "sweep", "tell"]


def tell(error: UserError) -> None:
    """Print a user's mistake as one message."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {plain(str(error))}")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"internevo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None: ...
