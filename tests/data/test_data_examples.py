"""Corrupt rows are found, by file and line, and sound ones become the examples that they say."""

from __future__ import annotations

import csv
import json

import pytest

from lora_lab.common.errors import InputError
from lora_lab.data.bad_rows import BadRows
from lora_lab.data.examples import Completion, Conversation, Text, content_hash
from lora_lab.data.formats import validate
from lora_lab.data.readers import RawRow, read_rows

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def checked(rows, source, **options):
    bad = BadRows()
    result = validate(rows, source, bad, **options)
    bad.settle()
    return result


def load(path):
    return checked(list(read_rows(path)), str(path))


def refusal(path):
    with pytest.raises(InputError) as caught:
        load(path)
    return str(caught.value)


def from_fields(*fields):
    return checked([RawRow(f"rows[{index}]", row) for index, row in enumerate(fields)], "rows")


class TestFormats:
    def test_text(self, write_jsonl, tmp_path):
        examples, notes = load(write_jsonl([{"text": "one", "label": 1}, {"text": "two"}]))
        assert examples == (Text("one", ""), Text("two", ""))
        assert notes == (f"{tmp_path / 'rows.jsonl'}: the column label is not read",)

    def test_place_is_file_and_line(self, write_jsonl):
        path = write_jsonl([{"text": "one"}, {"text": "two"}])
        assert [example.place for example in load(path)[0]] == [f"{path}:1", f"{path}:2"]

    def test_prompt_and_completion(self):
        assert from_fields({"prompt": "", "completion": "x"})[0] == (Completion("", "x", ""),)

    def test_messages(self):
        assert from_fields({"messages": TURNS})[0] == (Conversation(tuple(TURNS), ""),)

    @pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": None}])
    def test_alpaca_without_input(self, empty):
        ((example,), _) = from_fields({"instruction": "Say {it}.", "output": "it", **empty})
        assert example.prompt == (
            "Below is an instruction that describes a task. Write a response that appropriately completes "
            "the request.\n\n### Instruction:\nSay {it}.\n\n### Response:\n"
        )
        assert example.completion == "it"

    def test_alpaca_with_input(self):
        ((example,), _) = from_fields({"instruction": "Sum up.", "input": "A. B.", "output": "AB"})
        assert "paired with an input" in example.prompt
        assert example.prompt.endswith("### Instruction:\nSum up.\n\n### Input:\nA. B.\n\n### Response:\n")

    def test_alpaca_is_taken_before_its_own_text_column_and_said_so(self):
        examples, notes = from_fields({"instruction": "a", "output": "b", "text": "a b"})
        assert isinstance(examples[0], Completion)
        assert notes == ("rows: the columns instruction/output are used; text would fit too",)

    def test_a_damaged_alpaca_row_does_not_turn_the_dataset_into_text(self):
        rows = [{"instruction": "a", "output": "b", "text": "a b"}] * 9 + [{"instruction": "a", "text": "a"}]
        with pytest.raises(InputError, match=r"rows\[9\]: output: is missing"):
            from_fields(*rows)

    def test_a_column_of_nulls_is_no_format(self):
        examples, _ = from_fields({"messages": None, "text": "a"})
        assert examples == (Text("a", ""),)

    def test_unknown_columns_are_named_with_the_four_formats(self, write_jsonl):
        message = refusal(write_jsonl([{"question": "a", "answer": "b"}]))
        assert "found question, answer" in message
        for name in ("`messages`", "`prompt` and `completion`", "`instruction`, `output`", "`text`"):
            assert name in message

    def test_empty_dataset(self, write_jsonl):
        assert "has no rows" in refusal(write_jsonl([]))

    def test_content_hash_ignores_the_place_and_sees_content_and_order(self):
        one, two = Text("a", "x:1"), Text("b", "x:2")
        assert content_hash([one, two]) == content_hash([Text("a", "y:7"), Text("b", "y:8")])
        assert len({content_hash(rows) for rows in ([one], [two], [one, two], [two, one])}) == 4
        assert content_hash([one]) != content_hash([Completion("", "a", "")])

    def test_content_hashes_of_old_studies_stay(self):
        """They are compared when a study goes on."""
        examples = [Text("a", ""), Completion("p", "c", ""), Conversation(tuple(TURNS), "")]
        assert [content_hash([example])[:16] for example in examples] == [
            "7c24616314d4c7dd",
            "f52ddd29502db50a",
            "86fcd4e1fee20dc5",
        ]


