"""What all verbs share: the application, its console, common arguments."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer
from rich.console import Console

from internevo.cli.group import Verbs
from internevo.config.bounds import Between
from internevo.monitor.terminal import Terminal

app = typer.Typer(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    name="internevo",
    help="Pretrain language models: from text to tokens, through training stages, to Hugging Face.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(cls=Verbs, no_args_is_help=True, help="Train a tokenizer.")
data_app = typer.Typer(cls=Verbs, no_args_is_help=True, help="Turn text into tokens, and look at them.")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")

out = Console(file=cast("TextIO", Terminal()), highlight=False, soft_wrap=True)
"""Goes on without a word when nobody reads it any more."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it, tabs and ends of lines apart; and what turns the writing's direction."""
_LOG_EVERY_S = 30
"""Between the lines that long work prints where there is no terminal."""

ConfigArgument = Annotated[Path, typer.Argument(help="The YAML file of the run.", metavar="CONFIG", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Keys to change: `train.seq_len=8192 optimizer.lr=1e-4`.", metavar="KEY=VALUE"),
]
RunArgument = Annotated[Path, typer.Argument(help="A run's folder, runs/NAME.", metavar="RUN", show_default=False)]
ModelArgument = Annotated[
    Path,
    typer.Argument(help="A run's folder, an import, or a Hugging Face folder.", metavar="MODEL", show_default=False),
]
InputsArgument = Annotated[
    list[Path], typer.Argument(help="Files or folders of text.", metavar="FILE...", show_default=False)
]
TextKeyOption = Annotated[str, typer.Option(help="Where a JSON line or parquet row has its text.", metavar="FIELD")]
StepOption = Annotated[
    int | None,
    typer.Option(help="The checkpoint of this step; the newest when absent.", metavar="STEP", min=0, max=10**9),
]
UntilOption = Annotated[
    int | None, typer.Option(help="Save and leave after this step of the run.", metavar="STEP", min=1, max=10**9)
]


def number_option(bounds: Between, help: str, metavar: str) -> Any:
    """An option for a number that is not whole; refuses nan too, which typer's min and max let through."""

    def check(value: float) -> float:
        if problem := bounds.problem(value):
            raise typer.BadParameter(problem)
        return value

    return typer.Option(help=help, metavar=metavar, min=bounds.least, max=bounds.most, callback=check)


def plain(text: object) -> str:
    """The text as it is to be read: no markup in it counts, and no control character reaches the terminal."""
    from rich.markup import escape

    return escape(_CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text)))


def then(text: str) -> None:
    """Every verb ends with what to do next."""
    out.print(f"[dim]next:[/] {plain(text)}")


def note(lines: Sequence[str]) -> None:
    """Tell what a person should know of a model; not among the output, which may be piped."""
    for line in lines:
        to = cast("TextIO", Terminal("stderr"))
        Console(file=to, highlight=False, soft_wrap=True).print(f"[yellow]note:[/] {plain(line)}")


@contextmanager
def working(job: str) -> Iterator[Callable[[int, int, int, dict[str, int]], None]]:
    """A progress bar over bytes of input: rates of what this run has done, and the time that is left.

    Is told how many bytes are done, of how many, how many of them now, and what else was counted now. Without a
    terminal, as in a job's log, it prints a line twice a minute.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(TextColumn(job), *columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=None)
        began = printed = time.monotonic()

        def show(done: int, total: int, now: int, counted: dict[str, int]) -> None:
            nonlocal printed
            seconds = max(time.monotonic() - began, 1e-9)
            rates = [f"{now / seconds / 1e6:,.1f} MB/s"]
            rates += [f"{count / seconds:,.0f} {what}/s" for what, count in counted.items()]
            if now:
                rates.append(f"{timedelta(seconds=round((total - done) * seconds / now))} left")
            bar.update(task, completed=done, total=total, description=" · ".join(rates))
            if not out.is_terminal and time.monotonic() - printed > _LOG_EVERY_S:
                printed = time.monotonic()
                out.print(f"{job}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB · {' · '.join(rates)}")

        yield show


def copy_remote_stores(caches: Mapping[str, str]) -> None:
    """Copy the token stores that are in object storage, each into its cache, and show how far that is."""
    from internevo.files.urls import is_remote
    from internevo.tokens.remote import fetch

    if not (remote := {path: cache for path, cache in caches.items() if is_remote(path)}):
        return
    if os.environ.get("LOCAL_RANK", "0") != "0":
        fetch(remote, lambda done, total: None)  # waits for the first rank of the machine
        return
    with working("copying token stores") as show:
        fetch(remote, lambda done, total: show(done, total, done, {}))


@contextmanager
def moving(job: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over bytes, of which the number in all is known."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(job), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(job, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
