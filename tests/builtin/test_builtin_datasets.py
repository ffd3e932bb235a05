"""The built-in datasets: the same bytes every time, splits apart, rows of the promised form and length."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from samples import sample
from tokenizers import Tokenizer

from lora_lab.builtin import datasets, standard_library
from lora_lab.builtin.catalog import model_folder
from lora_lab.builtin.datasets import BUILTIN_DATASETS, write_dataset
from lora_lab.builtin.people import FIELDS as FIELDS_OF_PEOPLE
from lora_lab.builtin.people import people
from lora_lab.common.errors import InputError, StorageError

ROWS = {
    "builtin/stdlib-code": (256, 200),
    "builtin/stdlib-prose": (256, 128),
    "builtin/stdlib-topics": (288, 240),
    "builtin/facts": (128, 128),
    "builtin/quiz": (256, 256),
    "builtin/style": (128, 100),
}
FIELDS = {"builtin/stdlib-topics": {"text", "label"}, "builtin/quiz": {"prompt", "choices", "answer"}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("datasets")
    return {name: write_dataset(name, folder / name) for name in BUILTIN_DATASETS}


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_dataset_is_covered_here() -> None:
    assert set(ROWS) == set(BUILTIN_DATASETS)


@pytest.mark.parametrize("name", ROWS)
def test_row_counts_and_fields(written: dict[str, dict[str, Path]], name: str) -> None:
    train, validation = (rows(written[name][split]) for split in ("train", "validation"))
    assert (len(train), len(validation)) == ROWS[name]
    fields = FIELDS.get(name, {"text"} if name.startswith("builtin/stdlib") else {"prompt", "completion"})
    assert all(set(row) == fields for row in train + validation)
    assert all(str(value).strip() for row in train + validation for value in row.values())


@pytest.mark.parametrize("name", sample(ROWS, [name for name in ROWS if name != "builtin/stdlib-code"]))
def test_writing_twice_gives_the_same_bytes(written: dict[str, dict[str, Path]], name: str, tmp_path: Path) -> None:
    again = write_dataset(name, tmp_path)
    for split, path in written[name].items():
        assert hashlib.sha256(again[split].read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl", "validation.jsonl"]


def test_writing_over_a_dataset_changes_nothing(tmp_path: Path) -> None:
    first = {split: path.read_bytes() for split, path in write_dataset("builtin/style", tmp_path).items()}
    second = {split: path.read_bytes() for split, path in write_dataset("builtin/style", tmp_path).items()}
    assert first == second


def test_synthetic_datasets_are_the_same_on_every_python(written: dict[str, dict[str, Path]]) -> None:
    digests = {
        name: hashlib.sha256(written[name]["train"].read_bytes()).hexdigest()[:8]
        for name in ("builtin/facts", "builtin/quiz", "builtin/style")
    }
    assert digests == {"builtin/facts": "8610a314", "builtin/quiz": "ae352a26", "builtin/style": "44240e5f"}


@pytest.mark.parametrize("name", ["builtin/stdlib-code", "builtin/stdlib-prose"])
def test_texts_fit_into_128_tokens_and_fill_100(written: dict[str, dict[str, Path]], name: str) -> None:
    tokenizer = Tokenizer.from_file(str(model_folder("builtin/tiny-llama") / "tokenizer.json"))
    for path in written[name].values():
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch([row["text"] for row in rows(path)])]
        assert sum(length <= 128 for length in lengths) >= 0.95 * len(lengths)
        assert sum(lengths) / len(lengths) >= 100
        first = lengths[:64]
        assert sum(first) / len(first) == pytest.approx(sum(lengths) / len(lengths), rel=0.06)


@pytest.mark.parametrize("name", ["builtin/stdlib-code", "builtin/stdlib-prose"])
def test_no_text_is_in_both_splits_or_twice(written: dict[str, dict[str, Path]], name: str) -> None:
    train, validation = ([row["text"] for row in rows(path)] for path in written[name].values())
    assert set(train).isdisjoint(validation)
    assert len(set(train)) == len(train)
    assert len(set(validation)) == len(validation)


def test_library_files_belong_to_one_split() -> None:
    library = standard_library
    assert set(library.CODE_TRAIN_FILES).isdisjoint(library.CODE_VALIDATION_FILES)
    assert set(library.PROSE_TRAIN_FILES).isdisjoint(library.PROSE_VALIDATION_FILES)


def test_the_first_rows_come_from_many_files(written: dict[str, dict[str, Path]]) -> None:
    first = {row["text"] for row in rows(written["builtin/stdlib-code"]["train"])[:32]}
    files = [path for path in standard_library.CODE_TRAIN_FILES if first & set(datasets._code_windows(path))]
    assert len(files) >= 12


def test_code_has_no_docstrings_or_comments() -> None:
    source = 'class A:\n    def f(self):\n        """Doc."""\n        # why\n        return 1\n'
    assert list(standard_library.function_texts(source)) == ["def f(self):\n    return 1"]


def test_prose_drops_doctests_tables_and_legal_notices() -> None:
    text = "Copyright of somebody, all rights reserved, and more words."
    assert standard_library.clean_prose(text) == ""
    kept = "Return the sum of the two numbers."
    assert standard_library.clean_prose(f"{kept}\n\n>>> add(1, 2)\n3\n\n0x00 0x01 0x02 0x03") == kept


def test_a_quiz_offers_four_values_of_which_the_person_has_one(written: dict[str, dict[str, Path]]) -> None:
    asked = rows(written["builtin/quiz"]["train"])
    known = people("facts", 64)
    assert [row["prompt"] for row in asked[:4]] == [known[0].question(field) for field in FIELDS_OF_PEOPLE]
    places = [row["choices"].index(row["answer"]) for row in asked]
    assert all(len(set(row["choices"])) == 4 for row in asked)
    assert [row["answer"] for row in asked[4:8]] == [known[1].city, known[1].job, known[1].pet, known[1].food]
    assert min(map(places.count, range(4))) >= 40, "no place is likelier than another"


def test_style_people_are_in_one_split(written: dict[str, dict[str, Path]]) -> None:
    train, validation = ({row["prompt"] for row in rows(path)} for path in written["builtin/style"].values())
    assert train.isdisjoint(validation)


def test_groups_of_people_share_no_name() -> None:
    groups = ("facts", "style-train", "style-validation", "pretraining-validation", "pretraining")
    names = [{person.name for person in people(group, 1024)} for group in groups]
    assert len(set().union(*names)) == 5 * 1024


def test_more_people_change_no_values() -> None:
    assert people("facts", 200)[:128] == people("facts", 128)


def test_too_many_people_are_refused() -> None:
    with pytest.raises(ValueError, match=r"count <= 1024.*count=1025"):
        people("facts", 1025)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"builtin/stdlib-cod'.*builtin/facts, .*builtin/stdlib-code"):
        write_dataset("builtin/stdlib-cod", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_missing_library_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(standard_library, "library_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="complete standard library"):
        write_dataset("builtin/stdlib-code", tmp_path / "out")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = write_dataset("builtin/facts", tmp_path)["train"].read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_dataset("builtin/facts", tmp_path)
    assert (tmp_path / "train.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_datasets_need_only_the_standard_library() -> None:
    code = (
        "import sys, lora_lab.builtin.datasets, lora_lab.builtin.catalog\n"
        "heavy = {'torch', 'transformers', 'datasets', 'tokenizers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(datasets.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
