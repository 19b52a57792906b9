"""Verbs that refine text: the chain of steps, and the classifier that one of them may use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internevo.cli.group import Verbs
from internevo.cli.shared import TextKeyOption, argument, data_app, number_option, option, out, plain, then
from internevo.config.bounds import Between

if TYPE_CHECKING:
    from internevo.refine.refine import PhasesDone

classifier_app = typer.Typer(cls=Verbs, no_args_is_help=True, help="Train classifiers of text.")
data_app.add_typer(classifier_app, name="classifier")


@data_app.command("refine")
def data_refine(
    config: Annotated[Path, argument("The YAML file of the refinery.", "CONFIG")],
    overrides: Annotated[
        list[str] | None, argument("Keys to change, of all but the steps: `executor.workers=8`.", "KEY=VALUE")
    ] = None,
    only_report: Annotated[bool, option("Do nothing but write the page.", None, "--report")] = False,
) -> None:
    """Refine a corpus: from web archives, JSON lines or parquet, step by step, to shards worth training on.

    Each step keeps what it kept and what it dropped, with the reason; a page shows counts and examples. Stopped at any
    moment, the same command resumes. `docs/refinery.md` describes the file.

    Example: `internevo data refine configs/refine/web.yaml executor.workers=8`
    """
    from internevo.monitor.refine_page import write_refine_page
    from internevo.refine.config import load_refinery
    from internevo.refine.counts import share, step_counts
    from internevo.refine.refine import refine

    refinery = load_refinery(config, overrides or [])
    page = refinery.output / "report.html"
    if only_report:
        if not any(step.done for step in step_counts(refinery.output)):
            out.print(f"nothing is in {plain(refinery.output)} yet")
            raise typer.Exit(1)
        out.print(f"wrote {plain(write_refine_page(refinery.output))}")
        return
    if passed := refinery.steps[0].step.passed_over(refinery.inputs):
        kinds = ", ".join(f"{ending or 'no ending'} {count:,}" for ending, count in passed.most_common(5))
        out.print(plain(f"files passed over for their kind: {passed.total():,} ({kinds})"))
    try:
        with _tasks(refinery.name) as show:
            jobs = refine(refinery, write_refine_page, show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command resumes here") from None
    if jobs:
        out.print(f"submitted jobs {', '.join(jobs)}; logs in {plain(refinery.output)}/NN-STEP/logs")
        then(f"squeue --me, then open {page} in a browser; the same command submits again what has failed")
        return
    for step in step_counts(refinery.output):
        kept = step.tally.kept.documents
        out.print(plain(f"{step.name}: given {step.given:,} documents, kept {kept:,} ({share(kept, step.given)})"))
    out.print(f"wrote {plain(page)}")
    then(f"open {page} in a browser, then internevo data prepare {refinery.output / 'kept'} --tokenizer T --out tokens")


@contextmanager
def _tasks(job: str) -> Iterator[Callable[[PhasesDone], None]]:
    """A progress bar over tasks. Without a terminal, a line for each phase, and twice a minute."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(TextColumn(job), *columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=None)
        printed = time.monotonic()

        def show(now: PhasesDone) -> None:
            nonlocal printed
            bar.update(task, completed=now.all_done, total=now.all_of, description=f"{now.job}: {now.done} of {now.of}")
            if not out.is_terminal and (now.done == now.of or time.monotonic() - printed > 30):
                printed = time.monotonic()
                out.print(plain(f"{now.job}: {now.done:,} of {now.of:,} tasks"))

        yield show


@classifier_app.command("train")
def classifier_train(
    good: Annotated[Path, argument("A file or folder of good text.", "GOOD")],
    bad: Annotated[Path, argument("A file or folder of bad text.", "BAD")],
    output: Annotated[Path, option("The file to write.", "FILE", "--out")],
    text_key: TextKeyOption = "text",
    held_out: Annotated[
        float, number_option(Between(0.001, 0.9), "Share of the documents to test it on.", "SHARE")
    ] = 0.1,
    max_documents: Annotated[
        int, option("Maximum documents of each kind to learn from.", "N", least=1, most=10**9)
    ] = 500_000,
) -> None:
    """Train a classifier that tells good text from bad: logistic regression over hashed n-grams.

    Example: `internevo data classifier train good.jsonl bad.jsonl --out quality.model`
    """
    from internevo.refine.classifier import train_classifier

    with out.status("training the classifier"):
        fitted = train_classifier(
            [good], [bad], output, text_key=text_key, held_out=held_out, max_documents=max_documents
        )
    out.print(
        f"wrote {plain(output)}: learned from {fitted.learned:,} documents; on {fitted.held_out:,} others, "
        f"accuracy {fitted.accuracy:.1%}, AUC {fitted.auc:.4f}"
    )
    then(f"name it in a refinery's steps, `- quality: {{classifier: {output}}}`, and internevo data refine CONFIG")
