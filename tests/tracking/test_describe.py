from __future__ import annotations

import re

from lora_lab.study.settings import ModelSettings
from lora_lab.study.spec import StudySpec
from lora_lab.tracking.describe import NAME_WIDTH, study_started, trial_name, trial_started, versions
from lora_lab.tracking.journal import Journal
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
    assert trial_name(7, config, ()) == "trial-0007 r=16 alpha=32 all-linear, 2 epochs, lr 2e-4"
    partial = SPEC.trial_config({"r": 4, "target_modules": ("q_proj", "v_proj"), "layers": "first_half", "seed": 3})
    assert (
        trial_name(12, partial, ())
        == "trial-0012 r=4 alpha=8 q_proj,v_proj layers first_half, 2 epochs, lr 2e-4, seed 3"
    )


def test_a_name_is_no_longer_than_mlflow_keeps():
    config = SPEC.trial_config(
        dict.fromkeys(("warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2"), 1 / 3)
        | {
            "lr_scheduler_type": "linear",
            "adam_epsilon": 1e-5,
            "max_grad_norm": 1 / 3,
            "target_modules": ("x" * 60,) * 4,
        }
    )
    name = trial_name(0, config, config.training.model_dump())
    assert name.startswith("trial-0000 r=16 alpha=32 xxx")
    assert len(name) == NAME_WIDTH < 250


def test_a_trial_is_described_by_the_names_that_users_know():
    config = SPEC.trial_config({"r": 16, "alpha_ratio": 2.0})
    params = trial_started(7, config, searched=("r", "alpha_ratio"), engine="packed").params
    assert (params["r"], params["lora_alpha"], params["alpha_ratio"], params["scaling"]) == (16, 32, 2, 2)
    assert (params["target_modules"], params["layers"], params["engine"]) == ("all-linear", "all", "packed")
    assert (params["quantization"], params["max_length"], params["seed"]) == ("none", 512, 0)
    assert (params["use_dora"], params["train.path"]) == (False, "builtin/stdlib-code")
    assert None not in params.values()


def test_secrets_in_settings_do_not_reach_the_journal(folder):
    model = {"model_name_or_path": "https://me:hunter22@host/base", "revision": "hf_" + "a" * 30}
    config = SPEC.model_copy(update={"model": ModelSettings(**model)}).trial_config({})
    with Journal(folder) as journal:
        journal.append(trial_started(0, config, searched=(), engine="packed"))
    written = (folder / "events.jsonl").read_text()
    assert "@host/base" in written
    assert not re.search("hunter22|hf_a", written)


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
