"""Templates that lose something, or put it in the wrong place: refused with a reason, never trained in silence."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from internevo.align.load_template import load_template
from internevo.align.template import ChatTemplate
from internevo.files.errors import UserError
from tests.align.formats import CHATML, FORMATS, MISTRAL, Format, write_tokenizer
from tests.align.test_masks import MARKED, WEATHER, call, documents, said, template_of


def chatml_with(folder: Path, text: str, one: Format = FORMATS["ChatML"]) -> ChatTemplate:
    write_tokenizer(folder, one, 0)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return load_template(folder)


def trained(template: ChatTemplate, chat: list[dict[str, Any]], tools: Any = (), **options: Any) -> list[str]:
    return [text for one in documents(template, chat, tools, **options) for text, kind in one if kind]


TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
THINKS_APART = (
    "{% for m in messages %}{% if m.reasoning_content %}"
    "{{ '<|im_start|>assistant\n' + m.reasoning_content + '<|im_end|>\n' }}{% endif %}" + TURN + "{% endfor %}" + PROMPT
)


@pytest.mark.parametrize("thought", ["Hm.", "b, I think", "b"])
def test_an_answer_after_the_end_of_its_thoughts(tmp_path: Path, thought: str) -> None:
    template = chatml_with(tmp_path, THINKS_APART)
    chat = [said("user", "a"), said("assistant", "b", reasoning_content=thought)]
    if thought == "b":  # nothing tells the two apart: what is trained is what the assistant says
        assert trained(template, chat) == ["b<|im_end|>"]
        return
    with pytest.raises(ValueError, match="changes what message 2 says, leaves it out, or writes it elsewhere"):
        trained(template, chat)
    assert trained(template, [said("user", "a"), said("assistant", "b")]) == ["b<|im_end|>"]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_by_any_name(tmp_path: Path, name: str) -> None:
    """gpt-oss's template reads `thinking`: tags within its answers are nothing that it knows."""
    thought = "{% if m.NAME %}{{ '(' + m.NAME + ')' }}{% endif %}".replace("NAME", name)
    answer = "{{ '<|im_start|>' + m.role + '\n' }}" + thought + "{{ m.content + '<|im_end|>\n' }}"
    template = chatml_with(tmp_path, "{% for m in messages %}" + answer + "{% endfor %}" + PROMPT)
    chat = [said("user", "a"), said("assistant", "b", reasoning_content="Hm.")]
    assert trained(template, chat) == ["(Hm.)b<|im_end|>"]


def test_a_call_after_the_end_of_what_is_said(tmp_path: Path) -> None:
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
    text = "{% for m in messages %}" + TURN + calls + "{% endfor %}" + PROMPT
    chat = [said("user", "a"), said("assistant", "I call weather", tool_calls=[call("weather", city="Rom")])]
    with pytest.raises(ValueError, match="leaves out that message 2 calls weather"):
        trained(chatml_with(tmp_path, text), chat)


HELD_BACK = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|im_start|>user\n' + messages[loop.index0 - 1].content + '<|im_end|>\n' }}" + TURN + "{% endif %}{% endfor %}"
)


def test_a_question_that_is_held_back_until_its_answer(tmp_path: Path) -> None:
    """The prompt lacks it, so that it would stand in the answer."""
    with pytest.raises(UserError, match="message 1 says, leaves it out, or writes it elsewhere"):
        chatml_with(tmp_path, HELD_BACK)


def test_a_header_that_no_prompt_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no prompt for message 2, which begins with '<\|im_start\|>assistant"):
        chatml_with(tmp_path, CHATML.replace(" if add_generation_prompt", " if false"))
    after_tools = CHATML.replace(
        " if add_generation_prompt", " if add_generation_prompt and messages[-1].role == 'user'"
    )
    template = chatml_with(tmp_path, after_tools)
    chat = [said("user", "a"), said("assistant", "b"), said("tool", "c"), said("assistant", "d")]
    with pytest.raises(ValueError, match="has no prompt for message 4"):
        trained(template, chat)


@pytest.mark.parametrize(
    ("template", "said_of_it"),
    [
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% set asked = m.content %}{% else %}{% generation %}"
            "{{ '<|im_start|>user\n' + messages[loop.index0 - 1].content + '<|im_end|>\n' }}"
            "{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>' }}{% endgeneration %}{% endif %}{% endfor %}",
            "marks 'Asked first', which the user says, as what the assistant writes",
        ),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\n' }}"
            "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}" + TURN + "{% endif %}{% endfor %}" + PROMPT,
            r"marks '<\|im_start\|>assistant\\n' as what the assistant writes, and it is given that with the question",
        ),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
            "{% if m.reasoning_content %}{{ m.reasoning_content }}{% endif %}{% generation %}"
            "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}" + TURN + "{% endif %}{% endfor %}" + PROMPT,
            "writes what the assistant thinks outside of what it marks",
        ),
    ],
)
def test_marks_around_more_or_less_than_answers(tmp_path: Path, template: str, said_of_it: str) -> None:
    with pytest.raises(UserError, match=said_of_it):
        chatml_with(tmp_path, template)


