"""What a converter to GGUF finds in an export: its tokenizer's ids, flags and kinds of tokens.

llama.cpp's converter takes pieces and kinds from `tokenizer.model`, then what `tokenizer_config.json` says of single
tokens; `gguf`, its library, reads the rest. https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf

from internevo.hf.tokenizer_files import write_tokenizer
from internevo.tokens.tokenizer import load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from tests.assets import INTERNLM2, needs_internlm2


def kinds_of(folder: Path) -> dict[str, gguf.TokenType]:
    """By its text, of every token."""
    kinds = list(gguf.SentencePieceVocab(folder).all_tokens())
    texts, kinds = [text.decode() for text, _, _ in kinds], [kind for _, _, kind in kinds]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for number, token in settings.get("added_tokens_decoder", {}).items():
        texts[int(number)] = token["content"]
        kinds[int(number)] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    return dict(zip(texts, kinds, strict=True))


def test_a_trained_tokenizer(tmp_path: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(gguf.__file__).parent.glob("*.py"))]
    tokenizer = load_tokenizer(train_tokenizer(texts, tmp_path / "t.model", 800))
    write_tokenizer(tokenizer, tmp_path, 4096)
    found = gguf.SpecialVocab(tmp_path, n_vocab=800)
    assert found.special_token_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 2}
    assert (found.add_special_token["bos"], found.add_special_token["eos"]) == (True, False)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_prefix_space"] is False
    kinds = kinds_of(tmp_path)
    assert kinds["</s>"] == gguf.TokenType.CONTROL
    assert kinds["\n"] == kinds["\t"] == gguf.TokenType.USER_DEFINED
    assert kinds["<0x00>"] == gguf.TokenType.BYTE


@needs_internlm2
def test_chat_tokens_of_internlm2_are_control_tokens(tmp_path: Path) -> None:
    write_tokenizer(load_tokenizer(INTERNLM2), tmp_path, 4096)
    found = gguf.SpecialVocab(tmp_path, n_vocab=92_544)
    assert found.special_token_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 2}
    assert "<|im_start|>" in found.chat_template
    kinds = kinds_of(tmp_path)
    for name in ("<|im_start|>", "<|im_end|>", "<|plugin|>"):
        assert kinds[name] == gguf.TokenType.CONTROL
    assert "[UNUSED_TOKEN_145]" not in kinds
    whole = gguf.LlamaHfVocab(tmp_path)  # reads `tokenizer.json`
    assert {text for text, _, kind in whole.all_tokens() if kind == gguf.TokenType.CONTROL} >= {b"<|im_end|>", b"</s>"}
