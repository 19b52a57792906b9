"""The chain as jobs of Slurm's: what is submitted, and on a real Slurm, what comes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from internevo.files.errors import UserError
from internevo.refine.config import load_refinery
from internevo.refine.refine import refine
from tests.launch.cluster import Slurm
from tests.launch.conftest import slurm
from tests.refine.corpus import docstrings, write_jsonl
from tests.refine.test_refine import outcome

__all__ = ["slurm"]  # a fixture

SBATCH = """#!/bin/sh
# notes what it is given, and gives numbers from 101 on
cd {folder}
number=$((101 + $(ls | grep -c script)))
if [ "$number" = {refused} ]; then echo "sbatch: error: no such partition" >&2; exit 1; fi
for last; do :; done
cp "$last" script-$number
echo "$@" > arguments-$number
echo "Submitted batch job $number"
"""
OTHERS = """#!/bin/sh
echo "$(basename $0) $@" >> {folder}/asked
if [ "$(basename $0)" = squeue ]; then cat {folder}/queue; fi
"""


def write_config(folder: Path, **executor: object) -> Path:
    for number in range(3):
        write_jsonl(folder / "crawl" / f"{number}.jsonl", ({"text": text} for text in docstrings(30)[number::3]))
    tree = {
        "name": "web",
        "input": [str(folder / "crawl")],
        "output": str(folder / "out"),
        "executor": {"kind": "slurm", "partition": "main", "time": "0:10:00", "memory_gib": 1, **executor},
        "steps": ["extract", "language", "rules"],
    }
    path = folder / "refine.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which submissions are noted; nothing runs."""
    folder, commands = tmp_path / "submitted", tmp_path / "bin"
    for one in (folder, commands, tmp_path / "crawl"):
        one.mkdir()
    (folder / "queue").touch()
    for name in ("sbatch", "squeue", "scancel"):
        (commands / name).write_text((SBATCH if name == "sbatch" else OTHERS).format(folder=folder, refused=0))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return folder


def submit(config: Path, *overrides: str) -> list[str]:
    return refine(load_refinery(config, overrides), report)


def report(output: Path) -> None:
    (output / "report.html").write_text("page")


def test_what_is_submitted(sbatch: Path, tmp_path: Path) -> None:
    options = {"constraint": "cpu", "exclusive": ""}
    config = write_config(tmp_path, workers=2, cpus=3, account="me", options=options)
    assert submit(config) == ["101", "102", "103", "104"]
    scripts = [(sbatch / f"script-{number}").read_text() for number in range(101, 105)]
    arguments = [(sbatch / f"arguments-{number}").read_text() for number in range(101, 105)]
    for script, name in zip(
        scripts, ("01-extract-extract", "02-language-sift", "03-rules-sift", "report"), strict=True
    ):
        given = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
        assert given["job-name"] == f"web-{name}"
        assert given["array"] == ("0-2%2" if name != "report" else "0-0%2")
        expected = {"partition": "main", "time": "0:10:00", "cpus-per-task": "3", "mem-per-cpu": "1G", "account": "me"}
        assert {key: given[key] for key in expected} == expected
        assert given["constraint"] == "cpu"
        assert given["exclusive"] == ""
        assert given["kill-on-invalid-dep"] == "yes"
        assert f'export PATH="{Path(sys.executable).parent}:$PATH"' in script
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "dependency" not in arguments[0]
    for number, given_to in enumerate(arguments[1:], 101):
        assert f"--dependency=afterok:{number}" in given_to
    assert json.loads((tmp_path / "out" / "slurm.json").read_text()) == ["101", "102", "103", "104"]
    (sbatch / "queue").write_text("102\n999\n")
    with pytest.raises(UserError, match=r"is being worked on by Slurm's jobs 102\. Wait for them, or .*scancel 102"):
        submit(config)


