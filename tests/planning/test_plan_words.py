"""What a plan says in words, without planning anything."""

from __future__ import annotations

from lora_lab.planning.planner import _space_text
from lora_lab.study.spec import StudySpec


def test_conditions_are_told_in_words():
    parameters = {
        "r": {"values": [4, 8]},
        "lora_dropout": {"values": [0.0, 0.05], "when": {"r": {"min": 8}}},
        "use_rslora": {"values": [False, True], "when": {"r": {"min": 4, "max": 8}}},
        "lora_alpha": {"values": [8, 16], "when": {"r": {"values": [4, 8]}}},
    }
    spec = StudySpec.model_validate(
        {
            "study_name": "told",
            "model": {"model_name_or_path": "nowhere"},
            "data": {"train": "nowhere.jsonl"},
            "sweep": {"sampler": "grid", "pruner": "none", "parameters": parameters},
        }
    )
    assert _space_text(spec, "lora_dropout") == "0, 0.05 (when r at least 8)"
    assert _space_text(spec, "use_rslora") == "false, true (when r at least 4 and at most 8)"
    assert _space_text(spec, "lora_alpha") == "8, 16 (when r in 4, 8)"
