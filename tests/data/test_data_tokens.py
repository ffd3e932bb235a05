"""Tokens and labels: where loss is taken, what is cut, and that it is said."""

from __future__ import annotations

import numpy as np
import pytest
from data.chat_models import chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.common.activity import Activity
from lora_lab.common.errors import InputError
from lora_lab.data.examples import Completion, Conversation, Text
from lora_lab.data.sources import LoadedExamples
from lora_lab.data.tokens import IGNORED, tokenize

PLAIN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAGGED_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
REWRITING_TEMPLATE = (
    "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}{{ m.role }}: {{ m.content }}\n"
    "{% else %}{{ m.role }}: (left out)\n{% endif %}{% endfor %}"
)
REFUSING_TEMPLATE = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('roles must begin with user') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def conversation(*turns):
    return Conversation(tuple({"role": role, "content": content} for role, content in turns), "c:1")


CHAT = conversation(
    ("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "the end")
)


def dataset(*examples):
    return LoadedExamples(tuple(examples), "rows.jsonl", "")


def learned_text(tokens, tokenizer, index=0):
    return tokenizer.decode([int(label) for label in tokens.labels[index] if label != IGNORED])


def refusal(examples, tokenizer, max_length=64):
    with pytest.raises(InputError) as caught:
        tokenize(dataset(*examples), tokenizer, max_length)
    return str(caught.value)


class TestText:
    def test_all_tokens_and_the_end_are_learned(self, tokenizer):
        tokens = tokenize(dataset(Text("the cat", "r:1")), tokenizer, 64)
        assert tokenizer.decode(tokens.input_ids[0]) == "the cat</s>"
        assert np.array_equal(tokens.input_ids[0], tokens.labels[0])
        assert tokens.input_ids[0].dtype == tokens.labels[0].dtype == np.int64
        assert tokens.label_tokens(0) == len(tokens.input_ids[0]) - 1

    @pytest.mark.parametrize(("adds_bos", "adds_eos"), [(True, False), (True, True), (False, True)])
    def test_what_the_tokenizer_adds_by_itself_is_added_once(self, adds_bos, adds_eos, make_tokenizer):
        tokenizer = make_tokenizer(adds_bos=adds_bos, adds_eos=adds_eos)
        expected = "<s>" * adds_bos + "the cat</s>"
        for text in ("the cat", "the cat</s>", "<s>" * adds_bos + "the cat"):
            tokens = tokenize(dataset(Text(text, "r:1")), tokenizer, 64)
            assert tokenizer.decode(tokens.input_ids[0]) == expected

    def test_no_end_where_the_tokenizer_has_none(self, make_tokenizer):
        tokenizer = make_tokenizer(has_eos=False)
        tokens = tokenize(dataset(Text("the cat", "r:1")), tokenizer, 64)
        assert tokenizer.decode(tokens.input_ids[0]) == "the cat"

    def test_a_single_token_has_nothing_to_predict(self, make_tokenizer):
        message = refusal([Text("a b", "r:1"), Text("a", "r:2")], make_tokenizer(has_eos=False))
        assert message.startswith("r:2: has 1 token(s)")


class TestCompletion:
    def test_only_the_completion_and_the_end_are_learned(self, tokenizer):
        tokens = tokenize(dataset(Completion("the dog", " sat", "r:1")), tokenizer, 64)
        assert tokenizer.decode(tokens.input_ids[0]) == "the dog sat</s>"
        assert learned_text(tokens, tokenizer) == " sat</s>"
        assert tokens.label_tokens(0) == int(np.sum(tokens.labels[0] != IGNORED))

    def test_the_prompt_does_not_depend_on_the_completion(self, tokenizer):
        prompt = "the c"
        alone = tokenizer(prompt)["input_ids"]
        assert tokenizer(prompt + "at")["input_ids"][: len(alone)] != alone, "the merge that this is about"
        tokens = tokenize(dataset(Completion(prompt, "at", "r:1")), tokenizer, 64)
        assert tokens.input_ids[0][: len(alone)].tolist() == alone

    def test_bos_stands_before_the_prompt_only(self, make_tokenizer):
        tokenizer = make_tokenizer(adds_bos=True)
        tokens = tokenize(dataset(Completion("the dog", " sat", "r:1"), Completion("", "sat", "r:2")), tokenizer, 64)
        assert [tokenizer.decode(ids) for ids in tokens.input_ids] == ["<s>the dog sat</s>", "<s>sat</s>"]
        assert learned_text(tokens, tokenizer, 1) == "sat</s>"

    def test_a_first_token_without_anything_before_it_is_not_counted(self, tokenizer):
        tokens = tokenize(dataset(Completion("", "sat on", "r:1")), tokenizer, 64)
        assert tokens.label_tokens(0) == len(tokens.labels[0]) - 1


class TestCompletionOfATokenizerThatPutsASpaceBeforeEveryText:
    @pytest.mark.parametrize("kind", ["metaspace", "sentencepiece"])
    @pytest.mark.parametrize(
        ("prompt", "completion"),
        [
            ("2+2=", "4"),
            ("the cat", " sat on the mat"),
            ("the c", "at"),
            ("Paris is in ", "France"),
            ("Paris is in", " France"),
            ("world\n", "hello"),
            ("a (", "the dog)"),
            ("is ", " it"),
            ("", "hello world"),
        ],
    )
    def test_tokens_say_the_prompt_and_then_the_completion(self, kind, prompt, completion):
        tokenizer = chat_tokenizer(kind)
        tokens = tokenize(dataset(Completion(prompt, completion, "r:1")), tokenizer, 64)
        ids = tokens.input_ids[0].tolist()
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == prompt + completion + "</s>"
        given = tokenizer(prompt)["input_ids"]
        assert ids[: len(given)] == given, "what the model is given when it is asked"
        assert np.all(tokens.labels[0][: len(given)] == IGNORED)
        assert np.all(tokens.labels[0][len(given) :] == tokens.input_ids[0][len(given) :])

    @settings(max_examples=50, deadline=None)
    @given(prompt=st.text("abct 2=+,.\n", min_size=1, max_size=12), completion=st.text("abct 2=+,.\n", min_size=1))
    def test_any_prompt_and_completion(self, prompt, completion):
        if not completion.strip():
            return
        tokenizer = chat_tokenizer("sentencepiece")
        ids = tokenize(dataset(Completion(prompt, completion, "r:1")), tokenizer, 64).input_ids[0].tolist()
        assert tokenizer.decode(ids[1:]) == f"{prompt}{completion}</s>"
        given = tokenizer(prompt)["input_ids"]
        assert ids[: len(given)] == given

    def test_word_pieces(self):
        tokenizer = chat_tokenizer("word_piece")
        tokens = tokenize(dataset(Completion("the cat", " sat", "r:1")), tokenizer, 64)
        assert tokenizer.decode(tokens.input_ids[0]) == "[CLS] the cat sat [SEP]"
        assert learned_text(tokens, tokenizer) == "sat [SEP]"


class TestCut:
    def test_on_the_right_and_said(self, tokenizer):
        tokens = tokenize(dataset(Text("x" * 20, "r:1"), Text("y" * 5, "r:2")), tokenizer, 8)
        assert [len(ids) for ids in tokens.input_ids] == [8, 6]
        assert tokens.notes == (
            "rows.jsonl: 1 of 2 rows are longer than max_length=8 tokens and were cut (48.1% of tokens)",
        )

    def test_nothing_cut_nothing_said(self, tokenizer):
        tokens = tokenize(dataset(Text("x" * 7, "r:1")), tokenizer, 8)
        assert tokens.notes == ()

    def test_rows_whose_completion_is_cut_away_are_refused(self, tokenizer):
        rows = [Completion("x" * (index + 1), "y", f"r:{index}") for index in range(20)]
        first, *others = refusal(rows, tokenizer, 8).splitlines()
        assert first.startswith("r:7: no token to learn is left within max_length=8; raise data.max_length to 9 or")
        assert len(others) == 5
        assert others[-1] == "13 of 20 rows are bad; the first 5 are listed"
        assert tokenize(dataset(rows[7]), tokenizer, 9).label_tokens(0) == 1

    def test_rows_beyond_the_models_own_limit_do_not_warn(self, tokenizer, caplog):
        tokenize(dataset(Text("x" * 100, "r:1")), tokenizer, 128)
        assert "longer than" not in caplog.text


class TestConversation:
    def test_tags_and_prefixes_agree_up_to_the_newline_after_a_turn(self, make_tokenizer):
        tagged, plain = make_tokenizer(TAGGED_TEMPLATE), make_tokenizer(PLAIN_TEMPLATE)
        one, other = tokenize(dataset(CHAT), tagged, 256), tokenize(dataset(CHAT), plain, 256)
        assert np.array_equal(one.input_ids[0], other.input_ids[0])
        assert learned_text(one, tagged) == "hello<|im_end|>the end<|im_end|>"
        assert learned_text(other, plain) == "hello<|im_end|>\nthe end<|im_end|>\n"

    def test_a_generation_prompt_that_says_more_than_the_turn(self, make_tokenizer):
        thinking = PLAIN_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
        tokenizer = make_tokenizer(thinking)
        tokens = tokenize(dataset(CHAT), tokenizer, 256)
        assert learned_text(tokens, tokenizer) == "hello<|im_end|>\nthe end<|im_end|>\n"

    def test_an_assistant_that_speaks_first(self, make_tokenizer):
        tokenizer = make_tokenizer(PLAIN_TEMPLATE)
        tokens = tokenize(dataset(conversation(("assistant", "hi"))), tokenizer, 64)
        assert learned_text(tokens, tokenizer) == "hi<|im_end|>\n"

    def test_no_template(self, tokenizer):
        message = refusal([CHAT], tokenizer)
        assert message.startswith(
            "c:1: messages: need a chat template, but the model's tokenizer has none; set tokenizer"
        )

    def test_a_template_that_rewrites_earlier_turns(self, make_tokenizer):
        message = refusal([CHAT], make_tokenizer(REWRITING_TEMPLATE))
        assert message.startswith("c:1: messages[2]: the chat template rewrites earlier messages")

    def test_a_template_that_refuses(self, make_tokenizer):
        message = refusal([CHAT], make_tokenizer(REFUSING_TEMPLATE))
        assert message.startswith("c:1: messages: the chat template refuses them (roles must begin with user)")

    def test_tags_around_nothing(self, make_tokenizer):
        tags = "{% generation %}{% endgeneration %}"
        template = "{% for m in messages %}{{ m.content }}{% if false %}" + tags + "{% endif %}{% endfor %}"
        assert "writes nothing for the assistant" in refusal([CHAT], make_tokenizer(template))


def test_rows_are_tokenized_in_batches_that_change_nothing(make_tokenizer, monkeypatch):
    tokenizer = make_tokenizer(PLAIN_TEMPLATE)
    rows = dataset(Text("the cat", "r:1"), Completion("the dog", " sat", "r:2"), CHAT, Text("sat on", "r:4"), CHAT)
    whole = tokenize(rows, tokenizer, 64)
    told = []
    monkeypatch.setattr("lora_lab.data.tokens.BATCH_ROWS", 2)
    assert tokenize(rows, tokenizer, 64, beat=told.append).fingerprint == whole.fingerprint
    assert told == [Activity("tokenizing rows.jsonl", done, 5, "rows") for done in (0, 2, 4)]


def test_fingerprint_sees_ids_labels_and_borders(tokenizer):
    def fingerprint(*examples, max_length=64):
        return tokenize(dataset(*examples), tokenizer, max_length).fingerprint

    text, split = Text("the cat sat", "r:1"), Completion("the cat", " sat", "r:1")
    assert fingerprint(text) == fingerprint(Text("the cat sat", "elsewhere:9"))
    prints = {fingerprint(text), fingerprint(split), fingerprint(text, text), fingerprint(text, max_length=2)}
    assert len(prints) == 4


def test_length(tokenizer):
    assert len(tokenize(dataset(Text("a", "r:1"), Text("b", "r:2")), tokenizer, 8)) == 2


class TestQuestions:
    def ask(self, tokenizer, *examples, max_length=64):
        return tokenize(dataset(*examples), tokenizer, max_length, with_questions=True).questions

    def test_a_prompt_is_asked_as_it_stands_and_never_cut(self, tokenizer):
        [question] = self.ask(tokenizer, Completion("the cat", " sat  down", "r:7"), max_length=8)
        assert tokenizer.decode(question.prompt) == "the cat"
        assert (question.place, question.reference) == ("r:7", " sat  down")
        assert question.end == tokenizer.eos_token_id

    @pytest.mark.parametrize("template", [PLAIN_TEMPLATE, TAGGED_TEMPLATE])
    def test_a_conversation_is_asked_up_to_the_last_turn_of_the_assistant(self, make_tokenizer, template):
        tokenizer = make_tokenizer(template)
        [question] = self.ask(tokenizer, CHAT, max_length=4096)
        asked = tokenizer.decode(question.prompt)
        assert asked.endswith("bye<|im_end|>\n<|im_start|>assistant\n")
        assert question.reference.strip() == "the end"
        assert question.end == tokenizer.convert_tokens_to_ids("<|im_end|>")

    @pytest.mark.parametrize("adds_bos", [False, True])
    def test_choices_are_tokenized_as_the_right_one_is_learned(self, make_tokenizer, adds_bos):
        tokenizer = make_tokenizer(adds_bos=adds_bos)
        rows = [
            Completion("the cat", " sat", "r:1", (" sat on the mat", " sat")),
            Completion("Paris is in", " France", "r:2", (" France", " the mat", " Paris")),
            Completion("the", " dog", "r:3"),
        ]
        learned = tokenize(dataset(*rows), tokenizer, 64)
        asked = self.ask(tokenizer, *rows)
        assert [[choice.text for choice in question.choices] for question in asked] == [
            ["sat on the mat", "sat"], ["France", "the mat", "Paris"], []
        ]  # fmt: skip
        for index, right in ((0, 1), (1, 0)):
            prompt, choice = asked[index].prompt, asked[index].choices[right]
            assert [*prompt, *choice.tokens, tokenizer.eos_token_id] == learned.input_ids[index].tolist()
        assert tokenizer.decode(asked[1].choices[1].tokens) == " the mat"

    def test_texts_and_what_nobody_asks_for_have_none(self, tokenizer):
        assert self.ask(tokenizer, Text("the cat", "r:1")) == ()
        assert tokenize(dataset(Completion("a", "b", "r:1")), tokenizer, 64).questions == ()
