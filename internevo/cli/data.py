"""Verbs about data: tokenizers and token stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from internevo.cli.shared import InputsArgument, TextKeyOption, data_app, out, plain, then, tokenizer_app, working


@tokenizer_app.command("train")
def tokenizer_train(
    inputs: InputsArgument,
    output: Annotated[Path, typer.Option("--out", help="The .model file to write.", show_default=False)],
    vocab: Annotated[int, typer.Option(help="Number of pieces.")] = 32000,
    text_key: TextKeyOption = "text",
    max_characters: Annotated[int, typer.Option(help="Learn from so much text at most.")] = 200_000_000,
) -> None:
    """Train a SentencePiece BPE tokenizer on text.

    Example: `internevo tokenizer train corpus/ --vocab 8000 --out tokenizer.model`
    """
    from internevo.data.corpus import Document, read_documents
    from internevo.data.train_tokenizer import train_tokenizer

    documents = (one for path in inputs for one in read_documents(path, text_key))
    texts = (one.text for one in documents if isinstance(one, Document))
    with out.status("training the tokenizer"):
        train_tokenizer(texts, output, vocab, max_characters)
    out.print(f"wrote {output}: {vocab:,} pieces")
    then(f"internevo data prepare {' '.join(map(str, inputs))} --tokenizer {output} --out tokens/NAME")


@data_app.command("prepare")
def data_prepare(
    inputs: InputsArgument,
    tokenizer: Annotated[Path, typer.Option(help="A .model file, tokenizer.json or Hugging Face folder.")],
    output: Annotated[Path, typer.Option("--out", help="The folder to make.", show_default=False)],
    held_out: Annotated[float, typer.Option(help="Share of the documents kept for evaluation.")] = 0.0,
    text_key: TextKeyOption = "text",
    workers: Annotated[int, typer.Option(help="Processes that tokenise; 0: one for each core.")] = 0,
    max_rejects: Annotated[float, typer.Option(help="Stop when a larger share cannot be read.")] = 0.01,
    shard_tokens: Annotated[int, typer.Option(help="A larger store becomes several pairs of files.")] = 2**30,
) -> None:
    """Turn text into a token store (Megatron's .bin and .idx).

    Takes .jsonl (also .gz and .zst), .parquet, .arrow, text and code files, and folders of them. Stopped at any moment,
    the same command goes on; what it makes is the same, byte for byte.

    Example: `internevo data prepare corpus/ --tokenizer tokenizer.model --out tokens/web --held-out 0.01`
    """
    from internevo.data.join import REJECTS
    from internevo.data.prepare import Progress, prepare

    try:
        with working("preparing") as show:

            def progress(done: Progress) -> None:
                show(done.read, done.size, done.read_now, {"tokens": done.tokens_now})

            manifest = prepare(
                inputs,
                output,
                tokenizer,
                text_key=text_key,
                held_out=held_out,
                workers=workers or len(os.sched_getaffinity(0)),
                max_rejects=max_rejects,
                shard_tokens=shard_tokens,
                progress=progress,
            )
    except KeyboardInterrupt:
        out.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    out.print(
        f"wrote {output}: {manifest.documents:,} documents, {manifest.tokens:,} tokens; "
        f"held out: {manifest.heldout_documents:,} documents, {manifest.heldout_tokens:,} tokens; "
        f"empty: {manifest.empty:,}; rejected: {manifest.rejected:,}"
        + (f", kept aside in {output / REJECTS}" if manifest.rejected else "")
    )
    then(f"internevo data inspect {output} --tokenizer {tokenizer}, then name {output} in a config and train")


@data_app.command("index")
def data_index(
    files: Annotated[
        list[Path], typer.Argument(help="Flat files of token ids, such as OLMo's .npy.", show_default=False)
    ],
    eos: Annotated[int, typer.Option(help="The id that ends each document.", show_default=False)],
    token_bytes: Annotated[int, typer.Option(help="Bytes of a token: 2 or 4.", min=2, max=4)] = 2,
) -> None:
    """Find the documents in flat files of token ids, once, so that they can be trained on as they are.

    Example: `internevo data index part-*.npy --eos 100257 --token-bytes 4`
    """
    from internevo.data.flat import index_documents

    for file in files:
        out.print(f"{file}: {index_documents(file, eos, token_bytes):,} documents")
    then(f"name {files[0] if len(files) == 1 else files[0].parent} under data.sources in a config")


@data_app.command("inspect")
def data_inspect(
    path: Annotated[
        Path, typer.Argument(help="A prepared folder, a .bin/.idx pair without its ending, a .ds or .npy file.")
    ],
    tokenizer: Annotated[Path | None, typer.Option(help="Show documents as text with this tokenizer.")] = None,
    documents: Annotated[int, typer.Option(help="How many documents to show.")] = 3,
) -> None:
    """Look into a token store: counts, lengths, and documents with their borders.

    Example: `internevo data inspect tokens/web --tokenizer tokenizer.model`
    """
    from internevo.data.inspect import describe, show_document
    from internevo.data.store import TokenStore
    from internevo.data.tokenizer import load_tokenizer

    summary = describe(path)
    out.print(f"{path}: {summary.documents:,} documents, {summary.tokens:,} tokens, {summary.dtype}")
    out.print("lengths in tokens: " + ", ".join(f"{name} {value:,}" for name, value in summary.lengths.items()))
    out.print(f"held out: {summary.heldout_documents:,} documents, {summary.heldout_tokens:,} tokens")
    if tokenizer is not None:
        store, loaded = TokenStore.open_source(path), load_tokenizer(tokenizer)
        for number in range(min(documents, len(store))):
            out.rule(f"document {number}", align="left")
            out.print(plain(show_document(store, number, loaded)))
    then("name it under data.sources in a config, then internevo train CONFIG")
