"""Finetuning speed of one process beside transformers' Trainer, in one run: same model, conversations and optimizer.

    PYTHONPATH=. python tools/bench_finetuning.py --out docs/benchmarks/finetuning-cpu.json

Conversations of one to four turns, log-normal in length (questions of median 60 tokens, answers of median 150), random
tokens, answers trained. In each round, every side trains once on the same ones, all sides in turn, in an order that
changes:

- *internevo*: a stage as any run has it: the loader packs by best fit and never cuts a conversation that fits a row.
- *trainer*: `transformers.Trainer`, padded to the longest of a batch (`DataCollatorForSeq2Seq`), in random order; the
  same with conversations of like length together (`group_by_length`); and one conversation at a time, which pads
  nothing.

The figure is real tokens per second, padding not counted: from the first batch to the last update, the data included.
The machine's noise hits neighbours in time alike, so ratios are medians over rounds. On a CPU the ratio of processor
time, which other programs on the machine hardly disturb, is there too. Trainer has sdpa attention and
`adamw_torch_fused`; both sides clip to 1, and in bf16 both have fp32 weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from internevo.config.load import load_config
from internevo.config.schema import ModelConfig, SourceConfig, StageConfig, TrainConfig
from internevo.data.batch import IGNORE
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.model.initial import init_weights
from internevo.model.transformer import Transformer
from internevo.parallel.world import World
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.step import train_step
from tools.bench_step import llama, processor

LR = 1e-4
Seconds = tuple[float, float]
"""Wall and processor."""
Side = Callable[[], Seconds]


@dataclass(frozen=True)
class Conversation:
    """Token ids, and which of them are trained."""

    ids: np.ndarray
    trained: np.ndarray


def draw(count: int, vocab: int, longest: int) -> list[Conversation]:
    """Random conversations; those that would be longer than `longest` tokens are drawn again."""
    rng = np.random.default_rng(0)
    found: list[Conversation] = []
    while len(found) < count:
        turns = int(rng.choice((1, 2, 3, 4), p=(0.6, 0.2, 0.1, 0.1)))
        medians = (60, 150) * turns
        lengths = np.maximum(4, rng.lognormal(np.log(medians), 0.8)).astype(int)
        if lengths.sum() <= longest:
            trained = np.repeat(np.arange(2 * turns) % 2 == 1, lengths)
            found.append(Conversation(rng.integers(1, vocab, lengths.sum()), trained))
    return found


def write_store(folder: Path, conversations: list[Conversation]) -> Path:
    """As `internevo data chat` writes one."""
    folder.mkdir()
    with TokenStoreWriter(folder / "train", np.int32) as writer:
        for one in conversations:
            writer.append(np.where(one.trained, one.ids, ~one.ids).astype(np.int32))
    (folder / "manifest.json").write_text('{"masked": true, "masking": "complement"}', encoding="utf-8")
    return folder


def timed(work: Callable[[], None]) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def ours(config: ModelConfig, store: Path, args: argparse.Namespace) -> tuple[Side, dict]:
    """One epoch over the store, and what of its rows is padding."""
    tokens = TokenStore.open_source(store).tokens
    model = Transformer(config)
    init_weights(model, 0)
    stage = StageConfig(
        model=config,
        train=TrainConfig(seq_len=args.seq_len, micro_batch=1, precision=args.precision),
    )
    engine = make_engine(stage, World.alone(torch.device("cpu")), model)
    source = SourceConfig(str(store), max_epochs=1)
    plan = Plan.constant([source], seq_len=args.seq_len, rows=args.rows, packing="best_fit")
    facts: dict = {}

    def epoch() -> None:
        seen, padding, steps = 0, 0, 0
        with Loader(plan, seed=0, prepare=engine.stage_batch) as loader:
            while seen < tokens:
                staged = loader.next()
                train_step(engine, staged, LR)
                seen += (real := sum(staged.batch.real_tokens))
                padding += staged.batch.tokens.size - real
                steps += 1
        facts.update(steps=steps, padding=padding / (padding + seen))

    return lambda: timed(epoch), facts


class Clock(TrainerCallback):
    """From the first batch to the last update."""

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.seconds = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]


def padding_tokenizer() -> PreTrainedTokenizerFast:
    """Of which the collator only takes what pads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"pad": 0})), pad_token="pad")


