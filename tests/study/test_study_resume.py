# ruff: noqa: E501 - messages are compared whole, one line each
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_lab.common.errors import InputError
from lora_lab.study.file.loading import load_study
from lora_lab.study.resume import compare_contents, compare_for_resume

if TYPE_CHECKING:
    from pathlib import Path

RANGE = "sweep.parameters.warmup_steps={min: 0, max: 8, step: 4}"

ALLOWED = [
    ([], []),
    ([], ["sweep.n_trials=64"]),
    ([], ["sweep.sampler=random", "sweep.pruner=none", "sweep.seed=3", "sweep.pack_size=4"]),
    ([], ["question=Why?", "sweep.confirm=null", "sweep.verdict.margin=0.1", "storage=sqlite:///x.db"]),
    ([], ["training.logging_steps=5", "training.per_device_eval_batch_size=2"]),
    ([], ["sweep.parameters.r.values=[2, 4, 8, 16, 32]"]),
    ([], ["sweep.parameters.learning_rate.min=1e-5"]),
    ([], ["sweep.parameters.lora_dropout={values: [0.0, 0.1]}"]),
    ([], ["sweep.parameters.lora_dropout={min: 0.0, max: 0.1}"]),
    ([RANGE], [RANGE.replace("4}", "2}")]),
    ([RANGE], [RANGE.replace("8", "12")]),
    (["sweep.parameters.warmup_steps={min: 0, max: 9, step: 4}"],) * 2,
]

REFUSED = [
    ([], ["model.model_name_or_path=other"], "model.model_name_or_path: 'builtin/tiny-llama' -> 'other'"),
    ([], ["model.quantization=nf4"], "model.quantization: 'none' -> 'nf4'"),
    ([], ["data.max_length=64"], "data.max_length: 128 -> 64"),
    ([], ["data.train.max_examples=9"], "data.train: {path: builtin/stdlib-code} -> {path: builtin/stdlib-code, max_examples: 9}"),
    ([], ["training.seed=1"], "training.seed: 0 -> 1"),
    ([], ["lora.lora_dropout=0.1"], "lora.lora_dropout: 0.0 -> 0.1"),
    ([], ["training.weight_decay=0.3"], "training.weight_decay: 0.0 -> 0.3"),
    ([], ["sweep.metric=train_seconds"], "sweep.metric: minimize eval_loss -> minimize train_seconds"),
    ([], ["sweep.parameters.r.values=[4, 8]"], "sweep.parameters.r: {values: [4, 8, 16]} -> {values: [4, 8]}"),
    ([], ["sweep.parameters.learning_rate=null"], "sweep.parameters.learning_rate: {min: 0.0001, max: 0.01, log: true} -> fixed at 0.002"),
    ([], ["sweep.parameters.learning_rate.min=1e-3"], "-> {min: 0.001, max: 0.01, log: true}"),
    ([], ["sweep.parameters.learning_rate.log=false"], "-> {min: 0.0001, max: 0.01}"),
    ([], ["sweep.parameters.r={min: 1, max: 64}"], "sweep.parameters.r: {values: [4, 8, 16]} -> {min: 1, max: 64}"),
    ([], ["sweep.parameters.weight_decay.when={r: 16}"], "sweep.parameters.weight_decay"),
    ([], ["sweep.parameters.lora_dropout={values: [0.1, 0.2]}"], "sweep.parameters.lora_dropout: fixed at 0.0 -> {values: [0.1, 0.2]}"),
    ([RANGE], [RANGE.replace("4}", "3}")], "sweep.parameters.warmup_steps"),
    ([RANGE], [RANGE.replace("0", "1")], "sweep.parameters.warmup_steps"),
]  # fmt: skip

WARMUP = "training.lr_scheduler_type=linear"


@pytest.mark.parametrize(("old", "new"), ALLOWED)
def test_changes_that_only_widen_the_study_are_allowed(old: list[str], new: list[str], study_file: Path) -> None:
    compare_for_resume(load_study(study_file, [WARMUP, *old]), load_study(study_file, [WARMUP, *new]))


@pytest.mark.parametrize(("old", "new", "line"), REFUSED)
def test_changes_that_mix_trials_are_refused_with_a_diff(
    old: list[str], new: list[str], line: str, study_file: Path
) -> None:
    before, after = load_study(study_file, [WARMUP, *old]), load_study(study_file, [WARMUP, *new])
    with pytest.raises(InputError) as refused:
        compare_for_resume(before, after)
    assert line in str(refused.value)
    assert len(str(refused.value).splitlines()) == 3
    assert "--fresh" in str(refused.value)


def test_a_fixed_value_that_is_always_searched_does_not_count(study_file: Path) -> None:
    spec = load_study(study_file)
    study_file.write_text(study_file.read_text().replace("learning_rate: 2e-3", "learning_rate: 1"))
    compare_for_resume(spec, load_study(study_file))


KEPT = {"data.train: a.jsonl": "1", "the weights of base": "2"}


@pytest.mark.parametrize("present", [KEPT, {}, {**KEPT, "data.forgetting: b.jsonl": "3"}])
def test_equal_and_new_contents_compare(present: dict[str, str]) -> None:
    compare_contents(KEPT, present, "s")
    compare_contents({}, present, "s")


def test_other_contents_are_refused_by_name() -> None:
    with pytest.raises(InputError) as refused:
        compare_contents(KEPT, dict.fromkeys(KEPT, "0"), "s")
    assert str(refused.value) == (
        "study s has trials that were trained and measured on another content of data.train: a.jsonl; the weights of "
        "base; put back what was there then, or begin a new study with --fresh"
    )
