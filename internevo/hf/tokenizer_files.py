"""Tokenizer files that `AutoTokenizer` reads without remote code, with the ids that training used.

A Hugging Face tokenizer's files are copied. A SentencePiece BPE model is rewritten as a `tokenizer.json`: the same
pieces, and its merges recovered from the pieces' scores.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from internevo.config.errors import UserError
from internevo.data.tokenizer import SentencePieceTokenizer, Tokenizer

CHAT_TOKENS = {
    92538: "<|plugin|>",
    92539: "<|interpreter|>",
    92540: "<|action_end|>",
    92541: "<|action_start|>",
    92542: "<|im_end|>",
    92543: "<|im_start|>",
}
"""What the InternLM2 release calls the last six of the places that its vocabulary keeps free: ChatML and tools."""
_FREE_PLACE = "[UNUSED_TOKEN_"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, for tokenizers that have its tokens."""
SPACE = "\u2581"
"""SentencePiece's visible space."""
COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""What tokenizers are made of, in one library or another."""


def write_tokenizer(tokenizer: Tokenizer, output: Path, seq_len: int) -> None:
    """Write the tokenizer's files into the folder `output`."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        shutil.copyfile(tokenizer.path, output / "tokenizer.model")
        (output / "tokenizer.json").write_text(fast_from_sentencepiece(tokenizer.path).to_str(), encoding="utf-8")
        (output / "tokenizer_config.json").write_text(
            json.dumps(_settings(tokenizer, seq_len), indent=1) + "\n", encoding="utf-8"
        )
        return
    for name in COPIED:
        if (file := tokenizer.path.with_name(name)).is_file():
            shutil.copyfile(file, output / name)


def check_tokenizer(tokenizer: Tokenizer, folder: Path, texts: Sequence[str]) -> None:
    """Raise UserError unless `AutoTokenizer` reads `folder` and gives the same ids for every text.

    Text that spells a special token is compared as text (`split_special_tokens`), the way training encoded it.
    """
    from transformers import AutoTokenizer

    with quiet_transformers():
        written = AutoTokenizer.from_pretrained(folder)
        encoded = [written(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]
    for text, theirs in zip(texts, encoded, strict=True):
        ours = tokenizer.encode(text)
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
            raise UserError(
                f"the exported tokenizer encodes {text[:60]!r} differently from token {at} on: "
                f"{theirs[at : at + 5]} instead of {ours[at : at + 5]}"
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the library's remarks: that it does not know `internlm2`, or that a text is long."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def fast_from_sentencepiece(path: Path) -> Any:
    """The `tokenizers.Tokenizer` that equals a SentencePiece BPE model; it puts BOS before a text."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    model = SentencePieceProcessor(model_file=str(path))
    chat = chat_tokens(model)
    pieces = [chat.get(i) or model.id_to_piece(i) for i in range(model.vocab_size())]
    # an unused piece keeps its id under a name that no text can lead to
    vocab = {f"<unused {i}>" if model.is_unused(i) else piece: i for i, piece in enumerate(pieces)}
    # a merge makes an ordinary piece: control and byte pieces take no part, user-defined ones match as wholes
    special = [i for i in range(len(pieces)) if model.is_control(i) or model.is_unknown(i) or i in chat]
    whole = [i for i in _user_defined(model) if i not in special]
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


def chat_tokens(model: Any) -> dict[int, str]:
    """Ids and names of the ChatML and tool tokens, where the SentencePiece model keeps InternLM2's places for them."""
    known = {i: name for i, name in CHAT_TOKENS.items() if i < model.vocab_size()}
    there = bool(known) and all(model.id_to_piece(i).startswith(_FREE_PLACE) for i in known)
    return known if there and len(known) == len(CHAT_TOKENS) else {}


def _merges(scores: dict[str, float], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, better pieces first: the order in which SentencePiece merges."""
    found = []
    for piece, score in scores.items():
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        ways = [(left, right) for left, right in halves if left in scores and right in scores]
        ways.sort(key=lambda way: (vocab[way[0]], vocab[way[1]]))
        found += [(-score, vocab[piece], way) for way in ways]
    return [way for _, _, way in sorted(found, key=lambda one: one[:2])]


def _user_defined(model: Any) -> list[int]:
    """Pieces that match as wholes before any merging. The library tells them only in its serialised model."""
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2  # generated code, whose names type checkers do not see
    proto = protocol.ModelProto.FromString(model.serialized_model_proto())
    if proto.trainer_spec.model_type != protocol.TrainerSpec.BPE:
        raise UserError("only SentencePiece models of type BPE can be exported; this one is of another type")
    kind = protocol.ModelProto.SentencePiece.USER_DEFINED
    return [i for i, piece in enumerate(proto.pieces) if piece.type == kind]


def _puts_space_before(model: Any) -> bool:
    """Whether the model puts a space before every text."""
    return model.encode("a", out_type=str)[0].startswith(SPACE)


def _settings(tokenizer: SentencePieceTokenizer, seq_len: int) -> dict[str, Any]:
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
        "clean_up_tokenization_spaces": False,
        "model_max_length": seq_len,
    }
