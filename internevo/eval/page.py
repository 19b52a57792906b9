"""What evaluations found, as one HTML page; beside it the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from internevo.eval.choices import ChoiceResult
from internevo.eval.contamination import Contamination
from internevo.eval.heldout import DocumentLosses
from internevo.eval.needle import Cell
from internevo.monitor.page import chart, figures, formatted, heat_table, note, points, table, write_page

_BINS = 40


@dataclass
class Findings:
    """What was evaluated of one model; None for what was not asked for."""

    model: str
    heldout: dict[str, DocumentLosses] | None = None  # by source
    needle: list[Cell] | None = None
    contamination: Contamination | None = None
    choices: ChoiceResult | None = None
    tasks: dict[str, dict[str, Any]] | None = None  # lm-evaluation-harness' metrics by task

    def to_json(self) -> dict[str, Any]:
        """Plain values of all that was asked for."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        if self.contamination:
            values["contamination"] = self.contamination.to_json()
        return values


def write_findings(found: Sequence[Findings], folder: Path) -> Path:
    """Write `folder/eval.json` and `folder/eval.html` of one model or of two side by side; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps([one.to_json() for one in found], indent=1) + "\n", encoding="utf-8")
    charts: dict[str, Any] = {}
    body = [_heldout(found, charts), _needles(found), _contamination(found), _choices(found), _tasks(found)]
    return write_page(
        folder / "eval.html",
        kind="internevo evaluation",
        title=" and ".join(one.model for one in found),
        lede="",
        body="\n".join(body),
        charts=charts,
    )


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<section><h2>{title}</h2>", *parts, "</section>"])


def _heldout(found: Sequence[Findings], charts: dict[str, Any]) -> str:
    models = [one.model for one in found]
    heldout = [one.heldout for one in found if one.heldout]
    if not heldout:
        return ""
    first = heldout[0]
    rows = []
    for name, one in first.items():
        what = "held out" if one.held_out else "all of the store"
        rows.append([name, what, f"{one.tokens:,}", *(f"{losses[name].loss:.4f}" for losses in heldout)])
        by_model = {model: losses[name] for model, losses in zip(models, heldout, strict=True)}
        charts[f"positions {name}"] = positions(name, by_model)
        charts[f"documents {name}"] = distribution(name, by_model)
    about = note(
        f"Nats per token, the mean over all tokens. Documents are cut at {next(iter(first.values())).seq_len:,} "
        "tokens, for every model here. Positions count from the beginning of a document: what a long context is for "
        "shows in the far ones. A store of which nothing was held out is evaluated whole: whether a model was trained "
        "on it, only a person can say."
    )
    return _section(
        "Held-out loss",
        about,
        table(["source", "documents", "tokens", *models], rows),
        f'<div class="charts">{figures(charts)}</div>',
    )


def positions(source: str, by_model: Mapping[str, DocumentLosses]) -> dict[str, Any]:
    """A chart of the loss by position in the document, the models overlaid."""
    x, series = points(
        {
            model: {(first + last) / 2: round(loss, 4) for first, last, loss, _ in losses.by_position}
            for model, losses in by_model.items()
        }
    )
    return chart(f"{source}: loss by position", "nats per token", x, series, over="position in the document", xlog=True)


def distribution(source: str, by_model: Mapping[str, DocumentLosses]) -> dict[str, Any]:
    """A chart of how many documents have which loss, the models overlaid."""
    low, high = np.quantile(np.concatenate([one.documents for one in by_model.values()]), [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    series = []
    for number, (model, losses) in enumerate(by_model.items()):
        counts, _ = np.histogram(np.clip(losses.documents, low, high), edges)
        share = counts / max(1, len(losses.documents))
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


def _needles(found: Sequence[Findings]) -> str:
    maps = [f"<h3>{escape(one.model)}</h3>\n{_map(one.needle)}" for one in found if one.needle]
    about = note(
        "The share of trials in which the sentence was found again, by the length of the text and where in it the "
        "sentence stands (0% is the beginning)."
    )
    return _section("A needle in a haystack", about, *maps) if maps else ""


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


def _contamination(found: Sequence[Findings]) -> str:
    rows = []
    for model, one in ((of.model, of.contamination) for of in found if of.contamination):
        losses = [formatted(loss, ".4f") for loss in (one.test, one.reference, one.train)]
        rows.append([model, *losses, *(formatted(loss, "+.4f") for loss in (one.to_reference, one.to_train))])
    head = ["model", "test", "reference", "training", "test − reference", "test − training"]
    about = note(
        "Nats per token. Test far below reference: the test set has been seen. Test far above training: the training "
        "set has been learned by heart."
    )
    return _section("Contamination", about, table(head, rows)) if rows else ""


def _choices(found: Sequence[Findings]) -> str:
    rows = []
    for model, one in ((of.model, of.choices) for of in found if of.choices):
        letters = ", ".join(f"{letter} {share:.0%}" for letter, share in one.letters.items())
        rows.append([model, f"{one.questions:,}", f"{one.accuracy:.1%}", f"{one.circular:.1%}", letters])
    head = ["model", "questions", "right", "right in every rotation", "letters chosen"]
    return _section("Multiple choice", table(head, rows)) if rows else ""


def _tasks(found: Sequence[Findings]) -> str:
    tasks = [one.tasks for one in found if one.tasks]
    if not tasks:
        return ""
    rows = []
    for task, metrics in tasks[0].items():
        for metric in (key for key, value in metrics.items() if isinstance(value, int | float)):
            rows.append([task, metric, *(formatted(one[task].get(metric), ".4f") for one in tasks)])
    return _section("lm-evaluation-harness", table(["task", "metric", *(one.model for one in found)], rows))
