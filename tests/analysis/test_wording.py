from __future__ import annotations

import pytest
from analysis.simulated import trial

from lora_lab.analysis.wording import (
    config_label,
    count_text,
    distance_text,
    duration_text,
    number_text,
    one_line,
    rate_text,
    targets_text,
    trial_label,
    value_text,
)
from lora_lab.study.measures import MEASURES


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (count_text(999), "999"),
        (count_text(54_272), "54.3k"),
        (count_text(648_871_936), "649M"),
        (count_text(999_900), "1M"),
        (duration_text(4.25), "4.2 s"),
        (duration_text(200), "3 min 20 s"),
        (duration_text(7500), "2 h 5 min"),
        (number_text(0.0), "0"),
        (number_text(3e-4), "3e-4"),
        (number_text(0.5), "0.5"),
        (number_text(12345.0), "12345"),
        (value_text(123456), "123456"),
        (rate_text(0.002), "2e-3"),
        (rate_text(1.24e-4), "1.2e-4"),
        (value_text(True), "true"),
        (value_text(("q_proj", "v_proj")), "q_proj,v_proj"),
        (value_text((0, 1, 2, 3, 4, 5)), "0,1,2,3,… (6)"),
    ],
)
def test_quantities_read_as_a_person_writes_them(text: str, value: str) -> None:
    assert text == value


def test_one_line_drops_control_characters_and_cuts() -> None:
    assert one_line("a\x1b[31m\nb\t c\x00") == "a [31m b c"
    assert one_line("x" * 400, 10) == "x" * 9 + "…"


def test_config_label_names_what_differs() -> None:
    config = trial(0, 4.0, r=16, alpha_ratio=2.0, layers=(0, 2), num_train_epochs=1, learning_rate=1e-3).config

    assert config_label(config, ()) == "r=16 alpha=32 all-linear layers 0,2, 1 epoch, lr 1e-3"
    assert "50 steps" in config_label(trial(0, 4.0, max_steps=50).config, ())


def test_experts_are_named_beside_the_modules() -> None:
    config = trial(0, 4.0, r=16, target_modules="attention", target_parameters="experts").config
    assert targets_text(config.lora) == "attention+experts"
    assert config_label(config, ["target_parameters"]).startswith("r=16 alpha=32 attention+experts, ")
    named = config.changed(lora={"target_parameters": ("experts.down_proj",)})
    assert targets_text(named.lora) == "attention+experts.down_proj"


def test_config_label_names_what_most_studies_leave_alone() -> None:
    config = trial(0, 4.0, r=16, num_train_epochs=1, learning_rate=1e-3).config
    lora = {"init_lora_weights": False, "use_rslora": True, "use_dora": True, "lora_dropout": 0.1, "bias": "all"}
    unusual = config.model_copy(
        update={
            "model": config.model.model_copy(update={"quantization": "nf4", "double_quant": True}),
            "data": config.data.model_copy(update={"max_train_examples": 64}),
            "lora": config.lora.model_copy(update=lora),
            "training": config.training.model_copy(update={"loraplus_lr_ratio": 16.0, "gradient_checkpointing": True}),
        }
    )

    assert config_label(unusual, ()) == config_label(config, ()) + (
        ", nf4 double, 64 examples, init false, rsLoRA, DoRA, dropout 0.1, bias all, LoRA+ 16, checkpointing"
    )


def test_config_label_names_other_settings_only_where_the_study_searches_them() -> None:
    config = trial(0, 4.0, weight_decay=0.1, warmup_steps=10, lr_scheduler_type="cosine").config

    assert config_label(config, ["warmup_steps", "weight_decay", "adam_beta2"]) == config_label(config, ()) + (
        ", warmup_steps=10, weight_decay=0.1"
    )


def test_the_seed_belongs_to_a_trial_and_not_to_its_configuration() -> None:
    first, second = (trial(0, 4.0, seed=seed).config for seed in (0, 2))

    assert config_label(first, ["seed"]) == config_label(second, ["seed"]) == trial_label(first, ["seed"])
    assert trial_label(second, ["seed"]) == f"{config_label(second, ['seed'])}, seed 2"


@pytest.mark.parametrize(
    ("measure", "distance", "text"),
    [
        ("eval_loss", 0.0, "0.0000 nats"),
        ("eval_loss", 3e-5, "under 0.0001 nats"),
        ("eval_loss", -3e-5, "under 0.0001 nats"),
        ("eval_loss", 6e-5, "0.0001 nats"),
        ("exact_match", 2e-4, "under 0.001 points"),
        ("exact_match", 0.0123, "0.012 points"),
    ],
)
def test_a_distance_that_is_not_0_is_not_called_0(measure: str, distance: float, text: str) -> None:
    assert distance_text(MEASURES[measure], distance) == text
