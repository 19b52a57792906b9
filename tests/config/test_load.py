"""Good configs: bases, units, overrides, presets and stages, and what they resolve to."""

from __future__ import annotations

from pathlib import Path

import pytest

from internevo.config.derive import rows_per_step, stage_steps
from internevo.config.load import load_config
from internevo.config.presets import PRESETS, model_preset
from internevo.config.schema import RunConfig, TrainConfig

MINIMAL = """
name: run
model: {preset: tiny}
train: {seq_len: 64, batch_tokens: 512, steps: 10}
data: {sources: [{path: tokens/web}]}
"""


def load(folder: Path, text: str, *overrides: str) -> RunConfig:
    file = folder / "run.yaml"
    file.write_text(text)
    return load_config(file, overrides, check_data=False)


def test_a_run_without_stages_is_one_stage(tmp_path: Path) -> None:
    (stage,) = load(tmp_path, MINIMAL).stages
    assert stage.name == "train"
    assert (stage.train.steps, stage.train.seq_len) == (10, 64)
    assert stage.model == model_preset("tiny")
    assert stage.data.sources[0].weight == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4M", 4_000_000),
        ("4.5K", 4_500),
        ("0.5m", 500_000),
        ("2T", 2 * 10**12),
        ("24.4B", 24_400_000_000),
        ("1_000_000", 1_000_000),
        ("1e6", 1_000_000),
        ("2 K", 2_000),
        ("'4096'", 4096),
        ("0.3B", 300_000_000),  # exact, though 0.3 is not a binary fraction
    ],
)
def test_units(tmp_path: Path, text: str, value: int) -> None:
    found = load(tmp_path, MINIMAL, f"train.batch_tokens={text}").stages[0].train.batch_tokens
    assert found == value
    assert isinstance(found, int)


def test_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL, "optimizer.lr=3e-4").optimizer.lr == 3e-4
    assert load(tmp_path, MINIMAL, "optimizer.lr=1").optimizer.lr == 1.0


