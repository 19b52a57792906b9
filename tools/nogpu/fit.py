"""Whether every shipped config fits the GPUs that it names, stage by stage: the peaks of torch's real allocator.

tools/nogpu/run python -m tools.nogpu.fit --out docs/benchmarks/fit-nogpu.json
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from internevo.config.load import load_config
from tools.nogpu.simulate import simulate

ROOT = Path(__file__).parents[2]

USABLE = {"40 GB": 37.5, "80 GB": 77.0, "141 GB": 137.0}
"""GiB that torch's allocator can have of a GPU: without what the driver takes for itself, and NCCL for its buffers."""


@dataclass(frozen=True)
class Hardware:
    """GPUs that a config names in its first lines; the smallest configs run on any."""

    gpus: int
    memory: str

    def __str__(self) -> str:
        return f"{self.gpus} GPUs of {self.memory}" if self.gpus > 1 else f"one GPU of {self.memory}"


HARDWARE = {
    "extend-tiny": Hardware(1, "40 GB"),
    "internlm2-1.8b": Hardware(8, "40 GB"),
    "internlm2-20b": Hardware(64, "80 GB"),
    "internlm2-7b": Hardware(8, "80 GB"),
    "internlm2-7b-one-gpu": Hardware(1, "141 GB"),
    "internlm2-7b-sft": Hardware(8, "80 GB"),
    "llama3-8b": Hardware(8, "80 GB"),
    "llama3-8b-sft": Hardware(8, "80 GB"),
    "tiny": Hardware(1, "40 GB"),
}


@dataclass(frozen=True)
class Case:
    """A stage of a config on some hardware, with what a person would change on the command line."""

    config: str
    stage: str
    hardware: Hardware
    overrides: tuple[str, ...] = ()

    def run(self) -> dict[str, Any]:
        """A step on the driver; the peaks, or what went wrong."""
        hardware = self.hardware
        found = simulate(
            self.path, self.stage, self.overrides, world=hardware.gpus, gib=USABLE[hardware.memory], timeout=1200
        )
        return {**asdict(self), **{key: found[key] for key in found if key not in asdict(self)}}

    @property
    def path(self) -> Path:
        """The config's file."""
        return ROOT / "configs" / f"{self.config}.yaml"

    @property
    def key(self) -> str:
        """All that the memory depends on: stages that agree in it need only one run."""
        config = load_config(self.path, self.overrides, check_data=False)
        (stage,) = (one for one in config.stages if one.name == self.stage)
        stage.train.tokens = stage.train.steps = None
        parts = {"model": stage.model, "train": stage.train, "parallel": stage.parallel}
        sections = {name: asdict(part) for name, part in parts.items()}
        return json.dumps([sections, stage.optimizer.state, asdict(self.hardware)])


def shipped() -> list[Case]:
    """Every stage of every config."""
    return [
        Case(name, stage.name, hardware)
        for name, hardware in HARDWARE.items()
        for stage in load_config(ROOT / "configs" / f"{name}.yaml", check_data=False).stages
    ]


RECIPES = [
    # docs/recipes/7b-on-8-gpus.md
    Case("internlm2-7b", "base-4k", Hardware(8, "40 GB"), ("parallel.zero.stage=3", "train.recompute=full")),
    Case("internlm2-7b", "long-32k", Hardware(8, "40 GB"), ("parallel.zero.stage=3", "train.recompute=full")),
    # docs/recipes/7b-on-128-gpus.md
    Case("internlm2-7b", "base-4k", Hardware(128, "80 GB")),
]
"""What the recipes say beside them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the raw numbers here as JSON")
    args = parser.parse_args()
    cases = list({case.key: case for case in [*RECIPES, *reversed(shipped())]}.values())[::-1]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(Case.run, cases))
    print(f"{'config':22}{'stage':12}{'GPUs':>6}{'memory':>8}{'build':>8}{'peak':>8}{'reserved':>10}  changed")
    for one in results:
        hardware = one["hardware"]
        head = f"{one['config']:22}{one['stage']:12}{hardware['gpus']:6}{hardware['memory']:>8}"
        if "peak" in one:
            sizes = f"{one['build_peak']:8.1f}{one['peak']:8.1f}{one['reserved']:10.1f}"
            print(f"{head}{sizes}  {' '.join(one['overrides'])}")
        else:
            print(f"{head}  {one.get('out_of_memory') or one['failed'].strip().splitlines()[-1]}")
    if args.out:
        facts = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "usable_gib": USABLE}
        args.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
