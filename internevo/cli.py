"""The `internevo` command: parses, calls, prints. No logic lives here."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from internevo import __version__
from internevo.config.errors import UserError

app = typer.Typer(
    name="internevo",
    help="Pretrain language models: from text to tokens, through training stages, to Hugging Face.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer.")
data_app = typer.Typer(no_args_is_help=True, help="Turn text into tokens, and look at them.")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")

out = Console(highlight=False, soft_wrap=True)

ConfigArgument = Annotated[Path, typer.Argument(help="The YAML file of the run.", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Keys to change: `train.seq_len=8192 optimizer.lr=1e-4`.", metavar="KEY=VALUE"),
]
RunArgument = Annotated[Path, typer.Argument(help="A run's folder, runs/NAME.", show_default=False)]
InputsArgument = Annotated[list[Path], typer.Argument(help="Files or folders of text.", show_default=False)]
TextKeyOption = Annotated[str, typer.Option(help="Where a JSON line or parquet row has its text.")]
StepOption = Annotated[int | None, typer.Option(help="The checkpoint of this step; the newest when absent.")]
UntilOption = Annotated[int | None, typer.Option(help="Save and leave after this step of the run.")]


class Format(StrEnum):
    """What `export` writes."""

    llama = "llama"
    internlm2 = "internlm2"


class Dtype(StrEnum):
    """What exported weights are stored as."""

    fp32 = "fp32"
    bf16 = "bf16"


def main() -> NoReturn:
    """Run the command line; a user's mistake ends it with one message and exit code 2."""
    try:
        app()
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {_plain(str(error))}")
        raise SystemExit(2) from None
    raise SystemExit(0)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _next(text: str) -> None:
    """Every verb ends with what to do next."""
    out.print(f"[dim]next:[/] {_plain(text)}")


