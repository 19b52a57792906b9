"""A cluster for tests that want one; they are skipped by name where it cannot be had."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.cluster import Slurm, SshServer, why_no_slurm, why_no_ssh


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Slurm with two nodes on this machine."""
    if reason := why_no_slurm():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # sockets want short paths
    cluster = Slurm(folder)
    yield cluster
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """An ssh server on this machine."""
    if reason := why_no_ssh():
        pytest.skip(reason)
    server = SshServer(tmp_path_factory.mktemp("ssh"))
    yield server
    server.stop()
