"""A study put together for a base and rows: what is found, what is chosen for it, and the file that says why."""

from __future__ import annotations

import json

import pytest
from workshop import llama_config, write_base

from lora_lab.common.errors import InputError
from lora_lab.planning.devices import Device
from lora_lab.planning.proposal import data_settings, propose
from lora_lab.planning.proposal_file import file_text, found_lines
from lora_lab.study.file.loading import load_study

CPU = Device("a CPU", None, is_cuda=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    write_base(folder, llama_config(max_position_embeddings=512))
    return str(folder)


def write_rows(path, count: int, words: int = 10, longest: int | None = None) -> str:
    """Prompts of so many words and completions of as many; the last row is longer."""
    sizes = [words] * (count - 1) + [longest or words]
    rows = [{"prompt": "w1 " * size, "completion": "w2 " * size} for size in sizes]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def proposed(base, data, folder, *, device=CPU, evaluation=None):
    return propose(base, data_settings(data, evaluation, folder / "cache"), device, folder / "cache")


def loaded(proposal, folder):
    path = folder / "mine.yaml"
    path.write_text(file_text(proposal, "mine"))
    return load_study(path, [])


def test_the_file_is_the_study_that_was_proposed(base, tmp_path):
    proposal = proposed(base, write_rows(tmp_path / "rows.jsonl", 200), tmp_path)
    spec = loaded(proposal, tmp_path)
    assert spec.study_name == "mine"
    assert spec.data == proposal.trial.data
    assert spec.training == proposal.trial.training
    assert spec.sweep.parameters["r"].values == proposal.ranks == (4, 8, 16)  # the keys are 16 wide
    assert spec.sweep.parameters["target_modules"].values == ("attention", "mlp", "all-linear")
    costliest = {"r": 16, "target_modules": "all-linear", "num_train_epochs": 1, "learning_rate": 2e-4}
    assert spec.trial_config(costliest) == proposal.trial


def test_what_was_found_is_told(base, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 200, longest=30)
    about_base, about_data, memory = found_lines(proposed(base, data, tmp_path))
    assert "in 2 layers" in about_base
    assert "180 rows to train on and 20 to evaluate, prompts and completions" in about_data
    assert "the median row has 21 tokens, the longest of those looked at 61" in about_data
    assert "for the costliest trial (r 16, all-linear) on a CPU" in memory


@pytest.mark.parametrize(
    ("count", "share", "batch", "epochs"),
    [(20, 0.2, 1, (1, 2, 3)), (60, 0.2, 1, (1, 2, 3)), (200, 0.1, 4, (1, 2, 3)), (6000, 0.083, 16, (1, 2))],
    ids=str,
)
def test_what_suits_so_many_rows(base, tmp_path, count, share, batch, epochs):
    proposal = proposed(base, write_rows(tmp_path / "rows.jsonl", count), tmp_path)
    assert proposal.trial.data.eval == share
    assert proposal.trial.training.per_device_train_batch_size == batch
    assert proposal.epochs == epochs
    assert proposal.trial.training.warmup_steps <= proposal.rows.train // batch / 10 + 1


@pytest.mark.parametrize(
    ("words", "longest", "max_length"),
    [
        (10, None, 64),
        (40, None, 128),
        (40, 55, 128),
        (40, 200, 128),
        (100, None, 256),
        (240, None, 512),
    ],
    ids=str,
)
def test_rows_are_cut_where_hardly_any_is_longer(base, tmp_path, words, longest, max_length):
    data = write_rows(tmp_path / "rows.jsonl", 300, words, longest)
    assert proposed(base, data, tmp_path).trial.data.max_length == max_length


def test_no_row_is_longer_than_the_base_reads(base, tmp_path):
    rows = [json.dumps({"text": "w1 " * 700})] * 100
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    proposal = proposed(base, str(tmp_path / "rows.jsonl"), tmp_path)
    assert proposal.trial.data.max_length == 512
    assert "longer ones are cut" in file_text(proposal, "mine")


def test_a_split_of_its_own_is_evaluated_on(base, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train.jsonl", 100)
    write_rows(folder / "validation.jsonl", 7, words=9)
    proposal = proposed(base, str(folder), tmp_path)
    assert (proposal.rows.train, proposal.rows.eval) == (100, 7)
    other = write_rows(tmp_path / "other.jsonl", 9, words=8)
    assert proposed(base, str(folder), tmp_path, evaluation=other).rows.eval == 9
    assert loaded(proposal, tmp_path).data.eval.path == str(folder)


@pytest.mark.slow
def test_a_small_device_gets_a_thriftier_study(base, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 2000, words=100)
    roomy = proposed(base, data, tmp_path, device=Device("24GB", 24 * 2**30, is_cuda=True))
    assert roomy.trial.model.quantization == "none"
    assert not roomy.trial.training.gradient_checkpointing
    assert roomy.at_once > 2
    context = 832 * 2**20
    tight = proposed(base, data, tmp_path, device=Device("small", context + 9 * 2**20, is_cuda=True))
    assert tight.trial.training.gradient_checkpointing or tight.trial.training.per_device_train_batch_size == 1
    whole = [one.trial.training for one in (roomy, tight)]
    assert len({one.per_device_train_batch_size * one.gradient_accumulation_steps for one in whole}) == 1
    assert tight.at_once >= 1
    assert loaded(tight, tmp_path).training == tight.trial.training
    with pytest.raises(InputError, match=r"--model: the least that .* needs on tiny is .* take a smaller model"):
        proposed(base, data, tmp_path, device=Device("tiny", context + 2**17, is_cuda=True))


def test_no_rows_are_told_by_their_file(base, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "?", "answer": "!"}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl.*columns"):
        proposed(base, str(tmp_path / "rows.jsonl"), tmp_path)
