"""A conversation's tokens are those of the template, and the loss is on what the assistant says: no more, no less."""

from __future__ import annotations

import itertools
import re

import pytest
from data.chat_models import TEMPLATES, chat_tokenizer
from data.conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.common.errors import InputError
from lora_lab.data.chat import tokens_within
from lora_lab.data.examples import Conversation
from lora_lab.data.sources import LoadedExamples
from lora_lab.data.tokens import IGNORED, tokenize

CHATML = TEMPLATES["chatml"].source
EXACT = ("byte_level",)
"""Tokenizers that decode to every character; the others are compared without white space (and capitals)."""

CHARACTERS = st.text(alphabet="abcXYZ 0123.,:+\n\"'<>é漢🙂", min_size=1, max_size=20)
# Templates trim, and a text that begins with a newline may share a token with the newline before it.
SENTENCES = CHARACTERS.map(str.strip).filter(lambda text: text and "think" not in text)


WORDS = st.text(alphabet="abcxyz0123., \n", min_size=1, max_size=20).map(str.strip).filter(bool)


@st.composite
def conversations(draw, template):
    kind = TEMPLATES[template]
    messages = []
    if kind.takes_system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(SENTENCES)})
    if not kind.alternates and draw(st.booleans()):
        messages.append({"role": "assistant", "content": draw(SENTENCES)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(SENTENCES)})
        messages.append({"role": "assistant", "content": draw(SENTENCES)})
    return messages


def encoded(messages, tokenizer, **more):
    example = Conversation(tuple(messages), "r:1", **more)
    return tokenize(LoadedExamples((example,), "rows", ""), tokenizer, 4096)


def learned(tokens, tokenizer):
    """What is learned, one text for each run of learned tokens."""
    pairs = list(zip(tokens.input_ids[0].tolist(), tokens.labels[0].tolist(), strict=True))
    runs = itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    return [tokenizer.decode([one for one, _ in run]) for is_learned, run in runs if is_learned]


def expected(messages, template):
    kind = TEMPLATES[template]
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return [
        kind.turn(message["content"], answers=i > last, last=i == len(messages) - 1)
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def bare(text, kind, tokenizer):
    if kind in EXACT:
        return text
    # What this tokenizer has no piece for is lost in it, in every text alike.
    text = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) if kind == "metaspace" else text
    return re.sub(r"\s", "", text).lower()


def assert_says(messages, template, kind, tokenizer):
    tokens = encoded(messages, tokenizer)
    assert tokens.input_ids[0].tolist() == tokenizer.apply_chat_template(messages)["input_ids"]
    said = learned(tokens, tokenizer)
    if template == "plain":
        said = [text.removeprefix(" ") for text in said]  # the header's space may share a token with a word
    assert bare("".join(said), kind, tokenizer) == bare("".join(expected(messages, template)), kind, tokenizer)


@pytest.mark.parametrize("template", TEMPLATES)
class TestTokensAreTheTemplatesAndLossIsOnWhatTheAssistantSays:
    @settings(max_examples=30, deadline=None)
    @given(data=st.data())
    def test_byte_level(self, template, data):
        assert_says(data.draw(conversations(template)), template, "byte_level", chat_tokenizer("byte_level", template))

    @pytest.mark.parametrize("kind", ["metaspace", "sentencepiece"])
    @settings(max_examples=10, deadline=None)
    @given(data=st.data())
    def test_a_space_before_every_text(self, kind, template, data):
        assert_says(data.draw(conversations(template)), template, kind, chat_tokenizer(kind, template))

    @settings(max_examples=10, deadline=None)
    @given(question=WORDS, answer=WORDS)
    def test_words_without_spaces(self, template, question, answer):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        assert_says(messages, template, "word_piece", chat_tokenizer("word_piece", template))


def said(template, *messages, kind="byte_level", **more):
    tokenizer = chat_tokenizer(kind, template)
    return learned(encoded(messages, tokenizer, **more), tokenizer)


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


