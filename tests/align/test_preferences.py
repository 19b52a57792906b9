"""The whole way, by the verbs' own functions: a base model, pairs with a planted preference, what it has learnt."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from internevo.align.chat_store import prepare_chat
from internevo.align.pairs import prepare_pairs
from internevo.align.reference import make_references, model_name
from internevo.config.load import load_config
from internevo.files.errors import UserError
from internevo.monitor.metrics import read_metrics
from internevo.tokens.store import TokenStore
from internevo.train.run import train
from internevo.train.stored_model import open_model
from tests.align.formats import FORMATS, write_tokenizer
from tests.align.test_chat_store import write

WORDS = {"manners": ("please", "now"), "facts": ("round", "flat")}
"""By domain the word that is preferred, and the one that is not, anywhere in an answer."""


def answer(draw: random.Random, word: str) -> str:
    letters = ["".join(draw.choices("abcdnort", k=draw.randint(2, 4))) for _ in range(draw.randint(1, 3))]
    letters.insert(draw.randint(0, len(letters)), word)
    return " ".join(letters)


def pairs(count: int, domain: str, seed: int) -> list[dict[str, Any]]:
    """Questions without a meaning and two answers that differ in all but what is preferred."""
    draw = random.Random(seed)
    good, bad = WORDS[domain]
    found = []
    for _ in range(count):
        prompt = f"{domain} " + "".join(draw.choices("xyzuvw", k=6))
        found.append({"prompt": prompt, "chosen": answer(draw, good), "rejected": answer(draw, bad), "domain": domain})
    return found


def config(folder: Path, name: str, sources: list[str], **train: Any) -> Path:
    tree = {
        "name": name,
        "runs": str(folder / "runs"),
        "model": {"preset": "tiny", "layers": 2},
        "optimizer": {"lr": 2e-3},
        "schedule": {"warmup": 2},
        "tokenizer": str(folder / "tokenizer"),
        "train": {"seq_len": 192, "batch_tokens": 192 * 8, "micro_batch": 8, "precision": "fp32", "device": "cpu"}
        | train,
        "data": {"sources": [{"path": str(folder / one)} for one in sources]},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of pairs, with some prompts held out, and a model that has seen answers of both kinds."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("preferences")
    tokenizer = write_tokenizer(folder / "tokenizer", FORMATS["ChatML"])
    values = [*pairs(400, "manners", 1), *pairs(400, "facts", 2)]
    random.Random(3).shuffle(values)
    file = write(folder / "pairs.jsonl", *values)
    chats = [{"prompt": one["prompt"], "completion": one[side]} for one in values for side in ("chosen", "rejected")]
    prepare_chat([write(folder / "chats.jsonl", *chats)], folder / "chats", tokenizer)
    for domain in WORDS:
        made = prepare_pairs([file], folder / domain, tokenizer, domain=domain, held_out=0.2)
        assert made.heldout_documents > 50
    train(load_config(config(folder, "base", ["chats"], steps=60)))
    return folder


def dpo(folder: Path, name: str, steps: int, **objective: Any) -> Path:
    chosen = {"kind": "internevo.align.dpo:DPO", **objective}
    model = str(folder / "runs" / "base")
    return config(folder, name, list(WORDS), steps=steps, init_from=model, objective=chosen)


@pytest.mark.slow
def test_a_planted_preference_is_learnt(folder: Path) -> None:
    base, steps = folder / "runs" / "base", 60
    with pytest.raises(
        UserError, match=r"is missing. `internevo data reference .*manners --model .*base --precision fp32`"
    ):
        train(load_config(dpo(folder, "early", steps)))
    for domain in WORDS:
        made = make_references(str(folder / domain), base, precision="fp32", device="cpu", rows=2)
        assert [one.name for one in made.written] == ["train.npy", "heldout.npy"]
        again = make_references(str(folder / domain), base, precision="fp32", device="cpu", rows=4)
        assert (again.written, again.kept) == ((), made.written)
    train(load_config(dpo(folder, "dpo", steps)))
    lines, evals = (read_metrics(folder / "runs" / "dpo" / f"{name}.jsonl") for name in ("metrics", "evals"))
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)  # it begins at its reference
    assert abs(lines[0]["recorded"]["pairs/margin"]) < 1e-3
    assert {f"pairs/accuracy {domain}" for domain in WORDS} < set(lines[0]["recorded"])
    assert lines[-1]["recorded"]["pairs/accuracy"] > 0.95
    for domain in WORDS:
        at = {one["when"]: one["recorded"] for one in evals if one["source"] == domain}
        assert at["start"]["pairs/loss"] == pytest.approx(np.log(2), abs=1e-4)
        assert at["end"]["pairs/accuracy"] > 0.95, (domain, at)
        assert at["end"]["pairs/margin"] > at["start"]["pairs/margin"] + 1


@pytest.mark.slow
def test_references_of_another_model_are_refused(folder: Path) -> None:
    for domain in WORDS:
        make_references(str(folder / domain), folder / "runs" / "base", precision="fp32", device="cpu")
    other = config(folder, "other", ["chats"], steps=3)
    train(load_config(other))
    wrong = yaml.safe_load(dpo(folder, "wrong", 3).read_text(encoding="utf-8"))
    wrong["train"]["init_from"] = str(folder / "runs" / "other")
    (folder / "wrong.yaml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    with pytest.raises(UserError, match="of another model or precision"):
        train(load_config(folder / "wrong.yaml"))
    with pytest.raises(UserError, match="of another model or precision"):
        train(load_config(dpo(folder, "bf16", 3), ["train.precision=bf16"]))
    assert not (folder / "runs" / "bf16" / "config.yaml").exists()  # nothing was begun
    with pytest.raises(UserError, match="holds no pairs"):
        make_references(str(folder / "chats"), folder / "runs" / "base")
    with pytest.raises(UserError, match=r"holds no pairs \(chosen, rejected\); `internevo data pairs`"):
        train(load_config(dpo(folder, "texts", 3), ["data.sources=[{path: " + str(folder / "chats") + "}]"]))
    with pytest.raises(UserError, match=r"would train on both alike; set train.objective.kind"):
        train(load_config(config(folder, "alike", ["manners"], steps=3)))
    with pytest.raises(UserError, match=r"more than train.seq_len 64, and a pair is never cut"):
        train(load_config(dpo(folder, "short", 3), ["train.seq_len=64", "train.micro_batch=1"]))
    with pytest.raises(UserError, match=r"data.packing=concat would cut; use best_fit"):
        train(load_config(dpo(folder, "concat", 3), ["data.packing=concat"]))


@pytest.mark.slow
def test_damaged_references_are_refused(folder: Path) -> None:
    for domain in WORDS:
        made = make_references(str(folder / domain), folder / "runs" / "base", precision="fp32", device="cpu")
    file = (*made.written, *made.kept)[0]
    whole = file.read_bytes()
    short = io.BytesIO()
    np.save(short, np.zeros((3, 2), np.float32))
    held = {
        whole[: len(whole) // 2]: "is damaged",
        whole[:40]: "is damaged",
        b"": "is damaged",
        short.getvalue(): r"holds float32 \[3, 2\], but .* has [0-9]+ pairs",
    }
    try:
        for damaged, message in held.items():
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=message):
                train(load_config(dpo(folder, "damaged", 3)))
    finally:
        file.write_bytes(whole)


@pytest.mark.slow
def test_references_are_the_model_s_own_sums(folder: Path) -> None:
    """Against a side at a time through the model as it stands on the disk, its logits all at once."""
    made = make_references(str(folder / "facts"), folder / "runs" / "base", precision="fp32", device="cpu")
    values = np.load((*made.written, *made.kept)[0])
    store, model = TokenStore.open_source(folder / "facts"), open_model(folder / "runs" / "base").load()
    starts, lengths = store.sides(np.arange(len(store)))
    for number in (0, 7, len(store) - 1):
        for side in range(2):
            begin = int(starts[number, side])
            found = store.slice(begin, begin + int(lengths[number, side]))
            ids = torch.from_numpy(store.ids(found))
            with torch.no_grad():
                log_probs = model(ids[None]).log_softmax(-1)[0]
            wanted = sum(float(log_probs[at - 1, ids[at]]) for at in range(1, len(ids)) if found[at] >= 0)
            assert values[number, side] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.slow
def test_a_model_s_name_is_that_of_its_weights(folder: Path) -> None:
    stored = open_model(folder / "runs" / "base")
    assert model_name(stored) == model_name(open_model(folder / "runs" / "base"))
    assert model_name(replace(stored, config=replace(stored.config, norm_eps=1e-6))) != model_name(stored)


@pytest.mark.slow
def test_a_run_on_pairs_resumes(folder: Path) -> None:
    for domain in WORDS:
        make_references(str(folder / domain), folder / "runs" / "base", precision="fp32", device="cpu")
    train(load_config(dpo(folder, "unbroken", 6)))
    file = load_config(dpo(folder, "stopped", 6))
    train(file, until=3)
    train(file)
    first, second = (read_metrics(folder / "runs" / name / "metrics.jsonl") for name in ("unbroken", "stopped"))
    for one, other in zip(first, second, strict=True):
        assert [one[key] for key in ("loss", "digest", "grad_norm", "recorded")] == [
            other[key] for key in ("loss", "digest", "grad_norm", "recorded")
        ]
