"""How a run talks is found, wherever its folder is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from internevo.align.conversation import Message, Speaker
from internevo.align.load_template import INTERNLM2
from internevo.align.talking import talking_template
from internevo.files.errors import UserError
from internevo.tokens.tokenizer import fingerprint
from internevo.train.folder import RunFolder
from internevo.train.own_files import write_own_files
from internevo.train.stored_model import open_model
from tests.align.formats import FORMATS, write_tokenizer
from tests.align.talkers import chat_store, train_on


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage in the tokenizer's format, one in another with a variable, and one whose two stores differ."""
    folder = tmp_path_factory.mktemp("stages")
    tokenizer = write_tokenizer(folder / "tok", FORMATS["InternLM2"])
    other = folder / "chatml.jinja"
    other.write_text("{{ greeting }}" + FORMATS["ChatML"].template)
    first = chat_store(folder, "first", tokenizer)
    second = chat_store(folder, "second", tokenizer, str(other), greeting="Day 1")
    third = chat_store(folder, "third", tokenizer, str(other), greeting="Day 2")
    return train_on(folder, tokenizer, {"one": [first], "two": [second], "three": [first, second, third]}, 2)


@pytest.fixture
def copied(two_stages: Path, tmp_path: Path) -> Path:
    """The run's folder alone, without data, whose tokenizer has no template."""
    shutil.copytree(two_stages, run := tmp_path / "run")
    (run / "tokenizer" / "chat_template.jinja").unlink()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(two_stages.parents[1]), "/nowhere"))
    return run


def test_the_last_stage_up_to_the_checkpoint_says_how(copied: Path) -> None:
    first = talking_template(open_model(copied, 4))
    assert first.text == FORMATS["InternLM2"].template
    assert first.stops == {first.fast.token_to_id(name) for name in ("</s>", "<|im_end|>")}
    second = talking_template(open_model(copied, 6))
    asked = [Message(Speaker.user, "Hi")]
    assert first.prompt(asked) == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert second.prompt(asked) == "Day 1<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_stores_that_differ_are_both_named(copied: Path) -> None:
    with pytest.raises(
        UserError, match=r"stage 'three' trained on .*first and on .*third.*their chat templates.*Choose"
    ):
        talking_template(open_model(copied))
    assert talking_template(open_model(copied), INTERNLM2).prompt([Message(Speaker.user, "Hi")]).startswith("<s>")


def test_a_checkpoint_before_it_learned_to_talk(copied: Path) -> None:
    with pytest.raises(UserError, match=r"step 2 has not learned to talk.*internevo data chat.*--template FILE"):
        talking_template(open_model(copied, 2))
    shutil.copyfile(Path(__file__).with_name("conftest.py"), copied / "tokenizer" / "chat_template.jinja")
    with pytest.raises(UserError, match="the chat template"):  # the tokenizer's own is taken, and this one is none
        talking_template(open_model(copied, 2))


def test_a_run_of_before_asks_its_stores(two_stages: Path, copied: Path) -> None:
    shutil.copytree(two_stages, run := copied.parent / "old")
    (run / "chat.json").unlink()
    assert talking_template(open_model(run, 6)).variables["greeting"] == "Day 1"
    (copied / "chat.json").write_text("{")
    with pytest.raises(UserError, match="has not learned to talk"):  # its stores are gone
        talking_template(open_model(copied, 6))


def test_the_tokenizer_travels_with_the_run(chatml_run: Path) -> None:
    stored = open_model(chatml_run)
    assert stored.tokenizer_path == chatml_run / "tokenizer"
    assert stored.needs_tokenizer().decode(stored.needs_tokenizer().encode("Hi")) == "Hi"


def test_another_tokenizer_takes_its_place(two_stages: Path, tmp_path: Path) -> None:
    from internevo.config.load import load_config

    stages = load_config(two_stages / "config.yaml").stages
    folder = RunFolder(tmp_path)
    write_own_files(folder, stages)
    assert fingerprint(folder.tokenizer) == fingerprint(two_stages.parents[1] / "tok")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_own_files(folder, stages)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    for stage in stages:
        stage.tokenizer = str(write_tokenizer(tmp_path / "new", FORMATS["ChatML"]))
    write_own_files(folder, stages)
    assert fingerprint(folder.tokenizer) == fingerprint(tmp_path / "new")


def test_a_sentencepiece_model_beside_another_tokenizer(two_stages: Path, tmp_path: Path) -> None:
    """A folder's `tokenizer.json` would be read in the place of the model that the configuration names."""
    from internevo.config.load import load_config
    from internevo.tokens.train_tokenizer import train_tokenizer

    both = write_tokenizer(tmp_path / "both", FORMATS["ChatML"])
    model = train_tokenizer(["some words and some more words"] * 50, both / "mine.model", 300)
    stages = load_config(two_stages / "config.yaml").stages
    for stage in stages:
        stage.tokenizer = str(model)
    write_own_files(folder := RunFolder(tmp_path / "run"), stages)
    assert fingerprint(folder.tokenizer) == fingerprint(model) != fingerprint(both)
