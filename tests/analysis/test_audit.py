from __future__ import annotations

from typing import Any

import pytest
from analysis.simulated import study, trial

from lora_lab.analysis.audit import audit, changed_on_the_way
from lora_lab.analysis.verdict import decide
from lora_lab.study.spec import StudySpec
from lora_lab.study.sweep import Verdict

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
            "sweep": {"n_trials": 4, "parameters": parameters, "confirm": {"top": 2, "seeds": 2}, **sweep},
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
    (note,) = audit(spec_with(parameters, lora={"alpha_ratio": 2.0, "use_rslora": True}))
    assert note.kind == "fixed_alpha"
    assert "alpha_ratio 2 gives a scaling of that times sqrt(r)" in note.sentence


def test_alphas_that_leave_ranks_no_common_scaling() -> None:
    def searched(alphas: list[float], lora: dict[str, Any] | None = None) -> list[str]:
        return kinds(spec_with({"r": RANKS, "learning_rate": RATES, "lora_alpha": {"values": alphas}}, lora=lora))

    assert searched([16.0, 32.0]) == ["no_common_scaling"]
    assert searched([2.0, 16.0, 256.0]) == []
    assert searched([16.0, 64.0], {"use_rslora": True}) == []


def test_rslora_at_another_scale() -> None:
    parameters = {"use_rslora": {"values": [True, False]}, "learning_rate": RATES}

    (note,) = audit(spec_with(parameters, lora={"r": 16}))
    assert note.kind == "rslora_scale"
    assert "multiplies the scaling by sqrt(r), here 4." in note.sentence
    (note,) = audit(spec_with({**parameters, "r": RANKS, "alpha_ratio": {"values": [0.5, 1, 2]}}))
    assert "here 2 to 8." in note.sentence


def test_one_seed_only() -> None:
    parameters = {"r": RANKS, "learning_rate": RATES}

    (note,) = audit(spec_with(parameters, confirm=None))
    assert note.kind == "one_seed"
    assert "`confirm: {top: 3, seeds: 3}`" in note.sentence
    assert kinds(spec_with(parameters, confirm={"top": 3, "seeds": 1})) == ["one_seed"]
    assert kinds(spec_with({**parameters, "seed": {"values": [0, 1]}}, confirm=None, pruner="none")) == []


def test_pruning_replicates_keeps_the_lucky_ones() -> None:
    parameters = {"r": RANKS, "learning_rate": {"values": [1e-3, 3e-3, 9e-3]}}

    assert kinds(spec_with(parameters, sampler="grid", seeds=3)) == ["pruned_replicates"]
    assert kinds(spec_with(parameters, sampler="grid", seeds=3, pruner="none")) == []


def test_arms_of_quantization_in_different_dtypes() -> None:
    parameters = {"quantization": {"values": ["none", "int8", "nf4"]}, "learning_rate": RATES}

    def model(**settings: Any) -> list[str]:
        spec = spec_with(parameters)
        return kinds(spec.model_copy(update={"model": spec.model.model_copy(update=settings)}))

    assert model() == ["quantization_dtype"]
    assert model(dtype="bfloat16") == ["quantization_dtype"]
    assert (
        "int8 rounds activations"
        in audit(
            spec_with(parameters).model_copy(
                update={"model": spec_with(parameters).model.model_copy(update={"dtype": "float32"})}
            )
        )[0].sentence
    )
    assert kinds(spec_with({"quantization": {"values": ["fp4", "nf4"]}, "learning_rate": RATES})) == []


def test_trials_that_train_on_different_amounts_of_text() -> None:
    batches = {"per_device_train_batch_size": {"values": [4, 8]}}

    (note,) = audit(spec_with({**batches, "learning_rate": RATES}, training={"max_steps": 100}))
    assert note.kind == "unequal_budget"
    assert "different amounts of text" in note.sentence
    (note,) = audit(spec_with(batches))
    assert "larger batches take fewer steps" in note.sentence
    assert kinds(spec_with({**batches, "learning_rate": RATES})) == []


def test_trials_that_are_measured_on_different_text() -> None:
    (note,) = audit(spec_with({"max_length": {"values": [64, 128]}}))

    assert note.kind == "unequal_text"
    assert "losses cannot be compared" in note.sentence


def test_importance_from_a_sampler_that_adapts() -> None:
    spec = spec_with({"r": RANKS, "learning_rate": RATES})
    trials = [trial(i, 4.0 + i / 100, r=16, learning_rate=1e-3 + i * 1e-5) for i in range(10)]

    assert [note.kind for note in audit(spec, decide(trials, 5.0, 0.01))] == ["adaptive_importance"]
    assert audit(spec, decide(trials[:9], 5.0, 0.01)) == []
    random = spec_with({"r": RANKS, "learning_rate": RATES}, sampler="random")
    assert audit(random, decide(trials, 5.0, 0.01)) == []


