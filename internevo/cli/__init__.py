"""The `internevo` command: parses, calls, prints. No logic lives here; each file has the verbs of one concern."""

from __future__ import annotations

from typing import Annotated, NoReturn, TextIO, cast

import typer
from rich.console import Console

from internevo import __version__
from internevo.cli import data, evaluate, launch, models, refine, runs, sweep
from internevo.cli.shared import app, out, plain
from internevo.config.errors import UserError
from internevo.config.refusals import refusal
from internevo.monitor.terminal import Terminal, let_go

__all__ = ["app", "data", "evaluate", "launch", "main", "models", "refine", "runs", "sweep"]


def main() -> NoReturn:
    """Run the command line; a user's mistake, or what the system refuses, ends it with one message and exit code 2."""
    try:
        app()
    except (UserError, OSError) as error:
        told = refusal(error) if isinstance(error, OSError) else str(error)
        if told is None:
            raise
        to = cast("TextIO", Terminal("stderr"))
        Console(file=to, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {plain(told)}")
        raise SystemExit(2) from None
    finally:
        let_go()
    raise SystemExit(0)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"internevo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None: ...
