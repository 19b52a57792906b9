"""How fast `internevo data prepare` is beside datatrove's tokenisation to Megatron's format, with a byte-level BPE.

    python tools/bench_bpe.py --out docs/benchmarks/bpe-cpu.json

The corpus is the text of the interpreter's own library, as JSON lines in two files; the tokenizer a byte-level BPE with
GPT-4's split pattern, trained on half of it. In turn, `--repeats` times, each in a process of its own: ours with as
many workers as there are cores, and datatrove's `MegatronDocumentTokenizer` with a task a file whose encoder has one
thread, which suits it best on two cores. Wall time runs from the call to its end, the start of worker processes
included; CPU time is that of the process and its workers. Both must have made the same ids: the digests of all
documents, without the tokens that frame them, are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from bench_prepare import write_corpus

from internevo.monitor.environment import code_version

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EOS = "<|endoftext|>"
OURS, THEIRS = CONTENDERS = ("internevo", "datatrove")
FILES = 2


def train_bpe(texts: Iterable[str], folder: Path, vocab: int) -> Path:
    """A byte-level BPE as a Hugging Face folder."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    level = pre_tokenizers.ByteLevel
    fast = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(GPT4), "isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, level(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[EOS], initial_alphabet=level.alphabet(), show_progress=False
    )
    fast.train_from_iterator(texts, trainer)
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return folder / "tokenizer.json"


def ours(corpus: Path, tokenizer: Path, output: Path) -> Callable[[], None]:
    from internevo.tokens.prepare import prepare

    workers = len(os.sched_getaffinity(0))
    return lambda: prepare([corpus], output, tokenizer, workers=workers, piece_bytes=4 * 2**20) and None


def theirs(corpus: Path, tokenizer: Path, output: Path) -> Callable[[], None]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    steps = [
        JsonlReader(str(corpus)),
        MegatronDocumentTokenizer(str(output), tokenizer_name_or_path=str(tokenizer), eos_token=EOS),
    ]
    logs = str(output.with_name("logs"))
    # started as ours are, not by a server whose children's time nobody knows
    executor = LocalPipelineExecutor(steps, tasks=FILES, workers=FILES, logging_dir=logs, start_method="spawn")
    return lambda: executor.run() and None


def documents(output: Path, eos: int) -> Iterable[bytes]:
    """The ids of each document, the tokens that frame it taken off, as uint16."""
    from internevo.tokens.store import TokenStore

    for index in sorted(output.glob("*.idx")):
        store = TokenStore(index.with_suffix(""))
        for number in range(len(store)):
            ids = store.read(number)
            yield ids[int(ids[0] == eos) : len(ids) - 1].astype(np.uint16).tobytes()


def once(contender: str, corpus: Path, tokenizer: Path) -> dict[str, float | str]:
    """One run of one of them, in this process."""
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        output = Path(folder) / "out"
        run = (ours if contender == OURS else theirs)(corpus, tokenizer, output)
        cpu, began = _cpu(), time.monotonic()
        run()
        wall, cpu = time.monotonic() - began, _cpu() - cpu
        seen, tokens = hashlib.sha256(), 0
        for ids in documents(output, eos=0):
            seen.update(len(ids).to_bytes(8, "little") + ids)
            tokens += len(ids) // 2
    return {"wall_s": wall, "cpu_s": cpu, "tokens": tokens, "ids": seen.hexdigest()}


def _cpu() -> float:
    """Seconds of this process and of its children that have ended."""
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usage)


def corpus_in_two(folder: Path, megabytes: float) -> list[str]:
    """The corpus, a half a file; its texts."""
    whole = folder.with_suffix(".jsonl")
    texts = write_corpus(whole, megabytes)
    lines = whole.read_bytes().splitlines(keepends=True)
    folder.mkdir()
    for name, half in (("a", lines[: len(lines) // 2]), ("b", lines[len(lines) // 2 :])):
        (folder / f"{name}.jsonl").write_bytes(b"".join(half))
    whole.unlink()
    return texts


def measure(contender: str, corpus: Path, tokenizer: Path) -> dict[str, float | str]:
    """`once`, in a process of its own."""
    command = [sys.executable, __file__, "--once", contender, "--corpus", corpus, "--tokenizer", tokenizer]
    threads = {"RAYON_NUM_THREADS": "1"} if contender == THEIRS else {}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False, env={**os.environ, **threads}
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure in turn, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.once, options.corpus, options.tokenizer)))
        return
    rounds = []
    folder = Path(tempfile.mkdtemp())
    try:
        corpus = folder / "corpus"
        texts = corpus_in_two(corpus, options.megabytes)
        tokenizer = train_bpe(texts[::2], folder / "bpe", options.vocab)
        for _ in range(options.repeats):
            found = {name: measure(name, corpus, tokenizer) for name in CONTENDERS}
            if len({(one["tokens"], one["ids"]) for one in found.values()}) != 1:
                raise SystemExit(f"the ids differ: {found}")
            rounds.append(found)
            print(json.dumps({name: [one["wall_s"], one["cpu_s"]] for name, one in found.items()}), flush=True)
    finally:
        shutil.rmtree(folder)
    ratios = {
        what: statistics.median(one[THEIRS][what] / one[OURS][what] for one in rounds) for what in ("wall_s", "cpu_s")
    }
    result = {
        "code": code_version(),
        "python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)),
        "megabytes": options.megabytes,
        "vocab": options.vocab,
        "rounds": rounds,
        "median of datatrove over ours": ratios,
    }
    print(json.dumps(ratios, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