def test_more_tasks_than_an_array_takes(sbatch: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for number in range(1002):
        write_jsonl(tmp_path / "crawl" / f"{number:04}.jsonl", [{"text": "x"}])
    tree = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**tree, "steps": [{"extract": {"shards": 1002}}, "language"]}))
    assert submit(config) == ["101", "102", "103", "104", "105"]
    depends = [re.findall(r"--dependency=(\S+)", (sbatch / f"arguments-{n}").read_text()) for n in range(101, 106)]
    assert depends == [
        [],
        ["afterany:101"],
        ["afterok:101:102"],
        ["afterok:101:102,afterany:103"],
        ["afterok:103:104"],
    ]
    (sbatch / "queue").write_text("101\n")
    with pytest.raises(UserError, match=r"is being worked on by Slurm's jobs 101\."):
        submit(config)


def test_a_queue_that_cannot_be_asked_is_not_an_empty_one(sbatch: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    submit(config)
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"squeue does not say .*slurm\.json .*Unable to contact slurm controller"):
        submit(config)
    assert not (sbatch / "script-105").exists()


def test_the_last_job_finds_out_what_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    config = write_config(tmp_path)
    refinery = load_refinery(config, ["executor.kind=local", "executor.workers=1"])
    refine(refinery, report)
    output = tmp_path / "out"
    (output / "02-language/counts/00001.json").unlink()
    (output / "report.html").unlink()
    with pytest.raises(UserError, match=r"out is not all done: 02-language: 2 of 3 shards\. Why is in"):
        refine(refinery, report)
    assert not (output / "kept").exists()
    assert not (output / "report.html").exists()


def test_only_what_is_left_is_submitted(sbatch: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    submit(config)
    refine(load_refinery(config, ["executor.kind=local", "executor.workers=1"]), report)
    (tmp_path / "out/03-rules/logs/sift/completions/00001").unlink()
    assert submit(config) == ["105", "106"]
    assert "job-name=web-03-rules-sift" in (sbatch / "script-105").read_text()
    assert json.loads((tmp_path / "out/03-rules/logs/sift/ranks_to_run.json").read_text()) == [1]


def test_refused_in_the_middle(sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the queue already is taken out again."""
    config = write_config(tmp_path)
    (tmp_path / "bin" / "sbatch").write_text(SBATCH.format(folder=sbatch, refused=103))
    with pytest.raises(UserError, match=r"sbatch refused .*03-rules.*Nothing is left in the queue"):
        submit(config)
    assert "scancel 101 102" in (sbatch / "asked").read_text()
    (tmp_path / "bin" / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="this machine has no sbatch"):
        submit(config)


@pytest.mark.slow
def test_a_real_slurm(slurm: Slurm, tmp_path: Path) -> None:
    """The same bytes as here; and after a failure, the same command resumes."""
    (tmp_path / "crawl").mkdir()
    (tmp_path / "fragile.py").write_text(
        "from pathlib import Path\n"
        "def score(text):\n"
        f"    if not Path('{tmp_path}/mended').exists():\n"
        "        raise RuntimeError('not today')\n"
        "    return len(text) / 1000\n"
    )
    config = write_config(tmp_path)
    tree = yaml.safe_load(config.read_text())
    tree["steps"].append({"quality": {"classifier": "fragile:score"}})
    config.write_text(yaml.safe_dump(tree))
    environment = {**slurm.environment, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", "internevo", "data", "refine", str(config)]

    def run(*more: str) -> str:
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "submitted jobs" in run()
    wait_until_empty(slurm)
    assert len(list((tmp_path / "out" / "03-rules" / "counts").iterdir())) == 3
    assert not (tmp_path / "out" / "kept").exists()
    assert not (tmp_path / "out" / "report.html").exists()  # what depends on a job that failed does not run
    assert "not today" in "".join(file.read_text() for file in (tmp_path / "out/04-quality/logs/sift/logs").iterdir())
    (tmp_path / "mended").touch()
    run()
    wait_until_empty(slurm)
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    run("executor.kind=local", f"output={tmp_path / 'here'}")
    assert outcome(tmp_path / "out") == {
        **outcome(tmp_path / "here"),
        "slurm.json": (tmp_path / "out/slurm.json").read_bytes(),
    }


def wait_until_empty(slurm: Slurm, seconds: float = 240) -> None:
    """Until Slurm has nothing left to do."""
    deadline = time.monotonic() + seconds
    while queue := slurm.run("squeue", "--noheader"):
        assert time.monotonic() < deadline, queue
        time.sleep(0.5)
