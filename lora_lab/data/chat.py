"""Conversations -> tokens, with a mask of what the assistant says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from lora_lab.data.examples import Conversation

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")

Messages = list[dict[str, str]]


def encode_conversation(conversation: Conversation, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation under the tokenizer's chat template, and whether each is the assistant's.

    The template alone decides on special tokens: none is added. One that marks the assistant's turns by
    `{% generation %}` is taken at its word; with another, a turn is what it adds to the conversation before
    it and the generation prompt, so that the header of the turn is given and its end is learned.

    Raises InputError if there is no template or no fast tokenizer, if the template refuses the conversation,
    or if it rewrites earlier turns and does not mark the assistant's.
    """
    from jinja2 import TemplateError

    _check_tokenizer(conversation, tokenizer)
    messages = [{"role": role, "content": content} for role, content in conversation.messages]
    try:
        if GENERATION_TAG.search(tokenizer.get_chat_template()):
            ids, mask = _marked_by_template(messages, tokenizer)
        else:
            ids, mask = _marked_by_prefixes(messages, tokenizer, conversation.place)
    except TemplateError as error:
        raise InputError(
            f"{conversation.place}: messages: the chat template refuses them ({str(error)[:200]}); "
            "correct the roles and their order"
        ) from None
    if not any(mask):
        raise InputError(
            f"{conversation.place}: messages: the chat template writes nothing for the assistant; correct "
            "its {% generation %} tags"
        )
    return ids, mask


def _check_tokenizer(conversation: Conversation, tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise InputError(
            f"{conversation.place}: messages: need a chat template, but the model's tokenizer has none; take "
            "a chat model, or rows of `prompt` and `completion`"
        )
    if not tokenizer.is_fast:
        raise InputError(
            f"{conversation.place}: messages: need a fast tokenizer (it knows the text behind a token), "
            f"but this is a {type(tokenizer).__name__}; take rows of `prompt` and `completion`"
        )


def _marked_by_template(messages: Messages, tokenizer: Any) -> tuple[list[int], list[bool]]:
    encoded = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False}
    )
    return list(encoded["input_ids"]), [bool(value) for value in encoded["assistant_masks"]]


def _marked_by_prefixes(messages: Messages, tokenizer: Any, place: str) -> tuple[list[int], list[bool]]:
    whole = _render(messages, tokenizer)
    turns: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _rendered_before(messages, index, tokenizer)
            after = _render(messages[: index + 1], tokenizer)
            if not (after.startswith(before) and whole.startswith(after)):
                raise InputError(
                    f"{place}: messages[{index}]: the chat template rewrites earlier messages, so that what "
                    "the assistant says cannot be told from the rest; put {% generation %} tags into the "
                    "template, or split the row"
                )
            turns.append((len(before), len(after)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    mask = [any(start <= first < end for start, end in turns) for first, _ in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), mask


def _rendered_before(messages: Messages, index: int, tokenizer: Any) -> str:
    """What is given when the assistant begins to speak."""
    if index == 0:
        return ""
    prompt = _render(messages[:index], tokenizer, add_generation_prompt=True)
    if _render(messages[: index + 1], tokenizer).startswith(prompt):
        return prompt
    # The generation prompt says more than the turn does (an empty <think> block, say): leave it out.
    return _render(messages[:index], tokenizer)


def _render(messages: Messages, tokenizer: Any, *, add_generation_prompt: bool = False) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
