"""The rows of the real base's studies: what is asked, what is left out, and that held-out rows are held out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "studies" / "python_docs.py"

MODULE = '''
def open(path, mode: str = "r") -> int:
    """Open a file and return a stream of its lines.  More follows."""

def _private():
    """Nobody should be asked about this one."""

def untold(): ...

class Box:
    """A box."""

    def close(self, *, force=False):
        """Close the lid of this box.

        A second paragraph.
        """

    def __len__(self):
        """Count what lies in the box."""

    @classmethod
    async def made_of(cls, wood):
        """Saw a box out of one piece of wood, e.g. a board."""
'''


@pytest.fixture(scope="module")
def docs():
    """The script as a module; its folder is no package."""
    spec = importlib.util.spec_from_file_location("python_docs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def library(tmp_path):
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "__init__.py").write_text(MODULE)
    for left_out in ("test/case.py", "_secret.py", "boxes/test_box.py", "idlelib/run.py"):
        (tmp_path / left_out).parent.mkdir(exist_ok=True)
        (tmp_path / left_out).write_text(MODULE)
    return tmp_path


def test_public_functions_are_asked_by_signature_for_their_first_sentence(docs, library):
    assert list(docs.documented_functions(library)) == [
        ("boxes", "boxes.open(path, mode='r')", "Open a file and return a stream of its lines."),
        ("boxes", "boxes.Box.close(*, force=False)", "Close the lid of this box."),
    ]


def test_a_module_is_on_one_side_and_no_answer_is_nearly_on_both(docs, tmp_path):
    names = [f"m{number}" for number in range(40)]
    for number, name in enumerate(names):
        x = "abcdefgh"[number % 8] + "ijklm"[number // 8]
        own = f"Weigh {x}one {x}two {x}three."
        both = "Close the connection to the server and forget it."
        (tmp_path / f"{name}.py").write_text(f'def own(): """{own}"""\ndef both(): """{both}"""\n')
    splits = docs.documentation(tmp_path)
    asked = {split: [row["messages"][1]["content"] for row in rows] for split, rows in splits.items()}
    modules = {split: {name.partition(".")[0] for name in names} for split, names in asked.items()}
    assert modules["train"]
    assert modules["validation"]
    assert not modules["train"] & modules["validation"]
    assert all(
        (docs._fraction(name) < 1 / docs.HELD_OUT_OF) == (name in modules["validation"])
        for name in modules["validation"]
    )
    told = [row["messages"][2]["content"] for rows in splits.values() for row in rows]
    assert sum("connection" in text for text in told) == 1
    assert docs.documentation(tmp_path) == splits


def test_a_nearly_equal_answer_counts_as_the_same(docs):
    pairs = [("a", "Return the size of the file."), ("b", "Return the size of a file."), ("c", "Flush all streams.")]
    assert [question for question, _ in docs.distinct(pairs, most=9)] == ["a", "c"]
    assert docs.distinct(pairs[1:], most=9, apart_from=pairs[:1]) == pairs[2:]
    assert docs.distinct(pairs, most=1) == pairs[:1]


def test_a_changed_module_moves_no_row_of_another(docs, library):
    before = docs.documentation(library)
    (library / "added.py").write_text('def sing(song): """Sing one song after another until dawn."""\n')
    after = docs.documentation(library)
    added = [row for rows in after.values() for row in rows if "added." in row["messages"][1]["content"]]
    assert len(added) == 1
    assert {split: [row for row in rows if row not in added] for split, rows in after.items()} == before


def test_prose_is_paragraphs_of_some_length_without_tables(docs, tmp_path):
    sentence = (
        "Measurements of the width and the length of petals were taken from three kinds of flowers in one field. "
    )
    (tmp_path / "flowers.rst").write_text(
        f"Flowers\n=======\n\n{sentence * 3}\n\n==== ====\n4.3 7.9\n==== ====\n\nToo short.\n"
    )
    words = (sentence * 3).split()
    rows = [{"text": " ".join(words[:30])}, {"text": " ".join(words[30:])}]
    assert sorted(docs.prose(tmp_path), key=rows.index) == rows
    assert len(docs.prose()) >= 24