class TestConversations:
    def test_sharegpt_with_system_and_tools(self):
        tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
        turns = [
            {"from": "human", "value": "Rain in Rome?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
            {"from": "observation", "value": "no"},
            {"from": "gpt", "value": "No rain."},
        ]
        row = {"conversations": turns, "system": "Be brief.", "tools": json.dumps([tool])}
        ((example,), notes) = from_fields(row)
        assert notes == ()
        assert example.tools == (tool,)
        assert example.learned == [2, 4]
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
        assert list(example.messages) == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Rain in Rome?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "no"},
            {"role": "assistant", "content": "No rain."},
        ]

    def test_sharegpt_and_messages_say_the_same(self):
        sharegpt = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
        expected = from_fields({"messages": TURNS})[0]
        for row in ({"conversations": sharegpt}, {"conversations": TURNS}, {"messages": sharegpt}):
            assert from_fields(row)[0] == expected
            assert content_hash(from_fields(row)[0]) == content_hash(expected)

    def test_arguments_of_a_call_are_an_object_whichever_way_they_are_written(self):
        def said(arguments):
            call = {"type": "function", "id": "1", "function": {"name": "f", "arguments": arguments}}
            return from_fields({"messages": [*TURNS, {"role": "assistant", "content": None, "tool_calls": [call]}]})[0]

        assert said('{"x": 1}') == said({"x": 1})
        assert said("{oops")[0].messages[2]["tool_calls"][0]["function"]["arguments"] == "{oops"

    @pytest.mark.parametrize(
        "content",
        [[{"type": "text", "text": "hi"}], ["h", "i"], [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]],
    )
    def test_parts_of_text_are_one_text(self, content):
        assert from_fields({"messages": [{"role": "user", "content": content}, TURNS[1]]}) == from_fields(
            {"messages": TURNS}
        )

    def test_a_prompt_and_a_completion_of_messages(self):
        given = {"role": "assistant", "content": "given"}
        ((example,), _) = from_fields({"prompt": [TURNS[0], given, TURNS[0]], "completion": [TURNS[1]]})
        assert example.messages == (TURNS[0], given, TURNS[0], TURNS[1])
        assert example.learned == [3]
        assert content_hash([example]) != content_hash([Conversation(example.messages, "")])

    def test_a_weight_of_0_keeps_the_loss_off_a_message(self):
        ((example,), _) = from_fields({"messages": [*TURNS, TURNS[0], TURNS[1] | {"weight": 1}], "system": "s"})
        assert example.learned == [2, 4]
        ((example,), _) = from_fields({"messages": [TURNS[0], TURNS[1] | {"weight": 0}, *TURNS], "system": "s"})
        assert example.learned == [4]
        assert all("weight" not in message for message in example.messages)

    def test_a_system_prompt_twice(self):
        with pytest.raises(InputError, match=r"rows\[0\]: system: stands in messages\[0\] too"):
            from_fields({"messages": [{"role": "system", "content": "a"}, *TURNS], "system": "b"})

    @pytest.mark.parametrize("column", ["image", "images", "videos", "audio"])
    @pytest.mark.parametrize("row", [{"messages": TURNS}, {"prompt": "a", "completion": "b"}])
    def test_media_beside_the_text_are_refused_by_name(self, column, row):
        assert from_fields(row | {column: []})[1] == ()
        with pytest.raises(InputError, match=rf"rows\[0\]: {column}: only text can be trained on"):
            from_fields(row | {column: [{"path": "a.png"}]})

    def test_messages_of_a_csv_file(self, tmp_path):
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["messages"], [json.dumps(TURNS)]])
        assert load(tmp_path / "rows.csv")[0] == (Conversation(tuple(TURNS), ""),)


