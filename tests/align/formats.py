"""Ten chat formats, each twice: as a template, and as plain Python that says what of the text the assistant writes.

The templates are written anew after the public formats, in the ways of their makers: loops, namespaces, filters, white
space control. The second column shares nothing with the package, and nothing with Jinja.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from internevo.align import template as built_in

in_json = partial(json.dumps, ensure_ascii=False)
Chat = Sequence[dict[str, Any]]
Segments = list[tuple[str, bool]]
"""The text in order, and whether it is what the assistant writes."""


@dataclass(frozen=True)
class Format:
    """A chat format."""

    template: str
    segments: Callable[[Chat, list[dict[str, Any]]], Segments]
    special: tuple[str, ...]
    eos: str
    bos: str = ""
    plain: tuple[str, ...] = ()
    """Added tokens that text may spell."""
    system: bool = True
    tools: bool = False
    thinking: bool = False


CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' \
+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def chatml(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    found: Segments = []
    for one in chat:
        answers = one["role"] == "assistant"
        found += [(f"<|im_start|>{one['role']}\n", False), (one["content"] + "<|im_end|>", answers), ("\n", False)]
    return found


LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}\
{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}\
{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') \
+ message['content'].strip() + ' [/INST]' }}\
{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""


def llama2(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    found: Segments = []
    system = f"<<SYS>>\n{chat[0]['content']}\n<</SYS>>\n\n" if chat[0]["role"] == "system" else ""
    for one in chat[1:] if system else chat:
        if one["role"] == "user":
            found.append((f"<s>[INST] {system}{one['content'].strip()} [/INST]", False))
            system = ""
        else:
            found.append((f" {one['content'].strip()} </s>", True))
    return found


LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools is not none %}{{- 'Environment: ipython\n' }}{%- endif %}
{{- system_message + '<|eot_id|>' }}
{%- if tools is not none %}
    {%- set first_user_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\nThe functions are:\n\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\n\n' }}{%- endfor %}
    {{- first_user_message + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception('only single tool-calls') }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- '}' }}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + message.content + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""


def llama3(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    def header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    chat = list(chat)
    system = chat.pop(0)["content"].strip() if chat[0]["role"] == "system" else ""
    found: Segments = [("<|begin_of_text|>" + header("system"), False)]
    found.append((("Environment: ipython\n" if tools else "") + system + "<|eot_id|>", False))
    if tools:
        described = "".join(in_json(one, indent=4) + "\n\n" for one in tools)
        asked = chat.pop(0)["content"].strip()
        found.append((f"{header('user')}The functions are:\n\n{described}{asked}<|eot_id|>", False))
    for one in chat:
        if one["role"] == "assistant":
            text = one["content"].strip()
            if calls := one.get("tool_calls"):
                called = calls[0]["function"]
                text = f'{{"name": "{called["name"]}", "parameters": {in_json(called["arguments"])}}}'
            found += [(header("assistant"), False), (text + "<|eot_id|>", True)]
        else:
            text = one["content"] if one["role"] == "tool" else one["content"].strip()
            found.append((header("ipython" if one["role"] == "tool" else one["role"]) + text + "<|eot_id|>", False))
    return found


MISTRAL = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + \
message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""


def mistral(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    found: Segments = [("<s>", False)]
    for one in chat:
        answers = one["role"] == "assistant"
        found.append((one["content"] + "</s>" if answers else f"[INST] {one['content']} [/INST]", answers))
    return found


QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- else %}{{- 'Be helpful.' }}{%- endif %}
    {{- '\n\n# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- else %}
    {%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- else %}{{- '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) \
or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def called(one: dict[str, Any]) -> str:
    """Qwen's way: the content, and each call between tags."""
    calls = [call["function"] for call in one.get("tool_calls", [])]
    texts = [
        f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {in_json(call["arguments"])}}}\n</tool_call>'
        for call in calls
    ]
    return "\n".join([one["content"]] * bool(one["content"]) + texts)


