"""Tokenizers: SentencePiece models and Hugging Face tokenizers behind one small interface.

Encoding never adds BOS or EOS, and never turns text that happens to spell a special token, such as `</s>` in a web
page, into that token: only `data prepare` frames documents. Added tokens that a tokenizer's files call ordinary
(`special: false`, as Qwen3's `<think>`) are vocabulary: text that spells one becomes it, as in transformers.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from internevo.files.errors import UserError
from internevo.tokens.fast_bpe import tiktoken_of

_BRACKETED = re.compile(r"<.+>|\[.+\]")
_SPACES = " " * 10_000
"""tiktoken's regular expressions overflow the stack on megabytes of them; those of tokenizers do not."""


class TokenizerError(UserError):
    """A tokenizer that cannot be loaded or used."""


class Tokenizer(ABC):
    """Text to token ids and back."""

    path: Path  # the file that defines it
    vocab_size: int  # ids are below it
    bos_id: int  # begins a document; EOS where a tokenizer has no BOS (Qwen's)
    eos_id: int  # ends a document
    prefix: list[int]  # what transformers puts before an encoded text: BOS, or nothing

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without BOS and EOS."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """The text of ids that all have a piece."""

    @abstractmethod
    def _has(self, token: int) -> bool:
        """Whether an id has a piece."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; special tokens have none, and an id without a piece shows as `<id 4093>`."""
        runs = groupby((int(i) for i in ids), self._has)
        return "".join(self._decode(list(run)) if known else "".join(f"<id {i}>" for i in run) for known, run in runs)

    def show(self, ids: Sequence[int]) -> str:
        """As `decode`, with the names of control tokens."""
        runs = groupby((int(i) for i in ids), self._control)
        return "".join(name * len(list(run)) if name else self.decode(list(run)) for name, run in runs)

    def unused(self, vocab: int) -> list[int]:
        """Ids below `vocab`, a model's, that have no piece: they must not be sampled."""
        return [i for i in range(vocab) if not self._has(i)]

    @abstractmethod
    def _control(self, token: int) -> str:
        """The name of a control token; empty for others."""

    @abstractmethod
    def spelled(self) -> list[str]:
        """Tokens in angle or square brackets, as control tokens are, that text can nevertheless spell; by their ids."""

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without BOS and EOS."""
        return self.encode_batch([text])[0]

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the ids of documents, 16 hex digits."""
        return fingerprint(self.path)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a SentencePiece `.model`, a `tokenizer.json`, or a folder with one. Raises TokenizerError if that fails."""
    file = _defining_file(Path(path))
    return HuggingFaceTokenizer(file) if file.suffix == ".json" else SentencePieceTokenizer(file)


def fingerprint(path: str | Path) -> str:
    """A hash of a tokenizer's file and of the names of BOS and EOS beside it, 16 hex digits. Raises TokenizerError."""
    file = _defining_file(Path(path))
    found = hashlib.sha256(file.read_bytes())
    if file.suffix == ".json":  # a SentencePiece model says itself how documents are framed
        found.update(json.dumps(_special_tokens(file), sort_keys=True).encode())
    return found.hexdigest()[:16]


def _defining_file(path: Path) -> Path:
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).is_file():
                return path / name
        raise TokenizerError(f"{path} holds neither tokenizer.json nor tokenizer.model")
    if not path.is_file():
        raise TokenizerError(f"the tokenizer {path} does not exist. `internevo tokenizer train` makes one.")
    return path


class SentencePieceTokenizer(Tokenizer):
    def __init__(self, path: Path):
        from sentencepiece import SentencePieceProcessor, set_min_log_level

        from internevo.tokens.sentence_pieces import with_chat_tokens

        set_min_log_level(2)  # else every worker warns of pieces that were never used

        self.path = path
        try:
            self._model = with_chat_tokens(SentencePieceProcessor(model_file=str(path)))
        except (RuntimeError, OSError) as error:
            raise TokenizerError(f"{path} is not a SentencePiece model: {error}") from None
        self.vocab_size = self._model.vocab_size()
        if self._model.eos_id() < 0:
            raise TokenizerError(f"{path} has no end-of-sentence piece; documents could not be told apart")
        self.eos_id = self._model.eos_id()
        self.prefix = [self._model.bos_id()] if self._model.bos_id() >= 0 else []
        self.bos_id = self.prefix[0] if self.prefix else self.eos_id

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode(list(texts), num_threads=1)

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)

    def _has(self, token: int) -> bool:
        return 0 <= token < self.vocab_size

    def _control(self, token: int) -> str:
        return self._model.id_to_piece(token) if self._has(token) and self._model.is_control(token) else ""

    def spelled(self) -> list[str]:
        from internevo.tokens.sentence_pieces import user_defined

        return [piece for i in user_defined(self._model) if _BRACKETED.fullmatch(piece := self._model.id_to_piece(i))]


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` of the tokenizers library; BOS and EOS come from the files beside it."""

    def __init__(self, path: Path):
        from tokenizers import Tokenizer as Fast

        self.path = path
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:  # the library raises the bare class
            raise TokenizerError(f"{path} is not a tokenizers file: {error}") from None
        self._fast.encode_special_tokens = True
        self._fast.no_truncation()
        self._fast.no_padding()
        ids = self._fast.get_vocab(with_added_tokens=True)
        self._ids = frozenset(ids.values())
        self._controls = {i: one.content for i, one in self._fast.get_added_tokens_decoder().items() if one.special}
        self.vocab_size = max(self._ids) + 1
        named = _special_tokens(path)
        eos = named.get("eos_token", "")
        if eos not in ids:
            raise TokenizerError(
                f"{path.parent} names no eos_token (in tokenizer_config.json or special_tokens_map.json); "
                "documents could not be told apart"
            )
        self._faster = tiktoken_of(path, self._fast)
        self.eos_id = ids[eos]
        self.bos_id = ids.get(named.get("bos_token", ""), self.eos_id)
        self.prefix = [one for one in self._fast.encode("").ids if one != self.eos_id]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._faster is None or any(_SPACES in text for text in texts):
            return self._encode(texts)
        try:
            return [self._faster.encode_ordinary(text) for text in texts]
        except BaseException as error:  # other white space without end: Rust's panics are not of the kind Exception
            if type(error).__name__ != "PanicException":
                raise
            return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _decode(self, ids: list[int]) -> str:
        return self._fast.decode(ids, skip_special_tokens=True)

    def _has(self, token: int) -> bool:
        return token in self._ids

    def _control(self, token: int) -> str:
        return self._controls.get(token, "")

    def spelled(self) -> list[str]:
        added = sorted(self._fast.get_added_tokens_decoder().items())
        return [one.content for _, one in added if not one.special and _BRACKETED.fullmatch(one.content)]


def _special_tokens(path: Path) -> dict[str, str]:
    """Of a `tokenizer.json`: BOS and EOS, as far as the files beside it name them."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = path.with_name(name)
        try:
            content: Any = json.loads(file.read_bytes()) if file.is_file() else {}
        except ValueError as error:
            raise TokenizerError(f"{file} is not JSON: {error}. Repair it, or fetch it again.") from None
        if not isinstance(content, dict):
            raise TokenizerError(f"{file} holds no mapping of keys to values. Repair it, or fetch it again.")
        for key in ("bos_token", "eos_token"):
            if token := content.get(key):
                text = token.get("content") if isinstance(token, dict) else token
                if not isinstance(text, str):
                    raise TokenizerError(f"{file}: {key}: expected one token as text, found {token!r}")
                named[key] = text
    return named
