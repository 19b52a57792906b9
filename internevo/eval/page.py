"""What evaluations found, as one HTML page; beside it the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from internevo.eval.choices import ChoiceResult
from internevo.eval.contamination import Contamination
from internevo.eval.heldout import DocumentLosses
from internevo.eval.needle import Cell
from internevo.monitor.page import chart, figures, formatted, heat_table, note, table, write_page

_BINS = 40


class Findings:
    """What was evaluated of one model, or of two side by side. Every part may be missing."""

    def __init__(self, models: Sequence[str]):
        self.models = list(models)
        self.heldout: list[dict[str, DocumentLosses]] = []
        """By source, for each model."""
        self.needles: list[list[Cell]] = []
        self.contamination: list[Contamination] = []
        self.choices: list[ChoiceResult] = []
        self.tasks: list[dict[str, dict[str, Any]]] = []

    def to_json(self) -> list[dict[str, Any]]:
        """An object for each model."""
        found: list[dict[str, Any]] = []
        for number, model in enumerate(self.models):
            one: dict[str, Any] = {"model": model}
            if self.heldout:
                one["heldout"] = {name: vars(losses) for name, losses in self.heldout[number].items()}
            if self.needles:
                one["needle"] = [vars(cell) for cell in self.needles[number]]
            if self.contamination:
                one["contamination"] = self.contamination[number].to_json()
            if self.choices:
                one["choices"] = vars(self.choices[number])
            if self.tasks:
                one["tasks"] = self.tasks[number]
            found.append(one)
        return found


def write_findings(found: Findings, folder: Path) -> Path:
    """Write `folder/eval.json` and `folder/eval.html`, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    charts: dict[str, Any] = {}
    body = [_heldout(found, charts), _needles(found), _contamination(found), _choices(found), _tasks(found)]
    return write_page(
        folder / "eval.html",
        kind="internevo evaluation",
        title=" and ".join(found.models),
        lede="",
        body="\n".join(body),
        charts=charts,
    )


def _heldout(found: Findings, charts: dict[str, Any]) -> str:
    if not found.heldout:
        return ""
    first = found.heldout[0]
    rows = [
        [
            name,
            "held out" if one.held_out else "all of the store",
            f"{one.tokens:,}",
            *(f"{losses[name].loss:.4f}" for losses in found.heldout),
        ]
        for name, one in first.items()
    ]
    what = note(
        f"Nats per token, the mean over all tokens. Documents are cut at {next(iter(first.values())).seq_len:,} "
        "tokens, for every model here. Positions count from the beginning of a document: what a long context is for "
        "shows in the far ones. A store of which nothing was held out is evaluated whole: whether a model was trained "
        "on it, only a person can say."
    )
    for name in first:
        charts[f"positions {name}"] = positions(name, found.models, [losses[name] for losses in found.heldout])
        documents = [losses[name].documents for losses in found.heldout]
        charts[f"documents {name}"] = distribution(name, found.models, documents)
    return _section(
        "Held-out loss",
        what,
        table(["source", "documents", "tokens", *found.models], rows),
        f'<div class="charts">{figures(charts)}</div>',
    )


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<section><h2>{title}</h2>", *parts, "</section>"])


def positions(source: str, models: Sequence[str], found: Sequence[DocumentLosses]) -> dict[str, Any]:
    """A chart of the loss by position in the document, the models overlaid."""
    edges = sorted({(first, last) for losses in found for first, last, _, _ in losses.by_position})
    series = []
    for colour, (model, losses) in enumerate(zip(models, found, strict=True)):
        known = {first: round(loss, 4) for first, _, loss, _ in losses.by_position}
        y = [known.get(first) for first, _ in edges]
        series.append({"label": model, "colour": colour, "points": True, "y": y})
    x = [(first + last) / 2 for first, last in edges]
    return chart(f"{source}: loss by position", "nats per token", x, series, over="position in the document", xlog=True)


def distribution(source: str, models: Sequence[str], documents: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A chart of how many documents have which loss, the models overlaid."""
    everything = np.concatenate([np.asarray(one) for one in documents])
    low, high = np.quantile(everything, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    series = []
    for number, (model, losses) in enumerate(zip(models, documents, strict=True)):
        counts, _ = np.histogram(np.clip(losses, low, high), edges)
        share = counts / max(1, len(losses))
        series.append({"label": model, "colour": number, "fill": True, "y": share.round(5).tolist()})
    return chart(
        f"{source}: loss of documents",
        "share of the documents",
        ((edges[1:] + edges[:-1]) / 2).round(4).tolist(),
        series,
        over="loss of a document, nats per token",
        percent=True,
        zero=True,
    )


def _needles(found: Findings) -> str:
    if not found.needles:
        return ""
    what = note(
        "The share of trials in which the sentence was found again, by the length of the text and where in it the "
        "sentence stands (0% is the beginning)."
    )
    maps = (
        f"<h3>{escape(model)}</h3>\n{_map(cells)}" for model, cells in zip(found.models, found.needles, strict=True)
    )
    return _section("A needle in a haystack", what, *maps)


def _map(cells: Sequence[Cell]) -> str:
    """Length by depth, coloured from none found to all."""
    lengths = sorted({cell.length for cell in cells})
    by_place = {(cell.length, cell.depth): cell for cell in cells}
    rows = []
    for depth in sorted({cell.depth for cell in cells}):
        row = f"<td>{depth:.0%}</td>"
        for cell in (by_place[length, depth] for length in lengths):
            row += (
                f'<td style="background: color-mix(in srgb, var(--c2) {round(70 * cell.found)}%, var(--panel))" '
                f'title="{cell.loss:.3f} nats per token">{cell.found:.0%}</td>'
            )
        rows.append(row)
    return heat_table(["depth \\ tokens", *(f"{length:,}" for length in lengths)], rows)


def _contamination(found: Findings) -> str:
    if not found.contamination:
        return ""
    rows = []
    for model, one in zip(found.models, found.contamination, strict=True):
        losses = [formatted(loss, ".4f") for loss in (one.test, one.reference, one.train)]
        rows.append([model, *losses, *(formatted(loss, "+.4f") for loss in (one.to_reference, one.to_train))])
    head = ["model", "test", "reference", "training", "test − reference", "test − training"]
    what = note(
        "Nats per token. Test far below reference: the test set has been seen. Test far above training: the training "
        "set has been learned by heart."
    )
    return _section("Contamination", what, table(head, rows))


def _choices(found: Findings) -> str:
    if not found.choices:
        return ""
    rows = [
        [
            model,
            f"{one.questions:,}",
            f"{one.accuracy:.1%}",
            f"{one.circular:.1%}",
            ", ".join(f"{letter} {share:.0%}" for letter, share in one.letters.items()),
        ]
        for model, one in zip(found.models, found.choices, strict=True)
    ]
    head = ["model", "questions", "right", "right in every rotation", "letters chosen"]
    return _section("Multiple choice", table(head, rows))


def _tasks(found: Findings) -> str:
    if not found.tasks:
        return ""
    rows = []
    for task, metrics in found.tasks[0].items():
        for metric in (key for key, value in metrics.items() if isinstance(value, int | float)):
            rows.append([task, metric, *(formatted(one[task].get(metric), ".4f") for one in found.tasks)])
    return _section("lm-evaluation-harness", table(["task", "metric", *found.models], rows))
