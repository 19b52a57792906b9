"""The whole job, step by step, through the same functions that the other verbs call."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from internevo.config.load import load_config
from internevo.hf.export import export
from internevo.monitor.metrics import EVALS, read_metrics
from internevo.monitor.report import write_report
from internevo.quickstart.corpus import KINDS, SELECTED, build_corpus
from internevo.quickstart.steps import step, write_config
from internevo.quickstart.talk import STEPS as TALK_STEPS
from internevo.quickstart.talk import talk
from internevo.tokens.prepare import prepare
from internevo.tokens.tokenizer import load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from internevo.train.run import train
from internevo.train.sample import sample_text
from internevo.train.stored_model import open_model

VOCAB, STEPS = 2048, 7
PROMPT = '"""A class that'


def quickstart(folder: Path, out: Console, chat: bool = False) -> signal.Signals | None:
    """Do all of it in `folder`, printing to `out`; returns the signal that stopped the training early, or None.

    With `chat`, the base model is then finetuned to one that talks.

    What is there from an earlier, unfinished time is used.
    """
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    config = write_config(folder, "config.yaml")
    last = STEPS + TALK_STEPS * chat
    load_config(config, check_data=False)  # where YAML cannot be read, say so before the work
    corpus, tokens, tokenizer = folder / "corpus", folder / "tokens", folder / "tokenizer.model"
    with step(out, f"1/{last}  corpus: Python's standard library as prose, code, long and selected documents"):
        if not corpus.exists():
            sizes = build_corpus(folder / "corpus.partial")
            (folder / "corpus.partial").rename(corpus)
            out.print(f"     {sum(sizes.values()) / 1e6:.1f} MB of text")
    with step(out, f"2/{last}  tokenizer: {VOCAB:,} pieces of byte-pair encoding"):
        if not tokenizer.exists():
            texts = _texts(corpus / "code.jsonl", corpus / "prose.jsonl")
            train_tokenizer(texts, tokenizer, VOCAB, 6_000_000, control=("<|im_start|>", "<|im_end|>"))
    with step(out, f"3/{last}  token stores with held-out documents"):
        _prepare(corpus, tokens, tokenizer, out)
    run = folder / "runs" / "quickstart"
    same = escape(f"{config}; `internevo train {config}` does the same")
    out.print(f"[bold]4/{last}  training three stages[/]  ({same})")
    stopped = train(load_config(config), sys.argv)
    if stopped is not None:
        out.print("stopped and saved; the same command resumes")
        return stopped
    exported = folder / "export"
    with step(out, f"5/{last}  export to Hugging Face, logits compared with transformers"):
        if not exported.exists():
            out.print(f"     {escape(_export(run, exported, tokenizer))}")
    out.print(f"[bold]6/{last}  a sample[/]")
    for piece in sample_text(open_model(run), PROMPT, 96, temperature=0.7, top_p=0.9, seed=0):
        out.print(escape(piece), end="")
    out.print()
    out.print(f"[bold]7/{last}  what was learned[/] (held-out loss in nats per token)")
    _show_learning(read_metrics(run / EVALS), out)
    report = write_report(run)
    if chat and (stopped := talk(folder, out, STEPS + 1)) is not None:
        out.print("stopped and saved; the same command resumes")
        return stopped
    out.print(f"done in {time.perf_counter() - start:.0f} s")
    if chat:
        talks = escape(str(folder / "runs" / "chat"))
        out.print(f"[dim]next:[/] open {talks}/report.html in a browser · internevo chat {talks}")
    else:
        out.print(
            f"[dim]next:[/] open {escape(str(report))} in a browser · internevo generate {escape(str(run))} --prompt "
            f"'import ' · AutoModelForCausalLM.from_pretrained('{escape(str(exported))}')"
        )
    return None


def _texts(*paths: Path) -> Iterator[str]:
    for path in paths:
        for line in path.open(encoding="utf-8"):
            yield json.loads(line)["text"]


def _prepare(corpus: Path, tokens: Path, tokenizer: Path, out: Console) -> None:
    for kind in (*KINDS, SELECTED):
        if not (tokens / kind).exists():
            heldout = [corpus / f"{kind}.heldout.jsonl"] if kind in KINDS else []
            made = prepare([corpus / f"{kind}.jsonl"], tokens / kind, tokenizer, held_out_inputs=heldout)
            out.print(
                f"     {kind}: {made.tokens:,} tokens in {made.documents:,} documents, held out "
                f"{made.heldout_tokens:,} in {made.heldout_documents:,}"
            )


def _export(run: Path, exported: Path, tokenizer: Path) -> str:
    model = open_model(run)
    written = export(
        model.weights,
        model.config,
        exported,
        "llama",
        seq_len=model.seq_len,
        tokenizer=load_tokenizer(tokenizer),
        dtype=torch.float32,
    )
    return str(written)


def _show_learning(evals: list[dict[str, Any]], out: Console) -> None:
    """Print held-out loss by source at each stage's end, and at far positions before and after the long stage."""
    ends = [one for one in evals if one["when"] == "end"]
    stages = list(dict.fromkeys(one["stage"] for one in ends))
    table = Table("source", "token frequencies alone", *(f"after {stage}" for stage in stages), box=None)
    for kind in KINDS:
        losses = {one["stage"]: one for one in ends if one["source"] == kind}
        table.add_row(kind, f"{losses[stages[-1]]['frequencies']:.3f}", *(f"{losses[s]['loss']:.3f}" for s in stages))
    out.print(table)
    first_length = ends[0]["seq_len"]
    far = {one["when"]: far_loss(one, first_length) for one in evals if one["stage"] == "long" == one["source"]}
    out.print(
        f"long documents, positions past {first_length} (the first stage's row): "
        f"{far['start']:.3f} before the long stage, {far['end']:.3f} after it"
    )


def far_loss(evaluation: dict[str, Any], first: int) -> float:
    """The mean loss at positions from `first` on."""
    buckets = [(loss, labels) for begin, _, loss, labels in evaluation["by_position"] if begin >= first]
    return sum(loss * labels for loss, labels in buckets) / sum(labels for _, labels in buckets)
