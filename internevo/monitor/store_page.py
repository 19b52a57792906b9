"""Token stores as one HTML page: what each holds, how long its documents are, and some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from internevo.files.errors import some
from internevo.monitor.page import chart, note, points, table, write_page
from internevo.tokens.inspect import Parts, StoreSummary

HEAD = ("store", "documents", "tokens", "share", "mean", "median", "longest", "held out", "ids")


def total_rows(stores: Sequence[StoreSummary]) -> list[list[str]]:
    """A row a store, and one of all when there are several; under `HEAD`."""
    every = sum(one.tokens for one in stores)
    rows = [
        [
            one.path,
            f"{one.documents:,}",
            f"{one.tokens:,}",
            f"{one.tokens / max(1, every):.1%}",
            f"{one.tokens / max(1, one.documents):,.0f}",
            *(f"{one.lengths[name]:,}" if one.lengths else "–" for name in ("median", "most")),
            f"{one.heldout_tokens:,}",
            f"{one.dtype}, masked" if one.masked else one.dtype,
        ]
        for one in stores
    ]
    if len(stores) > 1:
        documents, heldout = (sum(getattr(one, name) for one in stores) for name in ("documents", "heldout_tokens"))
        mean = f"{every / max(1, documents):,.0f}"
        rows.append(["all", f"{documents:,}", f"{every:,}", "", mean, "", "", f"{heldout:,}", ""])
    return rows


def write_store_page(path: Path, stores: Sequence[StoreSummary], shown: Mapping[str, Mapping[int, Parts]]) -> Path:
    """Write the page and return its path. `shown` has the text of some documents, by store and number."""
    sampled = [one.path for one in stores if one.sampled < one.documents]
    note = f" Of {escape(', '.join(sampled))} an even sample was measured." if sampled else ""
    texts = "".join(_documents(name, documents) for name, documents in shown.items() if documents)
    origins = "".join(_origin(one) for one in stores if one.manifest)
    every = sum(one.tokens for one in stores)
    body = f"""
<section><h2>What there is</h2>
<p class="note">Shares, lengths and what is held out are in tokens, those that frame documents included. What is held
out is counted in none of the other columns.</p>
{table(HEAD, total_rows(stores))}</section>
<section><h2>How long documents are</h2>
<p class="note">Each point stands for the documents of its length to less than twice that.{note}</p>
<div class="charts"><figure data-chart="documents"></figure><figure data-chart="tokens"></figure></div></section>
{f"<section><h2>Documents</h2>{texts}</section>" if texts else ""}
{f"<section><h2>What they were made from</h2>{origins}</section>" if origins else ""}"""
    return write_page(
        path,
        kind="internevo token stores",
        title=stores[0].path if len(stores) == 1 else f"{len(stores)} token stores",
        lede=f"{every:,} tokens in {sum(one.documents for one in stores):,} documents",
        body=body,
        charts={
            "documents": _chart("Documents by length", "share of a store's documents", stores, "documents"),
            "tokens": _chart("Tokens by length of their document", "share of a store's tokens", stores, "tokens"),
        },
    )


def _chart(title: str, unit: str, stores: Sequence[StoreSummary], of: str) -> dict[str, Any]:
    # a length of 0 has no place on an axis of logarithms
    x, series = points(
        {one.path: {part.first: getattr(part, of) for part in one.histogram if part.first} for one in stores}
    )
    return chart(title, unit, x, series, over="tokens in a document", xlog=True, zero=True, percent=True, height=300)


def _documents(name: str, documents: Mapping[int, Parts]) -> str:
    """Where some of a document is masked, what is trained stands out."""
    texts = []
    for number, parts in documents.items():
        some_masked = any(masked for _, masked in parts)
        inner = "".join(
            f"<mark>{escape(text)}</mark>" if some_masked and not masked else escape(text) for text, masked in parts
        )
        said = f"document {number:,}" + (": what is green is trained" if some_masked else "")
        texts.append(f'{note(said)}<pre class="document">{inner}</pre>')
    return f"<h3>{escape(name)}</h3>{''.join(texts)}"


def _origin(store: StoreSummary) -> str:
    manifest = store.manifest
    said = {
        "inputs": some(manifest.get("inputs", [])),
        "tokenizer": f"{manifest.get('tokenizer', '')} ({manifest.get('tokenizer_fingerprint', '')})",
        "held out": f"{manifest.get('held_out', 0):.2%}, {store.heldout_documents:,} documents",
        "empty": f"{manifest.get('empty', 0):,}",
        "rejected": f"{manifest.get('rejected', 0):,}",
        "masked tokens": f"{manifest.get('masked_tokens', 0):,}",
        **{name: f"{count:,}" for name, count in manifest.get("tallies", {}).items()},
        "files": ", ".join(manifest.get("sha256", {})),
    }
    return f"<h3>{escape(store.path)}</h3>" + table(("", ""), said.items(), text=True)
