"""All bad rows of all datasets and kinds of fault are named at once, or left out and named."""

from __future__ import annotations

import pytest
from data.conftest import build_tokenizer

from lora_lab.common.errors import InputError
from lora_lab.data.bad_rows import BadRows
from lora_lab.study.data_settings import DatasetRef, DataSettings
from lora_lab.training.datasets import DataCatalog

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
)


def chats(number):
    return [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
        for i in range(number)
    ]


def lines(tmp_path, template, *, max_length=64, **data):
    with pytest.raises(InputError) as caught:
        load(tmp_path, template, max_length=max_length, **data)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def load(tmp_path, template, **data):
    return DataCatalog(build_tokenizer(template), tmp_path / "cache").splits(DataSettings(**data))


@pytest.fixture
def refused(write_jsonl):
    rows = chats(24)
    for i in (3, 7, 11):
        rows[i]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    return DatasetRef(path=str(write_jsonl(rows, "chat.jsonl")))


class TestAllAtOnce:
    def test_what_a_template_refuses_in_training_and_held_out_rows(self, refused, tmp_path):
        found = lines(tmp_path, NO_SYSTEM, train=refused, eval=0.5)
        assert [line.split(": ")[0] for line in found] == ["chat.jsonl:4", "chat.jsonl:8", "chat.jsonl:12"]
        assert all("the chat template refuses them (System role not supported)" in line for line in found)

    def test_every_kind_of_fault(self, write_jsonl, tmp_path):
        rows = chats(20)
        rows[1]["messages"].insert(0, {"role": "system", "content": "Be brief."})  # the template
        rows[2]["messages"].pop()  # nothing to learn
        rows[3]["messages"][0]["content"] = "long " * 100  # nothing left to learn
        rows[4]["messages"][1]["content"] = None  # no text
        path = write_jsonl(rows, "chat.jsonl")
        with path.open("a") as file:
            file.write("{oops\n")
        found = lines(tmp_path, NO_SYSTEM, train=DatasetRef(path=str(path)), eval=0.5)
        assert [line.split(": ")[0] for line in found] == [f"chat.jsonl:{number}" for number in (2, 3, 4, 5, 21)]

    def test_of_every_dataset(self, write_jsonl, refused, tmp_path):
        turned = [{"messages": [*reversed(row["messages"])]} for row in chats(3)]
        found = lines(
            tmp_path,
            ALTERNATING,
            train=DatasetRef(path=str(write_jsonl([*chats(5), {"messages": []}], "a.jsonl"))),
            eval=DatasetRef(path=str(write_jsonl(turned, "b.jsonl"))),
            forgetting=DatasetRef(path=str(write_jsonl([{"text": "c"}, {"text": ""}], "c.jsonl"))),
        )
        places = [line.split(": ")[0] for line in found]
        assert places == ["a.jsonl:6", "b.jsonl:1", "b.jsonl:2", "b.jsonl:3", "c.jsonl:2"]

    def test_five_are_listed_and_all_are_counted(self, write_jsonl, tmp_path):
        rows = chats(30)
        for row in rows[::2]:
            row["messages"].insert(0, {"role": "system", "content": "Be brief."})
        found = lines(tmp_path, NO_SYSTEM, train=DatasetRef(path=str(write_jsonl(rows, "chat.jsonl"))), eval=0.5)
        assert len(found) == 6
        assert found[-1] == "15 of 30 rows are bad; the first 5 are listed"

    def test_they_come_before_what_follows_from_them(self, write_jsonl, tmp_path):
        path = write_jsonl([{"text": ""}, {"text": ""}, {"text": "good"}])
        assert len(lines(tmp_path, None, train=DatasetRef(path=str(path)), eval=0.1)) == 2


class TestSkipInvalid:
    def test_the_others_are_trained_on_and_the_bad_ones_are_named(self, refused, tmp_path):
        splits = load(tmp_path, NO_SYSTEM, train=refused, eval=0.25, skip_invalid=True)
        assert len(splits.train) + len(splits.eval) == 21
        (note,) = splits.notes
        assert note.replace(f"{tmp_path}/", "") == (
            "data.skip_invalid: 3 of 24 rows are left out: "
            + ", ".join(
                f"chat.jsonl:{number} (messages: the chat template refuses them (System role not supported))"
                for number in (4, 8, 12)
            )
        )

    def test_damaged_rows_and_missing_fields(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text(
            '{"text": "one"}\n{oops\n{"text": null}\n{"text": "two"}\n{"text": "three"}\n{"text": "four"}\n'
        )
        splits = load(tmp_path, None, train=DatasetRef(path=str(path)), eval=0.5, skip_invalid=True)
        assert (len(splits.train), len(splits.eval)) == (2, 2)
        (note,) = splits.notes
        assert note.startswith("data.skip_invalid: 2 of 6 rows are left out: ")
        assert f"{path}:2 (bad JSON" in note
        assert f"{path}:3 (text: is null)" in note

    def test_images_are_left_out_by_name(self, write_jsonl, tmp_path):
        rows = chats(5)
        rows[2]["messages"][0]["content"] = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]
        path = DatasetRef(path=str(write_jsonl(rows)))
        splits = load(tmp_path, NO_SYSTEM, train=path, eval=0.5, skip_invalid=True)
        assert "rows.jsonl:3 (messages[0].content[0]: is of the type 'image', but only" in splits.notes[0]

    def test_all_rows_are_bad(self, write_jsonl, tmp_path):
        path = DatasetRef(path=str(write_jsonl([{"text": ""}] * 3)))
        with pytest.raises(InputError, match="all 3 rows are bad"):
            load(tmp_path, None, train=path, eval=0.5, skip_invalid=True)

    def test_all_rows_are_refused_by_the_template(self, write_jsonl, tmp_path):
        rows = [{"messages": [{"role": "system", "content": "x"}, *row["messages"]]} for row in chats(4)]
        with pytest.raises(InputError, match="no row is left that can be learned"):
            load(tmp_path, NO_SYSTEM, train=DatasetRef(path=str(write_jsonl(rows))), eval=0.5, skip_invalid=True)

    def test_many_are_counted_and_the_first_places_are_named(self):
        bad = BadRows(skip=True, rows=100)
        for number in range(80):
            bad.add(f"r:{number}", "text: is missing; add a text")
        (note,) = bad.settle()
        assert note.startswith("data.skip_invalid: 80 of 100 rows are left out: r:0 (text: is missing), r:1 (")
        assert note.endswith("r:48, r:49, and 30 more")


class TestColumns:
    def test_of_training_data_and_of_others_that_have_them(self, write_jsonl, tmp_path):
        rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(6)]
        splits = load(
            tmp_path,
            None,
            train=DatasetRef(path=str(write_jsonl(rows))),
            eval=DatasetRef(path=str(write_jsonl([{"question": "q", "answer": i} for i in "ab"], "eval.jsonl"))),
            forgetting=DatasetRef(path=str(write_jsonl([{"text": "general"}], "general.jsonl"))),
            columns={"prompt": "question", "completion": "answer"},
        )
        assert (len(splits.train), len(splits.eval), len(splits.forgetting)) == (6, 2, 1)
        assert splits.notes == ()

    def test_training_data_must_have_them(self, write_jsonl, tmp_path):
        path = DatasetRef(path=str(write_jsonl([{"text": "a"}] * 4)))
        (line,) = lines(tmp_path, None, train=path, columns={"text": "body"})
        assert line.startswith("rows.jsonl: columns.text must name a column, but there is no 'body' among text")