def test_marks_that_enclose_white_space_after_the_end(tmp_path: Path) -> None:
    text = MARKED.replace("{% endgeneration %}{{ '\n' }}", "{{ '\n' }}{% endgeneration %}")
    chat = [said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")]
    assert trained(chatml_with(tmp_path, text), chat) == ["b<|im_end|>", "d<|im_end|>"]


def test_turn_tokens_that_are_not_special_cannot_be_spelled(tmp_path: Path) -> None:
    """As DeepSeek's tokenizers have them: added, and not special."""
    whole = FORMATS["DeepSeek"]
    turns = ("<｜User｜>", "<｜Assistant｜>")
    one = Format(whole.template, whole.segments, whole.special[:2], whole.eos, whole.bos, plain=turns)
    template = load_template(write_tokenizer(tmp_path, one))
    for chat in (
        [said("user", "a<｜Assistant｜>yes"), said("assistant", "b")],
        [said("user", "a"), said("assistant", "b<｜User｜>c")],
    ):
        with pytest.raises(ValueError, match=r"its text spells the control token <｜(Assistant|User)｜>"):
            trained(template, chat)


def test_turn_tokens_that_a_template_puts_together(tmp_path: Path) -> None:
    """The template's source has none of them."""
    text = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    text += "{% if add_generation_prompt %}{{ '<|' + 'assistant|>' }}{% endif %}"
    one = Format(text, FORMATS["ChatML"].segments, ("<|end|>",), "<|end|>", plain=("<|user|>", "<|assistant|>"))
    template = load_template(write_tokenizer(tmp_path, one))
    with pytest.raises(ValueError, match=r"spells the control token <\|assistant\|>"):
        trained(template, [said("user", "a<|assistant|>b"), said("assistant", "c")])


def test_a_turn_token_that_text_becomes_when_it_is_normalised(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, FORMATS["ChatML"], 0)
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.normalizer = normalizers.NFKC()
    fast.add_tokens([AddedToken("<|user|>", special=False, normalized=True)])
    fast.save(str(folder / "tokenizer.json"))
    text = CHATML.replace(
        "'<|im_start|>' + message['role']", "'<|im_start|>' + message['role'] | replace('user', '<|user|>')"
    )
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    template = load_template(folder)
    wide = "<｜user｜>"
    assert template.fast.encode(wide).ids == template.fast.encode("<|user|>").ids
    with pytest.raises(ValueError, match=r"spells the control token <\|user\|>"):
        trained(template, [said("user", f"a{wide}b"), said("assistant", "c")])


def test_added_tokens_that_are_words_or_white_space_may_be_said(tmp_path: Path) -> None:
    """Gemma's tokenizer adds newlines, others words and signs: the template's source has them too."""
    whole = FORMATS["ChatML"]
    plain = ("\n", "assistant", "'s", "{", "<b>")
    template = load_template(
        write_tokenizer(tmp_path, Format(CHATML, whole.segments, whole.special, whole.eos, plain=plain))
    )
    chat = [said("user", "it's {\n an assistant"), said("assistant", "<b>yes\n{</b>")]
    assert trained(template, chat) == ["<b>yes\n{</b><|im_end|>"]


def test_tags_of_calls_belong_to_the_assistant() -> None:
    """Data in Hermes' way has them in the text of its answers. In a question they could stand for a call."""
    template, hermes = template_of("Qwen2.5"), '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert trained(template, [said("user", "a"), said("assistant", hermes)]) == [hermes + "<|im_end|>"]
    with pytest.raises(ValueError, match="spells the control token <tool_call>"):
        trained(template, [said("user", hermes), said("assistant", "b")])


CALLS = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}
{{ CALL }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
{% endif %}"""
ASKED_TWICE = [
    said("user", "a"),
    said("assistant", "", tool_calls=[call("f", city="Zürich", n=7), call("f", city='a "b"\n', n=8)]),
    said("tool", '{"warm": "é"}'),
    said("assistant", "d"),
]


@pytest.mark.parametrize(
    ("written", "lost"),
    [
        ("c.function.name ~ (c.function.arguments | tojson)", None),
        ("c.function | tojson", None),
        ("c.function.name ~ '<' ~ c.function.arguments.city ~ '>' ~ c.function.arguments.n", None),
        ("c.function.name ~ c.function.arguments.city if loop.first else ''", "calls f"),
        ("c.function.name", "leaves out the argument 'Zürich' of a call in message 2"),
        ("c.function.name ~ c.function.arguments.city", "leaves out the argument '7' of a call in message 2"),
        ("c.function.name ~ c.function.arguments", "writes the arguments of message 2 as Python, {'city': 'Zürich'"),
    ],
)
def test_calls_are_written_whole(tmp_path: Path, written: str, lost: str | None) -> None:
    template = chatml_with(tmp_path, CALLS.replace("CALL", written))
    if lost is None:
        assert len(trained(template, ASKED_TWICE)) == 2
        return
    with pytest.raises(ValueError, match=lost):
        trained(template, ASKED_TWICE)


@pytest.mark.parametrize(
    ("written", "refused"),
    [("m.content", False), ("(m.content | tojson)", False), ("(m.content | trim)", False), ("''", True)],
)
def test_a_tools_answer_is_written(tmp_path: Path, written: str, refused: bool) -> None:
    text = "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>tool\n' + X + '<|im_end|>\n' }}{% else %}"
    text = text.replace("X", written) + TURN + "{% endif %}{% endfor %}" + PROMPT
    template = chatml_with(tmp_path, text)
    chat = [said("user", "a"), said("assistant", "b"), said("tool", ' "é"\n2 '), said("assistant", "d")]
    if refused:
        with pytest.raises(ValueError, match="the template changes what message 3 says"):
            trained(template, chat)
        return
    assert trained(template, chat) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_tool_that_is_not_described(tmp_path: Path) -> None:
    """Its call is no description of it."""
    template = chatml_with(tmp_path, CALLS.replace("CALL", "c.function | tojson"))
    chat = [said("user", "The weather?"), said("assistant", "", tool_calls=[call("weather")])]
    assert trained(template, chat) == ['{"name": "weather", "arguments": {}}<|im_end|>']
    with pytest.raises(ValueError, match="leaves out the tool weather"):
        trained(template, chat, [WEATHER])


def test_a_question_that_is_said_twice_and_written_once(tmp_path: Path) -> None:
    text = "{% for m in messages %}{% if loop.index0 != 2 or m.content != 'Again?' %}" + TURN
    text += "{% endif %}{% endfor %}" + PROMPT
    chat = [said("user", "Again?"), said("assistant", "b"), said("user", "Again?"), said("assistant", "c")]
    with pytest.raises(ValueError, match="the template changes what message 3 says"):
        trained(chatml_with(tmp_path, text), chat)


def test_a_template_that_divides_by_zero_or_never_ends(tmp_path: Path) -> None:
    for text, reason in (
        ("{{ 1 / (messages | length - 4) }}", "division by zero"),
        ("{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(1) }}", "maximum recursion depth"),
    ):
        with pytest.raises(UserError, match=f"cannot be used: the template refuses it: .*{reason}"):
            chatml_with(tmp_path, text)


def test_a_template_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, FORMATS["ChatML"], 0)
    (folder / "chat_template.jinja").write_bytes(b"{# \xff #}")
    with pytest.raises(UserError, match=r"chat_template.jinja is not UTF-8 \(byte 3\)"):
        load_template(folder)
    with pytest.raises(UserError, match=r"chat_template.jinja is not UTF-8"):
        load_template(folder, str(folder / "chat_template.jinja"))
    (folder / "chat_template.jinja").unlink()
    for several in (["a", "b"], [{"name": "tool_use", "template": CHATML}], [{"name": "default"}]):
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "<|endoftext|>", "chat_template": several})
        )
        with pytest.raises(UserError, match="has several chat templates and none is called 'default'"):
            load_template(folder)


def test_the_day_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    text = "{{ '<|im_start|>system\n' + strftime_now('%d %B %Y %H:%M') + '<|im_end|>\n' }}" + CHATML
    folder = write_tokenizer(tmp_path, FORMATS["ChatML"], 0)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    chat = [said("user", "a"), said("assistant", "b")]
    days = [load_template(folder, day=date(2024, 2, number)) for number in (28, 29)]
    shown = [documents(one, chat)[0][0][0][:45] for one in days]
    assert shown == [f"<|im_start|>system\n{day} February 2024 00:00<|im" for day in (28, 29)]


def test_a_template_that_needs_no_prompt(tmp_path: Path) -> None:
    assert load_template(write_tokenizer(tmp_path, FORMATS["Mistral"])).text == MISTRAL
