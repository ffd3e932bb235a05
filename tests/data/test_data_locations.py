"""Where a dataset is found: patterns, folders that `datasets` saved, clones of the Hub, and the Hub itself."""

from __future__ import annotations

import gzip
import json

import datasets
import pyarrow as pa
import pytest
from data.loading import TEN, ref, refusal, texts

from lora_lab.common.errors import InputError
from lora_lab.data.sources import load_examples, load_splits
from lora_lab.study.data_settings import DataSettings


class TestPatterns:
    def test_files_in_the_order_of_their_names(self, write_jsonl, tmp_path, cache):
        for name in ("b", "a", "c"):
            write_jsonl([{"text": name}], f"data/{name}.jsonl")
        loaded = load_examples(ref(tmp_path / "data" / "*.jsonl"), "train", cache)
        assert texts(loaded) == ["a", "b", "c"]
        assert [example.place for example in loaded.examples][2] == f"{tmp_path}/data/c.jsonl:1"
        assert loaded.source == f"{tmp_path}/data/*.jsonl"

    def test_below_folders_and_of_several_kinds(self, write_jsonl, tmp_path, cache):
        write_jsonl([{"text": "a"}], "data/one/a.jsonl")
        (tmp_path / "data/two").mkdir()
        (tmp_path / "data/two/b.csv.gz").write_bytes(gzip.compress(b"text\nb\n"))
        assert texts(load_examples(ref(tmp_path / "data/**/*.[jc]s*"), "train", cache)) == ["a", "b"]

    def test_the_hash_covers_all_files(self, write_jsonl, tmp_path, cache):
        def content_hash():
            return load_examples(ref(tmp_path / "data/*"), "train", cache).content_hash

        write_jsonl([{"text": "a"}], "data/a.jsonl")
        write_jsonl([{"text": "b"}], "data/b.jsonl")
        before = content_hash()
        write_jsonl([{"text": "c"}], "data/b.jsonl")
        assert content_hash() != before

    def test_a_file_with_brackets_in_its_name_is_that_file(self, write_jsonl, tmp_path, cache):
        write_jsonl([{"text": "it"}], "a[b]*.jsonl")
        write_jsonl([{"text": "not it"}], "ab.jsonl")
        assert texts(load_examples(ref(tmp_path / "a[b]*.jsonl"), "train", cache)) == ["it"]

    def test_nothing_matches(self, tmp_path, cache):
        assert "matches no file" in refusal(load_examples, ref(tmp_path / "*.jsonl"), "train", cache)

    def test_a_split(self, write_jsonl, tmp_path, cache):
        write_jsonl(TEN)
        assert "a pattern is one split" in refusal(load_examples, ref(tmp_path / "*", split="train"), "train", cache)

    def test_a_missing_shard(self, write_jsonl, tmp_path, cache):
        write_jsonl(TEN, "train-00000-of-00002.jsonl")
        assert "1 of 2 shards are missing" in refusal(load_examples, ref(tmp_path / "train-*"), "train", cache)

    def test_evaluation_on_a_file_that_the_pattern_holds(self, write_jsonl, tmp_path, cache):
        write_jsonl(TEN, "data/a.jsonl")
        other = write_jsonl(TEN, "data/b.jsonl")
        data = DataSettings(train=ref(tmp_path / "data/*.jsonl"), eval=ref(other))
        assert "data.eval: must not be the training rows" in refusal(load_splits, data, cache)


