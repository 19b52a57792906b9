"""A run as one HTML page that needs no network: `RUN/report.html`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from internevo.config.derive import stage_steps
from internevo.config.load import load_config
from internevo.config.schema import RunConfig
from internevo.data.mixing import Plan
from internevo.files.errors import UserError
from internevo.files.json_files import is_number, read_mapping
from internevo.monitor.charts import Record, build_charts, credible, recorded_names
from internevo.monitor.conversations import conversations
from internevo.monitor.metrics import EVALS, METRICS, damaged_lines, read_metrics
from internevo.monitor.page import asset, card, figures, formatted, heat_table, human, note, table, write_page
from internevo.monitor.profile import KINDS, read_profiles
from internevo.monitor.smoothing import control

_PEAKS = {
    "datasheet": "the maker's data sheet, dense",
    "measured": "a large matrix product measured on this machine, not a data sheet",
}
"""Sources of a device's peak."""


def write_report(run: Path) -> Path:
    """Write the page of a run, finished or not, and return its path. Raises UserError when it is no run folder."""
    config_file = run / "config.yaml"
    if not config_file.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml. Give the folder of a run, runs/NAME.")
    config = load_config(config_file, check_data=False, check_values=False)
    steps, evals = read_metrics(run / METRICS), read_metrics(run / EVALS)
    environment = dict(read_mapping(run / "environment.json"))
    total = sum(stage_steps(stage.train) for stage in config.stages)
    done = steps[-1]["step"] if steps else 0
    body = Template(asset("report.html")).substitute(
        damaged=_damaged(run),
        cards=_cards(steps, evals, environment),
        learning=_learning(config, evals),
        positions=_positions(evals),
        conversations=conversations(run),
        recorded=_recorded(steps),
        speed_note=_speed_note(environment),
        smoothing=control(),
        mixture=_mixture(config, steps),
        packing=_packing(config, steps),
        time=_time(run),
        checkpoints=_checkpoints(run),
        environment=_environment(environment),
        config=escape(config_file.read_text(encoding="utf-8")),
    )
    return write_page(
        run / "report.html",
        kind="internevo run",
        title=config.name,
        status=("complete", "good") if done == total else (f"step {done:,} of {total:,}", "wait"),
        lede=_lede(config, steps, environment),
        body=body,
        charts=build_charts(steps, evals),
        stages=_stages(config),
    )


def _damaged(run: Path) -> str:
    counts = {name: damaged_lines(run / name) for name in (METRICS, EVALS)}
    told = [f"{count:,} lines of {name} are no records and are left out." for name, count in counts.items() if count]
    if (run / "environment.json").is_file() and not read_mapping(run / "environment.json"):
        told.append("environment.json is damaged.")
    return note(" ".join(told)) if told else ""


def _stages(config: RunConfig) -> list[dict[str, Any]]:
    stages, first = [], 1
    for stage in config.stages:
        steps = stage_steps(stage.train)
        stages.append({"name": stage.name, "first": first, "last": first + steps - 1})
        first += steps
    return stages


def _lede(config: RunConfig, steps: Sequence[Record], environment: Record) -> str:
    parts = []
    if is_number(environment.get("parameters")):
        parts.append(f"{human(environment['parameters'])} parameters")
    if steps:
        parts.append(f"{human(steps[-1]['tokens'])} tokens")
    parts.append(" → ".join(stage.name for stage in config.stages))
    if environment.get("device"):
        parts.append(str(environment["device"]))
    return escape(" · ".join(parts))


def _cards(steps: Sequence[Record], evals: Sequence[Record], environment: Record) -> str:
    if not steps:
        return card("no steps yet", "training has not begun")
    speed = statistics.median(step["tokens_per_s"] for step in steps)
    seconds = sum(step["step_s"] for step in steps)
    stage = steps[-1]["stage"]  # another stage's loss is of other rows, or other data
    losses = [step["loss"] for step in steps[-20:] if step["loss"] is not None and step["stage"] == stage]
    cards = [
        card(
            formatted(statistics.mean(losses) if losses else None),
            f"training loss, mean of the last {len(losses)} steps of {stage}",
        ),
        *(_heldout_card(source, one) for source, one in newest(evals).items()),
        card(human(speed), "real tokens per second, median"),
        *_mfu(steps),
        card(duration(seconds), f"in {len(steps):,} steps"),
        card(f"{max(step['memory_gib'] for step in steps):.2f} GiB", "peak memory"),
    ]
    if skipped := sum(step["skipped"] for step in steps):
        cards.append(card(str(skipped), "steps skipped: loss or gradient not finite"))
    return "".join(cards)


