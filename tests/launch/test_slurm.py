"""A real Slurm: two tasks train, a cancelled job goes on when it is requeued, a failing one says why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from internevo.launch.slurm import SlurmJob, command, render
from internevo.monitor.metrics import read_metrics
from tests.launch.cluster import Slurm
from tests.train.runs import steps, write_config

pytestmark = pytest.mark.slow


def launch(slurm: Slurm, *arguments: str | Path) -> subprocess.Popen[str]:
    """`internevo launch --slurm`, on two nodes of one process each."""
    asked = [sys.executable, "-m", "internevo", "launch", *map(str, arguments)]
    asked += ["--slurm", "--nodes", "2", "--nproc", "1", "--no-gpus", "--cpus", "1"]
    return subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=slurm.environment)


def wait_for(slurm: Slurm, job: str, *states: str, seconds: float = 180) -> None:
    """Until the job is in one of these states."""
    deadline = time.monotonic() + seconds
    while not any(f"JobState={state}" in (seen := slurm.run("scontrol", "show", "job", job)) for state in states):
        assert time.monotonic() < deadline, f"job {job} does not become {states}:\n{seen}"
        time.sleep(0.3)


def wait_for_step(run: Path, step: int, seconds: float = 180) -> None:
    """Until the run has done this step."""
    deadline = time.monotonic() + seconds
    while not any(line["step"] >= step for line in read_metrics(run / "metrics.jsonl")):
        assert time.monotonic() < deadline, f"{run} does not come to step {step}"
        time.sleep(0.1)


def only_job(output: str) -> str:
    """The number of the job that the command submitted."""
    found = re.search(r"submitted job (\d+)", output)
    assert found, output
    return found[1]


def test_two_tasks_train(slurm: Slurm, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    process = launch(slurm, config, "--evaluate-beside")
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    job, run = only_job(out), tmp_path / "runs" / "run"
    assert [line["step"] for line in steps(run)] == list(range(1, 18))
    assert re.search(r"n1 .*│ 1 .*\n.*n2 .*│ 1 ", out), out  # the preflight's table
    assert "enhance" in out  # the log was followed to its end
    record = (run / "slurm" / f"{job}.environment.txt").read_text()
    assert f"JobId={job}" in record
    assert "SLURM_JOB_ID=" in record
    beside = re.search(r"submitted job (\d+), which evaluates every checkpoint", out)
    assert beside, out
    wait_for(slurm, beside[1], "COMPLETED")
    watched = [line["step"] for line in read_metrics(run / "eval" / "watched.jsonl")]
    assert {8, 13, 17} <= set(watched)  # what the stages ended with; others may be gone before they are looked at
    assert (run / "slurm" / "job.sbatch").read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize("how", ["signalled before the limit", "cancelled and requeued by hand"])
def test_a_cancelled_job_goes_on(how: str, slurm: Slurm, tmp_path: Path) -> None:
    """It saves and leaves; when it runs again, it resumes where it was, and ends as an unbroken run does."""
    config = write_config(tmp_path, stages=[{"name": "only", "train": {"steps": 150}}], checkpoint={"every": 0})
    run = tmp_path / "runs" / "run"
    process = launch(slurm, config, "--detach")
    job = only_job(process.communicate(timeout=60)[0])
    wait_for_step(run, 20)
    if how == "signalled before the limit":
        slurm.run("scancel", "--signal=TERM", "--batch", job)  # what Slurm itself sends by --signal=B:TERM
    else:
        slurm.run("scancel", job)
        wait_for(slurm, job, "CANCELLED", "COMPLETING")
        slurm.run("scontrol", "requeue", job)
    log = run / "slurm" / f"{job}.log"
    wait_for(slurm, job, "PENDING")
    # Slurm lets a requeued job rest two minutes: a node refuses one that comes back in the second in which it left
    time.sleep(3)
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(slurm, job, "COMPLETED")
    assert "SIGTERM: finishing this step, then saving" in log.read_text()
    saved = int(re.search(r"resuming after step (\d+)", log.read_text())[1])
    assert saved >= 20
    assert [line["step"] for line in steps(run)] == list(range(1, 151))
    assert not (run / "metrics.replaced.jsonl").exists()  # no step was trained twice


def test_a_failing_job_says_why(slurm: Slurm, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    rates = ("optimizer.lr=1000", "stages.enhance.optimizer.lr=1000")
    process = launch(slurm, config, "train.max_skipped=1", "optimizer.weight_decay=1", *rates)
    out = process.communicate(timeout=300)[0]
    assert process.returncode in (2, 143), out  # srun gives the highest of its tasks'
    assert re.search(r"job \d+ ended as FAILED \(exit code", out)
    assert "Restarts=0" in slurm.run("scontrol", "show", "job", only_job(out))  # a failing job is not tried again
    told = out[out.index("ended as FAILED") :]
    assert "error: " in told
    assert "has not been finite" in told


def test_slurm_refuses_by_name(slurm: Slurm, tmp_path: Path) -> None:
    process = launch(slurm, write_config(tmp_path), "--partition", "nowhere")
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "sbatch refused" in out
    assert "invalid partition specified: nowhere" in out


def test_the_template_is_what_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """launch/slurm.sbatch, for people who write their own, is an example of the same file."""
    root = Path(__file__).parents[2]
    monkeypatch.setattr(Path, "cwd", lambda: Path("/home/me/internevo"))
    job = SlurmJob("internlm2-7b", nodes=16, processes=8, partition="gpu", time="24:00:00", cpus=12)
    ranks = [".venv/bin/python", "-m", "internevo", "train", "configs/internlm2-7b.yaml"]
    expected = render(job, ranks, Path("runs/internlm2-7b/slurm"))
    assert (root / "launch" / "slurm.sbatch").read_text() == expected


def test_a_rank_has_its_cores_and_a_port_that_no_connection_takes(slurm: Slurm, tmp_path: Path) -> None:
    show = 'echo "port $MASTER_PORT, srun $SRUN_CPUS_PER_TASK"; scontrol show step "$SLURM_JOB_ID.$SLURM_STEP_ID"'
    text = render(SlurmJob("a", 1, 1, gpus=False, cpus=3), ["sh", "-c", show], tmp_path)
    (tmp_path / "job").write_text(text)
    job = slurm.run("sbatch", "--parsable", str(tmp_path / "job")).strip()
    wait_for(slurm, job, "COMPLETED")
    log = (tmp_path / f"{job}.log").read_text()
    assert "CPUs=3 " in log, log  # srun before 22.05 takes the job's number by itself; later ones read the variable
    port, cores = map(int, re.search(r"port (\d+), srun (\d+)", log).groups())
    assert cores == 3
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()[0])
    assert 20_000 <= port < 30_000 <= lowest
    # numbers of jobs grow; ports stay in the range
    (line,) = [line for line in text.splitlines() if line.startswith("MASTER_PORT=")]
    for number in (1, 9_999, 10_000, 67_108_863):
        said = subprocess.run(
            ["bash", "-c", f"{line}; echo $MASTER_PORT"],
            env={**os.environ, "SLURM_JOB_ID": str(number)},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert 20_000 <= int(said.stdout) < 30_000


def test_each_start_of_a_job_keeps_its_record(slurm: Slurm, tmp_path: Path) -> None:
    text = render(SlurmJob("a", 1, 1, gpus=False), ["sh", "-c", "exit 0"], tmp_path)
    (tmp_path / "job").write_text(text)
    job = slurm.run("sbatch", "--parsable", str(tmp_path / "job")).strip()
    wait_for(slurm, job, "COMPLETED")
    first = (tmp_path / f"{job}.environment.txt").read_bytes()
    slurm.run("scontrol", "requeue", job)
    time.sleep(3)  # see above
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(slurm, job, "COMPLETED")
    assert (tmp_path / f"{job}.environment.txt").read_bytes() == first
    again = (tmp_path / f"{job}.restart-1.environment.txt").read_text()
    assert "Restarts=1" in again


def test_containers_and_further_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = SlurmJob(
        "a", 2, 8, image="nvcr.io/nvidia/pytorch:26.01-py3", mounts="/data:/data", more=("constraint=h100", "exclusive")
    )
    ranks = command(["train", "a b.yaml"], job)
    text = render(job, ranks, tmp_path)
    assert "#SBATCH --constraint=h100\n#SBATCH --exclusive\n" in text
    container = f"--container-mounts=/data:/data,{tmp_path}:{tmp_path} --container-workdir={tmp_path} "
    assert f"--container-image=nvcr.io/nvidia/pytorch:26.01-py3 {container}" in text
    assert "'a b.yaml'" in text
    assert "#SBATCH --gpus-per-node=8\n" in text
    (tmp_path / "job").write_text(text)
    assert subprocess.run(["bash", "-n", tmp_path / "job"], env=os.environ).returncode == 0


def test_a_container_has_a_python_and_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's Python is not in the image; the current folder is mounted, unless the user's mounts have it."""
    monkeypatch.chdir(tmp_path)
    plain = SlurmJob("a", 1, 1)
    assert command(["train"], plain)[0] == sys.executable
    assert command(["train"], replace(plain, image="i"))[0] == "python3"
    assert command(["train"], replace(plain, image="i", python="/opt/venv/bin/python"))[0] == "/opt/venv/bin/python"
    here = f"--container-mounts={tmp_path}:{tmp_path} --container-workdir={tmp_path} "
    assert here in render(replace(plain, image="i"), ["true"], tmp_path)
    for mount in (f"/scratch:{tmp_path}", f"{tmp_path.parent}:{tmp_path.parent}:rw", str(tmp_path)):
        text = render(replace(plain, image="i", mounts=mount), ["true"], tmp_path)
        assert f"--container-mounts={mount} --container-workdir={tmp_path} " in text
