"""Tokenizer files that `AutoTokenizer` reads without remote code, with the ids that training used.

A Hugging Face tokenizer's files are copied. A SentencePiece BPE model is rewritten as a `tokenizer.json`: the same
pieces, and its merges recovered from the pieces' scores.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internevo.files.errors import UserError
from internevo.files.quiet import quiet_transformers
from internevo.tokens.sentence_pieces import chat_tokens, is_bpe, user_defined, with_chat_tokens
from internevo.tokens.tokenizer import SentencePieceTokenizer, Tokenizer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, for tokenizers that have its tokens."""
SPACE = "\u2581"  # SentencePiece's visible space
_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""Files of tokenizers, in one library or another."""


@dataclass(frozen=True)
class ChatFiles:
    """How an exported model talks, and an example that proves it."""

    template: str
    """The chat template, for transformers' engine."""
    variables: Mapping[str, Any]
    """What it needs beside the conversation and the tokenizer's special tokens."""
    stops: tuple[int, ...]
    """Ids that end the assistant's turn."""
    asked: list[dict[str, str]]
    """Messages as the template takes them, and ..."""
    prompt: str
    """... the text after which the model answers them."""


def write_tokenizer(tokenizer: Tokenizer, output: Path, seq_len: int) -> None:
    """Write the tokenizer's files into the folder `output`."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        shutil.copyfile(tokenizer.path, output / "tokenizer.model")
        definition = json.loads(fast_from_sentencepiece(tokenizer.path).to_str())
        # every version of tokenizers reads merges as `left right`; pairs came with 0.20
        definition["model"]["merges"] = [" ".join(pair) for pair in definition["model"]["merges"]]
        compact = json.dumps(definition, ensure_ascii=False, separators=(",", ":"))
        (output / "tokenizer.json").write_text(compact, encoding="utf-8")
        settings = _settings(tokenizer, seq_len, definition["added_tokens"])
        (output / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    else:
        copy_tokenizer(tokenizer.path.parent, output)


def copy_tokenizer(folder: Path, output: Path) -> None:
    """Copy the files of tokenizers that `folder` has."""
    for name in _FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)


def write_chat(chat: ChatFiles, folder: Path) -> None:
    """Make `chat` what transformers takes for the tokenizer in `folder`.

    Variables become defaults, which whoever renders the template may still set. Raises UserError unless transformers
    writes the example as training did.
    """
    defaults = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {json.dumps(value)} %}}{{% endif %}}"
        for name, value in chat.variables.items()
    )
    (folder / "chat_template.jinja").write_text(defaults + chat.template, encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if settings.is_file():  # a template in there is that of another format
        known = json.loads(settings.read_bytes())
        known.pop("chat_template", None)
        settings.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    with quiet_transformers():
        from transformers import AutoTokenizer

        written = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        found = written.apply_chat_template(chat.asked, tokenize=False, add_generation_prompt=True)
    if found != chat.prompt:
        raise UserError(
            f"transformers writes a conversation as {found!r} with the exported chat template, and training did as "
            f"{chat.prompt!r}"
        )


def check_tokenizer(tokenizer: Tokenizer, folder: Path, texts: Sequence[str]) -> None:
    """Raise UserError unless `AutoTokenizer` reads `folder` and gives the same ids for every text.

    Text that spells a special token is compared as text (`split_special_tokens`), the way training encoded it.
    """
    with quiet_transformers():
        from transformers import AutoTokenizer

        written = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        encoded = [written(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]
    for text, theirs in zip(texts, encoded, strict=True):
        ours = tokenizer.encode(text)
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
            raise UserError(
                f"the exported tokenizer encodes {text[:60]!r} differently from token {at} on: "
                f"{theirs[at : at + 5]} instead of {ours[at : at + 5]}"
            )


def fast_from_sentencepiece(path: Path) -> Any:
    """The `tokenizers.Tokenizer` that equals a SentencePiece BPE model; it puts BOS before a text."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    model = with_chat_tokens(SentencePieceProcessor(model_file=str(path)))
    if not is_bpe(model):
        raise UserError("only SentencePiece models of type BPE can be exported; this one is of another type")
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    # an unused piece keeps its id under a name that no text can lead to
    vocab = {f"<unused {i}>" if model.is_unused(i) else piece: i for i, piece in enumerate(pieces)}
    # a merge makes an ordinary piece: control and byte pieces take no part, user-defined ones match as wholes
    special = [i for i in range(len(pieces)) if model.is_control(i) or model.is_unknown(i)]
    whole = user_defined(model)
    aside = {*special, *whole, *(i for i in range(len(pieces)) if model.is_byte(i) or model.is_unused(i))}
    scores = {piece: model.get_score(i) for i, piece in enumerate(pieces) if i not in aside}
    fast = Tokenizer(
        models.BPE(vocab, _merges(scores, vocab), unk_token=pieces[model.unk_id()], fuse_unk=True, byte_fallback=True)
    )
    prefix = _puts_space_before(model)
    replace = normalizers.Replace(" ", SPACE)
    fast.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    fast.add_special_tokens([AddedToken(pieces[i], special=True, normalized=False) for i in special])
    fast.add_tokens([AddedToken(pieces[i], special=False, normalized=False) for i in whole])
    if model.bos_id() >= 0:
        bos = pieces[model.bos_id()]
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, model.bos_id())]
        )
    return fast


def _merges(scores: dict[str, float], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs of pieces that make another, best results first: the order in which SentencePiece merges."""
    found = []
    for piece, score in scores.items():
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        ways = [(left, right) for left, right in halves if left in scores and right in scores]
        ways.sort(key=lambda way: (vocab[way[0]], vocab[way[1]]))
        found += [(-score, vocab[piece], way) for way in ways]
    return [way for _, _, way in sorted(found, key=lambda one: one[:2])]


def _puts_space_before(model: Any) -> bool:
    return model.encode("a", out_type=str)[0].startswith(SPACE)


def _settings(tokenizer: SentencePieceTokenizer, seq_len: int, added: list[dict[str, Any]]) -> dict[str, Any]:
    """What transformers reads, and converters that read no `tokenizer.json`.

    Those take from `added_tokens_decoder` which tokens are no ordinary pieces, and what the chat tokens are called;
    without `add_prefix_space` they would put a space before every text.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(tokenizer.path))
    chat = chat_tokens(model)
    more = {"additional_special_tokens": list(chat.values())[::-1], "chat_template": CHAT_TEMPLATE} if chat else {}
    return {
        **more,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": model.id_to_piece(tokenizer.bos_id),
        "eos_token": model.id_to_piece(tokenizer.eos_id),
        "unk_token": model.id_to_piece(model.unk_id()),
        "pad_token": model.id_to_piece(tokenizer.eos_id),
        "add_bos_token": bool(tokenizer.prefix),
        "add_eos_token": False,
        "add_prefix_space": _puts_space_before(model),
        "added_tokens_decoder": {token["id"]: {k: v for k, v in token.items() if k != "id"} for token in added},
        "clean_up_tokenization_spaces": False,
        "model_max_length": seq_len,
    }
