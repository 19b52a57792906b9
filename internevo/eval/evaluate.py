"""`internevo eval`: all evaluations that were asked for, of one model or of two side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from internevo.config.load import load_config
from internevo.config.schema import Precision
from internevo.data.mixing import source_name
from internevo.eval.choices import answer_choices, read_questions
from internevo.eval.contamination import contamination
from internevo.eval.heldout import evaluate_sources, open_for_evaluation
from internevo.eval.needle import NEEDLE, needle_in_a_haystack, split_sentence
from internevo.eval.page import Findings
from internevo.eval.scorer import Scorer
from internevo.files.errors import UserError
from internevo.parallel.world import World
from internevo.tokens.prepared_folder import HELDOUT
from internevo.tokens.remote import local_copy
from internevo.tokens.store import TokenStore
from internevo.train.folder import RunFolder
from internevo.train.stored_model import StoredModel


@dataclass(frozen=True)
class EvalRequest:
    """Which evaluations, and on what."""

    sources: dict[str, str] = field(default_factory=dict)  # held-out loss of these token stores, by name
    seq_len: int | None = None
    """Where documents are cut; when None, at the row length of the model, or the shorter one of two models."""
    tokens: int = 1_000_000  # maximum tokens per source
    needle: Sequence[int] = ()  # lengths of haystacks in tokens
    sentence: str = NEEDLE
    haystack: str | None = None  # the token store that haystacks are made of; the first source when None
    depths: int = 11
    trials: int = 5
    contamination: Sequence[str] = ()  # token stores of the test, the reference and perhaps the training set
    choices: Path | None = None  # a file of multiple-choice questions
    tasks: Sequence[str] = ()  # tasks of lm-evaluation-harness
    include: Path | None = None
    limit: int | None = None
    fewshot: int | None = None
    precision: Precision = "fp32"


def evaluate(
    models: Sequence[StoredModel], asked: EvalRequest, world: World, progress: Callable[[str], None] = lambda what: None
) -> list[Findings]:
    """Evaluate one model after the other. All ranks of `world` call it together and have all findings.

    Raises UserError for what cannot be done, before any model is loaded where that can be known.
    """
    _check(models, asked, world)
    # what stands side by side must be measured on the same documents, cut at the same place
    seq_len = asked.seq_len or min(stored.seq_len for stored in models)
    return [_evaluate(stored, asked, world, seq_len, progress) for stored in models]


def _evaluate(
    stored: StoredModel, asked: EvalRequest, world: World, seq_len: int, progress: Callable[[str], None]
) -> Findings:
    def tell(what: str) -> None:
        progress(f"{stored.name}: {what}")

    found = Findings(stored.name)
    if asked.sources or asked.needle or asked.contamination or asked.choices:
        tell("loading")
        scorer = Scorer(stored, world, max(seq_len, *asked.needle, 2), asked.precision)
        _score(scorer, stored, asked, seq_len=seq_len, found=found, tell=tell)
    if asked.tasks:
        from internevo.eval.harness import run_tasks

        tell("lm-evaluation-harness")
        found.tasks = run_tasks(
            stored,
            world,
            asked.tasks,
            precision=asked.precision,
            include=asked.include,
            limit=asked.limit,
            fewshot=asked.fewshot,
        )
    return found


def _score(
    scorer: Scorer,
    stored: StoredModel,
    asked: EvalRequest,
    *,
    seq_len: int,
    found: Findings,
    tell: Callable[[str], None],
) -> None:
    if asked.sources:
        found.heldout = evaluate_sources(
            scorer, asked.sources, seq_len, asked.tokens, lambda name: tell(f"{name}, held out")
        )
    if asked.needle:
        depths = [number / (asked.depths - 1) for number in range(asked.depths)] if asked.depths > 1 else [0.5]
        found.needle = needle_in_a_haystack(
            scorer,
            stored.needs_tokenizer(),
            open_for_evaluation(asked.haystack or next(iter(asked.sources.values()))),
            asked.needle,
            depths,
            asked.trials,
            sentence=asked.sentence,
            progress=lambda length: tell(f"needles in {length:,} tokens"),
        )
    if asked.contamination:
        tell("contamination")
        test, reference = (open_for_evaluation(path) for path in asked.contamination[:2])
        train = [TokenStore.open_source(path) for path in asked.contamination[2:]]  # what was trained on, not held out
        found.contamination = contamination(scorer, test, reference, train[0] if train else None, seq_len, asked.tokens)
    if asked.choices is not None:
        tell("multiple choice")
        found.choices = answer_choices(scorer, stored.needs_tokenizer(), read_questions(asked.choices))


def _check(models: Sequence[StoredModel], asked: EvalRequest, world: World) -> None:
    if not (asked.sources or asked.needle or asked.contamination or asked.choices or asked.tasks):
        raise UserError("nothing to evaluate: give --source, --needle, --contamination, --choices or --tasks")
    split_sentence(asked.sentence)
    if asked.needle and not (asked.haystack or asked.sources):
        raise UserError("--needle wants text to hide needles in: give --haystack or --source")
    if asked.contamination and len(asked.contamination) not in (2, 3):
        raise UserError("--contamination takes two or three token stores: the test, the reference, the training set")
    if asked.tasks and world.size > 1:
        raise UserError("--tasks runs on one process; --nproc is for long rows")
    for path in (*asked.sources.values(), *asked.contamination, *([asked.haystack] if asked.haystack else [])):
        open_for_evaluation(path)
    if asked.choices is not None:
        read_questions(asked.choices)
    if asked.needle or asked.choices is not None or asked.tasks:
        for stored in models:
            stored.needs_tokenizer()


def sources_of(path: Path) -> dict[str, str]:
    """The sources of a run's config that have held-out documents; none for another kind of folder."""
    file = RunFolder(path).config_file
    if not file.is_file():
        return {}
    config = load_config(file, check_data=False, check_values=False)
    every = {
        source_name(one): str(local_copy(one.path, HELDOUT, stage.data.cache))
        for stage in config.stages
        for one in stage.data.sources
    }
    return {name: store for name, store in every.items() if TokenStore.open_heldout(store) is not None}
