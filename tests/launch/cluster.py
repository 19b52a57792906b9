"""A real Slurm and a real ssh server on this machine, started without systemd."""

from __future__ import annotations

import fcntl
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

SLURM = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmctldPort={controller}
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node-%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node-%n.log
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=60
JobRequeue=1
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=4 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES State=UP MaxTime=1:00:00
"""


def why_no_slurm() -> str | None:
    """Why Slurm cannot be started here; None when it can."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons need root here"


def why_no_ssh() -> str | None:
    """Why an ssh server cannot be started here; None when it can."""
    missing = [name for name in ("sshd", "ssh", "ssh-keygen") if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install openssh-server openssh-client"
    return None if os.geteuid() == 0 else "the ssh server needs root here"


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Slurm:
    """A controller and two nodes, n1 and n2."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "state").mkdir(parents=True)
        controller, first, second = free_ports(3)
        file = folder / "slurm.conf"
        file.write_text(SLURM.format(folder=folder, controller=controller, first=first, second=second))
        self.environment = {**os.environ, "SLURM_CONF": str(file), "PATH": _path(), "COLUMNS": "200"}
        self._start_munge()
        self.processes = [self._start("slurmctld", "-D", "-c"), *(self._start("slurmd", "-D", "-N", n) for n in NODES)]
        self._wait_for_nodes()

    def _start_munge(self) -> None:
        with open("/run/internevo-munge.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # tests in other processes may be about to start it too
            if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
                return
            Path("/run/munge").mkdir(parents=True, exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "/usr/sbin/munged --force"], check=True)

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _wait_for_nodes(self) -> None:
        deadline = time.monotonic() + 60
        while self.run("sinfo", "--noheader", "--Node", "--format=%T").split() != ["idle", "idle"]:
            if time.monotonic() > deadline:
                logs = "\n".join(file.read_text()[-2000:] for file in self.folder.glob("*.log"))
                raise AssertionError(f"Slurm's nodes do not come up:\n{self.run('sinfo')}\n{logs}")
            time.sleep(0.5)

    def run(self, *command: str) -> str:
        """One of Slurm's commands; its output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.run("scancel", "--user", getpass.getuser())
        for process in self.processes[::-1]:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


NODES = ("n1", "n2")


class SshServer:
    """An ssh server for this user with a key of its own. `command` is the ssh that reaches it under any name."""

    def __init__(self, folder: Path):
        port = free_ports(1)[0]
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        Path("/run/sshd").mkdir(exist_ok=True)
        options = {
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "authorized",
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
        }
        flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        sshd = shutil.which("sshd", path=_path())
        assert sshd is not None
        self.process = subprocess.Popen([sshd, "-D", "-e", "-f", "/dev/null", *flags], stderr=subprocess.DEVNULL)
        quiet = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        self.command = ["ssh", "-p", str(port), "-i", str(folder / "user"), *quiet]
        deadline = time.monotonic() + 20
        while subprocess.run([*self.command, "127.0.0.1", "true"], capture_output=True).returncode:
            assert time.monotonic() < deadline, "the ssh server does not answer"
            time.sleep(0.2)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)
