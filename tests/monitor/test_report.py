"""The report: one file, self-contained, right in its numbers, whatever state the run is in."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from internevo.files.errors import UserError
from internevo.monitor.charts import BUCKETS, build_charts
from internevo.monitor.environment import write_environment
from internevo.monitor.metrics import EVALS, METRICS, JsonLines
from internevo.monitor.page import human
from internevo.monitor.report import duration, write_report
from tests.monitor.test_records import evaluation, step

CONFIG = """
name: demo
model: {preset: tiny}
train: {seq_len: 64, batch_tokens: 640}
stages:
  - {name: base, train: {steps: 6}, data: {sources: [{path: web, weight: 0.7}, {path: code, weight: 0.3}]}}
  - {name: long, train: {steps: 4}, data: {sources: [{path: web}]}}
"""


def make_run(folder: Path, steps: int = 10) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    names = {True: "base", False: "long"}
    records = JsonLines(folder / METRICS)
    for number in range(1, steps + 1):
        records.write(step(number, stage=names[number <= 6], loss=7.0 - number / 2))
    records.close()
    records = JsonLines(folder / EVALS)
    records.write(evaluation(0, "start"))
    records.write(evaluation(6, "end"))
    records.close()
    write_environment(
        folder / "environment.json",
        {"device": "a <GPU></script><b>of ours", "peak_flops": 989e12, "peak_source": "datasheet"},
    )
    checkpoint = folder / "checkpoints" / "step-000006"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"stage": "base"}')
    return folder


def embedded(page: str) -> dict:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    return json.loads(text[1])


def test_numbers(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    data = embedded(page)
    assert data["charts"]["loss"]["series"][0]["y"] == [7.0 - n / 2 for n in range(1, 11)]
    assert data["stages"][1] == {"name": "long", "first": 7, "last": 10}
    assert "complete" in page
    assert "989 TFLOP/s (the maker" in page
    assert "<td>420</td><td>70.00%</td><td>70.00%</td>" in page  # web in the first stage
    assert "step-000006" in page


def test_nothing_is_loaded_and_everything_escaped(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(""", re.sub(r"<script>.*?</script>", "", page, flags=re.S))
    assert page.count("</script>") == 3  # the data, the library, our own
    assert "a &lt;GPU&gt;&lt;/script&gt;&lt;b&gt;of ours" in page
    assert "<b>of ours" not in page


@pytest.mark.parametrize("missing", [METRICS, EVALS, "environment.json", "checkpoints"])
def test_whatever_is_missing(tmp_path: Path, missing: str) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / missing) if (run / missing).is_dir() else (run / missing).unlink()
    assert "<h1>demo" in write_report(run).read_text()


def test_an_unfinished_run(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", steps=7)).read_text()
    assert "step 7 of 10" in page


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)


def test_a_long_run_keeps_its_spikes_in_a_small_page() -> None:
    steps = [{**vars(step(n)), "loss": 3.0} for n in range(1, 50_001)]
    steps[31_415]["loss"] = 9.0
    steps[27_182]["grad_norm"] = 55.0
    steps[16_180]["loss"] = None
    charts = build_charts(steps, [])
    assert len(charts["loss"]["x"]) <= 4 * BUCKETS + 1
    assert 31_416 in charts["loss"]["x"]
    assert max(value for value in charts["grad_norm"]["series"][0]["y"]) == 55.0
    assert None in charts["loss"]["series"][0]["y"]
    assert charts["sources"]["series"][0]["y"][-1] == 50_000 * 70


def test_a_chart_for_each_thing_that_was_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=6)  # lines as they were before there was any
    assert "Recorded" not in write_report(run).read_text()
    records = JsonLines(run / METRICS)
    records.write(step(7, stage="long", recorded={"router/load": 0.25, "worst": math.inf}))
    records.write(step(8, stage="long", recorded={"router/load": 0.5}))
    records.close()
    page = write_report(run).read_text()
    charts = embedded(page)["charts"]
    for name, values in (("router/load", [0.25, 0.5]), ("worst", [None, None])):
        assert f'data-chart="recorded/{name}"' in page
        assert charts[f"recorded/{name}"]["title"] == name
        assert charts[f"recorded/{name}"]["series"][0]["y"] == [None] * 6 + values