class TestAlpaca:
    def test_system_and_history_are_in_the_prompt(self):
        ((example,), notes) = from_fields(
            {
                "instruction": "And in July?",
                "input": "",
                "output": "Hot.",
                "system": "You are a weather clerk.",
                "history": [["How is it in May?", "Mild."]],
            }
        )
        assert notes == ()
        assert example == Completion(
            "You are a weather clerk.\n\n### Instruction:\nHow is it in May?\n\n### Response:\nMild."
            "\n\n### Instruction:\nAnd in July?\n\n### Response:\n",
            "Hot.",
            "",
        )

    @pytest.mark.parametrize(
        "more", [{"system": None, "history": None}, {"system": "", "history": []}, {"history": ""}]
    )
    def test_empty_ones_change_nothing(self, more):
        row = {"instruction": "a", "output": "b"}
        assert from_fields(row | more) == from_fields(row)

    def test_history_with_input_and_of_a_csv_file(self):
        row = {"instruction": "a", "input": "i", "output": "b", "history": '[["q", "r"]]'}
        prompt = from_fields(row)[0][0].prompt
        assert prompt.startswith("Below is an instruction that describes a task, paired with")
        assert prompt.endswith(
            "### Instruction:\nq\n\n### Response:\nr\n\n### Instruction:\na\n\n### Input:\ni\n\n### Response:\n"
        )

    @pytest.mark.parametrize(
        ("history", "problem"),
        [
            ("May?", "history: must be a list of"),
            (["May?"], r"history\[0\]: must be \[instruction"),
            ([["May?", None]], r"history\[0\]\[1\]: is null"),
        ],
    )
    def test_a_history_that_cannot_be_right(self, history, problem):
        with pytest.raises(InputError, match=problem):
            from_fields({"instruction": "a", "output": "b", "history": history})


class TestColumns:
    @pytest.mark.parametrize(
        ("row", "unread"),
        [
            ({"text": "a", "id": 1, "url": "x"}, "the columns id, url are not read"),
            ({"prompt": "a", "completion": "b", "system": "c"}, "the column system is not read"),
            ({"messages": TURNS, "history": [["a", "b"]]}, "the column history is not read"),
            ({"instruction": "a", "output": "b", "context": "c"}, "the column context is not read"),
            ({"conversations": TURNS, "reward": 0}, "the column reward is not read"),
            ({"text": "a", "": "0"}, "the column (without a name) is not read"),
        ],
    )
    def test_what_is_not_read_is_named(self, row, unread):
        assert from_fields(row)[1] == (f"rows: {unread}",)

    def test_a_column_that_only_some_rows_have_is_named(self):
        assert from_fields({"text": "a"}, {"text": "b", "context": "c"})[1] == ("rows: the column context is not read",)

    @pytest.mark.parametrize("empty", [None, "", [], {}])
    def test_a_column_that_holds_nothing_is_not(self, empty):
        assert from_fields({"text": "a", "context": empty})[1] == ()

    def test_columns_by_other_names(self):
        rows = [RawRow("rows[0]", {"question": "q", "answer": "a", "id": 1})]
        examples, notes = checked(rows, "rows", columns={"prompt": "question", "completion": "answer"})
        assert examples == (Completion("q", "a", ""),)
        assert notes == ("rows: the column id is not read",)

    def test_a_column_named_is_meant_and_the_one_it_replaces_is_not_read(self):
        rows = [RawRow("rows[0]", {"messages": TURNS, "text": "short", "body": "long"})]
        examples, notes = checked(rows, "rows", columns={"text": "body"})
        assert examples == (Text("long", ""),)
        assert notes == ("rows: the columns messages, text are not read",)

    def test_a_name_that_is_no_column(self):
        rows = [RawRow("rows[0]", {"question": "q", "answer": "a"})]
        with pytest.raises(
            InputError, match=r"columns.prompt must name a column, but there is no 'ask' among question"
        ):
            checked(rows, "rows", columns={"prompt": "ask", "completion": "answer"})


GOOD = b'{"prompt": "p", "completion": "c"}'
CORRUPT = {
    "not JSON": (b"{oops", "bad JSON: Expecting property name"),
    "cut off": (b'{"prompt": "p", "comple', "bad JSON: Unterminated string"),
    "two objects": (GOOD + GOOD, "bad JSON: Extra data"),
    "single quotes": (b"{'prompt': 'p'}", "bad JSON"),
    "bad UTF-8": (b'{"prompt": "\xff", "completion": "c"}', "bad UTF-8: invalid start byte at byte 13"),
    "UTF-16": ('{"prompt": "p"}'.encode("utf-16"), "bad UTF-8"),
    "a list": (b'["p", "c"]', "a row is a JSON object, but this is a list"),
    "a number": (b"7", "a row is a JSON object, but this is a int"),
    "deep nesting": (b"[" * 200_000, "bad JSON: "),
    "a number of 5000 digits": (b'{"prompt": ' + b"9" * 5000 + b"}", "bad JSON: "),
    "a key twice": (b'{"prompt": "p", "prompt": "q", "completion": "c"}', "the key 'prompt' stands twice"),
    "missing field": (b'{"prompt": "p"}', "completion: is missing"),
    "null": (b'{"prompt": "p", "completion": null}', "completion: is null"),
    "empty object": (b"{}", "prompt: is missing"),
    "a number for a text": (b'{"prompt": "p", "completion": 5}', "completion: must be a string, but is 5"),
    "a list for a text": (b'{"prompt": ["p"], "completion": "c"}', "prompt: must be a string, but is ['p']"),
    "empty completion": (b'{"prompt": "p", "completion": ""}', "completion: must not be empty"),
    "blank completion": (b'{"prompt": "p", "completion": " \\n"}', "completion: must not be empty"),
    "NUL": (b'{"prompt": "p", "completion": "a\\u0000b"}', "completion: holds a NUL character at position 2"),
    "half a surrogate pair": (b'{"prompt": "p\\ud800", "completion": "c"}', "prompt: character 2, '\\ud800'"),
    "empty line": (b"", "empty line; delete it"),
    "10 MB": (
        b'{"prompt": "p", "completion": "' + b"x" * 10_000_000 + b'"}',
        "completion: has 10,000,000 characters, at most 4,000,000",
    ),
    "10 MB of garbage": (b"x" * 10_000_000, "bad JSON: Expecting value at column 1"),
    "10 MB in a list": (b'{"prompt": "p", "completion": ["' + b"x" * 10_000_000 + b'"]}', "must be a string"),
}  # fmt: skip