class TestSavedToDisk:
    @pytest.fixture
    def folder(self, tmp_path):
        rows = datasets.Dataset.from_list(TEN)
        rows.save_to_disk(tmp_path / "one")
        rows.save_to_disk(tmp_path / "shards", num_shards=3)
        rows.select(range(8, 0, -2)).save_to_disk(tmp_path / "chosen")
        splits = {"train": rows.select(range(8)), "test": rows.select(range(8, 10)), "extra": rows}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "splits")
        return tmp_path

    @pytest.mark.parametrize("name", ["one", "shards"])
    def test_a_dataset(self, folder, cache, name):
        loaded = load_examples(ref(folder / name), "train", cache)
        assert texts(loaded) == [row["text"] for row in TEN]
        assert loaded.examples[3].place == f"{folder / name}[3]"

    def test_a_selection_of_rows(self, folder, cache):
        assert texts(load_examples(ref(folder / "chosen"), "train", cache)) == ["row 8", "row 6", "row 4", "row 2"]

    def test_the_splits_of_a_dictionary(self, folder, cache):
        splits = load_splits(DataSettings(train=ref(folder / "splits"), eval=ref(folder / "splits")), cache)
        assert (len(splits.train), len(splits.eval)) == (8, 2)
        assert splits.train.source == f"{folder / 'splits'} (train)"
        assert len(load_examples(ref(folder / "splits", split="extra"), "train", cache)) == 10

    def test_a_split_that_is_not_there(self, folder, cache):
        message = refusal(load_examples, ref(folder / "splits", split="dev"), "train", cache)
        assert "has no split dev for data.train, but train, test, extra; set `split`" in message

    def test_a_split_of_a_dataset_without_splits(self, folder, cache):
        message = refusal(load_examples, ref(folder / "one", split="train"), "train", cache)
        assert "a folder of Dataset.save_to_disk is one split" in message

    def test_bad_rows_are_named_by_folder_and_index(self, tmp_path, cache):
        datasets.Dataset.from_list([{"text": "a"}, {"text": ""}]).save_to_disk(tmp_path / "bad")
        with pytest.raises(InputError, match=r"bad\[1\]: text: must not be empty"):
            load_examples(ref(tmp_path / "bad"), "train", cache)

    def test_evaluation_on_the_same_folder(self, folder, cache):
        data = DataSettings(train=ref(folder / "one"), eval=ref(folder / "one"))
        assert "must not be the training rows" in refusal(load_splits, data, cache)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "state.json").write_text("{}"),
            lambda folder: (folder / "state.json").write_text("oops"),
            lambda folder: (folder / "data-00000-of-00001.arrow").unlink(),
            lambda folder: (folder / "data-00000-of-00001.arrow").write_bytes(b"oops"),
            lambda folder: (folder / "dataset_info.json").write_text("[]"),
        ],
    )
    def test_a_damaged_one(self, folder, cache, damage):
        damage(folder / "one")
        assert "cannot be read as a saved dataset" in refusal(load_examples, ref(folder / "one"), "train", cache)

    def test_a_pointer_of_git_lfs(self, folder, cache):
        (folder / "one" / "data-00000-of-00001.arrow").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
        assert "is a pointer of Git LFS" in refusal(load_examples, ref(folder / "one"), "train", cache)

    @pytest.mark.parametrize("text", ["{}", "[]", "oops"])
    def test_a_damaged_dictionary(self, folder, cache, text):
        (folder / "splits" / "dataset_dict.json").write_text(text)
        assert "names no splits" in refusal(load_examples, ref(folder / "splits"), "train", cache)


