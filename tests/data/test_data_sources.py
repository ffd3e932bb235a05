"""Where rows come from, which split is taken, and how evaluation is kept apart from training."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from data.loading import TEN, ref, refusal, texts

from lora_lab.common.errors import InputError
from lora_lab.data.sources import load_examples, load_splits
from lora_lab.study.data_settings import DataSettings


class TestLoadExamples:
    def test_a_file(self, write_jsonl, cache):
        path = write_jsonl(TEN)
        loaded = load_examples(ref(path), "train", cache)
        assert texts(loaded) == [row["text"] for row in TEN]
        assert loaded.source == str(path)
        assert len(loaded) == 10

    def test_csv_and_jsonl_of_the_same_rows_have_the_same_hash(self, write_jsonl, tmp_path, cache):
        (tmp_path / "rows.csv").write_text("text\n" + "".join(row["text"] + "\n" for row in TEN))
        one = load_examples(ref(write_jsonl(TEN)), "train", cache)
        other = load_examples(ref(tmp_path / "rows.csv"), "train", cache)
        assert one.content_hash == other.content_hash

    def test_max_examples_takes_the_first(self, write_jsonl, cache):
        assert texts(load_examples(ref(write_jsonl(TEN), max_examples=3), "train", cache)) == [
            "row 0",
            "row 1",
            "row 2",
        ]

    def test_max_examples_beyond_the_rows(self, write_jsonl, cache):
        message = refusal(load_examples, ref(write_jsonl(TEN), max_examples=11), "train", cache)
        assert "is 11 and there are 10" in message

    def test_a_link_is_followed(self, write_jsonl, tmp_path, cache):
        (tmp_path / "link.jsonl").symlink_to(write_jsonl(TEN))
        assert len(load_examples(ref(tmp_path / "link.jsonl"), "train", cache)) == 10

    def test_a_file_has_no_splits(self, write_jsonl, cache):
        assert "a file is one split" in refusal(load_examples, ref(write_jsonl(TEN), split="train"), "train", cache)

    @pytest.mark.parametrize(
        ("files", "purpose", "taken"),
        [
            (["train", "validation", "test"], "train", "train"),
            (["train", "validation", "test"], "eval", "validation"),
            (["train", "test"], "eval", "test"),
            (["train", "validation", "test"], "test", "test"),
            (["train", "test"], "forgetting", "test"),
            (["train"], "forgetting", "train"),
        ],
    )
    def test_a_folder(self, write_jsonl, tmp_path, cache, files, purpose, taken):
        for name in files:
            write_jsonl([{"text": name}], f"data/{name}.jsonl")
        loaded = load_examples(ref(tmp_path / "data"), purpose, cache)
        assert texts(loaded) == [taken]
        assert loaded.source == f"{tmp_path / 'data'} ({taken})"

    def test_a_split_of_a_folder_by_name(self, write_jsonl, tmp_path, cache):
        write_jsonl([{"text": "x"}], "data/dev.jsonl")
        assert texts(load_examples(ref(tmp_path / "data", split="dev"), "eval", cache)) == ["x"]

    def test_a_folder_without_the_split(self, write_jsonl, tmp_path, cache):
        write_jsonl(TEN, "data/train.jsonl")
        message = refusal(load_examples, ref(tmp_path / "data"), "eval", cache)
        assert "no split validation or test for data.eval, but train; set `split`" in message

    def test_an_empty_folder(self, tmp_path, cache):
        assert "but no dataset files" in refusal(load_examples, ref(tmp_path), "train", cache)

    def test_two_files_of_one_split(self, write_jsonl, tmp_path, cache):
        write_jsonl(TEN, "data/train.jsonl")
        write_jsonl(TEN, "data/train.json")
        assert "there are train.json and train.jsonl" in refusal(load_examples, ref(tmp_path / "data"), "train", cache)

    @pytest.mark.parametrize(
        "path", ["no/such.jsonl", "json", "./nowhere", "a/b/c", "../x", "x" * 5000, "a\0b", "~no-one/x"]
    )
    def test_a_path_that_is_none(self, cache, path):
        message = refusal(load_examples, ref(path), "train", cache)
        assert "does not exist as a file or folder" in message or "cannot be looked at" in message
        assert len(message) < 600
        assert "\0" not in message

    def test_a_hub_id_that_cannot_be_loaded(self, cache):
        message = refusal(load_examples, ref("no-such/dataset"), "train", cache)
        assert "does not exist as a file or folder, and the Hub id could not be loaded" in message

    @pytest.mark.parametrize("name", ["builtin/nothing", "builtin/../../x"])
    def test_an_unknown_builtin(self, cache, name):
        with pytest.raises(InputError, match="builtin/facts"):
            load_examples(ref(name), "train", cache)
        assert not cache.exists()

    def test_builtin_facts(self, cache):
        train = load_examples(ref("builtin/facts"), "train", cache)
        evaluation = load_examples(ref("builtin/facts"), "eval", cache)
        assert train.source == "builtin/facts (train)"
        assert train.content_hash == evaluation.content_hash


class TestHub:
    """The Hub out of reach, and a dataset of it in the cache: as after an earlier load."""

    @pytest.fixture
    def cached(self, cache):
        import datasets

        rows = {"train": datasets.Dataset.from_list(TEN), "test": datasets.Dataset.from_list(TEN[:2])}
        folder = cache / "hub" / "someone___poems" / "default" / "0.0.0" / "abc"
        folder.mkdir(parents=True)
        splits = {}
        for name, data in rows.items():
            data.save_to_disk(cache / "saved" / name)
            (cache / "saved" / name / "data-00000-of-00001.arrow").rename(folder / f"poems-{name}.arrow")
            splits[name] = {"name": name, "num_examples": len(data), "dataset_name": "poems"}
        info = {"config_name": "default", "dataset_name": "poems", "splits": splits}
        info["features"] = {"text": {"dtype": "string", "_type": "Value"}}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return ref("someone/poems")

    def test_default_splits(self, cached, cache):
        assert len(load_examples(cached, "train", cache)) == 10
        evaluation = load_examples(cached, "eval", cache)
        assert texts(evaluation) == ["row 0", "row 1"]
        assert evaluation.source == "someone/poems (test)"
        assert evaluation.examples[1].place == "someone/poems (test)[1]"

    def test_a_slice(self, cached, cache):
        loaded = load_examples(cached.model_copy(update={"split": "train[:3]"}), "train", cache)
        assert texts(loaded) == ["row 0", "row 1", "row 2"]

    def test_an_unknown_split(self, cached, cache):
        message = refusal(load_examples, cached.model_copy(update={"split": "dev"}), "train", cache)
        assert "could not be loaded" in message

    def test_the_same_split_for_evaluation_is_refused(self, cached, cache):
        data = DataSettings(train=cached, eval=cached.model_copy(update={"split": "train"}))
        assert "must not be the training rows" in refusal(load_splits, data, cache)


class TestLoadSplits:
    def test_a_share_is_held_out_and_nothing_is_lost(self, write_jsonl, cache):
        data = DataSettings(train=ref(write_jsonl(TEN)), eval=0.3)
        splits = load_splits(data, cache)
        assert len(splits.eval) == 3
        assert sorted(texts(splits.train) + texts(splits.eval)) == sorted(row["text"] for row in TEN)
        assert splits == load_splits(data, cache)
        assert splits.notes == ()
        assert splits.forgetting is None

    def test_fewer_training_rows_leave_the_held_out_ones_as_they_are(self, write_jsonl, cache):
        path = ref(write_jsonl(TEN))
        whole = load_splits(DataSettings(train=path, eval=0.3), cache)
        fewer = load_splits(DataSettings(train=path, eval=0.3, max_train_examples=4), cache)
        assert fewer.eval == whole.eval
        assert texts(fewer.train) == texts(whole.train)[:4]
        assert fewer.train.content_hash != whole.train.content_hash
        assert fewer.train.source.startswith("first 4 rows of ")

    def test_more_training_rows_than_there_are(self, write_jsonl, cache):
        data = DataSettings(train=ref(write_jsonl(TEN)), eval=0.3, max_train_examples=8)
        assert "is 8 and" in (message := refusal(load_splits, data, cache))
        assert "has 7" in message

    def test_the_held_out_rows_are_the_same_for_ever(self, write_jsonl, cache):
        splits = load_splits(DataSettings(train=ref(write_jsonl(TEN)), eval=0.3), cache)
        assert texts(splits.eval) == ["row 4", "row 5", "row 7"]

    @pytest.mark.parametrize("share", [0.01, 0.99])
    def test_a_share_that_leaves_nothing(self, write_jsonl, cache, share):
        message = refusal(load_splits, DataSettings(train=ref(write_jsonl(TEN)), eval=share), cache)
        assert f"{share} of the 10 rows" in message

    def test_the_same_file_for_evaluation_is_refused(self, write_jsonl, tmp_path, cache):
        path = write_jsonl(TEN)
        (tmp_path / "link.jsonl").symlink_to(path)
        for other in (path, tmp_path / "link.jsonl", tmp_path / "." / ".." / tmp_path.name / path.name):
            message = refusal(load_splits, DataSettings(train=ref(path), eval=ref(other)), cache)
            assert "data.eval: must not be the training rows" in message

    def test_the_split_of_a_folder_that_is_trained_on_is_refused(self, write_jsonl, tmp_path, cache):
        path = write_jsonl(TEN, "data/train.jsonl")
        assert "must not be" in refusal(load_splits, DataSettings(train=ref(tmp_path / "data"), eval=ref(path)), cache)

    def test_repeated_rows_are_counted(self, write_jsonl, cache):
        data = DataSettings(
            train=ref(write_jsonl(TEN)), eval=ref(write_jsonl([*TEN[:2], {"text": "new"}], "eval.jsonl"))
        )
        (note,) = load_splits(data, cache).notes
        assert "2 of 3 evaluation rows also stand in the training rows" in note

    def test_facts_are_measured_on_the_training_rows(self, cache):
        splits = load_splits(DataSettings(train=ref("builtin/facts"), eval=ref("builtin/facts")), cache)
        assert splits.train.examples == splits.eval.examples
        assert "128 of 128" in splits.notes[0]

    def test_forgetting(self, write_jsonl, cache):
        data = DataSettings(
            train=ref(write_jsonl(TEN)), forgetting=ref(write_jsonl([{"text": "general"}], "general.jsonl"))
        )
        forgetting = load_splits(data, cache).forgetting
        assert forgetting is not None
        assert texts(forgetting) == ["general"]

    def test_rows_that_choose_nothing(self, write_jsonl, cache):
        train, test = write_jsonl(TEN), write_jsonl([{"text": "new"}, {"text": "row 3"}], "test.jsonl")
        data = DataSettings(train=ref(train), eval=0.2, test=ref(test))
        splits = load_splits(data, cache)
        assert texts(splits.test) == ["new", "row 3"]
        assert splits.contents.keys() == {f"data.train: {train}", f"data.test: {test}"}
        assert splits.notes == (f"{test}: 1 of 2 test rows also stand in the rows that train",)
        without = load_splits(DataSettings(train=ref(train), eval=0.2), cache)
        assert without.test is None
        assert texts(without.train) == texts(splits.train)
        assert "test" not in DataSettings(train=ref(train)).model_dump(), "old trials keep their identity"

    @pytest.mark.parametrize("used", ["train", "eval"])
    def test_test_rows_that_train_or_choose_are_refused(self, write_jsonl, cache, used):
        files = {"train": write_jsonl(TEN), "eval": write_jsonl(TEN[:4], "eval.jsonl")}
        data = DataSettings(train=ref(files["train"]), eval=ref(files["eval"]), test=ref(files[used]))
        message = refusal(load_splits, data, cache)
        assert message.startswith("data.test: must be rows that neither train nor choose, but ")

    def test_notes_of_the_parts_are_kept_once(self, write_jsonl, cache):
        rows = [{"instruction": str(i), "output": "b", "text": "c"} for i in range(10)]
        (note,) = load_splits(DataSettings(train=ref(write_jsonl(rows)), eval=0.5), cache).notes
        assert "text would fit too" in note


def test_this_package_imports_neither_torch_nor_transformers():
    code = (
        "import sys, lora_lab.data.sources, lora_lab.data.tokens, lora_lab.data.order; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
