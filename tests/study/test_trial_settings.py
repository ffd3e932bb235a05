from __future__ import annotations

from typing import Any

from lora_lab.study.section import Trait
from lora_lab.study.settings import LoraSettings, TrialConfig
from lora_lab.study.spec import StudySpec
from lora_lab.study.sweep import SEARCHABLE, SECTIONS
from lora_lab.study.trial_settings import changed_of, settings_of, settings_with, told_of, value_of


def config(**sections: Any) -> TrialConfig:
    plain: dict[str, Any] = {"model": {"model_name_or_path": "m"}, "data": {"train": "t"}, "training": {}, "lora": {}}
    return TrialConfig.model_validate({name: plain[name] | sections.get(name, {}) for name in plain})


def test_every_setting_has_one_name() -> None:
    named = settings_of(config())
    fields = [name for section in SECTIONS.values() for name in section.model_fields]
    assert len(set(fields)) == len(fields), "two sections share a name"
    assert {name.partition(".")[0] for name in named} == {*fields, "scaling"}
    assert {name: value_of(config(), name) for name in SEARCHABLE} == {name: named[name] for name in SEARCHABLE}


def test_settings_inside_settings_have_both_names() -> None:
    data = {"train": [{"path": "a", "weight": 2.0}, {"path": "b"}], "eval": {"path": "c", "split": "test"}}
    named = settings_of(config(data=data, lora={"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8}}))
    assert (named["train.0.path"], named["train.0.weight"], named["train.1.path"]) == ("a", 2.0, "b")
    assert (named["eval.path"], named["eval.split"], named["loftq_config.loftq_bits"]) == ("c", "test", 8)


def test_alpha_is_what_the_trial_has_however_it_was_given() -> None:
    for lora in ({"r": 8, "lora_alpha": 4.0}, {"r": 8, "alpha_ratio": 0.5}):
        named = settings_of(config(lora={**lora, "use_rslora": True}))
        assert (named["lora_alpha"], named["alpha_ratio"]) == (4.0, 0.5)
        assert named["scaling"] == 4.0 / 8**0.5


def test_changed_are_the_settings_that_are_not_as_they_are_by_default() -> None:
    plain = changed_of(config())
    assert plain == {"model_name_or_path": "m", "train.path": "t"}
    lora, training = {"r": 8, "use_dora": True}, {"warmup_steps": 3, "lr_scheduler_type": "linear"}
    assert changed_of(config(lora=lora, training=training)) == {**plain, **training, **lora}
    assert changed_of(config(data={"eval": "c"})) == {**plain, "eval.path": "c"}
    assert changed_of(config(lora={"r": 8, "alpha_ratio": 1.0})).keys() >= {"lora_alpha", "alpha_ratio", "scaling"}


def test_what_is_told_begins_with_what_was_searched() -> None:
    spec = StudySpec.model_validate(
        {
            "study_name": "s",
            "model": {"model_name_or_path": "m"},
            "data": {"train": "t"},
            "training": {"weight_decay": 0.1},
            "sweep": {"n_trials": 1, "parameters": {"use_dora": {"values": [True, False]}, "r": {"values": [4, 8]}}},
        }
    )
    told = told_of(spec, spec.trial_config({"use_dora": False, "r": 16}))
    assert list(told)[:3] == ["use_dora", "r", "lora_alpha"]
    assert (told["use_dora"], told["lora_alpha"], told["learning_rate"], told["weight_decay"]) == (False, 32, 2e-4, 0.1)
    assert "adam_beta1" not in told


def test_what_is_known_of_a_setting_stands_beside_it() -> None:
    assert {"r", "use_dora", "quantization", "max_length"} <= set(settings_with(Trait.MEMORY))
    assert "num_train_epochs" in settings_with(Trait.WORK)
    assert settings_with(Trait.RATIO)[0] in SEARCHABLE
    assert LoraSettings(r=4).alpha == 8
