"""Rows are counted wherever they are, or it is said why they are not."""

from __future__ import annotations

import gzip
import json

import datasets
import pytest

from lora_lab.common.errors import InputError
from lora_lab.data.sources import load_splits
from lora_lab.planning import example_count
from lora_lab.planning.example_count import evaluation_examples, training_examples, unseen_examples, why_uncounted
from lora_lab.study.data_settings import DataSettings

ROWS = [{"prompt": f"question {index}\nof two lines?", "completion": f"answer {index}"} for index in range(40)]


def write_lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_csv(path):
    path.write_text("prompt,completion\n" + "".join(f'"{row["prompt"]}",{row["completion"]}\n' for row in ROWS))


def in_folder(name, write):
    def made(path):
        path.mkdir()
        write(path / name)

    return made


SOURCES = {
    "rows.jsonl": write_lines,
    "rows.csv": write_csv,
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "wrapped.json": lambda path: path.write_text(json.dumps({"data": ROWS}, indent=1)),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress("".join(f"{json.dumps(r)}\n" for r in ROWS).encode())),
    "rows.parquet": lambda path: datasets.Dataset.from_list(ROWS).to_parquet(path),
    "folder": in_folder("train.jsonl", write_lines),
    "folder of CSV": in_folder("train.csv", write_csv),
    "folder by another name": in_folder("tickets.jsonl", write_lines),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "saved splits": lambda path: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(path),
}


@pytest.mark.parametrize("name", SOURCES)
def test_rows_are_those_that_the_sweep_reads(name, tmp_path):
    SOURCES[name](tmp_path / name)
    data = DataSettings(train=str(tmp_path / name), eval=0.25)
    assert training_examples(data) == len(load_splits(data, tmp_path / "cache").train) == 30
    assert training_examples(data.model_copy(update={"max_train_examples": 8})) == 8
    assert why_uncounted(data) == ""


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("txet.jsonl", "txet.jsonl is no file or folder here"),
        ("data/*.jsonl", "data/*.jsonl matches no file here"),
        ("owner/name", "owner/name is no file or folder here, and would be fetched from the Hub"),
    ],
)
def test_what_is_not_here_is_named(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = DataSettings(train=path)
    assert why_uncounted(data) == words
    assert training_examples(data) is None


def test_what_would_take_long_to_parse_is_not_counted(tmp_path, monkeypatch):
    write_csv(tmp_path / "rows.csv")
    monkeypatch.setattr(example_count, "MOST_BYTES", 100)
    data = DataSettings(train=str(tmp_path / "rows.csv"))
    assert "rows.csv has 1.48 KiB, which would all have to be read" in why_uncounted(data)
    assert training_examples(data) is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
        ("x.parquet", b"PAR1 not really", "x.parquet"),
        ("x.jsonl.gz", b"no gzip", "the compressed file is damaged"),
    ],
)
def test_a_file_that_is_here_and_damaged_is_a_mistake(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        training_examples(DataSettings(train=str(tmp_path / name)))


def test_a_folder_without_the_split_is_a_mistake(tmp_path):
    write_lines(tmp_path / "validation.jsonl")
    with pytest.raises(InputError, match="has no split"):
        training_examples(DataSettings(train={"path": str(tmp_path), "split": "train"}))


def test_rows_that_are_measured_on_are_those_of_their_own_split():
    data = DataSettings(train="builtin/facts", eval="builtin/style", test="builtin/style")
    assert (training_examples(data), evaluation_examples(data), unseen_examples(data)) == (128, 100, 100)
    assert unseen_examples(DataSettings(train="builtin/facts")) == 0
    assert unseen_examples(DataSettings(train="builtin/facts", test="not/here")) is None