class TestTheAssistantSpeaksFirst:
    @pytest.mark.parametrize("template", [name for name, kind in TEMPLATES.items() if not kind.alternates])
    def test_neither_the_header_nor_a_system_prompt_of_the_template_is_learned(self, template):
        messages = [assistant("Welcome, traveller."), user("Hi."), assistant("Sit down.")]
        assert [text.removeprefix(" ") for text in said(template, *messages)] == expected(messages, template)

    def test_nor_in_a_template_that_writes_no_generation_prompt(self):
        template = TEMPLATES["default_system"].source.partition("{% if add_generation_prompt %}")[0]
        tokenizer = build_tokenizer(template)
        assert learned(encoded([assistant("Welcome.")], tokenizer), tokenizer) == ["Welcome.<|im_end|>\n"]

    def test_it_speaks_twice(self):
        texts = said("default_system", assistant("One."), assistant("Two."), user("And?"), assistant("Three."))
        assert texts == ["One.<|im_end|>\n", "Two.<|im_end|>\n", "Three.<|im_end|>\n"]


class TestThinking:
    def test_only_the_thinking_that_the_template_keeps_is_learned(self):
        chat = [user("1+1?"), assistant("<think>\neasy\n</think>\n\n2"), user("2+2?")]
        texts = said("thinking", *chat, assistant("<think>\nhard\n</think>\n\n4"))
        assert texts == ["2<|im_end|>\n", "<think>\nhard\n</think>\n\n4<|im_end|>\n"]

    def test_in_a_key_of_its_own(self):
        chat = [user("1+1?"), assistant("2", reasoning_content="easy"), user("2+2?")]
        texts = said("thinking", *chat, assistant("4", reasoning_content="hard"))
        assert texts == ["2<|im_end|>\n", "<think>\nhard\n</think>\n\n4<|im_end|>\n"]

    def test_the_same_answer_with_and_without_thinking(self):
        texts = said("thinking", user("a"), assistant("<think>\nb\n</think>\n\nc"), user("a"), assistant("c"))
        assert texts == ["c<|im_end|>\n", "<think>\n\n</think>\n\nc<|im_end|>\n"]

    def test_a_generation_prompt_that_opens_it_and_turns_without_it(self):
        texts = said("forgetful", user("a"), assistant("<think>b</think>c"), user("d"), assistant("e"))
        assert texts == ["c</s>", "e</s>"]

    def test_what_is_left_out_is_said(self):
        tokenizer = chat_tokenizer("byte_level", "thinking")
        tokens = encoded([user("a"), assistant("b", reasoning_content="why"), user("c"), assistant("d")], tokenizer)
        (note,) = tokens.notes
        assert note.startswith("rows: the chat template leaves out text of 1 message (r:1 messages[1]); some templates")


class TestTemplatesWhosePrefixesAreNoHelp:
    def test_a_system_prompt_that_moves_to_the_last_question(self):
        template = (
            "{{ bos_token }}{% set ns = namespace(system='') %}{% if messages[0].role == 'system' %}"
            "{% set ns.system = messages[0].content + ' ' %}{% set messages = messages[1:] %}{% endif %}"
            "{% for m in messages %}{% if m.role == 'user' %}"
            "{{ '[I]' + (ns.system if loop.index0 + 2 >= messages | length else '') + m.content + '[/I]' }}"
            "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
        )
        tokenizer = build_tokenizer(template)
        chat = [{"role": "system", "content": "be"}, user("a"), assistant("b"), user("c"), assistant("d")]
        assert learned(encoded(chat, tokenizer), tokenizer) == [" b</s>", " d</s>"]

    def test_a_conversation_that_must_be_long_enough(self):
        short = "messages | length < 3 and messages[-1].role == 'assistant'"
        refusal = f"{{% if {short} %}}{{{{ raise_exception('short') }}}}{{% endif %}}"
        tokenizer = build_tokenizer(refusal + CHATML)
        chat = [user("a"), assistant("b"), user("c"), assistant("d")]
        assert learned(encoded(chat, tokenizer), tokenizer) == ["b<|im_end|>\n", "d<|im_end|>\n"]

    def test_an_end_that_cannot_be_told_is_refused(self):
        refusal = "{% if messages | length < 4 %}{{ raise_exception('short') }}{% endif %}"
        with pytest.raises(InputError, match=r"r:1: messages\[1\]: the chat template rewrites earlier messages"):
            encoded([user("a"), assistant("b"), user("c"), assistant("d")], build_tokenizer(refusal + CHATML))

    def test_texts_that_are_all_the_same(self):
        texts = said("thinking", user("d"), assistant("d"), user("d"), assistant("d"))
        assert texts == ["d<|im_end|>\n", "<think>\n\n</think>\n\nd<|im_end|>\n"]

    def test_a_message_that_the_template_does_not_write_is_named(self):
        silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
        chat = [user("a"), {"role": "tool", "content": "secret"}, assistant("b")]
        (note,) = encoded(chat, build_tokenizer(silent)).notes
        assert note.startswith("rows: the chat template leaves out text of 1 message (r:1 messages[1])")


