"""Tables and sentences that stay readable in 80 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lora_lab.terminal.columns import Row, parts_table, say


def drawn(*rows, heads=("trial", "loss"), width=80):
    table, shared = parts_table(heads, rows, "what differs", width)
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()], shared


def test_what_all_rows_share_is_said_once_and_the_rest_has_columns():
    rows = [
        Row(("1", "2.10"), {"r": "r=4", "targets": "all-linear", "layers": "", "lr": "lr 1e-3"}),
        Row(("10", "2.2"), {"r": "r=128", "targets": "all-linear", "layers": "layers last_half", "lr": "lr 3e-4"}),
    ]
    lines, shared = drawn(*rows)
    assert lines == [
        "trial  loss  what differs",
        "    1  2.10  r=4                      lr 1e-3",
        "   10   2.2  r=128  layers last_half  lr 3e-4",
    ]
    assert shared == "all-linear"


def test_a_single_row_is_all_shared():
    lines, shared = drawn(Row(("1", "2"), {"r": "r=4", "lr": "lr 1e-3"}))
    assert lines == ["trial  loss", "    1     2"]
    assert shared == "r=4, lr 1e-3"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_parts_that_do_not_fit_go_on_below(width):
    names = [f"setting_{index}" for index in range(9)]
    rows = [Row((str(n), "2.0000"), {name: f"{name}={n * 10**n}" for name in names}) for n in (1, 2, 3)]
    lines, _ = drawn(*rows, width=width)
    assert max(map(len, lines)) <= width
    assert all(f"{name}={n * 10**n}" in "\n".join(lines) for n in (1, 2, 3) for name in names)
    assert len({len(line) - len(line.lstrip()) for line in lines if line.lstrip().startswith("setting")}) == 1


def test_one_part_longer_than_the_terminal_is_cut_with_a_mark():
    rows = [Row((str(n), "2.0"), {"targets": f"{n}" + "x" * 100}) for n in (1, 2)]
    lines, _ = drawn(*rows, width=60)
    assert max(map(len, lines)) <= 60
    assert lines[1].endswith("x…")


def test_a_row_without_a_part_says_nothing_for_it():
    lines, shared = drawn(Row(("1", "2"), {"dropout": "dropout 0.1"}), Row(("2", "2"), {}))
    assert (lines[1:], shared) == (["    1     2  dropout 0.1", "    2     2"], "")


def test_markup_in_foreign_names_is_text():
    lines, _ = drawn(*(Row((str(n), "2"), {"targets": f"[red]x{n}[/red]"}) for n in (1, 2)))
    assert "[red]x1[/red]" in lines[1]


SENTENCE = "Best: trial 1 (r=8 alpha=16 all-linear, 1 epoch, lr 1e-3) reaches eval_loss 2.3719 nats per token."


def test_a_sentence_is_indented_below_its_first_word_on_a_terminal():
    stream = io.StringIO()
    say(Console(file=stream, width=40, force_terminal=True, color_system=None), SENTENCE, first="  - ")
    lines = stream.getvalue().splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("  - Best")
    assert all(line.startswith("    ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == f"- {SENTENCE}"


def test_a_sentence_is_one_line_in_a_file():
    stream = io.StringIO()
    say(Console(file=stream, width=40), SENTENCE, first="  - ")
    assert stream.getvalue() == f"  - {SENTENCE}\n"
