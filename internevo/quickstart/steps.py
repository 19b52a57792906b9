"""How the quickstart tells its steps, and writes its configs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import torch
from rich.console import Console


@contextmanager
def step(out: Console, title: str) -> Iterator[None]:
    """Print what is done, and after it how long it took."""
    out.print(f"[bold]{title}[/]")
    start = time.perf_counter()
    with out.status("working"):
        yield
    out.print(f"     [dim]{time.perf_counter() - start:.1f} s[/]")


def write_config(folder: Path, name: str) -> Path:
    """Write the config of this name for this folder and machine, where it is not there yet; returns its path."""
    path = folder / name
    if not path.exists():
        text = files("internevo.quickstart").joinpath(name).read_text(encoding="utf-8")
        # on CPUs without bf16 units, bf16 is several times slower than fp32
        precision = "bf16" if torch.cuda.is_available() else "fp32"
        path.write_text(text.replace("FOLDER", folder.as_posix()).replace("PRECISION", precision), encoding="utf-8")
    return path
