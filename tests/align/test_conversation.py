"""The ways in which people write conversations, and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from internevo.align.conversation import Call, Conversation, Message, NotAConversation, Speaker, read_conversation

user = lambda text: Message(Speaker.user, text)  # noqa: E731
answer = lambda text, trained=True: Message(Speaker.assistant, text, trained=trained)  # noqa: E731
HI = Conversation((user("Hi"), answer("Hello")))
CALL = Call("f", {"x": 1})


@pytest.mark.parametrize(
    ("value", "conversation"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, HI),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, HI),
        ({"prompt": "Hi", "completion": "Hello"}, HI),
        ({"prompt": "Hi", "completion": "Hello", "messages": None}, HI),  # a row of a table has every key
        ({"instruction": "Hi", "output": "Hello"}, HI),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, HI),
        ({"instruction": "Say", "input": "Hi", "output": "x"}, Conversation((user("Say\nHi"), answer("x")))),
        (
            {"instruction": "b", "output": "2", "history": [["a", "1"]], "system": "S"},
            Conversation((Message(Speaker.system, "S"), user("a"), answer("1"), user("b"), answer("2"))),
        ),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "1"},
                        {"role": "user", "content": "b"}],
             "completion": [{"role": "assistant", "content": "2"}]},
            Conversation((user("a"), answer("1", False), user("b"), answer("2"))),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                          {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]},
            Conversation(HI.messages, left_out=1),
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "1", "loss": False},
                          {"role": "user", "content": "b"}, {"role": "assistant", "content": "2", "weight": 1.0},
                          {"role": "user", "content": "c"}, {"role": "assistant", "content": "3", "weight": 0}]},
            Conversation((user("a"), answer("1", False), user("b"), answer("2"), user("c"), answer("3", False))),
        ),
        (
            {"messages": [{"role": "user", "content": "a"},
                          {"role": "assistant", "content": None, "tool_calls": [
                              {"id": "7", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
                          {"role": "tool", "content": "ok", "tool_call_id": "7", "name": "f"},
                          {"role": "assistant", "content": "1", "reasoning_content": "Hm"}],
             "tools": '[{"name": "f"}]'},
            Conversation(
                (user("a"), Message(Speaker.assistant, "", calls=(Call("f", {"x": 1}, "7"),), trained=True),
                 Message(Speaker.tool, "ok", name="f", call_id="7"),
                 Message(Speaker.assistant, "1", "Hm", trained=True)),
                ({"type": "function", "function": {"name": "f"}},),
            ),
        ),
        (
            {"conversations": [{"from": "human", "value": "a"},
                               {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                               {"from": "observation", "value": "ok"}, {"from": "gpt", "value": "1"}], "system": "S"},
            Conversation(
                (Message(Speaker.system, "S"), user("a"), Message(Speaker.assistant, "", calls=(CALL,), trained=True),
                 Message(Speaker.tool, "ok"), answer("1")),
            ),
        ),
    ],
)  # fmt: skip
def test_ways_to_write_one(value: dict[str, Any], conversation: Conversation) -> None:
    found = read_conversation(value)
    assert found == conversation
    assert found.left_out == conversation.left_out


def messages(*roles_and_more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, *roles_and_more]}


OK = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            {"text": "a"},
            "has none of: messages, or conversations, or prompt and completion, or inst",
        ),
        ({"prompt": "a", "completion": "b", "messages": [OK]}, "is written in 2 ways"),
        ({"messages": "a"}, "messages is not a list"),
        (messages("b"), "message 2 is not a mapping"),
        (
            messages({"role": "narrator", "content": "b"}),
            "message 2 is by 'narrator', who is none of system, ",
        ),
        (messages({"role": ["user"], "content": "b"}), r"message 2 is by \['user'\]"),
        (messages(), "has no message of the assistant"),
        ({"messages": [OK]}, "begins with the assistant"),
        ({"messages": [{"role": "system", "content": "S"}, OK]}, None),
        (messages({**OK, "loss": False}), "has no message that is to be trained"),
        (messages({**OK, "weight": 0.5}), "message 2: weight 0.5 is neither 0 nor 1"),
        (messages({"role": "user", "content": "c", "loss": True}, OK), "only what the assistant says is trained"),
        (messages({"role": "assistant", "content": " \n"}), "message 2 has no text"),
        (messages({"role": "assistant"}), "message 2 has no text"),
        (messages({"role": "assistant", "content": 7}), "message 2 holds int where text should be"),
        (messages({"role": "assistant", "content": "\ud800"}), "message 2 holds half of a surrogate pair"),
        (messages({"role": "user", "content": [{"type": "image_url"}]}, OK), "holds image_url, not only text"),
        (messages({**OK, "tool_calls": [{"function": {"arguments": {}}}]}), "calls a tool without a name"),
        (messages({**OK, "tool_calls": [{"name": "f", "arguments": "{"}]}), "holds '{' where JSON should be"),
        (messages({**OK, "tool_calls": [{"name": "f", "arguments": [1]}]}), "with arguments that are no JSON object"),
        (
            messages({"role": "user", "content": "c", "tool_calls": [{"name": "f"}]}, OK),
            "only the assistant thinks",
        ),
        ({**messages(OK), "tools": "what"}, "tools holds 'what' where JSON should be"),
        ({**messages(OK), "tools": {"name": "f"}}, "tools is not a list of JSON schemas"),
        ({"prompt": " ", "completion": "b"}, "prompt has no text"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "history is not a list of pairs"),
    ],
)
def test_what_is_none(value: dict[str, Any], reason: str | None) -> None:
    if reason is None:  # whether a system message alone may stand before an answer is the template's to say
        read_conversation(value)
        return
    with pytest.raises(NotAConversation, match=reason):
        read_conversation(value)
