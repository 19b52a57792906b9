"""One case of tools/bench_gpu.py in a process of its own: one system, one model, one kind of rows.

Takes the case as JSON on the command line, prints the result as JSON in its last line.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from internevo.config.presets import model_preset
from internevo.config.schema import ModelConfig, OptimizerConfig, SourceConfig, StageConfig, TrainConfig
from internevo.data.batch import Batch
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.model.attention import describe_kernel
from internevo.model.flops import training_flops
from internevo.model.initial import empty_model
from internevo.monitor.profile import breakdown
from internevo.parallel.block_settings import stage_kernel
from internevo.parallel.world import World
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.micro_batch import Staged
from internevo.train.step import train_step
from internevo.train.trainer import real_pairs

Built = tuple[Callable[[Any], float], Callable[[Batch], Any], dict[str, Any]]
"""A step (from what the loader gives to the loss), what the loader's thread makes of a batch, and facts to report."""


@dataclass
class Case:
    """What is measured, and with which settings."""

    system: str
    """`internevo`, `bare` or `transformers`."""
    preset: str
    layers: int
    seq_len: int
    rows: int
    """Rows a step."""
    documents: str
    """`full`: one document a row; `mixed`: packed, log-normal lengths around an eighth of a row, at most 700 tokens."""
    steps: int
    device: str
    settings: dict[str, Any] = field(default_factory=dict)
    profile: bool = False
    """Whether one more step is profiled: seconds by kind, and the longest kernels by name."""

    def model(self) -> ModelConfig:
        """The model's sizes."""
        return model_preset(self.preset, layers=self.layers)