def test_bases_are_laid_under(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.yaml").write_text("_base_: b.yaml\noptimizer: {lr: 1.0, clip: 5.0}\n")
    (tmp_path / "shared" / "b.yaml").write_text("optimizer: {lr: 2.0, eps: 0.5}\ntrain: {seed: 1}\n")
    (tmp_path / "c.yaml").write_text("train: {seed: 2}\n")
    run = load(tmp_path, "_base_: [shared/a.yaml, c.yaml]\n" + MINIMAL, "optimizer.clip=7")
    optimizer = run.stages[0].optimizer
    assert (optimizer.lr, optimizer.eps, optimizer.clip, run.train.seed) == (1.0, 0.5, 7.0, 2)


def test_a_length_displaces_the_other_from_below(tmp_path: Path) -> None:
    run = load(tmp_path, MINIMAL + "stages: [{name: a}, {name: b, train: {tokens: 5120}}]")
    assert [(stage.train.steps, stage.train.tokens) for stage in run.stages] == [(10, None), (None, 5120)]
    assert [stage_steps(stage.train) for stage in run.stages] == [10, 10]


def test_stages_change_their_own_keys_only(tmp_path: Path) -> None:
    stages = """
stages:
  - {name: base}
  - name: long
    model: {rope: {base: 1M}}
    train: {seq_len: 256}
    schedule: {name: linear, final: 0}
    data: {sources: [{path: tokens/long, weight: 3}, {path: tokens/web}]}
"""
    base, long = load(tmp_path, MINIMAL + stages).stages
    assert (base.train.seq_len, long.train.seq_len, long.train.steps) == (64, 256, 10)
    assert (base.model.rope.base, long.model.rope.base) == (10_000.0, 1e6)
    assert (base.schedule.name, long.schedule.name) == ("cosine", "linear")
    assert [source.path for source in base.data.sources] == ["tokens/web"]
    assert [source.weight for source in long.data.sources] == [3.0, 1.0]


def test_overrides_reach_the_run_and_one_stage(tmp_path: Path) -> None:
    text = MINIMAL + "stages: [{name: a}, {name: b, optimizer: {lr: 2.0}}]"
    first, second = load(tmp_path, text, "optimizer.lr=1", "stages.b.train.steps=3", "stages.a.train.tokens=9K").stages
    assert (first.optimizer.lr, second.optimizer.lr) == (1.0, 2.0)
    assert (first.train.tokens, first.train.steps, second.train.steps) == (9000, None, 3)


def test_overrides_may_hold_lists_and_mappings(tmp_path: Path) -> None:
    run = load(tmp_path, MINIMAL, "data.sources=[{path: a, weight: 2}, {path: b}]", "optimizer={lr: 5}")
    assert [source.path for source in run.stages[0].data.sources] == ["a", "b"]
    assert (run.optimizer.lr, run.optimizer.clip) == (5.0, 1.0)


def test_interpolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    run = load(tmp_path, MINIMAL + "runs: ${oc.env:SCRATCH}/${name}")
    assert run.runs == "/scratch/run"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_and_fields_beside_them_win(tmp_path: Path, name: str) -> None:
    run = load(tmp_path, MINIMAL, f"model.preset={name}", "model.layers=3")
    assert run.stages[0].model == model_preset(name, layers=3)


def test_internlm2_shapes() -> None:
    """Sizes of the released models (arXiv 2403.17297)."""
    shapes = [("1.8b", 24, 2048, 16, 8192), ("7b", 32, 4096, 32, 14336), ("20b", 48, 6144, 48, 16384)]
    for size, layers, hidden, heads, ffn in shapes:
        model = model_preset(f"internlm2-{size}")
        assert (model.layers, model.hidden, model.attention.heads, model.feed_forward.width) == (
            layers,
            hidden,
            heads,
            ffn,
        )
        assert (model.attention.kv_heads, model.attention.head_dim, model.vocab, model.tied) == (8, 128, 92544, False)


def test_a_step_is_whole_rows() -> None:
    train = TrainConfig(tokens=1_000_000, seq_len=4096, batch_tokens=100_000)
    assert rows_per_step(train) == 24
    assert stage_steps(train) == 11  # 24 * 4096 = 98,304 tokens a step: the last one goes past the million


def weights(run: RunConfig) -> dict[str, dict[str, float]]:
    return {stage.name: {one.name or one.path: one.weight for one in stage.data.sources} for stage in run.stages}


MIXED = """
name: run
model: {preset: tiny}
train: {seq_len: 64, batch_tokens: 512, steps: 10}
data: {sources: [{path: tokens/web}, {path: a.b/code.ds, weight: 2}, {path: tokens/web/long, name: books}]}
stages:
  - {name: base}
  - {name: long, data: {sources: [{path: tokens/web, weight: 5}, {path: tokens/new}]}}
"""


def test_a_source_is_changed_by_its_name(tmp_path: Path) -> None:
    """Its own name, or the last part of its path; in the stages that have the run's sources."""
    run = load(
        tmp_path, MIXED, "data.sources.web.weight=0.3", "data.sources.code.ds.weight=4", "data.sources.books.weight=0"
    )
    assert weights(run) == {
        "base": {"tokens/web": 0.3, "a.b/code.ds": 4.0, "books": 0.0},
        "long": {"tokens/web": 5.0, "tokens/new": 1.0},
    }
    assert run.data.sources[0].path == "tokens/web"
    run = load(tmp_path, MIXED, "stages.long.data.sources.new.weight=7", "data.sources.books.max_epochs=2")
    assert weights(run)["long"] == {"tokens/web": 5.0, "tokens/new": 7.0}
    assert [one.max_epochs for one in run.stages[0].data.sources] == [None, None, 2]


def test_one_stage_may_change_a_source_that_it_inherits(tmp_path: Path) -> None:
    run = load(tmp_path, MIXED, "data.sources.web.weight=3", "stages.base.data.sources.books.weight=9")
    assert weights(run)["base"] == {"tokens/web": 3.0, "a.b/code.ds": 2.0, "books": 9.0}
    assert [one.weight for one in run.data.sources] == [3.0, 2.0, 1.0]
