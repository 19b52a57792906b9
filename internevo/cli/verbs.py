"""All verbs, a file for each subject. They parse, call and print, without logic of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from internevo.cli import chat, data, evaluate, launch, models, refine, runs, sweep
from internevo.cli.shared import app, console, out, plain
from internevo.files.errors import UserError
from internevo.files.refusals import refusal
from internevo.monitor.terminal import let_go
from internevo.version import VERSION

__all__ = ["app", "chat", "data", "evaluate", "launch", "let_go", "models", "refine", "runs", "sweep", "tell"]


def tell(error: UserError | OSError) -> bool:
    """Print a user's mistake or a refusal of the system as one message; False for any other error."""
    text = refusal(error) if isinstance(error, OSError) else str(error)
    if text is None:
        return False
    console("stderr", soft_wrap=True).print(f"[bold red]error:[/] {plain(text)}")
    return True


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"internevo {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...
