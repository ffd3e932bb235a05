"""`lora_lab.plan` as a command: fast, readable, and right about the memory that the sweep then measures."""

from __future__ import annotations

import json

import pytest
from sweep_process import Ended, study

LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def planned(lab, *words: str) -> Ended:
    return lab.start(*words, verb="plan").end()


def as_json(lab, *words: str) -> dict:
    ended = planned(lab, "--json", *words)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_a_plan_for_people(lab):
    lab.write(study(question="Which rank?"))
    ended = planned(lab)
    assert ended.code == 0, ended.err
    for text in ("Which rank?", "6 trials by tpe", "Trainable parameters", "Memory of one trial", "pack size"):
        assert text in ended.out
    assert not lab.run_folder().exists(), "a plan leaves nothing behind"


def test_what_is_predicted_is_what_the_sweep_measures(lab):
    content = study(
        sweep={"sampler": "grid", "n_trials": None, "pruner": "none", "parameters": {"r": {"values": [2, 8]}}}
    )
    content["sweep"].pop("n_trials")
    lab.write(content)
    before = as_json(lab)
    ended = lab.sweep()
    assert ended.code == 0, ended.err
    measured = {result.config.lora.r: result.metrics for result in lab.results().values()}
    for row in before["memory"]:
        metrics = measured[row["r"]]
        assert metrics["predicted_memory_bytes"] <= row["predicted_bytes"]  # the plan takes rows as full
        assert metrics["predicted_memory_bytes"] == pytest.approx(metrics["peak_memory_bytes"], rel=0.02)
        assert abs(metrics["memory_error_percent"]) <= 2
    _, children = lab.children()
    assert all("predicted_memory_bytes" in run.data.metrics for run in children)

    after = as_json(lab)
    assert before["work"]["seconds"] is None
    assert after["work"]["seconds"] > 0


@pytest.mark.slow
def test_a_trial_above_the_memory_limit_ends_alone_and_says_so(lab):
    content = study(sweep={"sampler": "grid", "pruner": "none", "parameters": {"r": {"values": [2, 256]}}})
    content["sweep"].pop("n_trials")
    lab.write(content)
    rows = {row["r"]: row["predicted_bytes"] for row in as_json(lab)["memory"]}
    limit = str(sum(rows.values()) // 2)
    assert {row["r"]: row["fits"] for row in as_json(lab, "--memory-limit", limit)["memory"]} == {2: True, 256: False}
    ended = lab.sweep("--memory-limit", limit)
    assert ended.code == 0, ended.err
    results = {result.config.lora.r: result for result in lab.results().values()}
    assert results[2].state == "complete"
    assert results[256].state == "out_of_memory"
    for text in (f"{int(limit):,} bytes", "by prediction", "as measured", "gradient_checkpointing"):
        assert text in results[256].reason


@pytest.mark.slow
def test_an_8b_model_that_is_only_a_config_is_planned_in_a_minute(lab):
    (lab.folder / "llama").mkdir()
    (lab.folder / "llama" / "config.json").write_text(json.dumps(LLAMA_3_1_8B))
    content = study(
        model={"model_name_or_path": "llama"},
        data={"train": "nowhere.jsonl", "eval": 0.1, "max_length": 512},
        training={"per_device_train_batch_size": 1},
    )
    content["sweep"] = {
        "sampler": "grid",
        "pruner": "none",
        "parameters": {
            "r": {"values": [4, 8, 16, 32, 64, 128, 256]},
            "target_modules": {"values": ["attention", "all-linear"]},
            "quantization": {"values": ["none", "nf4"]},
        },
    }
    lab.write(content)
    made = as_json(lab, "--device", "A100-40GB")
    assert made["configurations"] == len(made["memory"]) == 28
    counts = {(row["target_modules"], row["r"]): row["trainable_params"] for row in made["adapters"]}
    for r in (4, 8, 16, 32, 64, 128, 256):  # published, per unit of rank: 851,968 attention, 1,769,472 mlp
        assert counts["attention", r] == 851_968 * r
        assert counts["all-linear", r] == (851_968 + 1_769_472) * r
    memory = {(row["quantization"], row["target_modules"], row["r"]): row for row in made["memory"]}
    assert memory["none", "all-linear", 256]["terms"]["base"] == pytest.approx(2 * made["base_parameters"], rel=1e-3)
    for row in made["memory"]:
        larger = memory.get((row["quantization"], row["target_modules"], 2 * row["r"]))
        assert larger is None or larger["predicted_bytes"] > row["predicted_bytes"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--device", "abacus"], "A100-80GB"),
        (["--memory-limit", "plenty"], "--memory-limit"),
        (["--memory-limit", "0%"], "above 0%"),
        (["--set", "model.model_name_or_path=./nowhere"], "model.model_name_or_path"),
        (["--set", "lora.target_modules=nothing"], "matches no linear module"),
        (["--set", "training.learning_rat=1"], "did you mean learning_rate"),
    ],
)
def test_mistakes_are_one_line_with_a_way_out(lab, words, text):
    lab.write(study())
    ended = planned(lab, *words)
    assert ended.code == 2, ended
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert text in ended.err


def test_a_sweep_refuses_a_memory_limit_that_is_none(lab):
    lab.write(study())
    ended = lab.sweep("--memory-limit", "plenty")
    assert ended.code == 2
    assert "20GB" in ended.err
    assert not lab.run_folder().exists()
