"""Tokenizers: trained here, the real InternLM2 one, and Hugging Face files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from internevo.files.errors import UserError
from internevo.hf.tokenizer_files import fast_from_sentencepiece
from internevo.tokens.tokenizer import TokenizerError, fingerprint, load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from tests.assets import INTERNLM2, needs_internlm2

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x ** 2  # squared\n\n\nclass A:\n\tpass\n",
    "书生·浦语 2.0 的技术报告:预训练、对齐与评测。",
    "emoji 🙂🚀👩‍👩‍👧‍👦 and flags 🇨🇳🇫🇷",
    "naïve café, Ångström, Москва, العربية, हिन्दी, 日本語",
    "1234567890 3.14159 0xFF 1e-5",
    "  leading, trailing  and   inner spaces  ",
    "\n\n\n\t\t \r\n",
    "control \x01\x7f and zero-width \u200b\ufeff",
    "tags that are text: <s> </s> <unk> <|im_start|> [UNUSED_TOKEN_1]",
]
SOURCES = sorted(Path(__file__).parents[2].glob("internevo/**/*.py"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tokenizer") / "small.model"
    return train_tokenizer((path.read_text() for path in SOURCES), output, 800)


def test_a_trained_tokenizer_brings_text_back(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (800, 1, 2)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {0, 1, 2} & set(ids)  # bytes stand in for what is unknown; framing is not the tokenizer's
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=200).filter(lambda text: "\0" not in text))
@example(text="a▁b ▁")
def test_any_text_comes_back(trained: Path, text: str) -> None:
    """But for U+2581, SentencePiece's own sign for a space, which comes back as one."""
    tokenizer = load_tokenizer(trained)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


def test_the_one_character_that_does_not_come_back_is_told_where_the_rest_is_promised() -> None:
    from internevo.cli.data import tokenizer_train

    pages = Path(__file__).parents[2] / "docs"
    for promise in (
        tokenizer_train.__doc__,
        train_tokenizer.__doc__,
        (pages / "getting-started.md").read_text("utf-8"),
    ):
        assert "exactly" in promise
        assert "U+2581" in promise


