"""What evaluations found, as one HTML page; beside it the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from internevo.eval.choices import ChoiceResult
from internevo.eval.contamination import Contamination
from internevo.eval.heldout import DocumentLosses
from internevo.eval.needle import Cell
from internevo.monitor.page import table, write_page

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
                one["heldout"] = {name: losses.to_json() for name, losses in self.heldout[number].items()}
            if self.needles:
                one["needle"] = [cell.to_json() for cell in self.needles[number]]
            if self.contamination:
                one["contamination"] = self.contamination[number].to_json()
            if self.choices:
                one["choices"] = self.choices[number].to_json()
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
    sources = list(found.heldout[0])
    first = found.heldout[0]
    rows = [
        [
            name,
            "held out" if first[name].held_out else "all of the store",
            f"{first[name].tokens:,}",
            *(f"{losses[name].loss:.4f}" for losses in found.heldout),
        ]
        for name in sources
    ]
    parts = [
        "<section><h2>Held-out loss</h2>",
        f'<p class="note">Nats per token, the mean over all tokens. Documents are cut at {first[sources[0]].seq_len:,} '
        "tokens, for every model here. Positions count from the beginning of a document: what a long context is for "
        "shows in the far ones. A store of which nothing was held out is evaluated whole: whether a model was trained "
        "on it, only a person can say.</p>",
        table(["source", "documents", "tokens", *found.models], rows),
    ]
    for name in sources:
        edges = sorted({(first, last) for losses in found.heldout for first, last, _, _ in losses[name].by_position})
        charts[f"positions {name}"] = {
            "title": f"{name}: loss by position",
            "unit": "nats per token",
            "over": "position in the document",
            "x": [(first + last) / 2 for first, last in edges],
            "xlog": True,
            "series": [
                {
                    "label": model,
                    "colour": number,
                    "points": True,
                    "y": [_at(losses[name].by_position, first) for first, _ in edges],
                }
                for number, (model, losses) in enumerate(zip(found.models, found.heldout, strict=True))
            ],
        }
        charts[f"documents {name}"] = distribution(
            name, found.models, [losses[name].documents for losses in found.heldout]
        )
    parts.append('<div class="charts">')
    parts += [f'<figure data-chart="{escape(key)}"></figure>' for key in charts]
    return "\n".join([*parts, "</div></section>"])


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
    return {
        "title": f"{source}: loss of documents",
        "unit": "share of the documents",
        "over": "loss of a document, nats per token",
        "x": ((edges[1:] + edges[:-1]) / 2).round(4).tolist(),
        "series": series,
        "percent": True,
        "zero": True,
    }


def _at(by_position: Sequence[tuple[int, int, float, int]], first: int) -> float | None:
    return next((round(loss, 4) for start, _, loss, _ in by_position if start == first), None)


def _needles(found: Findings) -> str:
    if not found.needles:
        return ""
    parts = [
        "<section><h2>A needle in a haystack</h2>",
        '<p class="note">The share of trials in which the sentence was found again, by the length of the text and '
        "where in it the sentence stands (0% is the beginning).</p>",
    ]
    for model, cells in zip(found.models, found.needles, strict=True):
        parts += [f"<h3>{escape(model)}</h3>", heat_map(cells)]
    return "\n".join([*parts, "</section>"])


def heat_map(cells: Sequence[Cell]) -> str:
    """Length by depth, coloured from none found to all."""
    lengths = sorted({cell.length for cell in cells})
    depths = sorted({cell.depth for cell in cells})
    by_place: Mapping[tuple[int, float], Cell] = {(cell.length, cell.depth): cell for cell in cells}
    head = "".join(f"<th>{length:,}</th>" for length in lengths)
    rows = []
    for depth in depths:
        row = [f"<td>{depth:.0%}</td>"]
        for length in lengths:
            cell = by_place[length, depth]
            strong = round(70 * cell.found)
            row.append(
                f'<td style="background: color-mix(in srgb, var(--c2) {strong}%, var(--panel))" '
                f'title="{cell.loss:.3f} nats per token">{cell.found:.0%}</td>'
            )
        rows.append(f"<tr>{''.join(row)}</tr>")
    return (
        f'<div class="scroll"><table class="heat"><tr><th>depth \\ tokens</th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _contamination(found: Findings) -> str:
    if not found.contamination:
        return ""
    rows = [
        [
            model,
            f"{one.test:.4f}",
            f"{one.reference:.4f}",
            "–" if one.train is None else f"{one.train:.4f}",
            f"{one.to_reference:+.4f}",
            "–" if one.to_train is None else f"{one.to_train:+.4f}",
        ]
        for model, one in zip(found.models, found.contamination, strict=True)
    ]
    head = ["model", "test", "reference", "training", "test − reference", "test − training"]
    note = (
        "Nats per token. Test far below reference: the test set has been seen. Test far above training: the training "
        "set has been learned by heart."
    )
    return f'<section><h2>Contamination</h2><p class="note">{note}</p>{table(head, rows)}</section>'


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
    return f"<section><h2>Multiple choice</h2>{table(head, rows)}</section>"


def _tasks(found: Findings) -> str:
    if not found.tasks:
        return ""
    rows = []
    for task, metrics in found.tasks[0].items():
        for metric in (key for key, value in metrics.items() if isinstance(value, int | float)):
            values = [one[task].get(metric) for one in found.tasks]
            rows.append([task, metric, *("–" if value is None else f"{value:.4f}" for value in values)])
    return f"<section><h2>lm-evaluation-harness</h2>{table(['task', 'metric', *found.models], rows)}</section>"
