"""Rows of messages -> conversations: OpenAI's and TRL's `messages`, and ShareGPT's `conversations`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.data.bad_rows import BadField
from lora_lab.data.examples import Conversation
from lora_lab.data.fields import cut, from_json, shown, string

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.data.examples import Message
    from lora_lab.data.readers import RawRow

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""ShareGPT's `from` -> the role."""


def to_conversation(row: RawRow, column: str) -> Conversation:
    """The conversation in a column of messages, with the row's `system` and `tools`.

    Raises:
        BadField: a message that cannot be right or is no text, or no message of the assistant to learn.
    """
    messages, given = _messages(row.fields, column)
    system = row.fields.get("system")
    if system:
        if messages[0]["role"] == "system":
            raise BadField("system", f"stands in {column}[0] too; remove one of them")
        messages.insert(0, {"role": "system", "content": string(row.fields, "system", "system")})
        given = {index + 1 for index in given}
    return _conversation(row, messages, given, column)


def to_prompted_conversation(row: RawRow) -> Conversation:
    """The conversation in `prompt` and `completion`, both lists of messages: the completion's are learned.

    Raises:
        BadField: as `to_conversation` does, and for a prompt that is a text beside a completion of messages.
    """
    prompt, _ = _messages(row.fields, "prompt")
    completion, unlearned = _messages(row.fields, "completion")
    given = {index for index, message in enumerate(prompt) if message["role"] == "assistant"}
    given |= {len(prompt) + index for index in unlearned}
    return _conversation(row, [*prompt, *completion], given, "completion")


def is_list_of_messages(value: Any) -> bool:
    """Whether a field holds messages rather than a text."""
    return isinstance(value, list)


def _conversation(row: RawRow, messages: list[Message], given: set[int], column: str) -> Conversation:
    conversation = Conversation(tuple(messages), row.place, _tools(row.fields.get("tools")), frozenset(given))
    if not conversation.learned:
        roles = ", ".join(message["role"] for message in messages)
        which = " without a weight of 0" if given else ""
        raise BadField(
            column, f"needs a message of the role assistant{which} to learn from, but has {cut(roles)}; add it"
        )
    return conversation


def _messages(fields: Mapping[str, Any], column: str) -> tuple[list[Message], set[int]]:
    """The messages of a column, and the indices of those whose weight is 0."""
    value = from_json(fields.get(column))
    if not isinstance(value, list) or not value:
        raise BadField(
            column, f'must be a list of {{"role": ..., "content": ...}}, but is {shown(value)}; correct the row'
        )
    messages = [_message(message, f"{column}[{index}]") for index, message in enumerate(value)]
    given = {index for index, message in enumerate(value) if _is_unlearned(message, f"{column}[{index}]")}
    return messages, given


def _is_unlearned(message: Mapping[str, Any], name: str) -> bool:
    """OpenAI's `weight`: 0 keeps the loss off a message of the assistant."""
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise BadField(f"{name}.weight", f"must be 0 or 1, but is {shown(weight)}; correct it")
    return weight == 0 and weight is not None


def _message(message: Any, name: str) -> Message:
    if not isinstance(message, dict):
        raise BadField(name, f'must be {{"role": ..., "content": ...}}, but is {shown(message)}; correct the row')
    if "role" not in message and "from" in message:
        message = _of_sharegpt(message, name)
    role = string(message, "role", f"{name}.role")
    result: dict[str, Any] = {"role": role}
    calls = _tool_calls(message.get("tool_calls"), f"{name}.tool_calls")
    if message.get("content") is not None or not (calls and role == "assistant"):
        speaks = role == "assistant" and not calls
        result["content"] = _content(message, name, may_be_empty=not speaks)
    if calls:
        result["tool_calls"] = calls
    read = ("role", "content", "tool_calls", "weight")
    return result | {key: value for key, value in message.items() if key not in read and value is not None}


def _of_sharegpt(message: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    speaker = string(message, "from", f"{name}.from")
    if speaker not in SPEAKERS:
        known = ", ".join(SPEAKERS)
        raise BadField(f"{name}.from", f"must be one of {known}, but is {shown(speaker)}; correct the row")
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    if speaker == "function_call":
        calls = from_json(message.get("value"))
        return {"role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls], **rest}
    content = message.get("value")
    if content is None:
        raise BadField(f"{name}.value", "is missing; add a text, or delete the row")
    return {"role": SPEAKERS[speaker], "content": content, **rest}


def _content(message: Mapping[str, Any], name: str, *, may_be_empty: bool) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [_part(part, f"{name}.content[{index}]") for index, part in enumerate(content)]
        message = {"content": "".join(parts)}
    return string(message, "content", f"{name}.content", may_be_empty=may_be_empty)


def _part(part: Any, name: str) -> str:
    """The text of a part; parts are joined as they are, as templates of multimodal models write them."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadField(name, f'must be {{"type": "text", "text": ...}}, but is {shown(part)}; correct the row')
    kind = part.get("type") or ("text" if "text" in part else "no type")
    if kind != "text":
        raise BadField(name, f"is of the type {shown(kind)}, but only text can be trained on; delete the row")
    return string(part, "text", f"{name}.text", may_be_empty=True)


def _tool_calls(value: Any, name: str) -> list[dict[str, Any]]:
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise BadField(name, f"must be a list of objects, but is {shown(value)}; correct the row")
    return [_tool_call(call, f"{name}[{index}]") for index, call in enumerate(value)]


def _tool_call(call: dict[str, Any], name: str) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadField(name, f"needs the name of a function, but is {shown(call)}; correct the row")
    # OpenAI has the arguments as a string of JSON; templates take them as an object, and would quote the string.
    function = function | {"arguments": from_json(function.get("arguments", {}))}
    wrapper = call if "function" in call else {"type": "function"}
    return wrapper | {"function": function}


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    tools = from_json(value)
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadField("tools", f"must be a list of JSON schemas, but is {shown(tools)}; correct the row")
    return tuple(tools)
