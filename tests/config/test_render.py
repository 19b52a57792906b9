"""What `internevo config` prints is the same configuration again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.config.load import load_config
from internevo.config.presets import PRESETS
from internevo.config.render import differences, render
from internevo.config.schema import RunConfig

floats = st.floats(1e-9, 100, allow_nan=False).map(lambda x: float(f"{x:.6g}"))


def overlay() -> st.SearchStrategy[dict[str, Any]]:
    """A few keys of a stage."""
    return st.fixed_dictionaries(
        {},
        optional={
            "model": st.fixed_dictionaries({"rope": st.fixed_dictionaries({"base": st.floats(1, 1e7)})}),
            "optimizer": st.fixed_dictionaries({"lr": floats}, optional={"clip": floats, "weight_decay": floats}),
            "schedule": st.fixed_dictionaries({"name": st.sampled_from(["constant", "linear", "cosine", "wsd"])}),
            "train": st.fixed_dictionaries({"seq_len": st.sampled_from([32, 64, 128]), "steps": st.integers(1, 99)}),
            "data": st.fixed_dictionaries({"sources": st.just([{"path": "tokens/long", "weight": 2.0}])}),
        },
    )


def load(tree: dict[str, Any] | str) -> RunConfig:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
        return load_config(file, check_data=False)


@settings(max_examples=60, deadline=None)
@given(overlay(), st.lists(overlay(), max_size=3), st.sampled_from(sorted(PRESETS)))
def test_round_trip(base: dict[str, Any], stages: list[dict[str, Any]], preset: str) -> None:
    tree: dict[str, Any] = {"name": "run", "train": {"seq_len": 64, "steps": 5}, **base}
    tree["train"] = {**tree["train"], "batch_tokens": 1280}
    tree["model"] = {**base.get("model", {}), "preset": preset}
    tree.setdefault("data", {"sources": [{"path": "tokens/web"}]})
    tree["stages"] = [{"name": f"stage-{i}", **stage} for i, stage in enumerate(stages)]
    config = load(tree)
    again = load(render(config))
    assert differences(config, again) == []
    assert render(again) == render(config)


def test_a_stage_shows_only_what_it_changes() -> None:
    tree = {
        "name": "run",
        "model": {"preset": "tiny"},
        "train": {"seq_len": 64, "batch_tokens": 512, "steps": 5},
        "data": {"sources": [{"path": "a"}]},
        "stages": [{"name": "base"}, {"name": "long", "train": {"seq_len": 128}}],
    }
    shown = yaml.safe_load(render(load(tree)))
    assert shown["stages"] == [{"name": "base"}, {"name": "long", "train": {"seq_len": 128}}]
    assert shown["model"]["hidden"] == 64
    assert shown["optimizer"]["betas"] == [0.9, 0.95]


def test_differences_name_stage_and_key() -> None:
    tree: dict[str, Any] = {
        "name": "run",
        "model": {"preset": "tiny"},
        "train": {"seq_len": 64, "batch_tokens": 512, "steps": 5},
        "data": {"sources": [{"path": "a"}]},
        "stages": [{"name": "base"}, {"name": "long"}],
    }
    before = load(tree)
    tree["stages"][1]["optimizer"] = {"lr": 1.0}
    assert differences(before, load(tree)) == ["stages.long.optimizer.lr: 0.0003 -> 1.0"]
