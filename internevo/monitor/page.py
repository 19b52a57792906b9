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
    """A table of plain text; with `text`, its cells stand at the left."""
    kind = ' class="text"' if text else ""
    top = "".join(f"<th{kind}>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def heat_table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table whose cells have colours: the heads' text, and each row's cells as HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table class="heat"><tr>{top}</tr>{body}</table></div>'


def note(html: str) -> str:
    """A remark beside a table or a chart."""
    return f'<p class="note">{html}</p>'


def card(value: str, meaning: str) -> str:
    """A number in large type, and what it is."""
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(meaning)}</span></div>'


def figures(names: Iterable[str]) -> str:
    """Where the charts of these names are drawn."""
    return "".join(f'<figure data-chart="{escape(name)}"></figure>' for name in names)


def chart(title: str, unit: str, x: Sequence[float], series: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """A chart as `report.js` draws it. A series has `label`, `colour` and `y`, or `widths` in its place.

    Options: over, zero, log, xlog, percent, height; of a series: points, dashed, faint, fill.
    """
    return {"title": title, "unit": unit, "x": list(x), "series": series, **options}


def points(lines: Mapping[str, Mapping[float, float]]) -> tuple[list[float], list[dict[str, Any]]]:
    """The x and the series of a chart of lines with a point at each value: `{label: {x: y}}`.

    There are six colours: from the seventh line on they come again, dashed.
    """
    x = sorted({at for line in lines.values() for at in line})
    series = [
        {"label": label, "colour": n, "points": True, "dashed": n % 12 >= 6, "y": [line.get(at) for at in x]}
        for n, (label, line) in enumerate(lines.items())
    ]
    return x, series


def formatted(value: float | None, form: str = ".3f") -> str:
    """The number in Python's format `form`; a dash for none."""
    return "–" if value is None else format(value, form)


def human(value: float, form: str = ".3g") -> str:
    """1,234,567 as `1.23M`."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:{form}}{unit}"
    return f"{value:.3g}"