def test_ranks_whose_best_rate_was_not_bracketed() -> None:
    spec = spec_with({"r": RANKS, "learning_rate": RATES})
    trials = [
        trial(0, 4.0, r=16, learning_rate=1e-3),
        trial(1, 4.1, r=4, learning_rate=9.9e-3),
        trial(2, 4.2, r=4, learning_rate=1e-3),
        trial(3, 4.3, r=64, learning_rate=9.8e-3),
    ]

    (note,) = audit(spec, decide(trials, 5.0, 0.01), trials)

    assert note.kind == "edge_at_a_rank"
    assert "At 2 ranks (4, 64) the best learning_rate is the highest that was tried" in note.sentence


def test_a_seed_has_no_edge() -> None:
    spec = spec_with({"seed": {"values": [0, 1, 2]}, "learning_rate": RATES}, pruner="none")
    findings = decide([trial(0, 4.0, seed=2, learning_rate=1e-3)], base_value=5.0, margin=0.01)

    assert audit(spec, findings) == []


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
    assert kinds(spec_with(parameters, training={"lr_scheduler_type": "warmup_stable_decay"})) == ["schedule_pruning"]
    rising = {"lr_scheduler_type": "constant_with_warmup"}
    assert kinds(spec_with(parameters, training={**rising, "warmup_steps": 5})) == []
    assert kinds(spec_with(parameters, training={**rising, "warmup_ratio": 0.1})) == ["schedule_pruning"]


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
    middle: dict[str, Any] = {"r": 64, "alpha_ratio": 1.0, "num_train_epochs": 2, "learning_rate": 1e-3}
    findings = decide([trial(7, 4.0, **{**middle, name: value})], base_value=5.0, margin=0.01)

    notes = audit(study(), findings)

    assert [note.kind for note in notes] == (["edge_of_range"] if side else [])
    if side:
        assert f"The best trial (7) has the {side} {name} that was tried" in notes[0].sentence


def test_more_epochs_promise_nothing_to_what_stopped_early() -> None:
    middle: dict[str, Any] = {"r": 64, "alpha_ratio": 1.0, "num_train_epochs": 3, "learning_rate": 1e-3}
    for epochs, noted in ((3.0, ["edge_of_range"]), (2.0, [])):
        trials = [trial(7, 4.0, **middle, metrics={"epochs": epochs, "steps": 12.0})]
        findings = decide(trials, base_value=5.0, margin=0.01)
        notes = audit(study(), findings, trials)
        assert [note.kind for note in notes if note.kind == "edge_of_range"] == noted


def test_two_values_have_no_inside() -> None:
    spec = spec_with({"r": {"values": [8, 16]}, "learning_rate": RATES})
    findings = decide([trial(0, 4.0, r=16, learning_rate=1e-3)], base_value=5.0, margin=0.01)

    assert audit(spec, findings) == []


def test_a_parameter_that_was_not_active_has_no_edge() -> None:
    dropout = {"values": [0.0, 0.05, 0.1], "when": {"r": {"min": 64}}}
    spec = spec_with({"r": RANKS, "learning_rate": RATES, "lora_dropout": dropout})
    small = decide([trial(0, 4.0, r=16, learning_rate=1e-3, lora_dropout=0.1)], base_value=5.0, margin=0.01)
    large = decide([trial(0, 4.0, r=64, learning_rate=1e-3, lora_dropout=0.1)], base_value=5.0, margin=0.01)

    assert audit(spec, small) == []
    assert [note.sentence.split(" that ")[0].split(" the ")[-1] for note in audit(spec, large)] == [
        "highest r",
        "highest lora_dropout",
    ]


def test_without_a_finished_trial_the_design_is_still_audited() -> None:
    findings = decide([], base_value=5.0, margin=0.01)

    assert [note.kind for note in audit(spec_with({"r": RANKS}), findings)] == ["one_learning_rate"]


def test_two_learning_rates_leave_no_inside() -> None:
    (note,) = audit(spec_with({"r": RANKS, "learning_rate": {"values": [1e-3, 3e-3]}}))

    assert note.kind == "two_learning_rates"
    assert kinds(spec_with({"r": RANKS, "learning_rate": {"values": [1e-3, 3e-3, 9e-3]}})) == []
    assert kinds(spec_with({"learning_rate": {"values": [1e-3, 3e-3]}})) == []


def test_a_margin_and_a_number_of_seeds_that_changed_after_results_are_named() -> None:
    declared = Verdict(margin=0.05)

    assert changed_on_the_way(declared, declared, [3, 3]) == []
    assert changed_on_the_way(declared, None, [3]) == []
    (margin,) = changed_on_the_way(Verdict(absolute_margin=0.02), declared, [3])
    assert margin.kind == "margin_changed"
    assert "was 5% of the gain when the study began and is 0.02 now" in margin.sentence
    (looks,) = changed_on_the_way(declared, declared, [3, 5, 10, 10])
    assert looks.kind == "looked_again"
    assert "tested with 3, 5 and 10 seeds" in looks.sentence