@contextmanager
def counting(job: str, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar over a number that grows to an unknown end: count, time and rate."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(job)

        def advance(count: int) -> None:
            seconds = bar.tasks[task].elapsed or 1e-9
            rate = f"{count:,} {what}, {count / seconds:,.0f} {what}/s"
            bar.update(task, description=f"{job}: {rate}")

        yield advance


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"internevo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None: ...


@app.command()
def config(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Print the resolved tree of a config, or say what is wrong with it.

    Example: `internevo config configs/internlm2-7b.yaml train.batch_tokens=8M`
    """
    from internevo.config.load import load_config
    from internevo.config.render import render

    sys.stdout.write(render(load_config(config, overrides or ())))


@app.command()
def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    until: UntilOption = None,
) -> None:
    """Train, or go on with, the run that a config describes.

    The same command again resumes from the newest checkpoint. SIGTERM or Ctrl-C saves and leaves, with exit code
    128 + the signal's number.

    Example: `internevo train configs/tiny.yaml optimizer.lr=1e-3`
    """
    from internevo.config.load import load_config
    from internevo.train.run import train as train_run

    resolved = load_config(config, overrides or ())
    run = Path(resolved.runs) / resolved.name
    stopped = train_run(resolved, sys.argv, math.inf if until is None else until)
    if os.environ.get("RANK", "0") != "0":
        raise SystemExit(0 if stopped is None else 128 + stopped)
    if stopped is not None:
        out.print(f"stopped by {stopped.name}; the run is saved in {run}")
        _next("run the same command to go on")
        raise SystemExit(128 + stopped)
    _next(f"internevo report {run} · internevo generate {run} --prompt ... · internevo export {run} DIR --format llama")


@app.command()
def launch(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    processes: Annotated[int, typer.Option("--nproc", help="Processes on this machine; one for each GPU.")] = 1,
    until: UntilOption = None,
) -> None:
    """Train on several processes of this machine. `torchrun ... -m internevo train CONFIG` does the same.

    Example: `internevo launch configs/tiny.yaml --nproc 4 parallel.zero.stage=3`
    """
    from internevo.config.load import load_config
    from internevo.launch.launcher import launch as start
    from internevo.parallel.layout import make_layout

    for stage in load_config(config, overrides or ()).stages:
        out.print(f"stage {stage.name}: {make_layout(stage, processes)}")
    stop = [] if until is None else ["--until", str(until)]
    raise SystemExit(start(["train", str(config), *stop, *(overrides or ())], processes))


@app.command()
def report(run: RunArgument) -> None:
    """Write a run as one HTML page: curves, speed, memory, data, stages.

    Works while the run goes on. Example: `internevo report runs/tiny`
    """
    from internevo.monitor.report import write_report

    path = write_report(run)
    out.print(f"wrote {path}")
    _next(f"open {path} in a browser")


@tokenizer_app.command("train")
def tokenizer_train(
    inputs: InputsArgument,
    output: Annotated[Path, typer.Option("--out", help="The .model file to write.", show_default=False)],
    vocab: Annotated[int, typer.Option(help="Number of pieces.")] = 32000,
    text_key: TextKeyOption = "text",
    max_characters: Annotated[int, typer.Option(help="Learn from so much text at most.")] = 200_000_000,
) -> None:
    """Train a SentencePiece BPE tokenizer on text.

    Example: `internevo tokenizer train corpus/ --vocab 8000 --out tokenizer.model`
    """
    from internevo.data.corpus import Document, read_documents
    from internevo.data.train_tokenizer import train_tokenizer

    documents = (one for path in inputs for one in read_documents(path, text_key))
    texts = (one.text for one in documents if isinstance(one, Document))
    with out.status("training the tokenizer"):
        train_tokenizer(texts, output, vocab, max_characters)
    out.print(f"wrote {output}: {vocab:,} pieces")
    _next(f"internevo data prepare {' '.join(map(str, inputs))} --tokenizer {output} --out tokens/NAME")


@data_app.command("prepare")
def data_prepare(
    inputs: InputsArgument,
    tokenizer: Annotated[Path, typer.Option(help="A .model file, tokenizer.json or Hugging Face folder.")],
    output: Annotated[Path, typer.Option("--out", help="The folder to make.", show_default=False)],
    held_out: Annotated[float, typer.Option(help="Share of the documents kept for evaluation.")] = 0.0,
    text_key: TextKeyOption = "text",
    workers: Annotated[int, typer.Option(help="Processes that tokenise.")] = 1,
    max_rejects: Annotated[float, typer.Option(help="Stop when a larger share cannot be read.")] = 0.01,
) -> None:
    """Turn text into a token store (Megatron's .bin and .idx).

    Takes .jsonl (also .gz and .zst), .parquet, text and code files, and folders of them.

    Example: `internevo data prepare corpus/ --tokenizer tokenizer.model --out tokens/web --held-out 0.01`
    """
    from internevo.data.prepare import Manifest, prepare

    with counting("preparing", "tokens") as advance:

        def progress(done: Manifest) -> None:
            advance(done.tokens + done.heldout_tokens)

        manifest = prepare(
            inputs,
            output,
            tokenizer,
            text_key=text_key,
            held_out=held_out,
            workers=workers,
            max_rejects=max_rejects,
            progress=progress,
        )
    out.print(
        f"wrote {output}: {manifest.documents:,} documents, {manifest.tokens:,} tokens; "
        f"held out: {manifest.heldout_documents:,} documents, {manifest.heldout_tokens:,} tokens; "
        f"empty: {manifest.empty:,}; rejected: {manifest.rejected:,}"
    )
    _next(f"internevo data inspect {output} --tokenizer {tokenizer}, then name {output} in a config and train")


@data_app.command("inspect")
def data_inspect(
    path: Annotated[Path, typer.Argument(help="A prepared folder, or a .bin/.idx pair without its ending.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Show documents as text with this tokenizer.")] = None,
    documents: Annotated[int, typer.Option(help="How many documents to show.")] = 3,
) -> None:
    """Look into a token store: counts, lengths, and documents with their borders.

    Example: `internevo data inspect tokens/web --tokenizer tokenizer.model`
    """
    from internevo.data.inspect import describe, show_document
    from internevo.data.store import TokenStore
    from internevo.data.tokenizer import load_tokenizer

    summary = describe(path)
    out.print(f"{path}: {summary.documents:,} documents, {summary.tokens:,} tokens, {summary.dtype}")
    out.print("lengths in tokens: " + ", ".join(f"{name} {value:,}" for name, value in summary.lengths.items()))
    out.print(f"held out: {summary.heldout_documents:,} documents, {summary.heldout_tokens:,} tokens")
    if tokenizer is not None:
        store, loaded = TokenStore.open_source(path), load_tokenizer(tokenizer)
        for number in range(min(documents, len(store))):
            out.rule(f"document {number}", align="left")
            out.print(_plain(show_document(store, number, loaded)))
    _next("name it under data.sources in a config, then internevo train CONFIG")


@app.command()
def verify(
    run: RunArgument,
    overrides: OverridesArgument = None,
    steps: Annotated[int, typer.Option("--replay", help="Train so many recorded steps again and compare.")] = 0,
    processes: Annotated[int, typer.Option("--nproc", help="Processes for them.")] = 1,
) -> None:
    """Check a run: every checkpoint byte by byte, and that resuming under another layout gives the same.

    With `--replay N`, up to N recorded steps are trained again from a checkpoint, in a folder aside, under the layout
    that the overrides ask for; their token digests must be the same, and their losses to rounding.

    Example: `internevo verify runs/tiny --replay 5 --nproc 2 parallel.tensor=2`
    """
    from internevo.launch.launcher import launch as start
    from internevo.train.verify import check_checkpoints, replay

    if steps:
        verdict = replay(run, steps, overrides or (), lambda arguments: start(arguments, processes))
        out.print(f"{verdict.compared} steps trained again: {len(verdict.differences)} came out otherwise")
    else:
        verdict = check_checkpoints(run)
    out.print(f"{len(verdict.whole)} checkpoints are whole")
    for line in (*verdict.damaged, *verdict.differences):
        out.print(f"[bold red]wrong:[/] {_plain(line)}")
    if not verdict.good:
        raise SystemExit(1)
    _next(f"internevo export {run} DIR --format llama")


@app.command()
def export(
    run: RunArgument,
    output: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    format: Annotated[
        Format, typer.Option(help="llama: any transformers. internlm2: the released names.")
    ] = Format.llama,
    step: StepOption = None,
    dtype: Annotated[Dtype | None, typer.Option(help="What the weights are stored as; as trained when absent.")] = None,
) -> None:
    """Export a run to a Hugging Face folder, and check that it computes the same logits.

    Example: `internevo export runs/tiny exports/tiny --format llama`
    """
    import torch

    from internevo.data.tokenizer import load_tokenizer
    from internevo.hf.convert import export as export_model
    from internevo.train.restore import restore

    restored = restore(run, step)
    stored = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype or restored.stage.train.precision]
    tokenizer = restored.stage.tokenizer
    with out.status("writing and comparing logits"):
        report = export_model(
            restored.model,
            output,
            format,
            seq_len=restored.stage.train.seq_len,
            tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
            dtype=stored,
        )
    out.print(f"wrote {output} from {restored.checkpoint.name}: {report}")
    _next("load it with transformers" if format is Format.llama else "serve it with LMDeploy or vLLM")


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="The text to go on from.")] = "",
    tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that make up this share.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seeds the sampling.")] = 0,
    step: StepOption = None,
) -> None:
    """Sample text from a run.

    Example: `internevo generate runs/tiny --prompt "def main("`
    """
    from internevo.train.restore import restore
    from internevo.train.sample import sample_text

    for piece in sample_text(restore(run, step), prompt, tokens, temperature, top_p, seed):
        out.print(_plain(piece), end="")
    out.print()
    _next(f"internevo export {run} DIR --format llama")


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option("--out", help="The folder to work in.")] = Path("quickstart"),
) -> None:
    """The whole job on this machine: corpus, tokenizer, tokens, three stages, export, a sample, a report.

    The corpus is this Python's own standard library. Run it again to go on where it stopped.

    Example: `internevo quickstart --out quickstart`
    """
    from internevo.quickstart.run import quickstart as run_quickstart

    stopped = run_quickstart(folder, out)
    if stopped is not None:
        raise SystemExit(128 + stopped)