def measure(case: Case, each: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Train some steps and tell how fast: medians over steps, after two that compile and warm up.

    `each` is told of every step as it ends.
    """
    device = torch.device(case.device)
    config = case.model()
    build = {"internevo": ours, "bare": bare, "transformers": theirs}[case.system]
    step, prepare, facts = build(case, config, device)
    built = settle_memory(device)
    seconds, waits, flops, full_flops, tokens, losses = [], [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder) / "store", case, config.vocab)
        source = SourceConfig(f"{folder}/store")
        loader = Loader(
            Plan.constant([source], seq_len=case.seq_len, rows=case.rows, packing="best_fit"), seed=0, prepare=prepare
        )
        with loader:
            for number in range(case.steps + 2):
                start = time.perf_counter()
                staged = loader.next()
                waits.append(time.perf_counter() - start)
                losses.append(step(staged))  # reads the loss, so that the device is done
                seconds.append(time.perf_counter() - start)
                batch: Batch = staged.batch if isinstance(staged, Staged) else staged
                real = sum(batch.real_tokens)
                tokens.append(real)
                flops.append(training_flops(config, real, real_pairs(batch)))
                full_flops.append(training_flops(config, real, real * case.seq_len))
                if each:
                    each({"step": number, "step_s": seconds[-1], "tokens": real, "loss": losses[-1], **memory(device)})
            found = memory(device)
            if case.profile:
                found |= profiled(step, loader.next(), device)
    rates = [np.array(one[2:]) / np.array(seconds[2:]) for one in (tokens, flops, full_flops)]
    return {
        **asdict(case),
        **facts,
        "tokens_per_s": float(np.median(rates[0])),
        "flops_per_s": float(np.median(rates[1])),
        "full_flops_per_s": float(np.median(rates[2])),
        "wait_share": float(np.sum(waits[2:]) / np.sum(seconds[2:])),
        "built_gib": built,
        **found,
        "step_s": seconds,
        "losses": losses,
    }


def settle_memory(device: torch.device) -> float | None:
    """Give back what only building the model took, so that the peak is that of the steps; GiB that are left."""
    gc.collect()
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**30


def memory(device: torch.device) -> dict[str, float | None]:
    """The peaks so far in GiB: of what the allocator gave out, and of what it took from the GPU."""
    if device.type != "cuda":
        return {"peak_gib": None, "reserved_gib": None}
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"peak_gib": peaks[0] / 2**30, "reserved_gib": peaks[1] / 2**30}


def profiled(step: Callable[[Any], float], staged: Any, device: torch.device) -> dict[str, Any]:
    """Where a step's time goes: seconds by kind as `monitor.profile` has it, and the 30 longest kernels by name."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        start = time.perf_counter()
        step(staged)
        wall = time.perf_counter() - start
    kinds = breakdown(profiler.events() or (), wall, device.type)
    rows = [one for one in profiler.key_averages() if not cuda or not str(one.device_type).endswith("CPU")]
    rows = [one for one in rows if not one.key.startswith(("internevo: ", "ProfilerStep", "Optimizer.", "## "))]
    times = [(one.self_device_time_total if cuda else one.self_cpu_time_total, one.count, one.key) for one in rows]
    longest = [[name[:160], count, taken / 1e3] for taken, count, name in sorted(times, reverse=True)[:30]]
    return {"profiled_s": wall, "kinds_s": kinds, "kernels": longest}


def ours(case: Case, config: ModelConfig, device: torch.device) -> Built:
    """internevo's own engine, as `internevo train` builds it."""
    chosen = dict(case.settings)
    state = chosen.pop("state", "fp32")
    tokens = case.rows * case.seq_len
    train = TrainConfig(seq_len=case.seq_len, batch_tokens=tokens, steps=1000, precision="bf16", **chosen)
    stage = StageConfig(model=config, train=train, optimizer=OptimizerConfig(state=state))
    model = empty_model(config, device)
    with torch.no_grad():  # quicker than the weights that a run begins with, which are made on the CPU
        for parameter in model.parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    engine = make_engine(stage, World.alone(device), model)
    del model
    kernel = describe_kernel(stage_kernel(stage, device), device)
    return lambda staged: train_step(engine, staged, 1e-4).loss, engine.stage_batch, {"attention": kernel}


def micro_batches(batch: Batch, rows: int, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and labels of some rows at a time."""
    pairs = zip(batch.tokens, batch.labels, strict=True)
    arrays = [torch.from_numpy(np.stack(pair)).to(device) for pair in pairs]
    return [
        (torch.stack([a[0] for a in part]), torch.stack([a[1] for a in part]))
        for part in (arrays[i : i + rows] for i in range(0, len(arrays), rows))
    ]


def bare(case: Case, config: ModelConfig, device: torch.device) -> Built:
    """The Llama in bare torch."""
    from bare_llama import Shape, Trainer

    c, chosen = config, dict(case.settings)
    rows = chosen.pop("micro_batch", 1)
    shape = Shape(
        hidden=c.hidden,
        layers=c.layers,
        heads=c.attention.heads,
        kv_heads=c.attention.kv_heads,
        ffn=c.feed_forward.width,
        vocab=c.vocab,
        rope_base=c.rope.base,
        norm_eps=c.norm_eps,
    )
    trainer = Trainer(shape, device, bf16=True, **chosen)
    return lambda batch: trainer.step(micro_batches(batch, rows, device)), lambda batch: batch, {"attention": "SDPA"}


def theirs(case: Case, config: ModelConfig, device: torch.device) -> Built:
    """transformers' Llama: flash attention where installed, else SDPA; compiled, fused AdamW, autocast over fp32."""
    from importlib.util import find_spec

    from transformers import LlamaConfig, LlamaForCausalLM

    chosen = case.settings
    attention = "flash_attention_2" if device.type == "cuda" and find_spec("flash_attn") else "sdpa"
    sizes = LlamaConfig(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.attention.heads,
        num_key_value_heads=config.attention.kv_heads,
        intermediate_size=config.feed_forward.width,
        vocab_size=config.vocab,
        max_position_embeddings=case.seq_len,
        use_cache=False,
        attn_implementation=attention,
    )
    with device:
        model = LlamaForCausalLM(sizes)
    model.train()
    if chosen.get("recompute"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if chosen.get("compiled"):
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(batch: Batch) -> float:
        total = torch.zeros((), device=device)
        micros = micro_batches(batch, chosen.get("micro_batch", 1), device)
        for tokens, labels in micros:
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(input_ids=tokens, labels=labels, shift_labels=labels).loss / len(micros)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()

    return step, lambda batch: batch, {"attention": attention}


def write_documents(prefix: Path, case: Case, vocab: int) -> None:
    """A store with documents for all steps, of random tokens."""
    rng = np.random.default_rng(0)
    wanted = (case.steps + 3) * case.rows * case.seq_len
    with TokenStoreWriter(prefix, np.int32) as writer:
        while wanted > 0:
            length = case.seq_len
            if case.documents == "mixed":
                median = min(700, case.seq_len / 8)
                length = int(np.clip(rng.lognormal(np.log(median), 1.0), 8, case.seq_len))
            writer.append(rng.integers(3, vocab, length))
            wanted -= length


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    try:
        result = measure(case)
    except torch.OutOfMemoryError as error:
        result = {**asdict(case), "out_of_memory": str(error).split(". ")[0]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
