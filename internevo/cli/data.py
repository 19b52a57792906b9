"""Verbs about data: tokenizers and token stores."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from internevo.align.choices import ChatOptions, Longer, Thinking, Turns
from internevo.cli.shared import (
    TextKeyOption,
    argument,
    console,
    copy_remote_stores,
    data_app,
    number_option,
    option,
    out,
    plain,
    then,
    tokenizer_app,
    working,
)
from internevo.config.bounds import Between
from internevo.files.errors import UserError, some

if TYPE_CHECKING:
    from internevo.config.schema import Precision
    from internevo.tokens.build import BytesDone, Manifest
    from internevo.tokens.inspect import StoreSummary


_FEW_TOKENS = 10_000
"""Held-out losses on fewer tokens vary by several hundredths from one choice of documents to another."""

InputsArgument = Annotated[list[Path], argument("Files or folders of text.", "FILE...")]
OutputOption = Annotated[Path, option("The folder to make.", "FOLDER", "--out")]
HeldOutOption = Annotated[
    float,
    number_option(Between(0, 1, open_above=True), "Share of the documents kept for evaluation, less than 1.", "SHARE"),
]
WorkersOption = Annotated[int, option("Processes that tokenise; 0: one for each core.", "N", least=0, most=1024)]
MaxRejectsOption = Annotated[
    float,
    number_option(
        Between(0, 1),
        "Stop when a larger share cannot be read, from 0 to 1; fewer than 1,000 documents count as 1,000.",
        "SHARE",
    ),
]
TemplateOption = Annotated[
    str | None, option("A file of a chat template, or internlm2; the tokenizer's own when absent.", "TEMPLATE")
]
ThinkingOption = Annotated[Thinking, option("The assistant's thoughts: where the template writes them, or none.")]
VariablesOption = Annotated[list[str] | None, option("A variable that the template reads.", "NAME=VALUE", "--set")]
DayOption = Annotated[
    datetime | None,
    option("The day that some templates write; today when absent.", "YYYY-MM-DD", formats=["%Y-%m-%d"]),
]
ShardTokensOption = Annotated[
    int, option("A larger store becomes several pairs of files.", "TOKENS", least=1, most=10**15)
]


@tokenizer_app.command("train")
def tokenizer_train(
    inputs: InputsArgument,
    output: Annotated[Path, option("The .model file to write.", "FILE", "--out")],
    vocab: Annotated[int, option("Number of pieces.", "PIECES", least=1, most=2**24)] = 32000,
    text_key: TextKeyOption = "text",
    max_characters: Annotated[
        int, option("Maximum characters of text to learn from.", "CHARACTERS", least=1, most=10**15)
    ] = 200_000_000,
    control: Annotated[
        list[str] | None,
        option("A control token that chat templates write, as <|im_end|>; repeat for more.", "TOKEN"),
    ] = None,
) -> None:
    """Train a SentencePiece BPE tokenizer on text.

    Text comes back from its ids exactly, but for U+2581, SentencePiece's sign for a space, which comes back as one.

    Example: `internevo tokenizer train corpus/ --vocab 8000 --out tokenizer.model`
    """
    from internevo.text.corpus import input_files, read_documents
    from internevo.text.documents import Document
    from internevo.tokens.train_tokenizer import train_tokenizer

    left_out = sum((input_files(path).left_out for path in inputs), Counter[str]())
    documents = (one for path in inputs for one in read_documents(path, text_key))
    texts = (one.text for one in documents if isinstance(one, Document))
    with out.status("training the tokenizer"):
        train_tokenizer(texts, output, vocab, max_characters, control or ())
    out.print(f"wrote {plain(output)}: {vocab:,} pieces")
    _say_left_out(left_out)
    then(f"internevo data prepare {' '.join(map(str, inputs))} --tokenizer {output} --out tokens/NAME")


@data_app.command("prepare")
def data_prepare(
    inputs: InputsArgument,
    tokenizer: Annotated[Path, option("A .model file, tokenizer.json or Hugging Face folder.", "TOKENIZER")],
    output: OutputOption,
    held_out: HeldOutOption = 0.0,
    text_key: TextKeyOption = "text",
    workers: WorkersOption = 0,
    max_rejects: MaxRejectsOption = 0.01,
    shard_tokens: ShardTokensOption = 2**30,
) -> None:
    """Turn text into a token store (Megatron's .bin and .idx).

    Takes .jsonl and .ndjson (also .gz and .zst), .parquet, .arrow, text and code files, and folders of them; what else
    is in folders is left out, and said. Stopped at any moment,
    the same command resumes; what it makes is the same, byte for byte.

    Example: `internevo data prepare corpus/ --tokenizer tokenizer.model --out tokens/web --held-out 0.01`
    """
    from internevo.tokens.prepare import prepare
    from internevo.tokens.tokenizer import load_tokenizer

    if names := load_tokenizer(tokenizer).spelled():
        out.print(
            f"[yellow]note:[/] text that spells {plain(some(names, 8))} becomes these tokens: "
            "the tokenizer's files call them ordinary, not special"
        )
    make = partial(prepare, inputs, output, tokenizer, text_key=text_key, held_out=held_out)
    _make_store(make, output, workers, max_rejects=max_rejects, shard_tokens=shard_tokens)
    then(f"internevo data inspect {output} --tokenizer {tokenizer}, then name {output} in a config and train")


@data_app.command("chat")
def data_chat(
    inputs: Annotated[list[Path], argument("Files of conversations, or folders of them.", "FILE...")],
    tokenizer: Annotated[Path, option("A .model file, tokenizer.json or Hugging Face folder.", "TOKENIZER")],
    output: OutputOption,
    template: TemplateOption = None,
    max_tokens: Annotated[
        int | None, option("Tokens of the longest conversation: those of a row.", "TOKENS", least=2, most=10**9)
    ] = None,
    longer: Annotated[
        Longer, option("Longer ones: rejects, cut at their end, or split between turns.")
    ] = Longer.refuse,
    thinking: ThinkingOption = Thinking.keep,
    turns: Annotated[
        Turns, option("Whether all answers of a conversation stand in one document, or each in its own.")
    ] = Turns.together,
    variables: VariablesOption = None,
    day: DayOption = None,
    held_out: HeldOutOption = 0.0,
    workers: WorkersOption = 0,
    max_rejects: MaxRejectsOption = 0.01,
    shard_tokens: ShardTokensOption = 2**30,
) -> None:
    """Turn conversations into a token store in which only what the assistant says is trained, with its end.

    Takes `messages`, ShareGPT's `conversations`, `prompt` and `completion`, and Alpaca's `instruction` and `output`, in
    JSON lines, JSON lists, .parquet and .arrow. Stopped at any moment, the same command resumes.

    Example: `internevo data chat chats.jsonl --tokenizer tokenizer.model --template internlm2 --out tokens/chat`
    """
    from internevo.align.chat_store import prepare_chat

    make = partial(
        prepare_chat,
        inputs,
        output,
        tokenizer,
        template=template,
        options=ChatOptions(max_tokens, longer, thinking, turns, _named(variables)),
        day=day.date() if day else None,
        held_out=held_out,
    )
    _make_store(make, output, workers, max_rejects=max_rejects, shard_tokens=shard_tokens)
    then(f"internevo data inspect {output} --tokenizer {tokenizer}, then name {output} in a config and train")


@data_app.command("pairs")
def data_pairs(
    inputs: Annotated[list[Path], argument("Files of pairs, or folders of them.", "FILE...")],
    tokenizer: Annotated[Path, option("A .model file, tokenizer.json or Hugging Face folder.", "TOKENIZER")],
    output: OutputOption,
    template: TemplateOption = None,
    max_tokens: Annotated[
        int | None,
        option("Tokens of the longest pair, both sides together.", "TOKENS", least=4, most=10**9),
    ] = None,
    thinking: ThinkingOption = Thinking.keep,
    variables: VariablesOption = None,
    day: DayOption = None,
    domain: Annotated[str | None, option("Only pairs whose field `domain` says this.", "NAME")] = None,
    held_out: HeldOutOption = 0.0,
    workers: WorkersOption = 0,
    max_rejects: MaxRejectsOption = 0.01,
    shard_tokens: ShardTokensOption = 2**30,
) -> None:
    """Turn pairs of answers, one chosen and one rejected, into a token store to learn preferences from.

    Takes `prompt`, `chosen` and `rejected`, or `chosen` and `rejected` as whole conversations, in JSON lines, JSON
    lists, .parquet and .arrow. Trained is what the assistant says from where the sides differ. Stopped at any moment,
    the same command resumes.

    Example: `internevo data pairs pairs.jsonl --tokenizer tokenizer.model --template internlm2 --out tokens/pairs`
    """
    from internevo.align.pairs import prepare_pairs

    make = partial(
        prepare_pairs,
        inputs,
        output,
        tokenizer,
        template=template,
        options=ChatOptions(max_tokens, thinking=thinking, variables=_named(variables)),
        day=day.date() if day else None,
        domain=domain,
        held_out=held_out,
    )
    _make_store(make, output, workers, max_rejects=max_rejects, shard_tokens=shard_tokens)
    then(f"internevo data reference {output} --model MODEL, with the model that training begins with")


def _show_pairs(show: Callable[..., None], done: int, total: int, pairs: int) -> None:
    show(done, total, done, {"pairs": pairs})


def _named(variables: list[str] | None) -> tuple[tuple[str, str], ...]:
    for one in variables or []:
        if "=" not in one:
            raise UserError(f"--set {one}: expected NAME=VALUE")
    return tuple((name, value) for name, _, value in (one.partition("=") for one in variables or []))


@data_app.command("reference")
def data_reference(
    stores: Annotated[list[str], argument("Prepared folders of pairs.", "STORE...")],
    model: Annotated[Path, option("A run, an import or a Hugging Face folder: what train.init_from names.", "MODEL")],
    precision: Annotated[str, option("What to compute in, as train.precision: bf16 or fp32.", "PRECISION")] = "bf16",
    rows: Annotated[int, option("Rows that run at a time.", "N", least=1, most=2**20)] = 1,
    device: Annotated[str, option("auto, cpu or cuda.", "DEVICE")] = "auto",
) -> None:
    """Compute once what a model thinks of both sides of every pair: the reference that DPO compares with.

    It is kept in the store's folder, under the model's name, a hash of its weights. What is there already stays.

    Example: `internevo data reference tokens/pairs --model runs/chat`
    """
    from internevo.align.reference import make_references

    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision: must be fp32 or bf16, found {precision!r}")
    for store in stores:
        with working("computing references") as show:
            made = make_references(
                store,
                model,
                precision=cast("Precision", precision),
                device=device,
                rows=rows,
                progress=partial(_show_pairs, show),
            )
        for file, what in (*((one, "wrote") for one in made.written), *((one, "there already:") for one in made.kept)):
            out.print(f"{what} {plain(file)}")
        out.print(f"reference model: {made.model}")
    then(
        f"set train.init_from={model}, train.precision={precision} and train.objective.kind=internevo.align.dpo:DPO, "
        "and train on these stores"
    )


Origin = StrEnum("Origin", "internevo")  # whose token files are imported


@data_app.command("import")
def data_import(
    inputs: Annotated[list[Path], argument("Files of token ids, or folders of them.", "FILE...")],
    origin: Annotated[Origin, option("Who wrote them: internevo.", "MAKER", "--from")],
    output: OutputOption,
    tokenizer: Annotated[Path | None, option("What made the ids: checked, and noted.", "TOKENIZER")] = None,
    held_out: HeldOutOption = 0.0,
    workers: WorkersOption = 0,
    max_rejects: MaxRejectsOption = 0.0,
    shard_tokens: ShardTokensOption = 2**30,
) -> None:
    """Make a token store of InternEvo's `.bin` files (JSON lines of ids); `.bin.meta` beside them are checked.

    Negative ids stay, and are not trained on. What Megatron-LM, NeMo, datatrove, nanotron and OLMo write needs no
    import. Stopped at any moment, the same command resumes.

    Example: `internevo data import internevo/train/ --from internevo --out tokens/web --tokenizer tokenizer.model`
    """
    from internevo.tokens.import_internevo import import_internevo

    make = partial(import_internevo, inputs, output, tokenizer_path=tokenizer, held_out=held_out)
    _make_store(make, output, workers, max_rejects=max_rejects, shard_tokens=shard_tokens)
    then(f"internevo data inspect {output}, then name {output} in a config and train")


def _make_store(make: Callable[..., Manifest], output: Path, workers: int, **options: Any) -> None:
    """Make a token store with a progress bar, and say what it holds."""
    from internevo.tokens.shards import REJECTS

    def progress(done: BytesDone) -> None:
        show(done.read, done.size, done.read_now, {"tokens": done.tokens_now})

    try:
        with working("preparing") as show:
            manifest = make(workers=workers or len(os.sched_getaffinity(0)), progress=progress, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command resumes here") from None
    out.print(
        f"wrote {output}: {manifest.documents:,} documents, {manifest.tokens:,} tokens; "
        f"held out: {manifest.heldout_documents:,} documents, {manifest.heldout_tokens:,} tokens; "
        f"empty: {manifest.empty:,}; rejected: {manifest.rejected:,}"
        + (f", kept aside in {output / REJECTS}" if manifest.rejected else "")
        + (f"; masked: {manifest.masked_tokens:,} tokens" if manifest.masked else "")
    )
    if 0 < manifest.heldout_tokens < _FEW_TOKENS:
        out.print(
            f"[yellow]note:[/] a loss on {manifest.heldout_tokens:,} held-out tokens tells little; a larger share of "
            "the documents makes it steadier"
        )
    for what, count in manifest.tallies.items():
        out.print(f"{what}: {count:,}")
    _say_left_out(manifest.left_out)


def _say_left_out(left_out: Mapping[str, int]) -> None:
    if left_out:
        most = sorted(left_out.items(), key=lambda one: -one[1])
        found = ", ".join(f"{count:,} {ending}" for ending, count in most[:8])
        found += f", and more of {len(most) - 8:,} other kinds" if len(most) > 8 else ""
        out.print(f"left out, as they are of kinds that are not read: {plain(found)}")


@data_app.command("index")
def data_index(
    files: Annotated[
        list[Path], argument("Flat files of token ids: OLMo's .npy, nanoGPT's and llm.c's .bin.", "FILE...")
    ],
    eos: Annotated[int, option("The id that ends each document.", "ID", least=0, most=2**31)],
    token_bytes: Annotated[int, option("Bytes of a token: 2 or 4.", "BYTES", least=2, most=4)] = 2,
) -> None:
    """Find the documents in flat files of token ids, once, so that they can be trained on as they are.

    Example: `internevo data index part-*.npy --eos 100257 --token-bytes 4`, or for nanoGPT's and llm.c's files
    `internevo data index train.bin --eos 50256`
    """
    from internevo.tokens.flat import ENDINGS, index_documents

    for file in files:
        out.print(f"{plain(file)}: {index_documents(file, eos, token_bytes):,} documents")
    together = len(files) > 1 and files[0].suffix in ENDINGS
    then(f"name {files[0].parent if together else ', '.join(map(str, files))} under data.sources in a config")


@data_app.command("inspect")
def data_inspect(
    paths: Annotated[
        list[str],
        argument(
            "Prepared folders, .bin/.idx pairs without their ending, .ds, .npy or indexed .bin files, or URLs.",
            "STORE...",
        ),
    ],
    tokenizer: Annotated[Path | None, option("Show documents as text with this tokenizer.", "TOKENIZER")] = None,
    documents: Annotated[
        int, option("How many documents of each to show, from all over it.", "N", least=0, most=10**9)
    ] = 3,
    page: Annotated[Path | None, option("Write all of it as one HTML page.", "FILE")] = None,
) -> None:
    """Look into token stores: counts, lengths, and documents with their borders.

    Example: `internevo data inspect tokens/web tokens/code --tokenizer tokenizer.model --page tokens.html`
    """
    from internevo.config.schema import CACHE
    from internevo.monitor.store_page import write_store_page
    from internevo.tokens.inspect import Parts, describe, document_parts, show_document, spread
    from internevo.tokens.store import TokenStore
    from internevo.tokens.tokenizer import load_tokenizer

    if page is not None and page.exists():
        raise UserError(f"{page} exists already; it is not overwritten. Choose another name or remove it.")
    loaded = load_tokenizer(tokenizer) if tokenizer is not None else None
    copy_remote_stores(dict.fromkeys(paths, CACHE))
    stores = [describe(path) for path in dict.fromkeys(paths)]
    _show_stores(stores)
    shown: dict[str, dict[int, Parts]] = {}
    if loaded is not None:
        for one in stores:
            store = TokenStore.open_source(one.path)
            shown[one.path] = {i: document_parts(store, i, loaded) for i in spread(len(store), documents)}
            for number, parts in shown[one.path].items():
                out.rule(f"{plain(one.path)}: document {number:,}", align="left")
                if out.is_terminal and store.masked:  # what is trained stands out
                    styled = (
                        f"[dim]{plain(text)}[/]" if masked else f"[green]{plain(text)}[/]" for text, masked in parts
                    )
                    out.print("".join(styled))
                else:
                    out.print(plain(show_document(parts)))
    if page is not None:
        out.print(f"wrote {plain(write_store_page(page, stores, shown))}")
    then("name them under data.sources in a config, then internevo train CONFIG")


def _show_stores(stores: list[StoreSummary]) -> None:
    from rich.table import Table

    from internevo.monitor.store_page import HEAD, total_rows

    table = Table(box=None, pad_edge=False)
    for name in HEAD:
        table.add_column(name, justify="left" if name == HEAD[0] else "right", no_wrap=True)
    for row in total_rows(stores):
        table.add_row(*map(plain, row))
    # lines may wrap, numbers may not be cut
    wide = console(width=1000)
    wide.print(table)
    for one in stores:
        bars = Table(box=None, pad_edge=False)
        for name in ("tokens", "documents", "", "of the tokens", ""):
            bars.add_column(name, no_wrap=True)
        for part in one.histogram:
            share = [f"{part.documents:.1%}", "█" * round(20 * part.documents)]
            share += [f"{part.tokens:.1%}", "█" * round(20 * part.tokens)]
            bars.add_row(f"{part.first:,} to {part.last:,}", *share)
        out.print(f"\n[bold]{plain(one.path)}[/]")
        wide.print(bars)
