"""The token sets of a study: enough rows to test differences on, and one content of each source for all trials."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer
from workshop import write_texts

from lora_lab.common.errors import InputError
from lora_lab.study.data_settings import DataSettings
from lora_lab.training.datasets import DataCatalog


@pytest.fixture
def catalog(tiny_base, tmp_path):
    return DataCatalog(AutoTokenizer.from_pretrained(tiny_base), tmp_path)


@pytest.fixture
def rows(tmp_path):
    write_texts(tmp_path / "rows.jsonl", 10)
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_share_leaves_rows_to_train_and_to_test_on(catalog, rows, share):
    data = DataSettings(train=str(rows), eval=share)
    if share == 0.9:
        assert len(catalog.splits(data).eval) == 9
        return
    with pytest.raises(InputError, match=r"data.eval: must leave at least 2 rows .* has 1; give more rows"):
        catalog.splits(data)


def test_a_source_that_changes_while_the_study_runs_is_refused(catalog, rows):
    splits = [catalog.splits(DataSettings(train=str(rows), eval=0.2, max_length=length)) for length in (16, 24)]
    assert splits[0].contents == splits[1].contents
    assert list(splits[0].contents) == [f"data.train: {rows}"]
    rows.write_text(rows.read_text() + json.dumps({"text": "w1 w2 w3"}) + "\n")
    with pytest.raises(InputError, match=r"data.train: .* was changed while the study runs; put back"):
        catalog.splits(DataSettings(train=str(rows), eval=0.2, max_length=32))


@pytest.mark.parametrize("split", ["train", "eval", "forgetting"])
def test_a_token_beyond_the_embedding_is_refused_wherever_it_stands(tiny_base, tmp_path, rows, split):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    (tmp_path / "added.jsonl").write_text(rows.read_text() + json.dumps({"text": "w1 <added> w2"}) + "\n")
    data = DataSettings(**({"train": str(rows), "eval": 0.2} | {split: str(tmp_path / "added.jsonl")}))
    DataCatalog(tokenizer, tmp_path, len(tokenizer)).splits(data)
    vocabulary = len(tokenizer)
    tokenizer.add_tokens(["<added>"])
    with pytest.raises(InputError, match=rf"'<added>' the id {vocabulary}, but .* below {vocabulary} only; give"):
        DataCatalog(tokenizer, tmp_path, vocabulary).splits(data)
    DataCatalog(tokenizer, tmp_path, vocabulary + 1).splits(data)