class TestClones:
    """Folders as `git clone` of a dataset repository leaves them."""

    def clone(self, write_jsonl, tmp_path, *names, readme=""):
        for name in names:
            write_jsonl([{"text": name}], f"clone/{name}")
        if readme:
            (tmp_path / "clone/README.md").write_text(f"---\n{readme}\n---\n# Poems\n")
        return tmp_path / "clone"

    def test_shards_in_a_data_folder(self, write_jsonl, tmp_path, cache):
        names = ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl")
        folder = self.clone(write_jsonl, tmp_path, *(f"data/{name}" for name in names))
        train, test = (load_examples(ref(folder), purpose, cache) for purpose in ("train", "eval"))
        assert texts(train) == [f"data/{name}" for name in names[:2]]
        assert texts(test) == [f"data/{names[2]}"]
        assert test.source == f"{folder} (test)"
        assert train.examples[1].place == f"{folder}/data/{names[1]}:1"

    def test_which_files_are_read_is_said_where_their_names_do_not(self, write_jsonl, tmp_path, cache):
        folder = self.clone(write_jsonl, tmp_path, "poems.jsonl", "more/proses.jsonl")
        (folder / "numbers.csv").write_text("text\n1\n")
        loaded = load_examples(ref(folder), "train", cache)
        assert loaded.notes == (
            f"{folder} (train): is more/proses.jsonl, poems.jsonl",
            f"{folder}: in no split: numbers.csv",
        )

    def test_a_folder_for_each_split(self, write_jsonl, tmp_path, cache):
        folder = self.clone(write_jsonl, tmp_path, "train/a.jsonl", "train/b.jsonl", "dev/c.jsonl")
        assert texts(load_examples(ref(folder), "train", cache)) == ["train/a.jsonl", "train/b.jsonl"]
        assert texts(load_examples(ref(folder), "eval", cache)) == ["dev/c.jsonl"]

    def test_the_readme_says_which_files_are_which(self, write_jsonl, tmp_path, cache):
        readme = (
            "configs:\n- config_name: easy\n  data_files:\n  - {split: train, path: e/*.jsonl}\n"
            "- config_name: hard\n  data_files:\n  - {split: train, path: h.jsonl}\n  - {split: test, path: e/2.jsonl}"
        )
        folder = self.clone(write_jsonl, tmp_path, "e/1.jsonl", "e/2.jsonl", "h.jsonl", readme=readme)
        assert texts(load_examples(ref(folder, name="easy"), "train", cache)) == ["e/1.jsonl", "e/2.jsonl"]
        assert texts(load_examples(ref(folder, name="hard"), "train", cache)) == ["h.jsonl"]
        assert texts(load_examples(ref(folder, name="hard"), "eval", cache)) == ["e/2.jsonl"]
        assert "set `name`" in refusal(load_examples, ref(folder), "train", cache)
        assert "set `name`" in refusal(load_examples, ref(folder, name="medium"), "train", cache)

    def test_files_by_their_own_names_come_first(self, write_jsonl, tmp_path, cache):
        folder = self.clone(write_jsonl, tmp_path, "train.jsonl", "train/a.jsonl")
        assert texts(load_examples(ref(folder), "train", cache)) == ["train.jsonl"]

    def test_a_missing_shard(self, write_jsonl, tmp_path, cache):
        folder = self.clone(write_jsonl, tmp_path, "data/train-00000-of-00002.jsonl")
        assert "1 of 2 shards are missing" in refusal(load_examples, ref(folder), "train", cache)

    def test_pointers_of_git_lfs(self, write_jsonl, tmp_path, cache):
        folder = self.clone(write_jsonl, tmp_path, "data/train-00000-of-00001.jsonl")
        path = folder / "data/train-00000-of-00001.jsonl"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert refusal(load_examples, ref(folder), "train", cache).startswith(f"{path}: is a pointer of Git LFS")

    def test_compressed_splits(self, tmp_path, cache):
        (tmp_path / "clone").mkdir()
        (tmp_path / "clone/train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
        assert texts(load_examples(ref(tmp_path / "clone"), "train", cache)) == ["a"]

    def test_the_working_directory_is_not_searched(self, write_jsonl, tmp_path, cache, monkeypatch):
        write_jsonl(TEN, "train.jsonl")
        monkeypatch.chdir(tmp_path)
        assert "does not exist" in refusal(load_examples, ref("json"), "train", cache)


class TestHub:
    @pytest.fixture
    def cached(self, cache):
        """Two revisions of a dataset of the Hub in the cache, as after earlier loads; the Hub is out of reach."""
        folder = cache / "hub" / "someone___poems" / "short" / "0.0.0" / "abc"
        folder.mkdir(parents=True)
        with pa.OSFile(str(folder / "poems-train.arrow"), "wb") as file:
            table = pa.Table.from_pylist(TEN)
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        splits = {"train": {"name": "train", "num_examples": 10, "dataset_name": "poems"}}
        info = {"config_name": "short", "dataset_name": "poems", "splits": splits}
        info["features"] = {"text": {"dtype": "string", "_type": "Value"}}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return ref("someone/poems", name="short")

    def test_a_configuration(self, cached, cache):
        loaded = load_examples(cached, "train", cache)
        assert loaded.source == "someone/poems/short (train)"
        assert len(loaded) == 10

    def test_a_revision_that_is_not_in_the_cache_is_not_taken_for_another(self, cached, cache):
        other = cached.model_copy(update={"name": None, "revision": "v2", "path": "someone/proses"})
        message = refusal(load_examples, other, "train", cache)
        assert "the Hub id could not be loaded" in message
        assert "revision or split" in message

    def test_a_revision_of_a_local_file(self, write_jsonl, cache):
        message = refusal(load_examples, ref(write_jsonl(TEN), revision="main"), "train", cache)
        assert "revision 'main' is of datasets on the Hub, but this is local" in message
