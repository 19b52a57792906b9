"""A page that needs no network: tables and charts in one HTML file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from internevo.files.durable import write_durable
from internevo.version import VERSION


def write_page(
    path: Path,
    *,
    kind: str,
    title: str,
    lede: str,
    body: str,
    status: tuple[str, str] | None = None,
    charts: Mapping[str, Any] | None = None,
    stages: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the page, aside and then in one move, and return its path.

    `lede` and `body` are HTML. `status` is a word and its class, `good`, `wait` or `bad`. A chart of `charts` is drawn
    where the body has `<figure data-chart="NAME">`; `stages` are bands behind those that go over steps.
    """
    badge = f'<span class="status {status[1]}">{escape(status[0])}</span>' if status else ""
    page = Template(asset("page.html")).substitute(
        kind=escape(kind),
        title=escape(title),
        status=badge,
        lede=lede,
        body=body,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=VERSION,
        # inside a script element only "</" could end it early
        data=json.dumps({"stages": list(stages), "charts": dict(charts or {})}).replace("</", "<\\/"),
        css=asset("report.css"),
        js=asset("report.js"),
        uplot_css=asset("uplot.min.css"),
        uplot_js=asset("uplot.min.js"),
    )
    return write_durable(path, page)


def asset(name: str) -> str:
    """A file of the package's own."""
    return files("internevo.monitor").joinpath("assets", name).read_text(encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: bool = False) -> str:
    kind = ' class="text"' if text else ""
    top = "".join(f"<th{kind}>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'
