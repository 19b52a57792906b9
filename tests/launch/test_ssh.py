"""Several machines over a real ssh: here, one machine under two names."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.cluster import SshServer
from tests.launch.test_slurm import wait_for_step
from tests.train.runs import finish, steps, write_config

pytestmark = pytest.mark.slow


def launch(server: SshServer, *arguments: str | Path) -> subprocess.Popen[str]:
    """`internevo launch` over two names of this machine, one process on each."""
    command = [sys.executable, "-m", "internevo", "launch", *map(str, arguments), "--nodes", "127.0.0.1,localhost"]
    command += ["--ssh", shlex.join(server.command)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_machines_train(ssh_server: SshServer, tmp_path: Path) -> None:
    process = launch(ssh_server, write_config(tmp_path))
    out = finish(process)
    assert process.returncode == 0, out
    assert [line["step"] for line in steps(tmp_path / "runs" / "run")] == list(range(1, 18))
    assert "[127.0.0.1] preflight: 2 ranks" in out


def test_ctrl_c_saves_on_all(ssh_server: SshServer, tmp_path: Path) -> None:
    config = write_config(tmp_path, stages=[{"name": "only", "train": {"steps": 3000}}], checkpoint={"every": 0})
    run = tmp_path / "runs" / "run"
    process = launch(ssh_server, config)
    wait_for_step(run, 5)
    process.send_signal(signal.SIGINT)
    out = finish(process)
    assert process.returncode == 130, out
    done = len(steps(run))
    assert 5 <= done < 3000
    assert (run / "checkpoints" / f"step-{done:06d}" / "manifest.json").exists()
    time.sleep(0.5)
    assert str(config) not in subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True).stdout


def test_a_failing_machine_ends_the_run(ssh_server: SshServer, tmp_path: Path) -> None:
    process = launch(ssh_server, write_config(tmp_path), "parallel.tensor=2", "train.device=cuda")
    out = finish(process)
    assert process.returncode not in (0, None), out
    assert "no GPU" in out or "CUDA" in out


def test_a_lost_connection_saves_on_all(ssh_server: SshServer, tmp_path: Path) -> None:
    """Nobody is left to ask the ranks to stop, or to show what they print."""
    config = write_config(tmp_path, stages=[{"name": "only", "train": {"steps": 3000}}], checkpoint={"every": 0})
    run = tmp_path / "runs" / "run"
    process = launch(ssh_server, config)
    wait_for_step(run, 5)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 120
    while str(config) in subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline, "the ranks go on alone"
        time.sleep(0.2)
    done = len(steps(run))
    assert 5 <= done < 3000
    saved = [path.name for path in (run / "checkpoints").iterdir()]
    assert saved == [f"step-{done:06d}"], (run / "logs" / "rank-0000.log").read_text()
