"""Rows that change how a whole batch is read: trials never meet in one pack where a neighbor's row could do that."""

from __future__ import annotations

import pytest
from transformers import Gemma3TextConfig, Phi3Config
from workshop import CPU, VOCABULARY, Bench, drain, llama_config, only, own_base, write_base

from lora_lab.common.errors import InputError
from lora_lab.planning.row_checks import check_rows
from lora_lab.study.events import Evaluated, Logged
from lora_lab.study.spec import StudySpec
from lora_lab.training.base.architecture import linear_map_of_config
from lora_lab.training.packed.linear import UnpackableError
from lora_lab.training.reference_engine import ReferenceEngine

FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0], "factor": 4.0}


def longrope(up_to: int) -> dict[str, object]:
    return {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": up_to, **FACTORS}


def phi3(up_to: int) -> Phi3Config:
    return Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4 * up_to,
        original_max_position_embeddings=up_to,
        rope_parameters=longrope(up_to),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=VOCABULARY - 2,
        initializer_range=0.08,
    )


def dynamic(up_to: int):
    return llama_config(
        max_position_embeddings=up_to, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    )


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
PER_LAYER = Gemma3TextConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    layer_types=["sliding_attention", "full_attention"],
    rope_parameters={
        "full_attention": longrope(16),
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
)


@pytest.mark.parametrize(
    ("config", "up_to", "remembers"),
    [
        (phi3(16), 16, False),
        (llama_config(rope_parameters=longrope(24)), 24, False),
        (PER_LAYER, 16, False),
        (dynamic(32), 32, True),
        (llama_config(rope_parameters=YARN), None, False),
        (llama_config(), None, False),
    ],
    ids=["phi-3", "llama with longrope", "one kind of layer", "dynamic", "yarn", "plain"],
)
def test_the_length_up_to_which_rows_are_read_alike_is_known_from_the_config(config, up_to, remembers):
    limits = linear_map_of_config(config).limits
    assert limits.alike_up_to == up_to
    assert limits.remembers_longest == remembers


def study(max_length: int) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study_name": "rows",
            "model": {"model_name_or_path": "base"},
            "data": {"train": "text.jsonl", "max_length": max_length},
            "sweep": {"n_trials": 4, "parameters": {"r": {"values": [2, 4]}}},
        }
    )


def test_longrope_beyond_its_switch_is_noted_and_dynamic_rope_refused():
    (note,) = check_rows(study(24), linear_map_of_config(phi3(16)).limits)
    assert "run on the reference engine, one at a time" in note
    assert check_rows(study(16), linear_map_of_config(phi3(16)).limits) == []
    with pytest.raises(InputError, match=r"data.max_length: 64 is more than 32, .* \(dynamic RoPE\) .*; lower it$"):
        check_rows(study(64), linear_map_of_config(dynamic(32)).limits)
    assert check_rows(study(32), linear_map_of_config(dynamic(32)).limits) == []


def bench(tmp_path, tiny_data, config) -> Bench:
    write_base(tmp_path / "base", config)
    return Bench(tmp_path / "base", tiny_data, tmp_path)


@pytest.mark.parametrize("up_to", [16, 28])
def test_the_packed_engine_takes_no_trial_with_a_longer_row(tmp_path, tiny_data, up_to):
    there = bench(tmp_path, tiny_data, phi3(up_to))
    with pytest.raises(UnpackableError, match=rf"beyond the {up_to} up to which this base reads each row by itself"):
        there.engine().admit(0, there.trial())
    assert there.engine().admit(0, there.trial(data={"max_length": up_to // 8 * 8})) is None


def test_no_row_is_padded_beyond_what_is_read_alike(tmp_path, tiny_data):
    """Rows of 29 tokens, where 32, the next multiple of 8, is read in another way; the reference engine pads none."""
    there = bench(tmp_path, tiny_data, phi3(30))
    config = there.trial(max_steps=4, learning_rate=1e-2)
    base = own_base(config.model, CPU)
    reference = ReferenceEngine(base, there.data, tmp_path / "reference")
    reference.admit(0, config)
    alone, packed = drain(reference), there.run(config)
    left, right = ([event.loss for event in only(events, Logged)] for events in (packed, alone))
    assert left == pytest.approx(right, abs=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(phi3(32), id="phi-3"),
        pytest.param(dynamic(32), id="dynamic"),
        pytest.param(llama_config(rope_parameters=YARN), id="yarn", marks=pytest.mark.slow),
        pytest.param(llama_config(rope_parameters=longrope(32)), id="llama with longrope", marks=pytest.mark.slow),
    ],
)
def test_neighbors_with_longer_rows_change_nothing(tmp_path, tiny_data, config):
    there = bench(tmp_path, tiny_data, config)
    trials = [
        there.trial(data={"max_length": length}, max_steps=4, seed=seed, learning_rate=1e-2)
        for length, seed in ((8, 0), (32, 1), (32, 2))
    ]
    packed = {event.number: event.eval_loss for event in only(there.run(*trials), Evaluated)}
    for number, trial in enumerate(trials):
        (alone,) = (event.eval_loss for event in only(there.run(trial), Evaluated))
        assert packed[number] == pytest.approx(alone, rel=1e-9)
