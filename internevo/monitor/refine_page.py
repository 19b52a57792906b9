"""What a refinery kept and dropped, and why, as one page: `OUTPUT/report.html`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from internevo.monitor.page import table, write_page
from internevo.refine.counts import StepCounts, share, step_counts
from internevo.refine.plan import unfinished
from internevo.refine.shards import DocumentCount

_REASONS = 60
"""Reasons of a step that are listed at most, the commonest first."""


def write_refine_page(output: Path) -> Path:
    """Write the page of what is in an output's folder so far, and return its path."""
    steps = step_counts(output)
    begun = [step for step in steps if step.done]
    read = begun[0].given if begun else 0
    kept = begun[-1].tally.kept if begun else DocumentCount()
    left = unfinished(output)
    body = f"""
<div class="cards">{_card(f"{read:,}", "documents read")}
{_card(f"{kept.documents:,}", f"kept, {share(kept.documents, read)}")}
{_card(_size(kept.characters), "characters kept")}
{_card(f"{len(steps) - len(left)} of {len(steps)}", "steps done")}</div>
<section><h2>Step by step</h2>
<p class="note">Each step is given what the one before kept, of the shards that it has done so far. Characters are those
of the text, not bytes.</p>
{_funnel(begun, read)}</section>
{"".join(map(_step, begun))}"""
    return write_page(
        output / "report.html",
        kind="internevo refinery",
        title=output.name,
        status=("waiting for " + ", ".join(left), "wait") if left else ("every step has run", "good"),
        lede=escape(" → ".join(step.name.partition("-")[2] for step in steps)),
        body=body,
    )


def _funnel(steps: Sequence[StepCounts], read: int) -> str:
    head = ["step", "given", "dropped", "kept", "of what it was given", "of all", "characters kept", "commonest reason"]
    rows = []
    for step in steps:
        kept, dropped = step.tally.kept, step.tally.dropped
        top = max(((heap.documents, reason) for reason, heap in dropped.items()), default=(0, ""))[1]
        shares = [share(kept.documents, whole) for whole in (step.given, read)]
        counts = [f"{count:,}" for count in (step.given, step.dropped, kept.documents)]
        rows.append([step.name, *counts, *shares, _size(kept.characters), top])
    return table(head, rows)


def _step(step: StepCounts) -> str:
    tally = step.tally
    reasons = sorted(tally.dropped, key=lambda reason: (-tally.dropped[reason].documents, reason))
    rows = [
        [
            reason,
            f"{tally.dropped[reason].documents:,}",
            share(tally.dropped[reason].documents, step.given),
            _size(tally.dropped[reason].characters),
        ]
        for reason in reasons[:_REASONS]
    ]
    more = f'<p class="note">and {len(reasons) - _REASONS:,} rarer reasons</p>' if len(reasons) > _REASONS else ""
    dropped = table(["dropped because of", "documents", "share", "characters"], rows) if rows else ""
    none = "" if rows else '<p class="note">Nothing was dropped.</p>'
    examples = "".join(_examples(reason, tally.dropped[reason], "dropped") for reason in reasons[:_REASONS])
    return f"""<section><h2>{escape(step.name)}</h2>
{dropped}{none}{more}
<h3>Examples</h3>{_examples("kept", tally.kept, "kept")}{examples}</section>"""


def _examples(reason: str, heap: DocumentCount, folder: str) -> str:
    """The first few documents of a reason, folded away."""
    if not heap.examples:
        return ""
    quotes = "".join(
        f'<p class="note">{escape(one["id"])}</p><pre class="quote">{escape(one["text"]) or "(no text)"}</pre>'
        for one in heap.examples
    )
    count = f"{len(heap.examples)} of {heap.documents:,}, all in {folder}/"
    return f"<details><summary>{escape(reason)}: {count}</summary>{quotes}</details>"


def _card(value: str, meaning: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(meaning)}</span></div>'


def _size(characters: int) -> str:
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if characters >= size:
            return f"{characters / size:.1f}{unit}"
    return str(characters)
