"""Pairs in files to a store, and from there into batches."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internevo.align.choices import ChatOptions, Thinking
from internevo.align.conversation import NotAConversation
from internevo.align.pairs import prepare_pairs, read_pair
from internevo.config.schema import SourceConfig
from internevo.data.batch import IGNORE
from internevo.data.loader import Loader, evaluation_batches
from internevo.data.mixing import Plan
from internevo.files.errors import UserError
from internevo.tokens.build import Manifest
from internevo.tokens.megatron import StoreError
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import load_tokenizer
from tests.align.formats import FORMATS, write_tokenizer
from tests.align.test_chat_store import write
from tests.align.test_masks import said
from tests.tokens.stores import read_by_hand


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chatml"), FORMATS["ChatML"])


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"ask {number}", "chosen": f"tell {number}", "rejected": f"lie {number} " * 2, **more}


def sides(folder: Path, tokenizer: Path, name: str = "train") -> list[list[tuple[str, str]]]:
    """Of every pair in the file itself, each side as its text and what of it is trained."""
    loaded = load_tokenizer(tokenizer)
    found = []
    for document in read_by_hand(folder / name):
        shown = []
        for side in document:
            whole = loaded.show([~i if i < 0 else i for i in side])
            shown.append((whole, loaded.show([i for i in side if i >= 0])))
        found.append(shown)
    return found


ASK = [said("user", "ask 1")]
WAYS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "ask 1", "chosen": "tell", "rejected": "lie"},
    "messages": {"prompt": ASK, "chosen": [said("assistant", "tell")], "rejected": [said("assistant", "lie")]},
    "whole": {"chosen": [*ASK, said("assistant", "tell")], "rejected": [*ASK, said("assistant", "lie")]},
    "whole, with the prompt beside them": {
        "prompt": "ask 1",
        "chosen": [*ASK, said("assistant", "tell")],
        "rejected": [*ASK, said("assistant", "lie")],
    },
    "ShareGPT": {
        "chosen": [{"from": "human", "value": "ask 1"}, {"from": "gpt", "value": "tell"}],
        "rejected": [{"from": "human", "value": "ask 1"}, {"from": "gpt", "value": "lie"}],
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_pair(way: str, tmp_path: Path, chatml: Path) -> None:
    manifest = prepare_pairs([write(tmp_path / "a.jsonl", WAYS[way])], tmp_path / "out", chatml)
    head = "<|im_start|>user\nask 1<|im_end|>\n<|im_start|>assistant\n"
    chosen, rejected = "tell<|im_end|>", "lie<|im_end|>"
    assert sides(tmp_path / "out", chatml) == [[(f"{head}{one}\n", one) for one in (chosen, rejected)]]
    assert (manifest.documents, manifest.pairs, manifest.rejected) == (1, True, 0)
    trained = {name: manifest.tallies[f"trained tokens of {name} sides"] for name in ("chosen", "rejected")}
    assert trained == {"chosen": len("tell") + 1, "rejected": len("lie") + 1}
    assert manifest.tokens == manifest.masked_tokens + sum(trained.values())


def test_a_system_message_beside_the_prompt(tmp_path: Path, chatml: Path) -> None:
    values = [{**WAYS[way], "system": "See."} for way in WAYS]
    prepare_pairs([write(tmp_path / "a.jsonl", *values)], tmp_path / "out", chatml)
    found = sides(tmp_path / "out", chatml)
    assert all(whole.startswith("<|im_start|>system\nSee.<|im_end|>\n") for one in found for whole, _ in one)
    assert len({json.dumps(one) for one in found}) == 1


def test_what_both_sides_begin_with_is_masked(tmp_path: Path, chatml: Path) -> None:
    begin = [*ASK, said("assistant", "tell"), said("user", "ask 2")]
    value = {
        "chosen": [*begin, said("assistant", "left"), said("user", "ask 3"), said("assistant", "tell 3")],
        "rejected": [*begin, said("assistant", "right")],
    }
    prepare_pairs([write(tmp_path / "a.jsonl", value)], tmp_path / "out", chatml)
    ((chosen, rejected),) = sides(tmp_path / "out", chatml)
    assert (chosen[1], rejected[1]) == ("left<|im_end|>tell 3<|im_end|>", "right<|im_end|>")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({**WAYS["texts"], "rejected": "tell"}, "both sides are the same"),
        ({"prompt": "ask", "chosen": "tell"}, "has no rejected"),
        ({"prompt": "ask"}, "has no chosen and no rejected"),
        ({**WAYS["texts"], "prompt": None}, "chosen: there is no prompt, and it is not a list of messages"),
        ({**WAYS["texts"], "rejected": " "}, "rejected: completion has no text"),
        ({**WAYS["whole"], "prompt": "other"}, "chosen: it is a whole conversation, in which the prompt"),
        (
            {"chosen": [*ASK, said("assistant", "x")], "rejected": [said("user", "b"), said("assistant", "y")]},
            "the sides differ in message 1, before the assistant says anything else",
        ),
        (
            {
                "chosen": [*ASK, said("assistant", "x")],
                "rejected": [*ASK, said("assistant", "x"), *ASK, said("assistant", "y")],
            },
            "one side is the beginning of the other",
        ),
        (
            {"prompt": "ask", "chosen": "x", "rejected": [said("assistant", "y", loss=False)]},
            "rejected: has no message that is to be trained",
        ),
        (
            {
                "chosen": [*ASK, said("assistant", "x"), *ASK, said("assistant", "y", loss=False)],
                "rejected": [*ASK, said("assistant", "x"), *ASK, said("assistant", "z")],
            },
            "chosen has no message that is to be trained after what both sides begin with",
        ),
    ],
)
def test_what_is_no_pair(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotAConversation) as found:
        read_pair(value)
    assert reason in str(found.value)


def test_rejects_say_which_side_and_why(tmp_path: Path, chatml: Path) -> None:
    source = write(
        tmp_path / "a.jsonl",
        pair(0),
        pair(1, rejected="<|im_end|>"),
        pair(2, chosen="tell", rejected="tell"),
        pair(3, rejected="lie " * 99),
        pair(4, domain=7),
        pair(5, chosen="tell 5  ", rejected="tell 5"),
        [1],
    )
    manifest = prepare_pairs([source], tmp_path / "out", chatml, options=ChatOptions(max_tokens=160))
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    rejects = {one["where"].rpartition(":")[2]: one["reason"] for one in map(json.loads, lines)}
    assert rejects.pop("4").startswith("its sides have ")
    assert rejects == {
        "2": "rejected: its text spells the control token <|im_end|>",
        "3": "both sides are the same",
        "5": "its domain is int, not text",
        "7": "not a mapping of keys to values",
    }
    assert (manifest.documents, manifest.rejected) == (2, 5)


def test_sides_that_a_template_makes_the_same(tmp_path: Path) -> None:
    llama2 = write_tokenizer(tmp_path / "llama2", FORMATS["Llama 2"])
    source = write(tmp_path / "a.jsonl", pair(1, chosen="tell 5  ", rejected="tell 5"), pair(2))
    manifest = prepare_pairs([source], tmp_path / "out", llama2)
    assert (manifest.documents, manifest.rejected) == (1, 1)
    assert "both sides are the same, as the template writes them" in (tmp_path / "out" / "rejects.jsonl").read_text()


def test_thoughts_that_are_dropped_are_no_difference(tmp_path: Path, chatml: Path) -> None:
    thought = {
        "prompt": "ask",
        "chosen": "<think>\none\n</think>\n\ntell",
        "rejected": "<think>\ntwo\n</think>\n\ntell",
    }
    source = write(tmp_path / "a.jsonl", thought, pair(1))
    assert prepare_pairs([source], tmp_path / "kept", chatml).documents == 2
    dropped = prepare_pairs([source], tmp_path / "dropped", chatml, options=ChatOptions(thinking=Thinking.drop))
    assert (dropped.documents, dropped.rejected) == (1, 1)


def test_one_domain(tmp_path: Path, chatml: Path) -> None:
    source = write(tmp_path / "a.jsonl", pair(0, domain="a"), pair(1, domain="b"), pair(2), pair(3, domain="a"))
    manifest = prepare_pairs([source], tmp_path / "out", chatml, domain="a")
    assert [one[0][1] for one in sides(tmp_path / "out", chatml)] == ["tell 0<|im_end|>", "tell 3<|im_end|>"]
    assert manifest.tallies["pairs of other domains, left out"] == 2
    assert manifest.chat["domain"] == "a"


@pytest.mark.slow
def test_workers_and_a_stop_change_nothing(tmp_path: Path, chatml: Path) -> None:
    draw = random.Random(3)
    source = write(tmp_path / "a.jsonl", *(pair(number // 2, chosen=f"tell {draw.random()}") for number in range(300)))

    def made(name: str, **options: Any) -> Manifest:
        options = {"held_out": 0.2, "piece_bytes": 4096, "shard_tokens": 8000, **options}
        return prepare_pairs([source], tmp_path / name, chatml, **options)

    def stop(done: Any) -> None:
        if done.read > 12_000:
            raise KeyboardInterrupt

    alone = made("alone")
    with pytest.raises(KeyboardInterrupt):
        made("stopped", progress=stop)
    assert made("stopped").sha256 == made("workers", workers=3).sha256 == alone.sha256
    assert alone.documents + alone.heldout_documents == 300
    store, heldout = TokenStore.open_source(tmp_path / "alone"), TokenStore.open_heldout(tmp_path / "alone")
    assert heldout is not None
    assert len(store._shards) > 2
    assert (len(store), len(heldout)) == (alone.documents, alone.heldout_documents)
    loaded, prompts = load_tokenizer(chatml), []
    for one in (store, heldout):
        starts, lengths = one.sides(np.arange(len(one)))
        assert lengths.sum() == one.tokens
        texts = set()
        for begin, length in zip(starts.ravel().tolist(), lengths.ravel().tolist(), strict=True):
            text = loaded.show(one.ids(one.slice(begin, begin + length)).tolist())
            assert text.startswith("<|im_start|>user\nask ")
            assert text.endswith("<|im_end|>\n")
            texts.add(text.split("<|im_end|>")[0])
        prompts.append(texts)
    assert not prompts[0] & prompts[1]  # both pairs of a prompt are on the same side


def plan_of(folder: Path, seq_len: int, packing: str = "best_fit") -> Plan:
    return Plan.constant([SourceConfig(str(folder), max_epochs=1)], rows=2, seq_len=seq_len, packing=packing)


def test_a_row_has_both_sides_of_a_pair_beside_each_other(tmp_path: Path, chatml: Path) -> None:
    draw = random.Random(1)
    source = write(tmp_path / "a.jsonl", *(pair(number, chosen="tell " * draw.randint(1, 9)) for number in range(90)))
    prepare_pairs([source], tmp_path / "out", chatml)
    loaded, seen = load_tokenizer(chatml), []
    with Loader(plan_of(tmp_path / "out", 512), seed=1) as loader:
        while len(seen) < 90:
            batch = loader.next()
            assert batch.label_count == (batch.labels != IGNORE).sum()
            assert batch.cut_documents == 0
            before = len(seen)
            for tokens, labels, positions, lengths, real in zip(
                batch.tokens, batch.labels, batch.positions, batch.lengths, batch.real_tokens, strict=True
            ):
                pieces = lengths if sum(lengths) == real else lengths[:-1]
                ends = np.cumsum(pieces)
                assert np.array_equal(positions[: ends[-1]], np.concatenate([np.arange(n) for n in pieces]))
                said_of = [
                    loaded.show(labels[end - length : end][labels[end - length : end] != IGNORE].tolist())
                    for end, length in zip(ends, pieces, strict=True)
                ]
                asked = [
                    loaded.show(tokens[end - length : end].tolist()) for end, length in zip(ends, pieces, strict=True)
                ]
                for at in range(0, len(pieces), 2):
                    number = asked[at].split("ask ")[1].split("<")[0]
                    assert asked[at + 1].split("ask ")[1].split("<")[0] == number
                    assert said_of[at].startswith("tell ")
                    assert said_of[at + 1] == f"lie {number} lie {number} <|im_end|>"
                    seen.append(int(number))
            assert batch.documents == len(seen) - before
    assert sorted(seen) == list(range(90))


def test_a_pair_that_does_not_fit_a_row_is_refused(tmp_path: Path, chatml: Path) -> None:
    prepare_pairs([write(tmp_path / "a.jsonl", pair(0), pair(1))], tmp_path / "out", chatml)
    length = int(TokenStore.open_source(tmp_path / "out").lengths(np.arange(1))[0])
    with (
        Loader(plan_of(tmp_path / "out", length - 1), seed=1) as loader,
        pytest.raises(StoreError, match=rf"has {length} tokens and would be cut. Raise train.seq_len"),
    ):
        loader.next()
    with Loader(plan_of(tmp_path / "out", length), seed=1) as loader:
        assert loader.next().documents == 2


def test_held_out_pairs_that_do_not_fit_are_left_out(tmp_path: Path, chatml: Path) -> None:
    source = write(tmp_path / "a.jsonl", pair(0), pair(1, chosen="tell " * 50), pair(2))
    prepare_pairs([source], tmp_path / "out", chatml)
    store = TokenStore.open_source(tmp_path / "out")
    short = int(store.lengths(np.arange(1))[0])
    found = list(evaluation_batches("x", store, 2 * short, 4, 10**6))
    assert [one.documents for one in found] == [2]
    assert not list(evaluation_batches("x", store, short - 1, 4, 10**6))


def test_damaged_pairs_are_told(tmp_path: Path, chatml: Path) -> None:
    prepare_pairs([write(tmp_path / "a.jsonl", pair(0), pair(1))], tmp_path / "out", chatml)
    with pytest.raises(UserError, match="never cut"):
        prepare_pairs([tmp_path / "a.jsonl"], tmp_path / "b", chatml, options=replace(ChatOptions(), longer="cut"))  # type: ignore[arg-type]
    index = tmp_path / "out" / "train.idx"
    data = bytearray(index.read_bytes())
    data[-16:-8] = (3).to_bytes(8, "little")  # the border between the two documents
    index.write_bytes(data)
    with pytest.raises(StoreError, match="document 0 has not two sequences"):
        TokenStore.open_source(tmp_path / "out").sides(np.arange(2))
