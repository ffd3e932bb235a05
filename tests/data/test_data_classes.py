"""Rows with a class: which columns are read, what may stand there, and what is refused by file, line and key."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pytest
from classifiers import CLS, SEP, write_tokenizer
from pyarrow import parquet
from transformers import AutoTokenizer

from lora_lab.common.errors import InputError
from lora_lab.data.examples import Labeled
from lora_lab.data.sources import load_splits
from lora_lab.study.data_settings import DataSettings
from lora_lab.training.datasets import DataCatalog


@pytest.fixture
def load(tmp_path):
    """Splits of rows that are given as lists of objects, with the classes of the training rows."""

    def write(name, rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def load(train, evaluation=None, classes=(), **settings):
        held_out = write("eval", evaluation) if evaluation else 0.25
        data = DataSettings(train=write("train", train), eval=held_out, **settings)
        return load_splits(data, tmp_path / "cache", classes=classes)

    return load


ROWS = [{"text": f"text {index}", "label": label} for index, label in enumerate(["b", "a", "c", "a"] * 3)]


def test_classes_are_those_of_the_training_rows_sorted(load):
    assert load(ROWS).classes == ("a", "b", "c")
    assert load([row | {"label": [10, 9, 2, 9][i % 4]} for i, row in enumerate(ROWS)]).classes == ("2", "9", "10")
    assert load([row | {"label": i % 2 == 0} for i, row in enumerate(ROWS)]).classes == ("false", "true")
    assert load(ROWS, classes=("c", "b", "a")).classes == ("c", "b", "a")


def test_a_held_out_share_does_not_take_a_class_away(load):
    rows = [*ROWS, {"text": "the only one", "label": "rare"}]
    assert all("rare" in load(rows, max_train_examples=count).classes for count in (1, 5))


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("sentence1", "sentence2"), 2),
        (("premise", "hypothesis"), 2),
        (("question1", "question2"), 2),
        (("question", "sentence"), 2),
        (("sentence",), 1),
        (("text",), 1),
        (("text", "text_pair"), 2),
    ],
)
def test_texts_are_found_by_the_names_that_glue_has(load, names, pair):
    rows = [dict(zip(names, ("one", "two"), strict=False)) | {"label": i % 2, "idx": i} for i in range(8)]
    splits = load(rows)
    assert splits.train.examples[0].texts == ("one", "two")[:pair]
    assert splits.notes[0].endswith("the column idx is not read")


def test_columns_say_where_texts_and_classes_stand(load):
    rows = [{"body": "one", "title": "two", "stars": i % 5} for i in range(8)]
    splits = load(rows, columns={"text": "body", "text_pair": "title", "label": "stars"})
    assert splits.train.examples[0] == Labeled(("one", "two"), splits.train.examples[0].label, "")
    assert splits.classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (0.5, "label: must be a class, an integer or a string, but is 0.5 (float)"),
        ("0.5", "label: must be a class, an integer or a string, but is '0.5' (str)"),
        (1.0, "label: must be a class"),
        (["a"], "label: must be a class, an integer or a string, but is ['a'] (list)"),
        (None, "label: is null; add a class, or delete the row"),
        (-1, "label: is -1, which stands for no class in test splits"),
        ("", "label: must not be empty"),
    ],
)
def test_what_is_no_class_is_refused_by_line(load, tmp_path, label, said):
    rows = [dict(row) for row in ROWS]
    rows[3]["label"] = label
    with pytest.raises(InputError) as refused:
        load(rows)
    assert str(refused.value).startswith(f"{tmp_path}/train.jsonl:4: {said}")


def test_a_missing_class_a_single_one_and_no_column_are_refused(load, tmp_path):
    rows = [dict(row) for row in ROWS]
    del rows[1]["label"]
    with pytest.raises(InputError, match=r"train.jsonl:2: label: is missing; add a class"):
        load(rows)
    with pytest.raises(InputError, match="label: must have two classes or more, but all 12 rows are a; add rows"):
        load([row | {"label": "a"} for row in ROWS])
    with pytest.raises(
        InputError, match=r"or a pair such as `sentence1` and `sentence2`; and `label`\), but found text;"
    ):
        load([{"text": row["text"]} for row in ROWS])


def test_unknown_classes_are_refused_where_they_stand_or_left_out(load):
    held_out = [ROWS[0], ROWS[1], {"text": "x", "label": "new"}]
    said = r"eval.jsonl:3: label: new is none of the 3 classes of the training rows \(a, b, c\); correct it"
    with pytest.raises(InputError, match=said):
        load(ROWS, held_out)
    splits = load(ROWS, held_out, skip_invalid=True)
    assert len(splits.eval) == 2
    assert "1 of 15 rows are left out" in splits.notes[-1]
    with pytest.raises(InputError, match=r"train.jsonl:3: label: c is none of the 2 classes"):
        load(ROWS, classes=("a", "b"))


def test_declared_classes_keep_their_order(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "maybe", "a"])}
    )
    rows = {"text": [f"text {i}" for i in range(6)], "label": [0, 1, 2, 0, 1, 2]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(str(tmp_path / "saved"))
    whole.to_parquet(str(tmp_path / "rows.parquet"))
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        splits = load_splits(DataSettings(train=str(path), eval=0.34), tmp_path / "cache", classes=())
        assert splits.classes == ("no", "maybe", "a")
        assert {example.label for example in splits.train.examples} <= {"no", "maybe", "a"}
    parquet.write_table(pa.table(rows), tmp_path / "plain.parquet")
    plain = DataSettings(train=str(tmp_path / "plain.parquet"), eval=0.34)
    assert load_splits(plain, tmp_path / "cache", classes=()).classes == ("0", "1", "2")


def test_pairs_are_cut_as_the_tokenizer_cuts_them(load, tmp_path):
    write_tokenizer(tmp_path / "tokenizer", types=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    rows = [
        {"premise": " ".join(f"w{4 + i}" for i in range(20)), "hypothesis": "w40 w41", "label": "a"},
        {"premise": "w4", "hypothesis": "w5 w6", "label": "b"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    data = DataSettings(train=str(path), eval=0.5, max_length=12)
    splits = DataCatalog(tokenizer, tmp_path / "cache", classes=("a", "b")).splits(data)
    ids = sorted((row.tolist() for row in splits.train.input_ids), key=len)
    expected = tokenizer(rows[0]["premise"], rows[0]["hypothesis"], truncation=True, max_length=12)
    for tokens, types, index in zip(
        splits.train.input_ids, splits.train.token_types, splits.train.classes, strict=True
    ):
        if index == 0:
            assert tokens.tolist() == expected["input_ids"]
            assert types.tolist() == expected["token_type_ids"]
    assert ids[0][0] == CLS
    assert ids[0][-1] == SEP
    assert max(map(len, ids)) <= 12


def test_a_tokenizer_without_a_pad_token_is_refused(load, tmp_path):
    write_tokenizer(tmp_path / "tokenizer", pad=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = DataSettings(train=str(path), eval=0.25)
    with pytest.raises(InputError, match=r"the tokenizer has no pad token.*set tokenizer.pad_token"):
        DataCatalog(tokenizer, tmp_path / "cache", classes=("a", "b", "c")).splits(data)
