"""Byte-level BPE by tiktoken: the ids of the tokenizers library, and only where that is certain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Fast

from internevo.tokens.tokenizer import HuggingFaceTokenizer, load_tokenizer

PACKAGE = Path(__file__).parents[2] / "internevo"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
byte_level = pre_tokenizers.ByteLevel
SPLITS = {
    "GPT-4": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(GPT4), "isolated"), byte_level(add_prefix_space=False, use_regex=False)]
    ),
    "GPT-2": lambda: byte_level(add_prefix_space=False),
}


def train(folder: Path, split: Callable[[], Any]) -> Path:
    """A BPE of 1,200 tokens, learned from this package."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer, fast.decoder = split(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<eos>"], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    texts = [path.read_text() for path in sorted(PACKAGE.rglob("*.py"))]
    fast.train_from_iterator([*texts, "中文字符 and häßlich, naïve 🙂🙂 " * 50], trainer)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    fast.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def load(path: Path) -> HuggingFaceTokenizer:
    loaded = load_tokenizer(path)
    assert isinstance(loaded, HuggingFaceTokenizer)
    return loaded


@pytest.fixture(scope="module", params=sorted(SPLITS))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    loaded = load(train(tmp_path_factory.mktemp("bpe"), SPLITS[request.param]))
    assert loaded._faster is not None
    return loaded


def test_the_same_ids_on_code(tokenizer: HuggingFaceTokenizer) -> None:
    texts = [path.read_text() for path in sorted(Path(__file__).parents[2].rglob("internevo/**/*.py"))]
    assert len(texts) > 100
    assert tokenizer.encode_batch(texts) == tokenizer._encode(texts)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8")) | st.text("abcdefgh '\n\t <eos>1234中ß🙂", max_size=60)))
def test_the_same_ids_on_any_text(tokenizer: HuggingFaceTokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == tokenizer._encode(texts)


@pytest.mark.parametrize("text", [" " * 200_000, "\n" * 200_000 + "x", "a" * 200_000, "<eos>" * 3, "\t \n" * 50_000])
def test_the_same_ids_on_runs(tokenizer: HuggingFaceTokenizer, text: str) -> None:
    assert tokenizer.encode_batch([text]) == tokenizer._encode([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def lower(definition: dict[str, Any]) -> None:
    definition["normalizer"] = {"type": "Lowercase"}


def whole_words(definition: dict[str, Any]) -> None:
    """A token that no merge makes."""
    definition["model"]["vocab"]["Ġqzqzq"] = 1200


def other_order(definition: dict[str, Any]) -> None:
    merges = definition["model"]["merges"]
    merges[10], merges[11] = merges[11], merges[10]


def a_pair_is_not_named(definition: dict[str, Any]) -> None:
    """Its token stays in the vocabulary, and tiktoken would still make it."""
    del definition["model"]["merges"][100]


def digits(definition: dict[str, Any]) -> None:
    definition["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True})


def an_added_word(definition: dict[str, Any]) -> None:
    word = {**definition["added_tokens"][0], "content": "import", "id": 1200, "special": False}
    definition["added_tokens"].append(word)


def a_space_before(definition: dict[str, Any]) -> None:
    definition["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def gaps(definition: dict[str, Any]) -> None:
    """What the pattern does not match is a word to tokenizers, and nothing to tiktoken."""
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+"


@pytest.mark.parametrize(
    "change", [lower, whole_words, other_order, a_pair_is_not_named, digits, an_added_word, a_space_before, gaps]
)
def test_anything_unusual_is_left_to_tokenizers(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    path = train(tmp_path / "a", SPLITS["GPT-4"])
    definition = json.loads(path.read_text())
    change(definition)
    path.write_text(json.dumps(definition))
    loaded = load(path)
    assert loaded._faster is None
    text = " The importer of qzqzq 1234, IMPORTED"
    assert loaded.encode(text) == loaded._fast.encode(text, add_special_tokens=False).ids


def test_nfc_is_left_to_tokenizers(tmp_path: Path) -> None:
    path = train(tmp_path / "a", SPLITS["GPT-4"])
    fast = Fast.from_file(str(path))
    fast.normalizer = normalizers.NFC()
    fast.save(str(path))
    assert load(path)._faster is None
