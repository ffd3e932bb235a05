"""A plan: what a study asks for, counted without a sampler, a GPU, weights or data."""

from __future__ import annotations

import json
import re

import pytest
from rich.console import Console

from lora_lab.common.errors import InputError
from lora_lab.common.sizes import bytes_text
from lora_lab.planning.devices import Device, device_named
from lora_lab.planning.planner import make_plan
from lora_lab.results.folder import RunFolder
from lora_lab.study.spec import StudySpec
from lora_lab.terminal.plan_text import print_plan
from lora_lab.training.memory.room import DEFAULT_LIMIT, MemoryLimit

CPU = Device("a CPU", None, is_cuda=False)
SMALL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 320,
    "tie_word_embeddings": False,
}


@pytest.fixture
def base(tmp_path):
    """A folder with nothing but a config: no weights, no tokenizer."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    return folder


def study(base, *, parameters, data=None, training=None, **sweep) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study_name": "planned",
            "model": {"model_name_or_path": str(base)},
            "data": {"train": "nowhere.jsonl", "max_length": 32} | (data or {}),
            "training": {"per_device_train_batch_size": 2, "num_train_epochs": 2} | (training or {}),
            "sweep": {"sampler": "grid", "pruner": "none", "parameters": parameters} | sweep,
        }
    )


def plan(spec, tmp_path, *, device=CPU, limit=DEFAULT_LIMIT):
    return make_plan(spec, RunFolder(tmp_path / "runs" / spec.study_name), device=device, limit=limit)


def test_a_grid_is_counted_without_its_duplicates(base, tmp_path):
    parameters = {
        "r": {"values": [4, 8]},
        "alpha_ratio": {"values": [1, 2]},
        "target_modules": {
            "values": ["all-linear", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]]
        },
    }
    made = plan(study(base, parameters=parameters), tmp_path)
    assert (made.configurations, made.duplicates, made.shared, made.trained) == (8, 4, 0, 4)
    assert made.is_exact


def test_runs_of_fewer_epochs_are_shared_where_the_rate_allows_it(base, tmp_path):
    parameters = {"r": {"values": [4, 8]}, "num_train_epochs": {"values": [1, 2, 3]}}
    constant = plan(study(base, parameters=parameters), tmp_path)
    assert (constant.configurations, constant.shared, constant.trained) == (6, 4, 2)
    assert "read off" in constant.trajectory
    linear = plan(study(base, parameters=parameters, training={"lr_scheduler_type": "linear"}), tmp_path)
    assert (linear.configurations, linear.shared, linear.trained) == (6, 0, 6)


def test_other_samplers_tell_their_trials_and_retrainings(base, tmp_path):
    spec = study(
        base,
        parameters={"r": {"min": 2, "max": 64, "log": True}},
        sampler="tpe",
        n_trials=20,
        confirm={"top": 2, "seeds": 3},
        pack_size=4,
    )
    made = plan(spec, tmp_path)
    assert (made.configurations, made.trained, made.retrainings, made.is_exact) == (20, 20, 6, False)
    assert made.duplicates is None
    assert made.packs == 7
    assert made.space == {"r": "2 to 64, log"}
    assert [row.r for row in made.adapters] == [2, 64]


def test_parameters_are_counted_exactly(base, tmp_path):
    made = plan(study(base, parameters={"r": {"values": [4]}, "target_modules": {"values": ["attention"]}}), tmp_path)
    [row] = made.adapters
    assert row.trainable_params == 2 * 4 * 4 * (64 + 64)
    assert row.trainable_percent == pytest.approx(
        100 * row.trainable_params / (made.base_parameters + row.trainable_params)
    )


def test_experts_are_counted_and_told_of(base, tmp_path):
    (base / "config.json").write_text(json.dumps(SMALL | {"model_type": "mixtral", "num_local_experts": 4}))
    parameters = {"target_modules": {"values": ["attention"]}, "target_parameters": {"values": ["none", "experts"]}}
    made = plan(study(base, parameters=parameters), tmp_path)
    counts = {row.target_modules: row.trainable_params for row in made.adapters}
    of_experts = 2 * 4 * 16 * ((64 + 2 * 128) + (128 + 64))
    assert counts == {"attention": 2 * 4 * 16 * 128, "attention+experts": 2 * 4 * 16 * 128 + of_experts}
    assert {(use.name, use.shapes) for use in made.engines} == {("packed", 1), ("reference", 1)}
    assert {row.target_modules: row.engine for row in made.memory} == {
        "attention": "packed",
        "attention+experts": "reference",
    }
    assert any("target_parameters trains experts" in note for note in made.notes)
    console = Console(record=True, width=200)
    print_plan(made, console)
    said = console.export_text()
    assert (
        "attention+experts adapts attention: k_proj, o_proj, q_proj, v_proj; experts: down_proj, gate_up_proj" in said
    )
    alone = plan(study(base, parameters={"r": {"values": [4]}}), tmp_path)
    assert any("stay frozen in all trials" in note for note in alone.notes)


def test_what_does_not_fit_is_named_with_what_was_tried(base, tmp_path):
    spec = study(base, parameters={"r": {"values": [4, 64]}}, training={"per_device_train_batch_size": 4})
    free = plan(spec, tmp_path, device=CPU)
    assert all(row.fits is None and row.at_once is None for row in free.memory)
    small, large = sorted(row.predicted_bytes for row in free.memory)
    made = plan(spec, tmp_path, device=CPU, limit=MemoryLimit((small + large) // 2))
    by_rank = {row.r: row for row in made.memory}
    assert by_rank[4].fits
    assert by_rank[4].at_once >= 1
    assert not by_rank[64].fits
    assert by_rank[64].at_once == 0
    tried = {remedy.change: remedy for remedy in by_rank[64].remedies}
    assert tried.keys() >= {"quantization: nf4", "gradient_checkpointing: true", "all of these"}
    assert any(name.startswith("per_device_train_batch_size: 1") for name in tried)
    assert all(remedy.predicted_bytes < large for remedy in tried.values())
    assert all(remedy.fits == (remedy.predicted_bytes <= made.limit_bytes) for remedy in tried.values())
    console = Console(record=True, width=200)
    print_plan(made, console)
    said = console.export_text()
    assert all(bytes_text(size) in said for size in (large, made.limit_bytes, by_rank[4].predicted_bytes))
    assert not re.search(r"\d (kB|MB|GB)\b", said)


def test_a_cuda_device_has_a_context_and_a_default_limit(base, tmp_path):
    spec = study(base, parameters={"r": {"values": [4]}})
    made = plan(spec, tmp_path, device=device_named("24GB"))
    [row] = made.memory
    assert row.terms["context"] > 0
    assert row.fits
    assert made.limit_bytes == int(0.92 * (24 * 10**9 - row.terms["context"]))


def test_the_engine_of_each_shape_and_why(base, tmp_path):
    made = plan(study(base, parameters={"use_dora": {"values": [False, True]}}), tmp_path)
    uses = {use.name: use for use in made.engines}
    assert uses.keys() == {"packed", "reference"}
    assert "use_dora" in uses["reference"].reason
    rows = {row.engine: row for row in made.memory}
    assert rows["packed"].predicted_bytes > 0
    assert rows["reference"].predicted_bytes is None


def test_an_int8_base_is_packed_on_a_cpu_and_not_on_a_cuda_device(base, tmp_path):
    spec = study(base, parameters={"quantization": {"values": ["int8"]}})
    [here] = plan(spec, tmp_path).engines
    [there] = plan(spec, tmp_path, device=device_named("H100-80GB")).engines
    assert (here.name, there.name) == ("packed", "reference")
    assert "int8 products on CUDA" in there.reason


def test_work_is_told_where_rows_are_counted_cheaply(base, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a b"}\n' * 40)
    parameters = {"r": {"values": [4]}}
    known = plan(study(base, parameters=parameters, data={"train": str(rows), "eval": 0.25}), tmp_path)
    assert known.work.examples == 30
    tokens = 30 * 32
    flops = tokens * (4 * known.base_parameters + 6 * known.adapters[0].trainable_params)
    assert known.work.flops_per_epoch == (flops, flops)
    assert known.work.total_flops == 2 * flops
    assert known.work.seconds is None
    unknown = plan(study(base, parameters=parameters), tmp_path)
    assert unknown.work.examples is None
    assert unknown.work.total_flops is None


def test_confounds_of_the_design_are_named(base, tmp_path):
    made = plan(study(base, parameters={"r": {"values": [4, 8]}}), tmp_path)
    assert any("learning rate" in note for note in made.notes)


def test_a_model_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.model_name_or_path"):
        plan(study(tmp_path / "none", parameters={"r": {"values": [4]}}), tmp_path)


def test_a_target_that_no_module_has_is_refused(base, tmp_path):
    with pytest.raises(InputError, match="matches no linear module"):
        plan(study(base, parameters={"target_modules": {"values": [["query"]]}}), tmp_path)


def test_a_plan_is_plain_data(base, tmp_path):
    made = plan(study(base, parameters={"r": {"values": [4]}}), tmp_path)
    assert json.loads(json.dumps(made.as_dict()))["configurations"] == 1


def answering(base, tmp_path, rows=7, **evaluation) -> StudySpec:
    """A study whose trials answer prompts."""
    lines = [json.dumps({"prompt": f"ask {n}", "completion": f"say {n}"}) for n in range(rows)]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines) + "\n")
    spec = study(
        base,
        parameters={"r": {"values": [4, 8]}, "learning_rate": {"values": [1e-3, 2e-3]}},
        data={"train": str(tmp_path / "asked.jsonl"), "eval": str(tmp_path / "asked.jsonl")},
        training={"per_device_eval_batch_size": 4},
    )
    return spec.model_validate(
        spec.model_dump() | {"evaluation": {"metrics": ["exact_match"], "max_new_tokens": 5, **evaluation}}
    )


def test_answers_are_counted_with_what_the_base_keeps_meanwhile(base, tmp_path):
    made = plan(answering(base, tmp_path), tmp_path)
    told = made.generation
    assert (told.prompts, told.max_new_tokens, told.rounds, told.tokens) == (7, 5, 1, 7 * 5 * (4 + 1))
    assert (told.rows, told.length) == (4, 32 + 5)
    per_token = 2 * 4 * 16 * 2 * 4  # layers, heads, their width, keys and values, float32
    assert told.kept_bytes == 4 * (32 + 5 - 1) * per_token
    console = Console(record=True, width=300)
    print_plan(made, console)
    said = console.export_text()
    assert "at most 175 new tokens in all: 7 prompts of up to 5 by each trial at the end, and once by the bare" in said
    assert f"a trial's 4 rows of 37 tokens take {bytes_text(told.kept_bytes)} of keys, values and states" in said
    assert json.loads(json.dumps(made.as_dict()))["generation"]["tokens"] == 175


def test_test_prompts_are_answered_once_by_each_trial_and_the_bare_base(base, tmp_path):
    (tmp_path / "unseen.jsonl").write_text('{"prompt": "ask", "completion": "say"}\n' * 3)
    spec = answering(base, tmp_path, at="evaluations")
    spec = spec.model_validate(
        spec.model_dump() | {"data": spec.data.model_dump() | {"test": {"path": str(tmp_path / "unseen.jsonl")}}}
    )
    made = plan(spec, tmp_path)
    assert (made.generation.test_prompts, made.generation.tokens) == (3, 7 * 5 * (4 * 2 + 1) + 3 * 5 * (4 + 1))
    console = Console(record=True, width=300)
    print_plan(made, console)
    assert "by each trial 2 times (3 test prompts once), and once by the bare base" in console.export_text()


def test_at_evaluations_they_are_counted_as_often_as_it_is_evaluated(base, tmp_path):
    told = plan(answering(base, tmp_path, at="evaluations"), tmp_path).generation
    assert (told.rounds, told.tokens) == (2, 7 * 5 * (4 * 2 + 1))


def test_a_study_of_losses_answers_nothing_and_rows_elsewhere_are_not_counted(base, tmp_path):
    spec = study(base, parameters={"r": {"values": [4]}})
    assert plan(spec, tmp_path).generation is None
    asks = spec.model_validate(spec.model_dump() | {"evaluation": {"metrics": ["exact_match"]}})
    made = plan(asks, tmp_path)
    assert (made.generation.prompts, made.generation.tokens) == (None, None)
    assert made.generation.kept_bytes > 0
    console = Console(record=True, width=300)
    print_plan(made, console)
    assert "up to 64 new tokens for each held-out prompt; how many is not counted" in console.export_text()
