"""What an export says about how a model talks, proven by transformers' own pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from internevo.align.chat import Chat, Sampling
from internevo.align.talking import exported_chat, talking_template
from internevo.hf.export import export
from internevo.train.stored_model import open_model
from tests.align.formats import FORMATS
from tests.align.talkers import ANSWERS, SHOUTED, SYSTEM, talker

pytestmark = pytest.mark.slow


def exported(run: Path, folder: Path, family: str, **more: Any) -> Path:
    stored = open_model(run)
    chat = exported_chat(stored, **more)
    export(stored.weights, stored.config, folder, family, seq_len=256, tokenizer=stored.needs_tokenizer(), chat=chat)
    return folder


@pytest.fixture(scope="module", params=["ChatML as llama", "InternLM2 as internlm2", "Llama 3 as llama"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that talks in a format, and its export to a family."""
    format, _, family = request.param.partition(" as ")
    if format == "ChatML":
        run = request.getfixturevalue("chatml_run")
    else:
        run = talker(tmp_path_factory.mktemp("talker"), format)
    return run, exported(run, tmp_path_factory.mktemp("exported") / "hf", family)


def test_transformers_pipeline_says_what_chat_says(both: tuple[Path, Path]) -> None:
    """Greedy, over two turns, with and without a system message; nobody tells the pipeline where to stop."""
    run, folder = both
    pipe = transformers.pipeline("text-generation", model=str(folder), trust_remote_code=True, device="cpu")
    stored = open_model(run)
    for answers, system in ((ANSWERS, ""), (SHOUTED, SYSTEM)):
        chat = Chat(stored, talking_template(stored), Sampling(temperature=0, max_tokens=60), system)
        messages = [{"role": "system", "content": system}] if system else []
        for question in list(answers)[:2]:
            messages.append({"role": "user", "content": question})
            messages = pipe(messages, max_new_tokens=60, do_sample=False)[0]["generated_text"]
            said = "".join(chat.ask(question))
            assert messages[-1] == {"role": "assistant", "content": said}
            assert said == answers[question]


def test_its_files(both: tuple[Path, Path]) -> None:
    run, folder = both
    template = talking_template(open_model(run))
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert set(generation.eos_token_id) == template.stops
    assert len(template.stops) == 2  # the document's end, and the turn's
    assert generation.pad_token_id is not None
    assert (folder / "chat_template.jinja").read_text() == template.text
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    marked = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask="endgeneration" in template.text
    )
    if "endgeneration" in template.text:  # the tags still say what the assistant writes
        written = [i for i, one in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if one]
        assert tokenizer.decode(written) == "Hello<|im_end|>"


def test_variables_are_defaults(chatml_run: Path, tmp_path: Path) -> None:
    from tests.align.talkers import chat_store, train_on

    template = tmp_path / "named.jinja"
    template.write_text("{{ greeting }}\n" + FORMATS["ChatML"].template)
    store = chat_store(tmp_path, "chats", chatml_run / "tokenizer", str(template), greeting='Day "1"')
    run = train_on(tmp_path, chatml_run / "tokenizer", {"chat": [store]}, 2)
    folder = exported(run, tmp_path / "hf", "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked: list[dict[str, str]] = [{"role": "user", "content": "Hi"}]
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for more, begin in (({}, 'Day "1"\n'), ({"greeting": "Day 2"}, "Day 2\n")):
        found = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **more)
        assert found == begin + expected


def test_another_template_and_a_model_that_does_not_talk(chatml_run: Path, tmp_path: Path) -> None:
    named = tmp_path / "named.jinja"
    named.write_text("{# mine #}" + FORMATS["ChatML"].template)
    folder = exported(chatml_run, tmp_path / "named", "llama", template=str(named))
    assert (folder / "chat_template.jinja").read_text().startswith("{# mine #}")
    assert exported_chat(open_model(chatml_run, 2)) is None
