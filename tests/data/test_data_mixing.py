"""Several training datasets with weights: how often each row comes, in a fixed order, with held-out rows apart."""

from __future__ import annotations

import gzip
from collections import Counter

import pytest
from data.loading import texts
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.common.errors import InputError
from lora_lab.data.mixing import held_out, mixed, repeats
from lora_lab.data.sources import load_splits
from lora_lab.planning.example_count import training_examples
from lora_lab.study.data_settings import DatasetRef, DataSettings


@pytest.fixture
def datasets(write_jsonl):
    def write(name, rows):
        return str(write_jsonl([{"text": f"{name}{index}"} for index in range(rows)], f"{name}.jsonl"))

    return {name: write(name, rows) for name, rows in (("a", 10), ("b", 20), ("c", 4))}


def settings(datasets, eval_share=0.1, **weights):
    refs = tuple(DatasetRef(path=datasets[name], weight=weight) for name, weight in weights.items())
    return DataSettings(train=refs, eval=eval_share)


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 4)), min_size=1, max_size=4))
def test_a_row_comes_as_often_as_the_weight_says(parts):
    lengths, weights = zip(*parts, strict=True)
    rows = Counter(mixed(lengths, weights))
    for number, (n, weight) in enumerate(parts):
        times = [rows[number, row] for row in range(n)]
        assert sum(times) == repeats(n, weight) == round(n * weight)
        assert max(times) - min(times) <= 1
    assert mixed(lengths, weights) == mixed(lengths, weights)


def test_the_mix_is_the_same_for_ever():
    assert mixed([3, 2], [1, 1.5]) == [(1, 1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 0)]


def test_weights_count_rows_of_an_epoch_after_those_held_out(datasets, tmp_path):
    splits = load_splits(settings(datasets, a=2, b=0.5, c=None), tmp_path)
    counts = Counter(text[0] for text in texts(splits.train))
    assert counts == {"a": 18, "b": 9, "c": 4}
    assert Counter(text[0] for text in texts(splits.eval)) == {"a": 1, "b": 2}
    assert not set(texts(splits.train)) & set(texts(splits.eval))
    (note,) = splits.notes
    assert f"18 rows an epoch of {datasets['a']} (without 1 held out) (9 rows, weight 2), 58%" in note
    assert f"4 rows an epoch of {datasets['c']} (4 rows, weight 1), 13% of the training rows" in note


def test_the_first_rows_are_a_mix(datasets, tmp_path):
    data = settings(datasets, a=1, b=1, c=1).model_copy(update={"max_train_examples": 12})
    assert len({text[0] for text in texts(load_splits(data, tmp_path).train)}) == 3


def test_held_out_rows_are_those_of_each_dataset_alone(datasets, tmp_path):
    together = load_splits(settings(datasets, eval_share=0.5, a=3, b=1), tmp_path)
    alone = [load_splits(DataSettings(train=DatasetRef(path=datasets[name]), eval=0.5), tmp_path) for name in "ab"]
    assert texts(together.eval) == texts(alone[0].eval) + texts(alone[1].eval)


def test_a_list_of_one_is_the_dataset_itself(datasets, tmp_path):
    one = load_splits(DataSettings(train=[datasets["a"]], eval=0.3), tmp_path)
    assert one == load_splits(DataSettings(train=datasets["a"], eval=0.3), tmp_path)


def test_the_hash_sees_the_weights(datasets, tmp_path):
    hashes = {load_splits(settings(datasets, a=a, b=1), tmp_path).train.content_hash for a in (1, 2, 0.5)}
    assert len(hashes) == 3


@pytest.mark.parametrize("eval_share", [0.1, 0.5])
@pytest.mark.parametrize(
    "weights", [{"a": 2, "b": 0.5}, {"a": None, "c": 0.3}, {"a": 1.7, "b": None, "c": 2}, {"b": None}]
)
def test_the_plan_counts_the_same_rows(datasets, tmp_path, eval_share, weights):
    data = settings(datasets, eval_share=eval_share, **weights)
    assert training_examples(data) == len(load_splits(data, tmp_path).train)


def test_the_plan_counts_patterns_and_compressed_files(datasets, tmp_path):
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(b'{"text": "z"}\n\n{"text": "y"}\n'))
    assert training_examples(DataSettings(train=f"{tmp_path}/[az].jsonl*", eval=0.25)) == 9
    (tmp_path / "a.csv").write_text("text\na\n")
    assert training_examples(DataSettings(train=f"{tmp_path}/a.*", eval=0.25)) == 8


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"a": 1, "c": 0.1}, "a weight must leave at least one row, but 0.1 of the 4 rows of")],
)
def test_a_weight_that_leaves_nothing(datasets, tmp_path, weights, message):
    with pytest.raises(InputError, match=message):
        load_splits(settings(datasets, **weights), tmp_path)


def test_one_dataset_twice(datasets, tmp_path):
    data = DataSettings(train=[datasets["a"], {"path": datasets["a"], "max_examples": 3}])
    with pytest.raises(InputError, match=r"data.train: datasets must differ"):
        load_splits(data, tmp_path)


def test_evaluation_on_one_of_them(datasets, tmp_path):
    data = DataSettings(train=[datasets["a"], datasets["b"]], eval=datasets["b"])
    with pytest.raises(InputError, match=r"data.eval: must not be the training rows"):
        load_splits(data, tmp_path)


def test_bad_rows_of_all_of_them_are_named_at_once(datasets, write_jsonl, tmp_path):
    bad = [str(write_jsonl([{"text": ""}], f"{name}.jsonl")) for name in ("x", "y")]
    with pytest.raises(InputError) as caught:
        load_splits(DataSettings(train=[datasets["a"], *bad], eval=0.1), tmp_path)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [f"{path}:1" for path in bad]


@given(st.integers(1, 200), st.floats(0.01, 0.99))
def test_a_share_holds_out_its_number_of_rows(n, share):
    rows = held_out(n, share)
    assert len(rows) == round(share * n)
    assert rows <= set(range(n))
