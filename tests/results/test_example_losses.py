"""Reading per-example losses from the run folder, and the verdict with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from runner.scripted import spec
from safetensors.numpy import save_file

from lora_lab.analysis.verdict import decide
from lora_lab.common.errors import CheckpointError
from lora_lab.results.example_losses import read_example_losses
from lora_lab.results.folder import RunFolder
from lora_lab.study.engines import engine_for
from lora_lab.study.measures import EXACT_MATCH
from lora_lab.study.results import TrialResult

TOKENS = np.array([4, 6, 10, 5])


def losses(mean, wobble):
    return TOKENS * (mean + np.array([1.0, -1.0, 0.2, 0.0]) * wobble)


def trial(folder, number, r, seed, mean, *, evaluation=2, kept=True, **fields):
    nll = losses(mean, 0.01 * (number % 3))
    if kept:
        path = folder.trial(number) / "evaluations" / f"eval-{evaluation:04d}.safetensors"
        path.parent.mkdir(parents=True)
        save_file({"nll": nll, "label_tokens": TOKENS}, path)
    config = spec().trial_config({"r": r, "seed": seed})
    return TrialResult(
        number=number,
        state=fields.pop("state", "complete"),
        params={"r": r},
        config=config,
        engine=engine_for(config),
        metrics={"eval_loss": float(nll.sum() / TOKENS.sum()), "trainable_params": 100.0 * r, "train_seconds": 1.0},
        curve=dict.fromkeys(range(1, evaluation + 1), 4.0),
        **fields,
    )


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_replicates_are_read_and_widen_the_verdict(folder):
    trials = [trial(folder, 10 * r + seed, r, seed, 4.0 + r / 1000 + seed / 100) for r in (4, 8) for seed in (0, 1, 2)]
    trials.append(trial(folder, 200, 16, 0, 4.5))

    found = read_example_losses(folder, trials)

    assert set(found) == {40, 41, 42, 80, 81, 82}
    assert found[40].label_tokens.tolist() == TOKENS.tolist()
    row = decide(trials, 5.0, 0.05, losses=found).rows[1]
    assert row.evidence == "seeds and examples"


def test_single_runs_are_read_where_there_are_no_replicates(folder):
    trials = [trial(folder, 0, 4, 0, 4.0), trial(folder, 1, 8, 0, 4.1)]

    assert set(read_example_losses(folder, trials)) == {0, 1}


def test_a_file_that_is_gone_or_of_another_evaluation_is_left_out(folder):
    trials = [trial(folder, 0, 4, 0, 4.0, kept=False), trial(folder, 1, 8, 0, 4.1), trial(folder, 2, 16, 0, 4.2)]
    other = folder.trial(2) / "evaluations" / "eval-0002.safetensors"
    save_file({"nll": losses(9.0, 0.0), "label_tokens": TOKENS}, other)

    assert set(read_example_losses(folder, trials)) == {1}


def test_a_trial_that_was_read_off_another_has_its_losses_there(folder):
    owner = trial(folder, 0, 4, 0, 4.0)
    shared = trial(folder, 3, 8, 0, 4.0, kept=False, state="shared", source=0)

    assert set(read_example_losses(folder, [owner, shared])) == {0, 3}


def test_a_damaged_file_is_named_with_a_way_out(folder):
    trials = [trial(folder, 0, 4, 0, 4.0)]
    path = folder.trial(0) / "evaluations" / "eval-0002.safetensors"
    path.write_bytes(path.read_bytes()[:20])

    with pytest.raises(CheckpointError, match=r"eval-0002\.safetensors cannot be read .*remove the file"):
        read_example_losses(folder, trials)


def test_scores_are_read_as_losses_from_files_of_their_own(folder):
    owner = trial(folder, 0, 4, 0, 4.0)
    scored = replace(owner, metrics={**owner.metrics, "exact_match": 0.0})
    path = folder.files_of(0).evaluation(2, "exact_match")
    save_file({"nll": np.array([-0.0, -0.0]), "label_tokens": np.array([1, 1])}, path)

    assert read_example_losses(folder, [scored], EXACT_MATCH)[0].nll.tolist() == [0.0, 0.0]
    assert read_example_losses(folder, [replace(scored, metrics={"exact_match": 0.5})], EXACT_MATCH) == {}
    assert read_example_losses(folder, [owner], EXACT_MATCH) == {}
