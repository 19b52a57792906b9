"""Evaluating models."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from internevo.cli.shared import ModelArgument, StepOption, app, note, option, out, plain, then
from internevo.config.bounds import Between
from internevo.config.schema import Precision
from internevo.files.errors import UserError

if TYPE_CHECKING:
    from internevo.eval.evaluate import EvalRequest
    from internevo.eval.page import Findings
    from internevo.parallel.world import World


SourceOption = Annotated[
    list[str] | None,
    option("A token store, `PATH` or `NAME=PATH`; a run's own sources when absent; may be repeated.", "STORE"),
]
SeqLenOption = Annotated[
    int | None, option("Cut documents there; the model's rows when absent.", "TOKENS", least=2, most=10**15)
]
SentenceOption = Annotated[str, option("The needle: {key}, and after it {value} (digits) or {word}.", "TEXT")]
ProcessesOption = Annotated[int, option("Processes that share each row's tokens.", "N", "--nproc", least=1, most=1024)]
ContaminationOption = Annotated[
    str | None, option("Token stores of the test, the reference and perhaps the training set.", "A,B[,C]")
]
FewshotOption = Annotated[
    int | None, option("Examples before each question; the task's when absent.", "N", least=0, most=10**9)
]


@app.command("eval")
def evaluate_model(
    model: ModelArgument,
    step: StepOption = None,
    against: Annotated[Path | None, option("A second model, shown beside the first.", "MODEL")] = None,
    source: SourceOption = None,
    seq_len: SeqLenOption = None,
    tokens: Annotated[int, option("Maximum tokens per source.", "TOKENS", least=1, most=10**15)] = 1_000_000,
    needle: Annotated[str | None, option("Needles in haystacks of these lengths, `1024,4096`.", "LENGTHS")] = None,
    sentence: SentenceOption = " The code of {key} is {value}.",
    haystack: Annotated[str | None, option("The text around needles; the first source when absent.", "STORE")] = None,
    depths: Annotated[int, option("Places in each haystack.", "N", least=1, most=10_000)] = 11,
    trials: Annotated[int, option("Needles at each place.", "N", least=1, most=10_000)] = 5,
    contamination: ContaminationOption = None,
    choices: Annotated[Path | None, option("Multiple-choice questions as JSON lines.", "FILE")] = None,
    tasks: Annotated[str | None, option("Tasks of lm-evaluation-harness, `arc_easy,piqa`.", "TASKS")] = None,
    include: Annotated[Path | None, option("A folder with tasks of your own.", "FOLDER")] = None,
    limit: Annotated[int | None, option("Maximum questions per task.", "N", least=1, most=10**9)] = None,
    fewshot: FewshotOption = None,
    precision: Annotated[str, option("What to compute in: fp32 or bf16.", "PRECISION")] = "fp32",
    device: Annotated[str, option("auto, cpu or cuda.", "DEVICE")] = "auto",
    processes: ProcessesOption = 1,
    watch: Annotated[bool, option("Every checkpoint of a run, as it trains.", None, "--watch")] = False,
    output: Annotated[Path | None, option("Where the page goes; MODEL/eval when absent.", "FOLDER", "--out")] = None,
) -> None:
    """Evaluate a run, an import or a Hugging Face folder: one page, and the same numbers as JSON.

    Held-out loss by source, by position in the document and over documents; needles in haystacks; contamination;
    multiple choice in every rotation; tasks of lm-evaluation-harness. `docs/evaluation.md` says what each means.

    Example: `internevo eval runs/tiny --needle 256,512,1024 --nproc 2`

    Example: `internevo eval runs/new --against runs/old --source tokens/web`
    """
    from internevo.eval.evaluate import EvalRequest

    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision: must be fp32 or bf16, found {precision!r}")
    _begin(model, processes, watch)
    asked = EvalRequest(
        sources=_sources(model, source or (), own=bool(needle) or not (contamination or choices or tasks)),
        seq_len=seq_len,
        tokens=tokens,
        needle=_lengths(needle),
        sentence=sentence,
        haystack=haystack,
        depths=depths,
        trials=trials,
        contamination=contamination.split(",") if contamination else (),
        choices=choices,
        tasks=tasks.split(",") if tasks else (),
        include=include,
        limit=limit,
        fewshot=fewshot,
        precision=cast(Precision, precision),
    )
    with _world(device) as world:
        if watch:
            _watch(model, asked, world)
        else:
            _evaluate(model, step, against, asked, world=world, output=output or model / "eval")


def _world(device: str) -> AbstractContextManager[World]:
    from internevo.parallel.world import join_world
    from internevo.train.build import choose_device

    return join_world(choose_device(device))


def _begin(model: Path, processes: int, watch: bool) -> None:
    """Start the same command once for each rank, unless this is one; to watch a run, wait until it is there."""
    if processes > 1 and "RANK" not in os.environ:
        from internevo.launch.torchrun import launch_here

        raise SystemExit(launch_here(sys.argv[1:], processes))
    if watch:
        from internevo.eval.watch import wait_for_run

        wait_for_run(model)  # its sources are in its config


def _evaluate(
    model: Path, step: int | None, against: Path | None, asked: EvalRequest, world: World, output: Path
) -> None:
    from internevo.eval.evaluate import evaluate
    from internevo.eval.page import write_findings
    from internevo.train.stored_model import open_model

    chosen = world.on_main(lambda: [open_model(model, step), *([open_model(against)] if against else [])])
    if world.main:
        for one in chosen:
            note([f"{one.name}: {line}" for line in one.notes])
    with out.status("evaluating") as status:
        found = evaluate(chosen, asked, world, lambda what: status.update(plain(what)))
    if world.main:
        _show(found)
        page = write_findings(found, output)
        out.print(f"wrote {plain(page)} and eval.json")
        then(f"open {page} in a browser")


def _watch(run: Path, asked: EvalRequest, world: World) -> None:
    from internevo.eval.watch import WATCHED, watch

    if world.size > 1:
        raise UserError("--watch runs on one process")
    count = watch(run, asked, world, _show)
    out.print(f"{count} checkpoints evaluated")
    then(f"{run / WATCHED} has a line for each checkpoint")


def _show(found: Sequence[Findings]) -> None:
    by_length = attrgetter("length")
    for one in found:
        out.print(f"[bold]{plain(one.model)}[/]")
        for name, losses in (one.heldout or {}).items():
            places = "  ".join(f"{first:,}-{end - 1:,}: {loss:.3f}" for first, end, loss, _ in losses.by_position)
            out.print(f"  {plain(name)}: loss {losses.loss:.4f} on {losses.tokens:,} tokens  by position  {places}")
        for length, cells in groupby(sorted(one.needle or (), key=by_length), key=by_length):
            shares = " ".join(f"{cell.found:4.0%}" for cell in cells)
            out.print(f"  needles in {length:,} tokens, from the beginning to the end: {shares}")
        if told := one.contamination:
            more = "" if told.to_train is None else f", minus training {told.to_train:+.4f}"
            out.print(f"  contamination: test {told.test:.4f}, minus reference {told.to_reference:+.4f}{more}")
        if answered := one.choices:
            out.print(f"  choices: {answered.accuracy:.1%} right, {answered.circular:.1%} in every rotation")
        for task, metrics in (one.tasks or {}).items():
            values = ", ".join(f"{key} {v:.4f}" for key, v in metrics.items() if isinstance(v, int | float))
            out.print(f"  {plain(task)}: {plain(values)}")


def _sources(model: Path, given: Sequence[str], own: bool) -> dict[str, str]:
    """Those that were named; where none were, and they are wanted, the run's own."""
    from internevo.eval.evaluate import sources_of

    return dict(map(_named, given)) or (sources_of(model) if own else {})


def _named(text: str) -> tuple[str, str]:
    from internevo.config.names import name_problem

    given, equals, path = text.rpartition("=")
    name = given if equals else Path(text).name
    if wrong := name_problem(name):
        raise UserError(f"--source {text}: the name {name!r} {wrong}; `--source NAME={path}` gives it another")
    return name, path


def _lengths(text: str | None) -> list[int]:
    if text is None:
        return []
    from internevo.config.read import number

    try:
        found = [int(number(one) or int(one)) for one in text.split(",")]
    except ValueError:
        raise UserError(f"--needle: expected lengths in tokens such as 1024,4096, found {text!r}") from None
    for one in found:
        if problem := Between(1, 2**30).problem(one):
            raise UserError(f"--needle: a length {problem}")
    return found
