"""Training speed of one process beside transformers, in one run: the same model, data and optimizer, alternating.

    python tools/bench_step.py --out docs/benchmarks/step-cpu.json

Two kinds of data, each in fp32 and in bf16 (fp32 weights, bf16 compute on both sides):

- *full*: rows that one document fills. Nothing is padded on either side.
- *mixed*: documents of mixed length (log-normal, median 250, cut at the row). Here the loader packs them into rows by
  best fit, as in any run; transformers gets the documents of the same step, shuffled, in batches of one row's worth,
  each padded to its longest.

The figure is real tokens per second, padding not counted, and its ratio; a step is everything from a batch on the host
to updated weights. The machine's noise hits neighbours in time alike, so the ratio is the median over pairs, which
take turns in who goes first. On a CPU the ratio of processor time, which other programs on the machine hardly
disturb, is printed too. `LlamaForCausalLM` uses its sdpa attention and a fused `torch.optim.AdamW`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from internevo.config.presets import model_preset
from internevo.config.schema import ModelConfig, SourceConfig, StageConfig, TrainConfig
from internevo.data.batch import IGNORE, Batch
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.model.initial import init_weights
from internevo.model.transformer import Transformer
from internevo.parallel.world import World
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.step import train_step

PAD = 0


Documents = list[np.ndarray]
Side = Callable[[Batch, Documents], None]


@dataclass
class Case:
    """One comparison and what was measured for it, step by step."""

    data: str
    precision: str
    real_tokens: list[int] = field(default_factory=list)
    padding: list[float] = field(default_factory=list)
    """Share of our rows that is padding."""
    ours: list[tuple[float, float]] = field(default_factory=list)
    """(wall, processor) seconds."""
    theirs: list[tuple[float, float]] = field(default_factory=list)

    def summary(self) -> dict:
        """Medians, and everything that they are medians of."""

        def rate(side: list[tuple[float, float]]) -> float:
            return statistics.median(n / wall for n, (wall, _) in zip(self.real_tokens, side, strict=True))

        pairs = list(zip(self.ours, self.theirs, strict=True))
        ratios, cpu_ratios = ([theirs[i] / ours[i] for ours, theirs in pairs] for i in (0, 1))
        return {
            "data": self.data,
            "precision": self.precision,
            "internevo_tokens_per_s": rate(self.ours),
            "transformers_tokens_per_s": rate(self.theirs),
            "ratio": statistics.median(ratios),
            "processor_time_ratio": statistics.median(cpu_ratios),
            "ratios": ratios,
            "processor_time_ratios": cpu_ratios,
            "real_tokens": self.real_tokens,
            "padding_of_packed_rows": self.padding,
            "internevo_step_s": self.ours,
            "transformers_step_s": self.theirs,
        }


def llama(config: ModelConfig) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.hidden,
            intermediate_size=config.feed_forward.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.attention.heads,
            num_key_value_heads=config.attention.kv_heads,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )


def write_documents(prefix: Path, kind: str, tokens: int, seq_len: int, vocab: int) -> None:
    """A token store of random documents, `tokens` tokens or a little more."""
    rng = np.random.default_rng(0)
    with TokenStoreWriter(prefix, np.uint16) as writer:
        while tokens > 0:
            length = seq_len if kind == "full" else int(np.clip(rng.lognormal(np.log(250), 0.9), 16, seq_len))
            writer.append(rng.integers(1, vocab, length))
            tokens -= length


def documents_of(batch: Batch, rng: np.random.Generator) -> Documents:
    """The documents of a packed batch, in random order; none is longer than a row, so none was cut."""
    documents = []
    for row, lengths, real in zip(batch.tokens, batch.lengths, batch.real_tokens, strict=True):
        ends = np.cumsum(lengths)
        documents += [row[end - length : end] for end, length in zip(ends, lengths, strict=True) if end <= real]
    return [documents[number] for number in rng.permutation(len(documents))]


def ours(config: ModelConfig, precision: str, device: torch.device) -> Side:
    model = Transformer(config).to(device)
    init_weights(model, 0)
    stage = StageConfig(model=config, train=TrainConfig(precision=precision))
    engine = make_engine(stage, World.alone(device), model)

    def step(batch: Batch, _: Documents) -> None:
        train_step(engine, engine.stage_batch(batch), lr=3e-4)

    return step


def theirs(config: ModelConfig, precision: str, seq_len: int, device: torch.device) -> Side:
    model = llama(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    cast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    def step(_: Batch, docs: Documents) -> None:
        labels_total = sum(len(doc) - 1 for doc in docs)
        # documents of about one row, so that both sides run micro-batches of like size
        group = max(1, round(seq_len / np.mean([len(doc) for doc in docs])))
        for start in range(0, len(docs), group):
            part = docs[start : start + group]
            width = max(map(len, part))
            tokens = torch.full((len(part), width), PAD)
            labels = torch.full((len(part), width), IGNORE)
            for row, doc in enumerate(part):
                tokens[row, : len(doc)] = labels[row, : len(doc)] = torch.from_numpy(doc)
            mask = (labels != IGNORE).long()
            padded = None if bool(mask.all()) else mask.to(device)
            with cast:
                out = model(
                    input_ids=tokens.to(device),
                    attention_mask=padded,
                    labels=labels.to(device),
                    num_items_in_batch=labels_total,
                )
            out.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(side: Side, batch: Batch, documents: Documents, device: torch.device) -> tuple[float, float]:
    """Wall and processor seconds of one step."""
    wall, processor = time.perf_counter(), time.process_time()
    side(batch, documents)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(kind: str, precision: str, args: argparse.Namespace, device: torch.device) -> Case:
    """Alternate steps of both sides on the same documents; the first pair warms up."""
    config, rng, case = model_preset("tiny-25m"), np.random.default_rng(0), Case(kind, precision)
    sides = {"ours": ours(config, precision, device), "theirs": theirs(config, precision, args.seq_len, device)}
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder) / "store", kind, 100 * args.rows * args.seq_len, args.seq_len, config.vocab)
        source = SourceConfig(f"{folder}/store")
        with Loader(
            Plan.constant([source], seq_len=args.seq_len, rows=args.rows, packing="best_fit"), seed=0
        ) as loader:
            for repeat in range(args.repeats + 1):
                batch = loader.next()
                documents = documents_of(batch, rng)
                case.real_tokens.append(sum(batch.real_tokens))
                case.padding.append(1 - case.real_tokens[-1] / batch.tokens.size)
                for name in ("ours", "theirs")[:: 1 if repeat % 2 else -1]:
                    getattr(case, name).append(timed(sides[name], batch, documents, device))
    for values in (case.real_tokens, case.padding, case.ours, case.theirs):
        values.pop(0)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=8, help="rows a step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", choices=["fp32", "bf16"], action="append")
    parser.add_argument("--out", type=Path, help="write the raw numbers here as JSON")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    print(f"{'data':8}{'precision':11}{'internevo tok/s':>17}{'transformers tok/s':>20}{'ratio':>8}{'of cpu time':>13}")
    for precision in args.precision or ["fp32", "bf16"]:
        for kind in ("full", "mixed"):
            result = measure(kind, precision, args, device).summary()
            results.append(result)
            print(
                f"{kind:8}{precision:11}{result['internevo_tokens_per_s']:17,.0f}"
                f"{result['transformers_tokens_per_s']:20,.0f}{result['ratio']:8.2f}"
                f"{result['processor_time_ratio']:13.2f}",
                flush=True,
            )
    if args.out:
        hardware = torch.cuda.get_device_name() if device.type == "cuda" else processor()
        software = {"python": platform.python_version(), "torch": torch.__version__}
        facts = {"hardware": hardware, "threads": torch.get_num_threads(), **software}
        facts["transformers"] = transformers.__version__
        arguments = {key: str(value) for key, value in vars(args).items()}
        args.out.write_text(
            json.dumps({**facts, "arguments": arguments, "results": results}, indent=1) + "\n", encoding="utf-8"
        )


def processor() -> str:
    """The CPU's name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
