"""What a refinery kept and dropped, and why, as one page: `OUTPUT/report.html`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from internevo.monitor.page import card, human, note, table, write_page
from internevo.refine.counts import StepCounts, share, step_counts
from internevo.refine.plan import unfinished
from internevo.refine.shards import DocumentCount

_REASONS = 60  # maximum reasons listed per step, the commonest first


def write_refine_page(output: Path) -> Path:
    """Write the page of what is in an output's folder so far, and return its path."""
    steps = step_counts(output)
    begun = [step for step in steps if step.done]
    read = begun[0].given if begun else 0
    kept = begun[-1].tally.kept if begun else DocumentCount()
    left = unfinished(output)
    body = f"""
<div class="cards">{card(f"{read:,}", "documents read")}
{card(f"{kept.documents:,}", f"kept, {share(kept.documents, read)}")}
{card(human(kept.characters, ".1f"), "characters kept")}
{card(f"{len(steps) - len(left)} of {len(steps)}", "steps done")}</div>
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
        top = max(((group.documents, reason) for reason, group in dropped.items()), default=(0, ""))[1]
        shares = [share(kept.documents, whole) for whole in (step.given, read)]
        counts = [f"{count:,}" for count in (step.given, step.dropped, kept.documents)]
        rows.append([step.name, *counts, *shares, human(kept.characters, ".1f"), top])
    return table(head, rows)


def _step(step: StepCounts) -> str:
    tally = step.tally
    reasons = sorted(tally.dropped, key=lambda reason: (-tally.dropped[reason].documents, reason))
    dropped = {reason: tally.dropped[reason] for reason in reasons[:_REASONS]}
    rows = [
        [reason, f"{one.documents:,}", share(one.documents, step.given), human(one.characters, ".1f")]
        for reason, one in dropped.items()
    ]
    head = ["dropped because of", "documents", "share", "characters"]
    said = table(head, rows) if rows else note("Nothing was dropped.")
    more = note(f"and {len(reasons) - _REASONS:,} rarer reasons") if len(reasons) > _REASONS else ""
    examples = "".join(_examples(reason, one, "dropped") for reason, one in dropped.items())
    return f"""<section><h2>{escape(step.name)}</h2>
{said}{more}
<h3>Examples</h3>{_examples("kept", tally.kept, "kept")}{examples}</section>"""


def _examples(reason: str, group: DocumentCount, folder: str) -> str:
    """The first few documents of a reason, folded away."""
    if not group.examples:
        return ""
    quotes = "".join(
        f'{note(escape(one["id"]))}<pre class="quote">{escape(one["text"]) or "(no text)"}</pre>'
        for one in group.examples
    )
    count = f"{len(group.examples)} of {group.documents:,}, all in {folder}/"
    return f"<details><summary>{escape(reason)}: {count}</summary>{quotes}</details>"
