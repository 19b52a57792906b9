"""Tokenizers after export: `AutoTokenizer`, offline and without remote code, gives the ids that training used."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from internevo.files.errors import UserError
from internevo.hf.tokenizer_files import check_tokenizer, write_tokenizer
from internevo.tokens.tokenizer import Tokenizer, load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from tests.assets import INTERNLM2, needs_internlm2

LIBRARY = Path(os.__file__).parent
TEXTS = [
    *(path.read_text(encoding="utf-8") for path in sorted(LIBRARY.glob("a*.py"))),
    "def f(x):\n\treturn  x+1\n\n\n        y = 3.14159",
    "  leading",
    "trailing  ",
    " ",
    "",
    "\n",
    "\t\n \t",
    "a\r\nb",
    "你好，世界。1234567",
    "naïve café — «x» ∑∫√",
    "😀🎉👍🏽",
    "\u3000全角　ｆｕｌｌ",
    "e\u0301",
    "\x00\x01\x7f",
    "</s><s> and <unk> are text",
]


def random_texts(seed: int) -> list[str]:
    """Mixtures of pieces that trip tokenizers up."""
    rng = random.Random(seed)
    parts = [
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        "the",
        "ing",
        "1",
        "42",
        "é",
        "好",
        "🙂",
        "_",
        "▁",
        "(",
        '"',
        "x=",
        "\r",
    ]
    return ["".join(rng.choices(parts, k=rng.randint(1, 30))) for _ in range(300)]


def same_ids(tokenizer: Tokenizer, folder: Path) -> None:
    write_tokenizer(tokenizer, folder, 4096)
    check_tokenizer(tokenizer, folder, [*TEXTS, *random_texts(0)])
    loaded = AutoTokenizer.from_pretrained(folder)
    assert (loaded.bos_token_id, loaded.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert len(loaded) == tokenizer.vocab_size
    assert loaded("some text")["input_ids"] == [tokenizer.bos_id, *tokenizer.encode("some text")]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert loaded.decode(ids) == tokenizer.decode(ids)


def test_our_own_tokenizer(tmp_path: Path) -> None:
    same_ids(load_tokenizer(train_tokenizer(TEXTS, tmp_path / "t.model", 1500)), tmp_path)


@pytest.mark.parametrize("prefix", [True, False])
def test_other_sentencepiece_models(tmp_path: Path, prefix: bool) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        max_sentence_length=1_000_000,
        minloglevel=2,
    )
    (tmp_path / "t.model").write_bytes(model.getvalue())
    same_ids(load_tokenizer(tmp_path / "t.model"), tmp_path)


@needs_internlm2
def test_internlm2(tmp_path: Path) -> None:
    same_ids(load_tokenizer(INTERNLM2), tmp_path)


@needs_internlm2
def test_internlm2_has_chat_tokens(tmp_path: Path) -> None:
    """The released ids; each is one special token, and a conversation is put together with them."""
    tokenizer = load_tokenizer(INTERNLM2)
    write_tokenizer(tokenizer, tmp_path, 4096)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = {
        "<|im_start|>": 92543,
        "<|im_end|>": 92542,
        "<|action_start|>": 92541,
        "<|action_end|>": 92540,
        "<|interpreter|>": 92539,
        "<|plugin|>": 92538,
    }
    for name, number in ids.items():
        assert loaded.convert_tokens_to_ids(name) == number
        assert loaded(name, add_special_tokens=False)["input_ids"] == [number]
        assert loaded.decode([number]) == name
        assert loaded.decode([number], skip_special_tokens=True) == ""
    assert set(ids) <= set(loaded.all_special_tokens)
    # text that spells one is text, by its name in the release or in the SentencePiece model
    spelled = ["a <|im_start|> b", "a [UNUSED_TOKEN_145] b", "[UNUSED_TOKEN_141][UNUSED_TOKEN_144]"]
    check_tokenizer(tokenizer, tmp_path, spelled)
    for text in spelled:
        assert not set(ids.values()) & set(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    said = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert said == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_hugging_face_tokenizer_is_copied(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_tokenizer(load_tokenizer(train_tokenizer(TEXTS, tmp_path / "t.model", 1000)), first, 4096)
    (first / "tokenizer.model").unlink()
    tokenizer = load_tokenizer(first)
    assert type(tokenizer).__name__ == "HuggingFaceTokenizer"
    same_ids(tokenizer, second)


def test_ordinary_added_tokens_are_spelled_by_text_as_in_transformers(tmp_path: Path) -> None:
    """Reasoning models have `<think>` among these. In text, in prompts and in a chat template it is the same token."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_tokenizer(load_tokenizer(train_tokenizer(TEXTS, tmp_path / "t.model", 1000)), first, 4096)
    (first / "tokenizer.model").unlink()
    definition = json.loads((first / "tokenizer.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for number, (name, special) in enumerate({"<think>": False, "</think>": False, "<|end|>": True}.items(), 1000):
        definition["added_tokens"].append({"id": number, "content": name, "special": special, **flags})
    (first / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    settings = json.loads((first / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    (first / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(first)
    write_tokenizer(tokenizer, second, 4096)
    text = "<think>so</think> <|end|>"
    ids = tokenizer.encode(text)
    assert (ids[0], 1001 in ids, 1002 in ids) == (1000, True, False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.spelled() == ["<think>", "</think>"]
    check_tokenizer(tokenizer, second, [text])
    said = [{"role": "user", "content": "<think>so</think>"}]
    loaded = AutoTokenizer.from_pretrained(second)
    templated = loaded(loaded.apply_chat_template(said, tokenize=False), add_special_tokens=False)["input_ids"]
    assert templated == [*tokenizer.encode("<think>so</think>"), 1002]


def test_every_version_of_tokenizers_can_read_the_merges(tmp_path: Path) -> None:
    """Before 0.20, only `left right` was known; the library itself now writes pairs."""
    write_tokenizer(load_tokenizer(train_tokenizer(TEXTS, tmp_path / "t.model", 1000)), tmp_path, 4096)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert model["merges"]
    assert all(len(merge.split(" ")) == 2 and merge.replace(" ", "") in model["vocab"] for merge in model["merges"])


def test_different_ids_are_found(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(train_tokenizer(TEXTS, tmp_path / "t.model", 1000))
    other = load_tokenizer(train_tokenizer(TEXTS[:3], tmp_path / "u.model", 1000))
    write_tokenizer(tokenizer, tmp_path, 4096)
    with pytest.raises(UserError, match="differently from token"):
        check_tokenizer(other, tmp_path, TEXTS)


def test_unigram_models_are_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:4]),
        model_writer=model,
        model_type="unigram",
        vocab_size=400,
        max_sentence_length=1_000_000,
        minloglevel=2,
    )
    (tmp_path / "u.model").write_bytes(model.getvalue())
    with pytest.raises(UserError, match="only SentencePiece models of type BPE"):
        write_tokenizer(load_tokenizer(tmp_path / "u.model"), tmp_path, 64)
