from __future__ import annotations

from typing import Any

import pytest
from analysis.simulated import study, trial

from lora_lab.analysis.audit import audit
from lora_lab.analysis.verdict import decide
from lora_lab.study.spec import StudySpec

RANKS = {"values": [4, 16, 64]}
RATES = {"min": 1e-4, "max": 1e-2, "log": True}


def spec_with(
    parameters: dict[str, Any],
    lora: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **sweep: Any,
) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study_name": "audited",
            "model": {"model_name_or_path": "builtin/tiny-llama"},
            "data": {"train": "builtin/stdlib-code"},
            "lora": lora or {},
            "training": training or {},
            "sweep": {"n_trials": 4, "parameters": parameters, **sweep},
        }
    )


def kinds(spec: StudySpec) -> list[str]:
    return [note.kind for note in audit(spec)]


def test_a_sound_design_has_no_notes() -> None:
    assert audit(spec_with({"r": RANKS, "learning_rate": RATES})) == []


def test_rank_at_one_learning_rate() -> None:
    (note,) = audit(spec_with({"r": RANKS}, training={"learning_rate": 2e-3}))

    assert note.kind == "one_learning_rate"
    assert "one learning rate (2e-3)" in note.sentence
    assert "Put learning_rate under parameters" in note.sentence


def test_fixed_alpha_while_rank_varies() -> None:
    parameters = {"r": RANKS, "learning_rate": RATES}

    assert kinds(spec_with(parameters, lora={"lora_alpha": 32.0})) == ["fixed_alpha"]
    assert kinds(spec_with(parameters, lora={"alpha_ratio": 2.0})) == []
    assert kinds(spec_with({**parameters, "lora_alpha": RANKS})) == []
    assert kinds(spec_with({"learning_rate": RATES}, lora={"lora_alpha": 32.0})) == []
    (note,) = audit(spec_with(parameters, lora={"lora_alpha": 32.0, "use_rslora": True}))
    assert "alpha / sqrt(r)" in note.sentence


@pytest.mark.parametrize("searched", [True, False])
def test_an_init_that_depends_on_rank(searched: bool) -> None:
    parameters = {"r": RANKS, "learning_rate": RATES}
    if searched:
        parameters["init_lora_weights"] = {"values": [True, "gaussian"]}
    spec = spec_with(parameters, lora={} if searched else {"init_lora_weights": "gaussian"})

    assert kinds(spec) == ["rank_dependent_init"]


def test_pruning_under_a_schedule_that_depends_on_the_length() -> None:
    parameters = {"num_train_epochs": {"values": [1, 2, 3]}}
    cosine = {"lr_scheduler_type": "cosine"}

    (note,) = audit(spec_with(parameters, training=cosine))
    assert note.kind == "schedule_pruning"
    assert "asha compares trials of different num_train_epochs" in note.sentence
    assert kinds(spec_with(parameters, training=cosine, pruner="none")) == []
    assert kinds(spec_with({"learning_rate": RATES}, training=cosine)) == []
    assert kinds(spec_with(parameters)) == []


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("r", 256, "highest"),
        ("r", 4, "lowest"),
        ("r", 64, None),
        ("learning_rate", 1.1e-4, "lowest"),
        ("learning_rate", 9.9e-3, "highest"),
        ("learning_rate", 1e-3, None),
        ("num_train_epochs", 1, None),
        ("num_train_epochs", 3, "highest"),
        ("target_modules", "mlp", None),
    ],
)
def test_the_best_value_at_an_edge(name: str, value: Any, side: str | None) -> None:
    middle = {"r": 64, "alpha_ratio": 1.0, "num_train_epochs": 2, "learning_rate": 1e-3}
    findings = decide([trial(7, 4.0, **{**middle, name: value})], base_loss=5.0, margin=0.01)

    notes = audit(study(), findings)

    assert [note.kind for note in notes] == (["edge_of_range"] if side else [])
    if side:
        assert f"The best trial (7) has the {side} {name} that was tried" in notes[0].sentence


def test_two_values_have_no_inside() -> None:
    spec = spec_with({"r": {"values": [8, 16]}, "learning_rate": RATES})
    findings = decide([trial(0, 4.0, r=16, learning_rate=1e-3)], base_loss=5.0, margin=0.01)

    assert audit(spec, findings) == []


def test_a_parameter_that_was_not_active_has_no_edge() -> None:
    dropout = {"values": [0.0, 0.05, 0.1], "when": {"r": {"min": 64}}}
    spec = spec_with({"r": RANKS, "learning_rate": RATES, "lora_dropout": dropout})
    small = decide([trial(0, 4.0, r=16, learning_rate=1e-3, lora_dropout=0.1)], base_loss=5.0, margin=0.01)
    large = decide([trial(0, 4.0, r=64, learning_rate=1e-3, lora_dropout=0.1)], base_loss=5.0, margin=0.01)

    assert audit(spec, small) == []
    assert [note.sentence.split(" that ")[0].split(" the ")[-1] for note in audit(spec, large)] == [
        "highest r",
        "highest lora_dropout",
    ]


def test_without_a_finished_trial_the_design_is_still_audited() -> None:
    findings = decide([], base_loss=5.0, margin=0.01)

    assert [note.kind for note in audit(spec_with({"r": RANKS}), findings)] == ["one_learning_rate"]
