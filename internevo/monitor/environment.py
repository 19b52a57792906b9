"""What a run ran on: hardware, software, code version and command line."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internevo.files.durable import write_durable
from internevo.files.json_files import read_mapping
from internevo.version import VERSION

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "numpy transformers safetensors sentencepiece tokenizers omegaconf triton flash-attn torchao liger-kernel deepspeed"
)
DRIVER_VERSION = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def capture(device: torch.device, command: Sequence[str], processes: int = 1) -> dict[str, Any]:
    """The facts about this process, as plain values. What cannot be found out is null."""
    import torch  # here, so that who asks for the version alone does not load it

    cuda = device.type == "cuda"
    return {
        "internevo": VERSION,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_modified": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the build, which the package's metadata may leave out
        **{name: package_version(name) for name in _PACKAGES.split()},
        "platform": platform.platform(),
        "hostname": platform.node(),
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "device_type": device.type,
        "gpu_count": torch.cuda.device_count(),
        "driver": output(*DRIVER_VERSION) if cuda else None,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "processes": processes,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": list(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def code_version() -> str:
    """The version of this code in words, with its commit where it is a checkout."""
    commit, modified = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain")
    words = [f"internevo {VERSION}", f"commit {commit}" if commit else "", "modified" if modified else ""]
    return ", ".join(filter(None, words))


def write_environment(path: Path, facts: dict[str, Any]) -> None:
    """Write the facts; those of earlier starts of the run stay in the list `earlier`."""
    if path.exists():
        before = dict(read_mapping(path))
        if not before:
            path.rename(path.with_name(f"{path.stem}.damaged.json"))
        earlier = before.pop("earlier", [])
        facts = {**facts, "earlier": [*(earlier if isinstance(earlier, list) else []), *([before] if before else [])]}
    write_durable(path, json.dumps(facts, indent=1) + "\n")


def package_version(name: str) -> str | None:
    """The version of an installed package; None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git prints about the package's checkout; None when it is not one."""
    root = Path(__file__).parents[2]
    return output("git", "-C", str(root), *arguments) if (root / ".git").exists() else None


def output(*command: str) -> str | None:
    """What a command prints; None where there is no such command, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    said = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(encoding="utf-8"), re.M) if cpuinfo.exists() else None
    return said[1] if said else platform.processor() or platform.machine()