def theirs(
    config: ModelConfig, conversations: list[Conversation], args: argparse.Namespace, batch: int, sampling: str
) -> tuple[Side, dict]:
    """One epoch of Trainer with micro-batches of `batch` conversations, and as many of them a step as ours has."""
    rows = [
        {
            "input_ids": one.ids.tolist(),
            "attention_mask": [1] * len(one.ids),
            "labels": np.where(one.trained, one.ids, IGNORE).tolist(),
        }
        for one in conversations
    ]
    pads: dict[str, int] = {"places": 0, "real": 0}
    collate = DataCollatorForSeq2Seq(padding_tokenizer(), padding="longest")

    def collated(some: list[dict]) -> dict:
        found = dict(collate(some))
        pads["places"] += found["input_ids"].numel()
        pads["real"] += int(found["attention_mask"].sum())
        return found

    step = args.rows * args.seq_len * len(conversations) // sum(len(one.ids) for one in conversations)
    settings = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=max(1, step // batch),
        train_sampling_strategy=sampling,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        max_grad_norm=1.0,
        num_train_epochs=1,
        use_cpu=True,
        bf16=args.precision == "bf16",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model, facts = llama(config), {}

    def epoch() -> Seconds:
        pads.update(places=0, real=0)
        clock = Clock()
        trainer = Trainer(model, settings, collated, rows, callbacks=[clock])  # type: ignore[arg-type]
        trainer.train()
        facts.update(steps=trainer.state.global_step, padding=1 - pads["real"] / pads["places"])
        return clock.seconds

    return epoch, facts


def sides(
    config: ModelConfig, conversations: list[Conversation], store: Path, args: argparse.Namespace
) -> dict[str, tuple[Side, dict]]:
    """All that are compared, by name; the first is ours."""
    return {
        "internevo": ours(config, store, args),
        f"trainer, {args.batch} padded": theirs(config, conversations, args, args.batch, "random"),
        f"trainer, {args.batch} padded, by length": theirs(config, conversations, args, args.batch, "group_by_length"),
        "trainer, 1 at a time": theirs(config, conversations, args, 1, "random"),
    }


def measure(folder: Path, args: argparse.Namespace) -> dict:
    """Rounds of all sides, after one on few conversations that warms up."""
    config = load_config(args.config, check_data=False).model
    few, every = (draw(count, config.vocab, args.seq_len) for count in (2 * args.batch, args.conversations))
    for side, _ in sides(config, few, write_store(folder / "few", few), args).values():
        side()
    found = sides(config, every, write_store(folder / "every", every), args)
    seconds: dict[str, list[Seconds]] = {name: [] for name in found}
    for number in range(args.rounds):
        names = list(found)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(found[name][0]())
            print(f"round {number + 1}: {name}: {seconds[name][-1][0]:.1f} s", flush=True)
    lengths = [len(one.ids) for one in every]
    return {
        "tokens": sum(lengths),
        "lengths": {str(q): float(np.quantile(lengths, q)) for q in (0, 0.1, 0.5, 0.9, 1)},
        "trained_share": float(np.concatenate([one.trained for one in every]).mean()),
        "sides": {name: summary(sum(lengths), seconds, name) | found[name][1] for name in found},
    }


def summary(tokens: int, seconds: dict[str, list[Seconds]], name: str) -> dict:
    """A side's numbers, and how many times as fast ours is: the median over rounds."""
    ratios, of_processor = (
        [theirs[kind] / ours[kind] for ours, theirs in zip(seconds["internevo"], seconds[name], strict=True)]
        for kind in (0, 1)
    )
    return {
        "tokens_per_s": statistics.median(tokens / wall for wall, _ in seconds[name]),
        "ratio": statistics.median(ratios),
        "processor_time_ratio": statistics.median(of_processor),
        "ratios": ratios,
        "processor_time_ratios": of_processor,
        "seconds": seconds[name],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny.yaml", help="of which the model is taken")
    parser.add_argument("--conversations", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=4, help="rows a step")
    parser.add_argument("--batch", type=int, default=8, help="conversations in a micro-batch of Trainer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--out", type=Path, help="write the raw numbers here as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args)
    print(f"{result['tokens']:,} tokens in {args.conversations} conversations, lengths {result['lengths']}")
    print(f"{'':32}{'tokens/s':>10}{'padding':>9}{'steps':>7}{'ours over it':>14}{'of cpu time':>13}")
    for name, one in result["sides"].items():
        print(
            f"{name:32}{one['tokens_per_s']:10,.0f}{one['padding']:9.1%}{one['steps']:7}{one['ratio']:14.2f}"
            f"{one['processor_time_ratio']:13.2f}"
        )
    if args.out:
        software = {"torch": torch.__version__, "transformers": transformers.__version__}
        facts = {"hardware": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()}
        arguments = {key: str(value) for key, value in vars(args).items()}
        text = json.dumps({**facts, **software, "arguments": arguments, **result}, indent=1)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
