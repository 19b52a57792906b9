"""How fast, and in how much memory, a large model comes from and goes to the Hugging Face format.

Writes a folder of random weights shard by shard, imports it and exports it again, each in a process of its own whose
peak of memory (`VmHWM`, file pages included) is read; beside each, the time that copying the same bytes takes. The
exported tensors are compared with the first ones byte by byte.

    python tools/bench_convert.py --preset internlm2-7b --family internlm2 --out docs/benchmarks/convert-cpu.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from internevo.config.presets import PRESETS, model_preset
from internevo.hf.config_json import write_facts
from internevo.hf.families import FAMILIES
from internevo.hf.files import Entry, TensorFiles, shard_name, shards, write_index, write_safetensors
from internevo.model.transformer import Transformer
from internevo.monitor.environment import code_version


def write_random(folder: Path, preset: str, family: str, shard_bytes: int) -> int:
    """A model of random bf16 weights in the family's own format; its bytes."""
    config = model_preset(preset)
    folder.mkdir(parents=True)
    with torch.device("meta"):
        empty = Transformer(config).state_dict()
    entries = []
    for number, (row, ours, theirs) in enumerate(FAMILIES[family].tensors(config)):
        shape = tuple(row.layout.pack([empty[name] for name in ours], config).shape)

        def make(shape: tuple[int, ...] = shape, number: int = number) -> torch.Tensor:
            generator = torch.Generator().manual_seed(number)
            values = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
            return values if len(shape) > 1 else values + 1

        entries.append(Entry(theirs, shape, torch.bfloat16, make))
    groups = shards(entries, shard_bytes)
    for number, group in enumerate(groups, 1):
        write_safetensors(folder / shard_name(number, len(groups)), group)
    write_index(folder, groups)
    facts = write_facts(family, config, seq_len=4096, dtype="bfloat16", bos_id=1, eos_id=2)
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    return sum(entry.nbytes for entry in entries)


def measured(*arguments: str | Path) -> dict[str, float]:
    """Run the `internevo` command; its seconds, those spent on weights alone, and its peak memory in GB."""
    start = time.perf_counter()
    code = (
        "import sys, internevo.cli as cli\n"
        "try:\n    cli.main()\n"
        "finally:\n"
        "    peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "    print('PEAK', peak.split()[1], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    print(done.stdout)
    peak = int(done.stderr.split("PEAK ")[1].split()[0])
    moved = re.search(r"(?:copied|written) in ([\d.]+) s", done.stdout)
    assert moved is not None
    return {
        "seconds": time.perf_counter() - start,
        "seconds_moving_weights": float(moved[1]),
        "peak_gb": peak * 1024 / 1e9,
    }


def copied(source: Path, target: Path) -> float:
    """Seconds that copying the files takes, flushed to the disk."""
    start = time.perf_counter()
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as old, copy.open("wb") as new:
                shutil.copyfileobj(old, new, 16 << 20)
                new.flush()
                os.fsync(new.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def digests(folder: Path) -> dict[str, str]:
    """A hash of every tensor's bytes."""
    files = TensorFiles(folder)
    hashes = {}
    for name in files.where:
        tensor = files.read(name).contiguous().view(-1).view(torch.uint8)
        hashes[name] = hashlib.sha256(tensor.numpy().data).hexdigest()
    return hashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="internlm2-7b", choices=PRESETS)
    parser.add_argument("--family", default="internlm2", choices=FAMILIES)
    parser.add_argument("--shard-gb", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder when absent")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        size = write_random(folder / "hf", asked.preset, asked.family, int(asked.shard_gb * 1e9))
        os.sync()
        result: dict[str, Any] = {
            "command": " ".join(["python", *sys.argv]),
            "code": code_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cpu_count": os.cpu_count(),
            "preset": asked.preset,
            "family": asked.family,
            "workers": asked.workers,
            "gigabytes": size / 1e9,
            "largest_shard_gib": max(f.stat().st_size for f in (folder / "hf").glob("*.safetensors")) / 2**30,
        }
        result["copy_seconds"] = [copied(folder / "hf", folder / "copy")]
        workers = ("--workers", str(asked.workers))
        result["import"] = measured("import", folder / "hf", folder / "imported", *workers)
        before = digests(folder / "hf")
        shutil.rmtree(folder / "hf")
        result["copy_seconds"].append(copied(folder / "imported", folder / "copy"))
        result["export"] = measured("export", folder / "imported", folder / "out", *workers)
        result["same_bytes"] = digests(folder / "out") == before
    print(json.dumps(result, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
