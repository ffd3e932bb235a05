from __future__ import annotations

from lora_lab.study.spec import StudySpec
from lora_lab.tracking.describe import study_started, trial_name, trial_started, versions
from lora_lab.tracking.records import DatasetInput

SPEC = StudySpec.model_validate(
    {
        "study_name": "rank_alpha",
        "question": "Which rank?",
        "storage": "postgresql://me:hunter22@host/optuna",
        "model": {"model_name_or_path": "builtin/tiny-llama"},
        "data": {"train": "builtin/stdlib-code"},
        "training": {"num_train_epochs": 2},
        "sweep": {
            "n_trials": 8,
            "parameters": {"r": {"values": [4, 16]}, "alpha_ratio": {"values": [1.0, 2.0]}},
        },
    }
)


def test_a_trial_is_named_by_what_matters():
    config = SPEC.trial_config({"r": 16, "alpha_ratio": 2.0})
    assert trial_name(7, config) == "trial-0007 r=16 a=32 all-linear e=2"
    partial = SPEC.trial_config({"r": 4, "target_modules": ("q_proj", "v_proj"), "layers": "first_half"})
    assert trial_name(12, partial) == "trial-0012 r=4 a=8 q_proj+v_proj first_half e=2"


def test_a_trial_is_described_by_the_names_that_users_know():
    params = trial_started(7, SPEC.trial_config({"r": 16, "alpha_ratio": 2.0}), engine="packed").params
    assert (params["r"], params["lora_alpha"], params["alpha_ratio"], params["scaling"]) == (16, 32, 2, 2)
    assert (params["target_modules"], params["layers"], params["engine"]) == ("all-linear", "all", "packed")
    assert (params["quantization"], params["max_length"], params["seed"]) == ("none", 512, 0)


def test_a_study_is_described_without_its_storage_address():
    inputs = DatasetInput(name="stdlib-code", digest="abc", source="builtin/stdlib-code")
    record = study_started(SPEC, datasets=[inputs], tags={"host": "here"})
    assert record.question == "Which rank?"
    assert record.params["model_name_or_path"] == "builtin/tiny-llama"
    assert record.params["sweep.r"] == '{"values": [4, 16]}'
    assert (record.tags["lora_lab.sampler"], record.tags["lora_lab.n_trials"]) == ("tpe", "8")
    assert record.tags["host"] == "here"
    assert record.datasets == (inputs,)
    assert "hunter22" not in repr(record)


def test_versions_are_those_installed():
    assert versions()["mlflow"].startswith("3.17")
