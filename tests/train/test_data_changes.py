"""When a run's data changes: by its configuration within a stage, or behind its back while it was stopped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from internevo.config.load import load_config
from internevo.files.errors import UserError
from internevo.monitor.metrics import read_metrics
from internevo.tokens.train_tokenizer import train_tokenizer
from internevo.train.run import train
from tests.tokens.stores import write_store
from tests.train.runs import last_state, steps, write_config

STAGES = [{"name": "base", "train": {"steps": 12}}]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def configure(folder: Path, **data: Any) -> Path:
    """One stage of twelve steps of eight rows of 64, evaluated never."""
    path = write_config(folder, stages=STAGES)
    tree = yaml.safe_load(path.read_text())
    tree["data"] |= {"eval_tokens": 0, **data}
    path.write_text(yaml.safe_dump(tree))
    return path


def web_share(lines: list[dict[str, Any]]) -> float:
    drawn = [sum(line["sources"].get(name, 0) for line in lines) for name in ("web", "code")]
    return drawn[0] / sum(drawn)


def test_the_mixture_changes_within_the_stage(tmp_path: Path) -> None:
    path = configure(tmp_path, changes=[{"at": 5 * 512, "weights": {"web": 0.1, "code": 0.9}}])
    train(load_config(path), ["test"])
    lines = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert web_share(lines[:5]) == pytest.approx(0.7, abs=64 / (5 * 512))
    assert web_share(lines[5:]) == pytest.approx(0.1, abs=64 / (7 * 512))
    log = (tmp_path / "runs" / "run" / "logs" / "rank-0000.log").read_text()
    assert re.findall(r"mixture from step (\d+) on: (.*)", log) == [
        ("1", "web 70.00%, code 30.00%"),
        ("6", "web 10.00%, code 90.00%"),
    ]
    assert "by its weights" in (tmp_path / "runs" / "run" / "report.html").read_text()


@pytest.mark.parametrize("stop", [1, 4, 5, 6])
def test_stopped_around_the_change(tmp_path: Path, stop: int) -> None:
    changes = [{"at": 5 * 512, "weights": {"web": 0.1, "code": 0.9}}]
    whole, left = (configure(tmp_path / name, changes=changes) for name in ("whole", "left"))
    train(load_config(whole), ["test"])
    train(load_config(left), ["test"], until=stop)
    train(load_config(left), ["test"])
    assert steps(tmp_path / "left" / "runs" / "run") == steps(tmp_path / "whole" / "runs" / "run")


def test_batches_grow_and_the_run_goes_on_anywhere(tmp_path: Path) -> None:
    ramp = "train.batch_ramp=[{until: 1024, batch_tokens: 256}, {until: 1536, batch_tokens: 512}]"
    overrides = [ramp, "train.batch_tokens=1024", "stages.base.train.tokens=4K"]
    for name, stops in (("whole", []), ("left", [2, 4, 5])):
        config = load_config(configure(tmp_path / name), overrides)
        for stop in [*stops, float("inf")]:
            train(config, ["test"], until=stop)
    lines = steps(tmp_path / "whole" / "runs" / "run")
    assert [sum(line["sources"].values()) + line["padding"] for line in lines] == [256] * 4 + [512] + [1024] * 3
    assert steps(tmp_path / "left" / "runs" / "run") == lines


def test_a_capped_source_is_told(tmp_path: Path) -> None:
    path = configure(tmp_path)
    tree = yaml.safe_load(path.read_text())
    write_store(tmp_path / "few" / "train", [np.arange(1, 60)] * 10)
    tree["data"]["sources"] = [tree["data"]["sources"][0], {"path": str(tmp_path / "few"), "max_epochs": 2}]
    path.write_text(yaml.safe_dump(tree))
    train(load_config(path), ["test"])
    run = tmp_path / "runs" / "run"
    few = sum(line["sources"].get("few", 0) for line in steps(run))
    assert 1180 - 64 <= few <= 1180
    assert re.search(r"few 19\.\d\d% \(max_epochs 2 allows no 58\.82%\)", (run / "logs" / "rank-0000.log").read_text())


def change_a_weight(folder: Path, path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("weight: 0.3", "weight: 0.6"), encoding="utf-8")


def cap_a_source(folder: Path, path: Path) -> None:
    path.write_text(
        path.read_text(encoding="utf-8").replace("weight: 0.3", "weight: 0.3\n    max_epochs: 9"), encoding="utf-8"
    )


def change_the_packing(folder: Path, path: Path) -> None:
    path.write_text(
        path.read_text(encoding="utf-8").replace("eval_tokens: 0", "eval_tokens: 0\n  packing: concat"),
        encoding="utf-8",
    )


def write_a_store_anew(folder: Path, path: Path) -> None:
    for file in (folder / "tokens" / "web").iterdir():
        file.unlink()
    write_store(folder / "tokens" / "web" / "train", [np.arange(1, 60)] * 100)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_a_weight, "weight of code: was 0.3, is 0.6"),
        (cap_a_source, "max_epochs of code: was None, is 9"),
        (change_the_packing, "data.packing: was best_fit, is concat"),
        (write_a_store_anew, "store of web: was 400 documents of "),
    ],
)
def test_data_that_changed_while_the_run_was_stopped(tmp_path: Path, change: Any, told: str) -> None:
    path = configure(tmp_path)
    train(load_config(path), ["test"], until=4)
    run = tmp_path / "runs" / "run"
    before = (run / "config.yaml").read_text()
    change(tmp_path, path)
    with pytest.raises(UserError, match="the data is not what this run was saved with") as error:
        train(load_config(path), ["test"])
    assert told in str(error.value)
    assert (run / "config.yaml").read_text() == before  # nothing was touched
    assert len(steps(run)) == 4
    (accept,) = re.findall(r"data\.accept=[\w-]+", str(error.value))
    with pytest.raises(UserError, match="the data is not what"):
        train(load_config(path, ["data.accept=another"]), ["test"])
    train(load_config(path, [accept]), ["test"], until=8)
    assert f"data changed: {told}" in (run / "logs" / "rank-0000.log").read_text()
    train(load_config(path), ["test"])  # from here on it is the data that the run was saved with
    assert [line["step"] for line in steps(run)] == list(range(1, 13))


def test_shares_are_counted_anew_from_an_accepted_change_on(tmp_path: Path) -> None:
    path = configure(tmp_path)
    train(load_config(path), ["test"], until=6)
    path.write_text(path.read_text().replace("weight: 0.3", "weight: 6.3"))
    with pytest.raises(UserError) as error:
        train(load_config(path), ["test"])
    (accept,) = re.findall(r"data\.accept=[\w-]+", str(error.value))
    train(load_config(path, [accept]), ["test"])
    lines = steps(tmp_path / "runs" / "run")
    assert web_share(lines[6:]) == pytest.approx(0.1, abs=64 / (6 * 512))


def test_a_later_stage_may_mix_otherwise(tmp_path: Path) -> None:
    """Only the stage that was under way has to stay as it was."""
    path = write_config(tmp_path)
    train(load_config(path), ["test"], until=8)  # the end of the first stage
    tree = yaml.safe_load(path.read_text())
    tree["stages"][1]["data"]["sources"][0]["weight"] = 0.9
    path.write_text(yaml.safe_dump(tree))
    train(load_config(path), ["test"], until=9)
    assert last_state(tmp_path / "runs" / "run")["step"] == 9


def test_a_stage_longer_than_its_data_does_not_begin(tmp_path: Path) -> None:
    path = configure(tmp_path)
    tree = yaml.safe_load(path.read_text())
    write_store(tmp_path / "few" / "train", [np.arange(1, 60)] * 10)
    tree["data"]["sources"] = [{"path": str(tmp_path / "few"), "max_epochs": 2}]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"stage base: .* 6,144 tokens, but their sources may give only 1,180"):
        train(load_config(path), ["test"])
    assert not list((tmp_path / "runs" / "run").glob("checkpoints/step-*"))


def test_the_tokenizer_is_part_of_it(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.model"
    texts = [Path(__file__).read_text(encoding="utf-8")]
    train_tokenizer(texts, tokenizer, 400)
    path = configure(tmp_path)
    train(load_config(path, [f"tokenizer={tokenizer}"]), ["test"], until=2)
    tokenizer.unlink()
    train_tokenizer(texts, tokenizer, 401)
    with pytest.raises(UserError, match=r"tokenizer: was \w{16}, is \w{16}"):
        train(load_config(path, [f"tokenizer={tokenizer}"]), ["test"])


def accepted(path: Path) -> str:
    """The word that the refusal of a changed run names."""
    with pytest.raises(UserError, match="the data is not what this run was saved with") as error:
        train(load_config(path), ["test"])
    (accept,) = re.findall(r"data\.accept=[\w-]+", str(error.value))
    return accept


def edit_sources(path: Path, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(tree["data"]["sources"])
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")


def test_a_source_may_come_and_another_go_when_accepted(tmp_path: Path) -> None:
    path = configure(tmp_path)
    train(load_config(path), ["test"], until=4)
    write_store(tmp_path / "books" / "train", [np.arange(1, 60)] * 100)
    edit_sources(path, lambda sources: sources.append({"path": str(tmp_path / "books"), "weight": 1.0}))
    train(load_config(path, [accepted(path)]), ["test"], until=8)
    edit_sources(path, lambda sources: sources.pop(0))
    train(load_config(path, [accepted(path)]), ["test"])
    lines = steps(tmp_path / "runs" / "run")
    parts = (lines[:4], lines[4:8], lines[8:])
    drawn = [sum((Counter(line["sources"]) for line in part), Counter[str]()) for part in parts]
    shares = [part["books"] / part.total() for part in drawn]
    assert shares == pytest.approx([0, 1 / 2, 1 / 1.3], abs=64 / drawn[2].total())
    assert not any("web" in line["sources"] for line in lines[8:])


def test_a_store_that_shrank_goes_on_when_accepted(tmp_path: Path) -> None:
    path = configure(tmp_path)
    train(load_config(path), ["test"], until=11)
    write_a_store_anew(tmp_path, path)
    for file in (tmp_path / "tokens" / "web").iterdir():
        file.unlink()
    write_store(tmp_path / "tokens" / "web" / "train", [np.arange(1, 60)] * 10)
    train(load_config(path, [accepted(path)]), ["test"])
    assert [line["step"] for line in steps(tmp_path / "runs" / "run")] == list(range(1, 13))


def test_the_order_of_the_sources_decides_nothing(tmp_path: Path) -> None:
    path = configure(tmp_path / "whole")
    train(load_config(path), ["test"])
    other = configure(tmp_path / "left")
    train(load_config(other), ["test"], until=5)
    edit_sources(other, lambda sources: sources.reverse())
    train(load_config(other), ["test"])
    assert steps(tmp_path / "left" / "runs" / "run") == steps(tmp_path / "whole" / "runs" / "run")


def two_stages(folder: Path) -> Path:
    path = write_config(folder, stages=[{"name": "one", "train": {"steps": 6}}, {"name": "two", "train": {"steps": 6}}])
    tree = yaml.safe_load(path.read_text())
    tree["data"]["eval_tokens"] = 0
    path.write_text(yaml.safe_dump(tree))
    return path


def test_what_a_source_is_may_not_change_between_stages(tmp_path: Path) -> None:
    path = two_stages(tmp_path)
    train(load_config(path), ["test"], until=6)
    edit_sources(path, lambda sources: sources[0].update(min_tokens=50))
    with pytest.raises(UserError, match=r"store of web: was .*\), is .*, of which those of at least 50 tokens"):
        train(load_config(path), ["test"])
    edit_sources(path, lambda sources: sources[0].pop("min_tokens"))
    (tmp_path / "tokens" / "web").rename(tmp_path / "tokens" / "pages")
    edit_sources(path, lambda sources: sources[0].update(path=str(tmp_path / "tokens" / "pages")))
    with pytest.raises(UserError, match="pages is what was called web, and is read from its beginning"):
        train(load_config(path), ["test"])
    edit_sources(path, lambda sources: sources[0].update(name="web"))
    train(load_config(path), ["test"])


def test_the_stores_of_earlier_stages_are_remembered(tmp_path: Path) -> None:
    path = two_stages(tmp_path)
    code = [{"path": str(tmp_path / "tokens" / "code")}]
    tree = yaml.safe_load(path.read_text())
    tree["stages"][1]["data"] = {"sources": code}
    path.write_text(yaml.safe_dump(tree))
    train(load_config(path), ["test"], until=9)
    write_a_store_anew(tmp_path, path)
    with pytest.raises(UserError, match="store of web: was 400 documents of"):
        train(load_config(path), ["test"])


def test_a_larger_batch_must_leave_what_is_over_as_it_was(tmp_path: Path) -> None:
    path = configure(tmp_path)
    length = ["stages.base.train.steps=null", "stages.base.train.tokens=6144"]
    train(load_config(path, length), ["test"], until=4)
    run = tmp_path / "runs" / "run"
    with pytest.raises(UserError, match=r"2,048 tokens in 4 steps of 'base'; .* would have been 4,096") as error:
        train(load_config(path, [*length, "train.batch_tokens=1024"]), ["test"])
    (ramp,) = re.findall(r"train\.batch_ramp=\[.*?\]", str(error.value))
    train(load_config(path, [*length, "train.batch_tokens=1024", ramp.replace("THE OLD ONE", "512")]), ["test"])
    lines = steps(run)
    assert [sum(line["sources"].values()) + line["padding"] for line in lines] == [512] * 4 + [1024] * 4


def test_a_later_stage_that_cannot_begin_stops_the_first(tmp_path: Path) -> None:
    path = two_stages(tmp_path)
    tree = yaml.safe_load(path.read_text())
    write_store(tmp_path / "few" / "train", [np.arange(1, 60)] * 100)  # 5,900 tokens
    tree["data"]["sources"] = [{"path": str(tmp_path / "few"), "max_epochs": 1}]
    tree["stages"][1]["train"]["steps"] = 8
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"stage two: steps 1 to 8 .* 4,096 tokens, .* only 2,828 .*: few 2,828"):
        train(load_config(path), ["test"])
    tree["data"]["sources"] = [{"path": str(tmp_path / "few"), "min_tokens": 60}]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="few: holds no documents of at least 60 tokens"):
        train(load_config(path), ["test"])