def answered(chat: Chat, number: int) -> str:
    """Qwen's way: results of tools that follow each other stand in one turn of the user."""
    begins = chat[number - 1]["role"] != "tool"
    ends = number + 1 == len(chat) or chat[number + 1]["role"] != "tool"
    text = f"\n<tool_response>\n{chat[number]['content']}\n</tool_response>"
    return ("<|im_start|>user" if begins else "") + text + ("<|im_end|>\n" if ends else "")


def qwen25(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    system = chat[0]["content"] if chat[0]["role"] == "system" else "Be helpful."
    described = "".join("\n" + in_json(one) for one in tools)
    if tools:
        system += f"\n\n# Tools\n<tools>{described}\n</tools>"
    found: Segments = [(f"<|im_start|>system\n{system}<|im_end|>\n", False)]
    for number, one in enumerate(chat):
        if one["role"] == "assistant":
            found += [("<|im_start|>assistant\n", False), (called(one) + "<|im_end|>", True), ("\n", False)]
        elif one["role"] == "tool":
            found.append((answered(chat, number), False))
        elif number or one["role"] != "system":
            found.append((f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n", False))
    return found


QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}\
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == 'user' %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' }}
            {{- content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
            {{- '<tool_call>\n{"name": "' }}{{- tool_call.function.name }}{{- '", "arguments": ' }}
            {{- tool_call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' }}{{- content }}{{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def qwen3(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    last_asked = max(number for number, one in enumerate(chat) if one["role"] == "user")
    system = chat[0]["content"] if chat[0]["role"] == "system" else ""
    if tools:
        described = "".join("\n" + in_json(one) for one in tools)
        system += "\n\n" * bool(system) + f"# Tools\n<tools>{described}\n</tools>"
    found: Segments = [(f"<|im_start|>system\n{system}<|im_end|>\n", False)] if system else []
    for number, one in enumerate(chat):
        if number == 0 and one["role"] == "system":
            continue
        if one["role"] == "assistant":
            thought, content = one.get("reasoning_content", ""), one["content"]
            text = called({**one, "content": content})
            if number > last_asked and (thought or number == len(chat) - 1):
                text = f"<think>\n{thought.strip(chr(10))}\n</think>\n\n" + called(
                    {**one, "content": content.lstrip("\n")}
                )
            found += [("<|im_start|>assistant\n", False), (text + "<|im_end|>", True), ("\n", False)]
        elif one["role"] == "tool":
            found.append((answered(chat, number), False))
        else:
            found.append((f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n", False))
    return found


DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\
{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}\
{% else %}{{ '<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""


def deepseek(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    found: Segments = [("<｜begin▁of▁sentence｜>", False)]
    for one in chat:
        if one["role"] == "assistant":
            found += [("<｜Assistant｜>", False), (one["content"] + "<｜end▁of▁sentence｜>", True)]
        else:
            found.append(("<｜User｜>" * (one["role"] == "user") + one["content"], False))
    return found


def internlm2(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    functions = [one["function"] for one in tools]
    plugins = [one for one in functions if one["name"] != "interpreter"]
    described = "".join(
        f"<|im_start|>system name=<|interpreter|>\n{one.get('description', '')}<|im_end|>\n"
        for one in functions
        if one["name"] == "interpreter"
    )
    if plugins:
        described += f"<|im_start|>system name=<|plugin|>\n{in_json(plugins)}<|im_end|>\n"
    found: Segments = [("<s>", False)]
    kind = "<|plugin|>"
    if chat[0]["role"] != "system":
        found.append((described, False))
    for number, one in enumerate(chat):
        if one["role"] == "assistant":
            thought = one.get("reasoning_content", "")
            text = (f"<think>\n{thought}\n</think>\n\n" if thought else "") + one["content"]
            for call in (each["function"] for each in one.get("tool_calls", [])):
                kind = "<|interpreter|>" if call["name"] == "interpreter" else "<|plugin|>"
                named = in_json({"name": call["name"], "parameters": call["arguments"]})
                code = f"```python\n{call['arguments'].get('code')}\n```"
                text += f"<|action_start|>{kind}\n{code if 'interpreter' in kind else named}<|action_end|>"
            found += [("<|im_start|>assistant\n", False), (text + "<|im_end|>", True), ("\n", False)]
        elif one["role"] == "tool":
            found.append((f"<|im_start|>environment name={kind}\n{one['content']}<|im_end|>\n", False))
        else:
            found.append((f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n", False))
            if number == 0 and one["role"] == "system":
                found.append((described, False))
    return found


GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}\
{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}\
{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + \
'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""


def gemma(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    found: Segments = [("<bos>", False)]
    for one in chat:
        answers = one["role"] == "assistant"
        found.append((f"<start_of_turn>{'model' if answers else one['role']}\n", False))
        found += [(one["content"].strip() + "<end_of_turn>", answers), ("\n", False)]
    return found


ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""


def zephyr(chat: Chat, tools: list[dict[str, Any]]) -> Segments:
    found: Segments = []
    for one in chat:
        if one["role"] == "assistant":
            found += [("<|assistant|>\n", False), (one["content"] + "</s>", True), ("\n", False)]
        else:
            found.append((f"<|{one['role']}|>\n{one['content']}</s>\n", False))
    return found


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
FORMATS = {
    "ChatML": Format(CHATML, chatml, IM, "<|endoftext|>"),
    "Llama 2": Format(LLAMA2, llama2, ("<s>", "</s>"), "</s>", "<s>"),
    "Llama 3": Format(
        LLAMA3,
        llama3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        "<|begin_of_text|>",
        tools=True,
    ),
    "Mistral": Format(MISTRAL, mistral, ("<s>", "</s>"), "</s>", "<s>", system=False),
    "Qwen2.5": Format(QWEN25, qwen25, IM, "<|im_end|>", plain=TAGS[:2], tools=True),
    "Qwen3": Format(QWEN3, qwen3, IM, "<|im_end|>", plain=TAGS, tools=True, thinking=True),
    "DeepSeek": Format(
        DEEPSEEK,
        deepseek,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
    ),
    "InternLM2": Format(
        Path(built_in.__file__).with_name("internlm2.jinja").read_text(encoding="utf-8"),
        internlm2,
        ("<s>", "</s>", *IM[1:], "<|action_start|>", "<|action_end|>", "<|interpreter|>", "<|plugin|>"),
        "</s>",
        "<s>",
        tools=True,
        thinking=True,
    ),
    "Gemma": Format(
        GEMMA, gemma, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", system=False
    ),
    "Zephyr": Format(ZEPHYR, zephyr, ("<s>", "</s>"), "</s>", "<s>"),
}

TEXT = "the quick brown fox jumps over the lazy dog and the answer is that nothing is what it seems to be. " * 3


def write_tokenizer(folder: Path, one: Format, merges: int = 0, pair: tuple[str, str] | None = None) -> Path:
    """A tokenizer of bytes with the format's tokens, and some merges, or one of any two; its id 0 is the letter e."""
    folder.mkdir(parents=True, exist_ok=True)
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pair is None)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (letter != "e", letter))
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=letters, show_progress=False)
    fast.train_from_iterator([TEXT], trainer)
    pairs = [tuple(one) for one in json.loads(fast.to_str())["model"]["merges"]] if pair is None else [pair]
    pieces = [*letters, *map("".join, pairs)]
    fast.model = models.BPE({piece: i for i, piece in enumerate(pieces)}, pairs)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in one.special])
    fast.add_tokens([AddedToken(name, special=False, normalized=False) for name in one.plain])
    assert fast.token_to_id("e") == 0
    fast.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": one.eos, **({"bos_token": one.bos} if one.bos else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(one.template, encoding="utf-8")
    return folder