class TestCorruptRows:
    @pytest.mark.parametrize("name", CORRUPT)
    def test_found_by_file_and_line_and_without_dumping_it(self, tmp_path, name):
        row, problem = CORRUPT[name]
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join([GOOD, row, GOOD]) + b"\n")
        message = refusal(path)
        assert message.startswith(f"{path}:2: ")
        assert problem in message
        assert "; " in message, "says what to do"
        assert "\n" not in message
        assert len(message) < len(str(path)) + 300

    def test_the_first_five_are_listed_and_all_are_counted(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'{"text": "ok"}\n{"text": ""}\n{oops\n' * 4 + b'{"text": "ok"}\n' * 3)
        lines = refusal(path).splitlines()
        assert [line.split(": ")[0] for line in lines[:5]] == [f"{path}:{line}" for line in (2, 3, 5, 6, 8)]
        assert lines[5:] == ["8 of 15 rows are bad; the first 5 are listed"]

    def test_no_problems_no_error(self):
        assert BadRows(rows=3).settle() == ()

    def test_all_rows_damaged(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"{oops\n")
        assert refusal(path).startswith(f"{path}:1: bad JSON")

    def test_empty_lines_at_the_end_are_harmless(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"text": "with a byte order mark"}\r\n\n \n')
        assert load(path)[0] == (Text("with a byte order mark", ""),)

    def test_line_separators_of_unicode_do_not_split_a_row(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"text": "a\u2028b"}\n{"text": "c"}\n', encoding="utf-8")
        assert [example.place for example in load(path)[0]] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("hi", "messages: must be a list of"),
        ([], "messages: must be a list of"),
        (["hi"], "messages[0]: must be {"),
        ([{"role": "user"}], "messages[0].content: is missing"),
        ([{"content": "hi"}], "messages[0].role: is missing"),
        ([{"role": 1, "content": "hi"}], "messages[0].role: must be a string, but is 1 (int)"),
        (TURNS[:1], "messages: needs a message of the role assistant to learn from, but has user"),
        ([TURNS[0], {"role": "assistant", "content": " "}], "messages[1].content: must not be empty"),
        ([TURNS[0], {"role": "assistant", "content": "a\0"}], "messages[1].content: holds a NUL"),
        ([TURNS[0], TURNS[1] | {"tool_calls": [1]}], "messages[1].tool_calls: must be a list of objects"),
        ([TURNS[0], TURNS[1] | {"tool_calls": "f(x)"}], "messages[1].tool_calls: must be a list of objects"),
        ([TURNS[0], TURNS[1] | {"tool_calls": [{"x": 1}]}], "messages[1].tool_calls[0]: needs the name of a function"),
        ([TURNS[0], TURNS[1] | {"weight": 0.5}], "messages[1].weight: must be 0 or 1, but is 0.5"),
        ([TURNS[0], TURNS[1] | {"weight": 0}], "messages: needs a message of the role assistant without a weight of 0"),
        ([TURNS[0], {"role": "assistant", "content": None}], "messages[1].content: is null"),
        ([{"role": "user", "content": 5}], "messages[0].content: must be a string, but is 5"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text: is missing"),
        ([{"role": "user", "content": [5]}], 'messages[0].content[0]: must be {"type": "text"'),
        (
            [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image", "image": "a.png"}]}],
            "messages[0].content[1]: is of the type 'image', but only text can be trained on",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0]: is of the type 'image_url'",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]: is of the type 'input_au"),
        ([{"from": "human", "value": "hi"}, {"from": "narrator", "value": "."}], "messages[1].from: must be one of hu"),
        ([{"from": "human"}, {"from": "gpt", "value": "."}], "messages[0].value: is missing"),
    ],
)
def test_corrupt_messages(messages, problem):
    with pytest.raises(InputError) as caught:
        from_fields({"messages": TURNS}, {"messages": messages})
    assert str(caught.value).startswith("rows[1]: ")
    assert problem in str(caught.value)


