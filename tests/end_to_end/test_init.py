"""`lora_lab.init` as a command: the file that it writes runs as it is, on three kinds of data."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pytest
from pyarrow import parquet
from sweep_process import Command
from transformers import AutoTokenizer
from workshop import llama_config, write_base

TEMPLATE = "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} <eos> {% endfor %}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    write_base(folder, llama_config(max_position_embeddings=256))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def words(start: int, count: int) -> str:
    return " ".join(f"w{(start + step) % 50}" for step in range(count))


def write_texts(folder):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": words(row, 5 + row % 9)}) + "\n" for row in range(40)))
    return path


def write_pairs(folder):
    path = folder / "pairs.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "completion"])
        table.writerows([f"{words(row, 4)} : ", words(row + 4, 3)] for row in range(40))
    return path


def write_chat(folder):
    path = folder / "chat.parquet"
    rows = [
        [{"role": "user", "content": words(row, 4)}, {"role": "assistant", "content": words(row + 4, 4)}]
        for row in range(40)
    ]
    parquet.write_table(pa.table({"messages": rows}), path)
    return path


def init(lab, *arguments: str):
    return Command("init", *arguments, folder=lab.folder, environment={"OMP_NUM_THREADS": "1"}).end()


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_texts, write_pairs, write_chat])
def test_it_runs_as_it_was_written(lab, base, write):
    data = write(lab.folder)
    began = init(lab, "--model", str(base), "--data", data.name)
    assert began.code == 0, began.err
    name = f"{data.stem}_study"
    assert f"wrote {name}.yaml; next:" in began.out
    sweep = Command("sweep", f"{name}.yaml", "--trials", "4", folder=lab.folder, environment={"OMP_NUM_THREADS": "1"})
    ended = sweep.end(timeout_s=280)
    assert ended.code == 0, ended.err
    assert (lab.folder / "runs" / name / "best" / "config.yaml").exists()
    assert (lab.folder / "runs" / name / "report.html").exists()


def test_nothing_is_overwritten(lab):
    (lab.folder / "mine.yaml").write_text("study_name: mine\n")
    ended = init(lab, "--model", "builtin/tiny-llama", "--data", "rows.jsonl", "--output", "mine.yaml")
    assert ended.code == 2
    assert "mine.yaml is there already" in ended.err
    assert (lab.folder / "mine.yaml").read_text() == "study_name: mine\n"


@pytest.mark.parametrize(
    ("output", "said"),
    [("mine.txt", "must end with .yaml"), ("a b.yaml", "names the study"), ("no/mine.yaml", "there is no folder no")],
)
def test_a_file_that_cannot_be_is_refused_at_once(lab, output, said):
    ended = init(lab, "--model", "builtin/tiny-llama", "--data", "rows.jsonl", "--output", output)
    assert ended.code == 2
    assert said in ended.err
