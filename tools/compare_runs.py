"""Whether a change of the code changed a user's numbers: record the same jobs before and after it, and compare.

    python tools/compare_runs.py record build/before.json
    python tools/compare_runs.py record build/after.json
    python tools/compare_runs.py compare build/before.json build/after.json

Recorded are, of the quickstart, of each optimizer, of a run that is stopped and resumed, and of eight layouts: each
step's digest, loss and gradient norm; of exports, and of exports of what was imported, every tensor. All jobs go
through the command line, each in a process of its own. Jobs of one process must agree to the bit. Those of several must
agree in digests, and in numbers to 1e-4 of their size: their sums may be taken in another order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TIMEOUT_S = 3600
TOLERANCE = 1e-4
STEPS = 6
KEYS = ("step", "digest", "loss", "grad_norm", "lr", "tokens", "skipped")

Record = dict[str, Any]


def run_config(name: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """A small run on the quickstart's tokens, with some keys changed; JSON is YAML."""
    tree: dict[str, Any] = {
        "name": name,
        "model": {
            "hidden": 64,
            "layers": 4,
            "vocab": 2048,
            "attention": {"heads": 4, "kv_heads": 2},
            "feed_forward": {"width": 160},
        },
        "optimizer": {"lr": 3e-3},
        "schedule": {"warmup": 2},
        "train": {
            "seq_len": 128,
            "batch_tokens": 1024,
            "steps": STEPS,
            "precision": "fp32",
            "device": "cpu",
            "seed": 7,
        },
        "data": {"sources": [{"path": "quickstart/tokens/code"}, {"path": "quickstart/tokens/prose", "weight": 2}]},
    }
    tree["data"] |= {"eval_tokens": 0}
    for key, values in changes.items():
        tree[key] = {**tree.get(key, {}), **values}
    return tree


ONE_PROCESS = {
    "adamw": {},
    "bf16": {"train": {"precision": "bf16"}},
    "split state": {"optimizer": {"state": "split"}, "train": {"precision": "bf16"}},
    "bf16 state": {"optimizer": {"state": "bf16"}, "train": {"precision": "bf16"}},
    "muon": {"optimizer": {"name": "muon"}},
    "width": {"model": {"width_base": 32}},
    "parts of the model": {
        "model": {"tied": True, "attention": {"heads": 4, "kv_heads": 2, "bias": True, "qk_norm": True}}
    },
    "micro-batches, recomputed": {"train": {"micro_batch": 2, "recompute": "selective"}},
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor 2": (2, {"tensor": 2}),
    "zero 3": (2, {"zero": {"stage": 3}}),
    "1f1b": (2, {"pipeline": {"size": 2}}),
    "interleaved": (2, {"pipeline": {"size": 2, "schedule": "interleaved"}}),
    "zbv": (2, {"pipeline": {"size": 2, "schedule": "zbv"}}),
    "ring 2": (2, {"context": {"size": 2, "ulysses": 1}}),
    "ulysses 2": (2, {"context": {"size": 2, "ulysses": 2}}),
    "tensor 2, zero 3": (4, {"tensor": 2, "zero": {"stage": 3}}),
}


def command(folder: Path, *arguments: str) -> None:
    """Run a verb in the folder; its output is shown when it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "internevo", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        raise SystemExit(f"internevo {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-4000:]}")


def steps_of(run: Path) -> list[Record]:
    """What each step of a run did."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: line.get(key) for key in KEYS} for line in map(json.loads, lines)]


def tensors_of(folder: Path) -> dict[str, str]:
    """A hash of the content of each tensor below a folder of safetensors files, by its name."""
    from safetensors import safe_open

    hashes = {}
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, it is no mapping
                value = opened.get_tensor(name).contiguous().flatten()
                content = value.view(dtype=_bytes()).numpy().tobytes() if value.numel() else b""
                hashes[name] = hashlib.blake2b(content, digest_size=8).hexdigest()
    return hashes


def _bytes() -> Any:
    import torch

    return torch.uint8


def trained(folder: Path, tree: dict[str, Any], processes: int = 1, until: tuple[int, ...] = ()) -> Record:
    """The record of a run, stopped after each step of `until` and resumed."""
    config = folder / f"{tree['name']}.yaml"
    config.write_text(json.dumps(tree), encoding="utf-8")
    verb = ["train", config.name] if processes == 1 else ["launch", config.name, "--nproc", str(processes)]
    for stop in until:
        command(folder, *verb, "--until", str(stop))
    command(folder, *verb)
    run = folder / "runs" / tree["name"]
    return {"exact": processes == 1, "steps": steps_of(run)}


def record(folder: Path) -> Iterator[tuple[str, Record]]:
    """Every job's name and record, one after the other."""
    command(folder, "quickstart")
    quick = folder / "quickstart" / "runs" / "quickstart"
    yield (
        "quickstart",
        {"exact": True, "steps": steps_of(quick), "tensors": tensors_of(folder / "quickstart" / "export")},
    )
    for number, (name, changes) in enumerate(ONE_PROCESS.items()):
        yield name, trained(folder, run_config(f"one-{number}", **changes))
    yield "resumed", trained(folder, run_config("resumed"), until=(2, 4))
    for format in ("llama", "internlm2"):
        command(folder, "export", "runs/one-0", f"{format}-export", "--format", format, "--dtype", "fp32")
        command(folder, "import", f"{format}-export", f"{format}-import")
        command(folder, "export", f"{format}-import", f"{format}-again", "--format", format, "--dtype", "fp32")
        for made in ("export", "again"):
            yield f"{format} {made}", {"exact": True, "steps": [], "tensors": tensors_of(folder / f"{format}-{made}")}
    for number, (name, (processes, layout)) in enumerate(LAYOUTS.items()):
        yield name, trained(folder, run_config(f"layout-{number}", parallel=layout), processes)


def differences(name: str, before: Record, after: Record) -> list[str]:
    """What is not as it was, a line each."""
    told = []
    if len(before["steps"]) != len(after["steps"]):
        return [f"{name}: {len(before['steps'])} steps before, {len(after['steps'])} after"]
    for old, new in zip(before["steps"], after["steps"], strict=True):
        told += [
            f"{name}, step {old['step']}: {key} was {old[key]}, is {new[key]}"
            for key in KEYS
            if not same(old[key], new[key], before["exact"])
        ]
    old, new = before.get("tensors", {}), after.get("tensors", {})
    told += [
        f"{name}: {tensor} differs" for tensor in sorted(old.keys() | new.keys()) if old.get(tensor) != new.get(tensor)
    ]
    return told


def same(old: Any, new: Any, exact: bool) -> bool:
    """Whether two values agree; numbers of several processes may differ by rounding."""
    if exact or not isinstance(old, float) or not isinstance(new, float):
        return bool(old == new)
    return math.isclose(old, new, rel_tol=TOLERANCE)


def compare(before: dict[str, Record], after: dict[str, Record]) -> list[str]:
    """All differences between two records."""
    told = [f"{name}: missing in one of the two" for name in sorted(before.keys() ^ after.keys())]
    for name in before:
        if name in after:
            told += differences(name, before[name], after[name])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("record").add_argument("out", type=Path)
    both = verbs.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.verb == "record":
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, one in record(Path(folder)):
                found[name] = one
                print(f"{name}: {len(one['steps'])} steps, {len(one.get('tensors', ()))} tensors", flush=True)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (asked.before, asked.after)]
    if told := compare(*records):
        raise SystemExit("\n".join(told))
    print(f"{len(records[0])} jobs agree")


if __name__ == "__main__":
    main()
