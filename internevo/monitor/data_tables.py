"""The report's tables about data: what was drawn from where, and what packing made of it."""

from __future__ import annotations

from collections.abc import Sequence

from internevo.config.schema import RunConfig
from internevo.data.mixing import Plan
from internevo.monitor.charts import Record
from internevo.monitor.page import formatted, table


def mixture_table(config: RunConfig, steps: Sequence[Record]) -> str:
    """Tokens drawn by stage and source beside the shares that the configuration asks for."""
    rows = []
    for stage in config.stages:
        plan = Plan.of(stage)
        drawn: dict[str, float] = dict.fromkeys(plan.weights(0), 0)
        wanted = dict(drawn)
        for number, step in enumerate(one for one in steps if one["stage"] == stage.name):
            weights = plan.weights(number)
            tokens = sum(step["sources"].values())
            for name, weight in weights.items():
                wanted[name] += tokens * weight / sum(weights.values())
            for name, of_source in step["sources"].items():
                drawn[name] = drawn.get(name, 0) + of_source
        total = sum(drawn.values())
        for name, tokens in drawn.items():
            shares = (formatted(part / total if total else None, ".2%") for part in (tokens, wanted.get(name, 0)))
            rows.append([stage.name, name, f"{tokens:,}", *shares])
    return table(["stage", "source", "real tokens", "share", "by its weights"], rows)


def packing_table(config: RunConfig, steps: Sequence[Record]) -> str:
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