class TestCsv:
    def write(self, tmp_path, data):
        path = tmp_path / "rows.csv"
        path.write_bytes(data)
        return path

    def test_texts_stay_what_they_are(self, tmp_path):
        path = self.write(tmp_path, b"prompt,completion\r\nx,NA\r\ny,12\r\nz,null\r\n\r\n")
        assert [example.completion for example in load(path)[0]] == ["NA", "12", "null"]

    def test_line_numbers_count_lines_not_rows(self, tmp_path):
        path = self.write(tmp_path, b'prompt,completion\na,"one\ntwo"\nb,\n')
        assert refusal(path).startswith(f"{path}:4: completion: must not be empty")

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            (b"b", "1 values for 2 columns"),
            (b"b,c,d", "3 values for 2 columns"),
            (b'"b"x,c', "bad CSV"),
            (b"b,\xff", "bad UTF-8"),
            (b"b,a\0", "completion: holds a NUL"),
            (b"", "empty line"),
        ],
    )
    def test_corrupt_rows(self, tmp_path, row, problem):
        path = self.write(tmp_path, b"prompt,completion\na,b\n" + row + b"\nc,d\n")
        message = refusal(path)
        assert message.startswith(f"{path}:3: ")
        assert problem in message
        assert "\n" not in message

    def test_an_open_quote_is_reported_where_it_opens(self, tmp_path):
        path = self.write(tmp_path, b'prompt,completion\na,b\nc,"d\ne,f\n')
        assert refusal(path).startswith(f"{path}:3: bad CSV: unexpected end of data")

    def test_a_column_name_twice(self, tmp_path):
        assert ":1: column names must differ" in refusal(self.write(tmp_path, b"text,text\na,b\n"))

    def test_an_index_column_without_a_name(self, tmp_path):
        assert load(self.write(tmp_path, b",text\n0,a\n"))[0] == (Text("a", ""),)

    def test_an_empty_file(self, tmp_path):
        assert "has no rows" in refusal(self.write(tmp_path, b""))

    def test_a_long_document(self, tmp_path):
        path = tmp_path / "rows.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text"], ["x" * 200_000]])
        assert len(load(path)[0][0].text) == 200_000


class TestOtherFiles:
    def test_json_array(self, tmp_path):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps([{"text": "a"}, {"text": ""}], indent=1))
        assert refusal(path).startswith(f"{path}[1]: text: must not be empty")

    def test_json_array_with_a_syntax_error(self, tmp_path):
        path = tmp_path / "rows.json"
        path.write_text('[{"text": "a"},\n{"text" "b"}]')
        assert refusal(path).startswith(f"{path}:2: bad JSON: Expecting ':' delimiter at column 9")

    def test_json_file_of_lines(self, tmp_path):
        path = tmp_path / "rows.json"
        path.write_text('{"text": "a"}\n{"text": "b"}\n')
        assert load(path)[0] == (Text("a", ""), Text("b", ""))

    def test_parquet_in_a_folder_with_brackets(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = tmp_path / "a[b]*.parquet"
        parquet.write_table(pa.table({"messages": [TURNS, TURNS]}), path)
        examples, _ = load(path)
        assert examples[1] == Conversation(tuple(TURNS), "")
        assert examples[1].place == f"{path}[1]"

    def test_damaged_parquet(self, tmp_path):
        path = tmp_path / "rows.parquet"
        path.write_bytes(b"PAR1 not at all")
        assert "damaged Parquet file" in refusal(path)

    def test_another_kind_of_file(self, tmp_path):
        path = tmp_path / "rows.pkl"
        path.write_bytes(b"")
        assert ".csv, .tsv, .parquet, .arrow, .feather file, but this ends in '.pkl'" in refusal(path)

    def test_a_missing_file(self, tmp_path):
        assert "cannot be read (No such file or directory)" in refusal(tmp_path / "no.jsonl")