def test_digits_are_split_and_words_are_learned(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    assert len(tokenizer.encode("31415926")) == 8
    assert len(tokenizer.encode("return")) <= 2
    assert len(tokenizer.encode("tokenizer")) <= 2


def test_training_is_repeatable_and_overwrites_nothing(trained: Path, tmp_path: Path) -> None:
    again = train_tokenizer((path.read_text() for path in SOURCES), tmp_path / "again.model", 800)
    assert load_tokenizer(again).fingerprint == load_tokenizer(trained).fingerprint
    with pytest.raises(UserError, match="exists already; it is not overwritten"):
        train_tokenizer(["text"], again, 800)
    assert [path.name for path in tmp_path.iterdir()] == ["again.model"]


def test_control_tokens_have_ids_that_no_text_leads_to(tmp_path: Path) -> None:
    texts = [path.read_text() for path in SOURCES]
    made = train_tokenizer(texts, tmp_path / "chat.model", 800, control=("<|im_start|>", "<|im_end|>"))
    tokenizer = load_tokenizer(made)
    assert tokenizer.vocab_size == 800
    for text in (*TEXTS, "<|im_start|>user", "a<|im_end|>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(range(5)) & set(ids)
    fast = fast_from_sentencepiece(made)
    assert fast.encode("<|im_start|>a<|im_end|>", add_special_tokens=False).ids == [3, *tokenizer.encode("a"), 4]
    for wrong in (("",), ("a b",), ("<a>", "<a>")):
        with pytest.raises(UserError, match="cannot name a control token"):
            train_tokenizer(texts, tmp_path / "other.model", 800, control=wrong)
    assert not (tmp_path / "other.model").exists()


def test_too_little_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot train a tokenizer of 5,000 pieces on this text"):
        train_tokenizer(["a few words"], tmp_path / "small.model", 5000)
    assert not list(tmp_path.iterdir())


@needs_internlm2
def test_the_real_internlm2_tokenizer() -> None:
    tokenizer = load_tokenizer(INTERNLM2)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (92_544, 1, 2)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert not {1, 2} & set(ids), text
        assert max(ids) < 92_544
        assert tokenizer.decode(ids) == text


@needs_internlm2
def test_raw_bytes_through_the_internlm2_tokenizer() -> None:
    """Every byte has a piece of its own, and bytes that are no text come out as the replacement character."""
    from sentencepiece import SentencePieceProcessor

    tokenizer = load_tokenizer(INTERNLM2)
    pieces = SentencePieceProcessor(model_file=str(INTERNLM2))
    ids = [pieces.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    assert len(set(ids)) == 256
    encoded = "𓀀𝔘".encode()
    assert tokenizer.decode([ids[byte] for byte in encoded]) == "𓀀𝔘"
    assert "\ufffd" in tokenizer.decode([ids[0xFF]])


@needs_internlm2
def test_the_vocabulary_is_the_presets() -> None:
    from internevo.config.presets import model_preset

    assert load_tokenizer(INTERNLM2).vocab_size == model_preset("internlm2-7b").vocab


def byte_level(folder: Path, special: dict[str, str], config: dict[str, object] | None) -> Path:
    """A Hugging Face tokenizer folder of 256 bytes and some special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(token, special=True) for token in special.values()])
    fast.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    special = {"bos_token": "<begin>", "eos_token": "<end>"}
    named = {"bos_token": "<begin>", "eos_token": {"content": "<end>", "lstrip": False}}
    tokenizer = load_tokenizer(byte_level(tmp_path, special, named))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (258, 256, 257)
    for text in [*TEXTS, "a <end> in a page is text"]:
        ids = tokenizer.encode(text)
        assert max(ids) < 256
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([256, *tokenizer.encode("x"), 257]) == "x"
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["bos_token", "eos_token"])
def test_the_fingerprint_knows_how_documents_are_framed(tmp_path: Path, file: str, key: str) -> None:
    """It is in other files than the tokenizer, which may be the same."""
    named = {"bos_token": "<begin>", "eos_token": "<end>"}
    folder = byte_level(tmp_path, {**named, "other": "<other>"}, None)
    (folder / file).write_text(json.dumps(named))
    before = load_tokenizer(folder).fingerprint
    (folder / file).write_text(json.dumps({**named, key: {"content": named[key]}, "padding_side": "left"}))
    assert load_tokenizer(folder).fingerprint == before == fingerprint(folder)
    (folder / file).write_text(json.dumps({**named, key: "<other>"}))
    assert load_tokenizer(folder).fingerprint != before


def test_the_fingerprint_of_a_sentencepiece_model_is_its_file(trained: Path, tmp_path: Path) -> None:
    copied = tmp_path / "tokenizer.model"
    shutil.copy(trained, copied)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<other>"}')  # which is not read
    assert fingerprint(tmp_path) == fingerprint(trained) == load_tokenizer(copied).fingerprint


def test_a_tokenizer_without_a_beginning_frames_with_its_end(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path, {"eos_token": "<end>"}, {"eos_token": "<end>", "bos_token": None}))
    assert tokenizer.bos_id == tokenizer.eos_id == 256


@pytest.mark.parametrize("config", [None, {}, {"eos_token": "<absent>"}])
def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path, config: dict[str, object] | None) -> None:
    with pytest.raises(TokenizerError, match="names no eos_token"):
        load_tokenizer(byte_level(tmp_path, {}, config))


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="holds neither"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="does not exist"):
        load_tokenizer(tmp_path / "no.model")
    for name, message in (("bad.model", "is not a SentencePiece model"), ("bad.json", "is not a tokenizers file")):
        (tmp_path / name).write_bytes(b"{]")
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(tmp_path / name)


def test_a_torn_file_beside_a_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<')
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not JSON: Unterminated string"):
        fingerprint(tmp_path)
