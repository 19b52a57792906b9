"""What all verbs share: the application, its console, common arguments."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, cast

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

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, and characters that change the direction of writing."""
_LOG_EVERY_S = 30  # seconds between two lines of progress where there is no terminal


def console(stream: Literal["stdout", "stderr"] = "stdout", **options: Any) -> Console:
    """A console that raises nothing when its reader is gone."""
    return Console(file=cast("TextIO", Terminal(stream)), highlight=False, **options)


def argument(help: str, metavar: str) -> Any:
    """An argument of a verb; the help shows no default."""
    return typer.Argument(help=help, metavar=metavar, show_default=False)


def option(
    help: str, metavar: str | None = None, *names: str, least: int | None = None, most: int | None = None, **more: Any
) -> Any:
    """An option of a verb, named after its parameter unless `names` are given."""
    return typer.Option(*names, help=help, metavar=metavar, min=least, max=most, **more)


def number_option(bounds: Between, help: str, metavar: str) -> Any:
    """An option for a float. It refuses NaN too, which typer's min and max let through."""

    def check(value: float) -> float:
        if problem := bounds.problem(value):
            raise typer.BadParameter(problem)
        return value

    return typer.Option(help=help, metavar=metavar, min=bounds.least, max=bounds.most, callback=check)


out = console(soft_wrap=True)

ConfigArgument = Annotated[Path, argument("The YAML file of the run.", "CONFIG")]
OverridesArgument = Annotated[
    list[str] | None, argument("Keys to change: `train.seq_len=8192 optimizer.lr=1e-4`.", "KEY=VALUE")
]
ModelArgument = Annotated[Path, argument("A run's folder, an import, or a Hugging Face folder.", "MODEL")]
TextKeyOption = Annotated[str, option("Where a JSON line or parquet row has its text.", "FIELD")]
StepOption = Annotated[
    int | None, option("The checkpoint of this step; the newest when absent.", "STEP", least=0, most=10**9)
]
TemperatureOption = Annotated[float, number_option(Between(0, 100), "0 always takes the likeliest token.", "NUMBER")]
TopPOption = Annotated[
    float,
    number_option(Between(0, 1, open_below=True), "Sample from the likeliest tokens that make up this share.", "SHARE"),
]
TemplateOption = Annotated[
    str | None,
    option("A file of a chat template, or internlm2; the one that the model learned when absent.", "TEMPLATE"),
]
SeedOption = Annotated[int, option("Seeds the sampling.", "NUMBER", least=0, most=2**63 - 1)]
UntilOption = Annotated[int | None, option("Save and leave after this step of the run.", "STEP", least=1, most=10**9)]


def plain(text: object) -> str:
    """The text with rich's markup and control characters escaped."""
    from rich.markup import escape

    return escape(_CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text)))


def stream(text: str) -> None:
    """Print a piece of what a model says as it is, but for control characters."""
    shown = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
    out.print(shown, end="", markup=False, emoji=False)


def then(text: str) -> None:
    """Every verb ends with what to do next."""
    out.print(f"[dim]next:[/] {plain(text)}")


def note(lines: Sequence[str]) -> None:
    """Print notes about a model to standard error, as the output may be piped."""
    for line in lines:
        console("stderr", soft_wrap=True).print(f"[yellow]note:[/] {plain(line)}")


@contextmanager
def working(job: str) -> Iterator[Callable[[int, int, int, dict[str, int]], None]]:
    """A progress bar over bytes of input, with rates and the time that is left.

    Call it with the bytes done, the bytes in all, and what this process did of them: bytes, and other counts by name.
    Without a terminal, as in a job's log, it prints a line twice a minute.
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
    """Copy the token stores that are in object storage, each into its cache, with a progress bar."""
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
    """A progress bar over bytes: call it with the bytes done and the bytes in all."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(job), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(job, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
