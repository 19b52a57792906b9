"""One rank on the last of several GPUs, with all its threads; fails if anything was made on another GPU.

python -m tests.gpu.on_last_gpu FOLDER
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from internevo.checkpoint.writer import CheckpointWriter
from internevo.config.schema import ProfileConfig
from internevo.monitor.metrics import memory_gib
from internevo.monitor.profile import StepProfiler
from internevo.train.step import train_step
from tests.gpu.test_training import build
from tests.train.test_compile import batches


def main() -> None:
    """A few steps of each engine as a run takes them."""
    folder, count = Path(sys.argv[1]), torch.cuda.device_count()
    device = torch.device("cuda", count - 1)
    torch.cuda.set_device(device)
    for number, changes in enumerate(({}, {"state": "bf16"}, {"attention": "flex"})):
        place = folder / str(number)
        engine = build(device, **changes)
        profiler = StepProfiler(ProfileConfig(first=2, steps=1), place, 0, device)
        loader = ThreadPoolExecutor(1)
        for step, batch in enumerate(batches(place / "data", 3), start=1):
            with profiler.step(step):
                train_step(engine, loader.submit(engine.stage_batch, batch).result(), 1e-3)
        memory_gib(device)
        for asynchronous in (True, False):
            writer = CheckpointWriter(place / f"{asynchronous}", keep=1, asynchronous=asynchronous)
            writer.save(1, engine.state(), {}, permanent=False)
            writer.close()
        loader.shutdown()
    used = [number for number in range(count) if torch._C._cuda_hasPrimaryContext(number)]
    assert used == [count - 1], f"of {count} GPUs, there are contexts on {used}"


if __name__ == "__main__":
    main()
