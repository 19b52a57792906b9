"""What the sentencepiece library does not say about a model: the kinds of its pieces, and InternLM2's chat tokens."""

from __future__ import annotations

from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

_PROTOCOL: Any = sentencepiece_model_pb2  # generated code, whose names type checkers do not see
_KINDS = _PROTOCOL.ModelProto.SentencePiece

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


def chat_tokens(model: SentencePieceProcessor) -> dict[int, str]:
    """Ids and names of the ChatML and tool tokens, where the SentencePiece model keeps InternLM2's places for them."""
    known = {i: name for i, name in CHAT_TOKENS.items() if i < model.vocab_size()}
    kept_free = all(model.id_to_piece(i).startswith(_FREE_PLACE) for i in known)
    return known if kept_free and len(known) == len(CHAT_TOKENS) else {}


def with_chat_tokens(model: SentencePieceProcessor) -> SentencePieceProcessor:
    """The model with these as control tokens, which no text can spell: places are found in text by their names."""
    if not (chat := chat_tokens(model)):
        return model
    proto = _read(model)
    for number, name in chat.items():
        proto.pieces[number].piece, proto.pieces[number].type = name, _KINDS.CONTROL
    return SentencePieceProcessor(model_proto=proto.SerializeToString())


def user_defined(model: SentencePieceProcessor) -> list[int]:
    """Ids of the pieces that match as wholes before any merging, rising."""
    return [i for i, piece in enumerate(_read(model).pieces) if piece.type == _KINDS.USER_DEFINED]


def is_bpe(model: SentencePieceProcessor) -> bool:
    """Whether it merges pairs; the other kinds choose pieces otherwise."""
    return _read(model).trainer_spec.model_type == _PROTOCOL.TrainerSpec.BPE


def _read(model: SentencePieceProcessor) -> Any:
    return _PROTOCOL.ModelProto.FromString(model.serialized_model_proto())