def test_every_chart_has_its_place(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    assert set(re.findall(r'data-chart="(.*?)"', page)) == set(embedded(page)["charts"])


def test_the_headline_is_a_number_of_the_table(tmp_path: Path) -> None:
    """A later stage's first evaluation reads the same weights with other rows: it is no headline."""
    run = make_run(tmp_path / "run", steps=8)
    records = JsonLines(run / EVALS)
    records.write(replace(evaluation(6, "start", stage="long"), loss=9.25))
    records.close()
    page = write_report(run).read_text()
    assert "<b>3.500</b><span>held-out web, end of base, step 6; 5.500 by frequencies alone" in page
    assert "9.250" not in page.split("loss by position")[0].split("What it learned")[0]
    records = JsonLines(run / EVALS)
    records.write(replace(evaluation(8, "middle", stage="long"), loss=3.25))
    records.close()
    page = write_report(run).read_text()
    assert "<b>3.250</b><span>held-out web, middle of long, step 8" in page
    assert "<td>3.250 at step 8</td>" in page


def test_the_chart_keeps_a_stage_s_end_beside_the_next_one_s_start() -> None:
    evals = [evaluation(0, "start"), evaluation(6, "end"), replace(evaluation(6, "start", stage="long"), loss=9.25)]
    chart = build_charts([], [asdict(one) for one in evals])["heldout"]
    assert chart["x"] == [0, 6, 6.5]
    assert chart["series"][0]["y"] == [3.5, 3.5, 9.25]


def test_the_training_loss_of_the_headline_is_of_one_stage(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    assert "<b>2.750</b><span>training loss, mean of the last 4 steps of long" in page


def test_a_run_without_a_known_peak_shows_no_utilisation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0)
    records = JsonLines(run / METRICS)
    records.write(step(1, mfu=None, mfu_full=None))
    records.close()
    write_environment(run / "environment.json", {"device": "a CPU", "peak_flops": None, "peak_source": None})
    page = write_report(run).read_text()
    assert "% counted as full attention" not in page
    assert "no peak is known" in page
    assert embedded(page)["charts"]["mfu"]["x"] == []  # not drawn


def test_more_than_the_peak_is_never_without_a_word(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0)
    records = JsonLines(run / METRICS)
    records.write(step(1, mfu=0.4, mfu_full=2.88))
    records.close()
    page = write_report(run).read_text()
    assert "288.0% counted as full attention; above 100%, as that counts attention between documents" in page


def test_a_share_above_the_peak_in_an_older_record_is_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0)
    records = JsonLines(run / METRICS)
    for number, share in enumerate((1.19, 2.88, 0.4), 1):
        records.write(step(number, mfu=share, mfu_full=0.5))
    records.close()
    page = write_report(run).read_text()
    assert "<b>40.0%</b><span>MFU, causal attention, median of the 1 steps that have one" in page
    assert embedded(page)["charts"]["mfu"]["series"][0]["widths"]["0"] == [None, None, 0.4]


def test_a_person_chooses_the_smoothing(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    assert '<select id="smoothing">' in page
    curves = embedded(page)["charts"]["loss"]["series"][1]["widths"]
    assert list(curves) == ["0", "10", "30", "100", "300"]
    assert curves["0"] == [7.0 - n / 2 for n in range(1, 11)]
    assert curves["10"] == pytest.approx(curves["0"], abs=1e-4)  # a straight line stays one


def test_human_numbers() -> None:
    assert [human(n) for n in (7, 1234, 1_264_000, 7.7e9, 2e12)] == ["7", "1.23K", "1.26M", "7.7B", "2T"]
    assert duration(192.3) == "3 min 12 s"
    assert duration(3600 * 26 + 120) == "26 h 02 min"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_it_draws_in_a_browser(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = ["chromium", *flags.split(), "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert dom.count("<canvas") == 9  # one for each chart
    assert 'data-theme="light"' in dom