class TestGivenMessages:
    @pytest.mark.parametrize("template", ["chatml", "marked", "thinking", "llama3", "harmony"])
    def test_only_the_completion_is_learned(self, template):
        messages = [user("a"), assistant("b"), user("c"), assistant("d")]
        first, second = expected(messages, template)
        assert said(template, *messages, given=frozenset({1})) == [second]
        assert said(template, *messages, given=frozenset({3})) == [first]


class TestDates:
    DATED = "{{ strftime_now('%Y') }}" + CHATML

    def test_a_template_that_writes_today_is_named(self):
        chat = [user("a"), assistant("b")]
        (note,) = encoded(chat, build_tokenizer(self.DATED)).notes
        assert "asks for today's date" in note
        assert encoded(chat, build_tokenizer(CHATML)).notes == ()


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + c.function.arguments | tojson + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 3.1: a message is a text or a call.
EITHER_TEMPLATE = TOOL_TEMPLATE.replace("(m.content or '')", "('' if m.tool_calls else m.content)")


class TestTools:
    CHAT = (
        user("Rain?"),
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "no"},
        assistant("No."),
    )

    @pytest.mark.parametrize("template", [TOOL_TEMPLATE, EITHER_TEMPLATE])
    @pytest.mark.parametrize("first", [(), (assistant("Ask me."),)])
    def test_calls_are_learned_and_definitions_are_given(self, template, first):
        tokenizer = build_tokenizer(template)
        tokens = encoded([*first, *self.CHAT], tokenizer, tools=(TOOL,))
        call = '<call>weather{"city": "Rome"}</call><|im_end|>\n'
        opening = ["Ask me.<|im_end|>\n"] * len(first)
        assert learned(tokens, tokenizer) == [*opening, call, "No.<|im_end|>\n"]
        assert tokenizer.decode(tokens.input_ids[0]).startswith('<|im_start|>system\n[{"type": "function"')
        assert tokens.notes == ()

    def test_a_call_in_the_first_message(self):
        tokenizer = build_tokenizer(EITHER_TEMPLATE)
        tokens = encoded([{"role": "assistant", "tool_calls": [CALL]}, user("a"), assistant("b")], tokenizer)
        assert learned(tokens, tokenizer)[0] == '<call>weather{"city": "Rome"}</call><|im_end|>\n'

    def test_a_template_that_writes_no_calls(self):
        silent = CHATML.replace("m.content", "(m.content or '')")
        with pytest.raises(InputError, match=r"r:1: messages\[1\].tool_calls: the chat template does not write them"):
            encoded(self.CHAT, build_tokenizer(silent))

    def test_a_template_that_cannot_do_without_content(self):
        with pytest.raises(InputError, match="r:1: messages: the chat template refuses them"):
            encoded(self.CHAT, build_tokenizer(CHATML))

    def test_keys_and_tools_that_the_template_does_not_read_are_named(self):
        tokens = encoded([user("a") | {"name": "Ann"}, assistant("b")], build_tokenizer(CHATML), tools=(TOOL,))
        assert tokens.notes == (
            "rows: the chat template does not read `name` (1 rows have it)",
            "rows: the chat template does not read `tools` (1 rows have it)",
        )

    def test_a_template_for_tools_beside_another(self):
        tokenizer = build_tokenizer({"default": CHATML, "tool_use": TOOL_TEMPLATE})
        assert "weather" in tokenizer.decode(encoded(self.CHAT, tokenizer, tools=(TOOL,)).input_ids[0])
        assert learned(encoded([user("a"), assistant("b")], tokenizer), tokenizer) == ["b<|im_end|>\n"]


@pytest.mark.parametrize(
    ("offsets", "mask"),
    [
        ([(0, 2), (2, 4), (4, 6)], [False, True, False]),
        ([(0, 3), (3, 6)], [True, True]),  # across a border: it holds some of what is said
        ([(0, 2), (2, 2), (2, 4), (4, 4)], [False, True, True, False]),  # a space that is put before a text
        ([(0, 1), (2, 2), (2, 4)], [False, False, True]),  # a space that is trimmed off its offsets
        ([(0, 2), (2, 3), (2, 3), (2, 3), (3, 4)], [False, True, True, True, True]),  # bytes of one character
    ],
)
def test_tokens_within(offsets, mask):
    assert tokens_within(offsets, [(2, 4)]) == mask