def newest(evals: Sequence[Record]) -> dict[str, Record]:
    """By source the newest evaluation, except the first one of a later stage.

    That one has the weights of the end of the stage before, perhaps with longer rows and a rotary embedding that they
    were not trained on: it does not show what was learned.
    """
    return {one["source"]: one for one in evals if one["when"] != "start" or not one["step"]}


def _heldout_card(source: str, one: Record) -> str:
    alone = "" if one["frequencies"] is None else f"; {formatted(one['frequencies'])} by frequencies alone"
    when = f"{one['when']} of {one['stage']}, step {one['step']:,}"
    return card(formatted(one["loss"]), f"held-out {source}, {when}{alone}")


def _mfu(steps: Sequence[Record]) -> list[str]:
    """The card of MFU; none where no step has it."""
    causal = [share for step in steps if (share := credible(step["mfu"])) is not None]
    full = [step["mfu_full"] for step in steps if step["mfu_full"] is not None]
    if not causal:
        return []
    share = statistics.median(full) if full else 0.0
    more = "; above 100%, as that counts attention between documents, which is not computed" if share > 1 else ""
    least = "" if len(causal) == len(steps) else f" of the {len(causal):,} steps that have one"
    meaning = f"MFU, causal attention, median{least}; {share:.1%} counted as full attention{more}"
    return [card(f"{statistics.median(causal):.1%}", meaning)]


def _learning(config: RunConfig, evals: Sequence[Record]) -> str:
    if not evals:
        return note("Nothing was evaluated: the stores hold no held-out documents yet.")
    stages = [stage.name for stage in config.stages]
    first = {one["source"]: one for one in reversed(evals) if one["when"] == "start" and one["stage"] == stages[0]}
    ends = {(one["source"], one["stage"]): one for one in evals if one["when"] in ("middle", "end")}
    rows = []
    for source in dict.fromkeys(one["source"] for one in evals):
        alone = next(one["frequencies"] for one in reversed(evals) if one["source"] == source)
        values = [formatted(alone), _loss(first.get(source)), *(_loss(ends.get((source, name))) for name in stages)]
        rows.append([source, *values])
    return table(["source", "frequencies alone", "at the start", *(f"after {name}" for name in stages)], rows)


def _loss(one: Record | None) -> str:
    """An evaluation's loss; with its step where it is the newest one of a stage that is not over."""
    if one is None:
        return "–"
    return formatted(one["loss"]) + (f" at step {one['step']:,}" if one["when"] == "middle" else "")


def _positions(evals: Sequence[Record]) -> str:
    """A table a source: the loss by position, for each evaluation that saw rows of the longest kind."""
    longest = max((one["seq_len"] for one in evals), default=0)
    tables = []
    for source in dict.fromkeys(one["source"] for one in evals):
        chosen = [one for one in evals if one["source"] == source and one["seq_len"] == longest]
        # the start of a stage is the end of the one before unless the stage changed how the model reads
        chosen = [one for i, one in enumerate(chosen) if i == 0 or one["by_position"] != chosen[i - 1]["by_position"]]
        edges = sorted({(first, last) for one in chosen for first, last, _, _ in one["by_position"]})
        values = [loss for one in chosen for _, _, loss, _ in one["by_position"] if loss is not None]
        low, high = min(values, default=0.0), max(values, default=0.0)
        rows = []
        for one in chosen:
            by_edge = {(first, last): loss for first, last, loss, _ in one["by_position"]}
            cells = "".join(_heat(by_edge.get(edge), low, high) for edge in edges)
            rows.append(f"<td>{escape(one['when'])} of {escape(one['stage'])}</td>{cells}")
        head = ["", *(f"{first:,}–{last - 1:,}" for first, last in edges)]
        tables.append(f"<h3>{escape(source)}: loss by position in the document</h3>{heat_table(head, rows)}")
    return "".join(tables)


def _heat(loss: float | None, low: float, high: float) -> str:
    """A table cell, the darker the lower the loss."""
    if loss is None:
        return "<td></td>"
    share = 8 + 42 * (high - loss) / (high - low) if high > low else 8
    return f'<td style="background:color-mix(in srgb, var(--c2) {share:.0f}%, transparent)">{loss:.3f}</td>'


def _recorded(steps: Sequence[Record]) -> str:
    """The charts of what parts of the model measured; nothing where they did not."""
    places = figures(f"recorded/{name}" for name in recorded_names(steps))
    what = note("What parts of the model, the engine or the trainer measured.")
    return f'<section><h2>Recorded</h2>{what}<div class="charts">{places}</div></section>\n' if places else ""


def _speed_note(environment: Record) -> str:
    peak, source = environment.get("peak_flops"), environment.get("peak_source")
    if not is_number(peak) or source not in _PEAKS:
        return "Utilisation is shown for GPUs: of a CPU, which other work shares, no peak is known that would last."
    return (
        f"Utilisation is a share of {peak / 1e12:,.3g} TFLOP/s ({_PEAKS[source]}). <em>Causal</em> counts attention "
        "once, inside documents; steps that did more than the peak show none, as it was measured too low. "
        "<em>Full attention</em> is the older convention that counts whole squares of the row: with packed documents "
        "it may be above 100%, as most of a square is never computed. Padding counts in neither."
    )


def _mixture(config: RunConfig, steps: Sequence[Record]) -> str:
    """Tokens drawn by stage and source beside the shares that the configuration asks for."""
    rows = []
    for stage in config.stages:
        plan = Plan.of(stage)
        drawn: dict[str, float] = dict.fromkeys(plan.weights(0), 0)
        wanted = dict(drawn)
        for number, step in enumerate(one for one in steps if one["stage"] == stage.name):
            weights = plan.weights(number)
            tokens, asked = sum(step["sources"].values()), sum(weights.values())
            for name, weight in weights.items():
                wanted[name] += tokens * weight / asked if asked else 0  # of a config that was damaged since
            for name, of_source in step["sources"].items():
                drawn[name] = drawn.get(name, 0) + of_source
        total = sum(drawn.values())
        for name, tokens in drawn.items():
            shares = (formatted(part / total if total else None, ".2%") for part in (tokens, wanted.get(name, 0)))
            rows.append([stage.name, name, f"{tokens:,}", *shares])
    return table(["stage", "source", "real tokens", "share", "by its weights"], rows)


def _packing(config: RunConfig, steps: Sequence[Record]) -> str:
    """What packing made of documents and places, by stage."""
    rows = []
    for stage in config.stages:
        mine = [step for step in steps if step["stage"] == stage.name]
        if not mine:
            continue
        documents, cut, padding = (sum(one[key] for one in mine) for key in ("documents", "cut_documents", "padding"))
        places = padding + sum(sum(one["sources"].values()) for one in mine)
        cut_share = formatted(cut / documents if documents else None, ".2%")
        empty_share = formatted(padding / places if places else None, ".3%")
        rows.append([stage.name, stage.data.packing, f"{documents:,}", cut_share, empty_share])
    return table(["stage", "packing", "documents", "cut over rows", "padding"], rows)


def _time(run: Path) -> str:
    """Where a step's time goes, of the steps that were profiled."""
    profiles = read_profiles(run)
    if not profiles:
        return note("No step was profiled: <code>monitor.profile.first</code> chooses some.")
    rows = []
    for one in profiles:
        whole = sum(one["seconds"].values())
        shares = [f"{one['seconds'][kind] / whole:.1%}" for kind in KINDS]
        rows.append([one["rank"], f"{one['first']:,}–{one['first'] + one['steps'] - 1:,}", f"{whole:.3f} s", *shares])
    return table(["rank", "steps", "all kinds", *KINDS], rows)


def _checkpoints(run: Path) -> str:
    rows = []
    for path in sorted((run / "checkpoints").glob("step-*")):
        try:
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            state, written = read_mapping(path / "state.json"), path.stat().st_mtime
        except FileNotFoundError:  # the run is deleting it
            continue
        when = datetime.fromtimestamp(written).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        rows.append([path.name, str(state.get("stage", "–")), f"{size / 1e6:,.1f} MB", when])
    return table(["checkpoint", "stage", "size", "written"], rows) if rows else note("None yet.")


def _environment(environment: Record) -> str:
    rows = []
    for key, value in environment.items():
        if key == "earlier" and isinstance(value, list):
            starts = [str(one.get("started", "?")) for one in value if isinstance(one, dict)]
            key, value = "earlier starts", ", ".join(starts)
        if value is not None:
            rows.append([key, " ".join(map(str, value)) if isinstance(value, list) else str(value)])
    return table(["", ""], rows, text=True) if rows else note("Not recorded yet.")


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
