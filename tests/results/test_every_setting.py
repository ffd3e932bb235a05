"""Every setting that a study can search reaches everything that tells trials apart."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from lora_lab.analysis.verdict import decide
from lora_lab.analysis.wording import setting_text, trial_label
from lora_lab.figures.evidence import Evidence, Reproduction
from lora_lab.figures.parallel import parallel_coordinates
from lora_lab.figures.report import write_report
from lora_lab.results.choice import configuration_yaml
from lora_lab.search.store import open_store
from lora_lab.study.file.loading import load_study
from lora_lab.study.sweep import SEARCHABLE
from lora_lab.study.trial_settings import settings_of, value_of
from lora_lab.tracking.describe import trial_name, trial_params

COSINE = {"training": {"lr_scheduler_type": "cosine"}}
KEPT = {"training": {"load_best_model_at_end": True}}
DECAYING = {"training": {"lr_scheduler_type": "warmup_stable_decay"}}
VALUES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "quantization": (["nf4", "int8"], {}),
    "double_quant": ([True, False], {"model": {"quantization": "nf4"}}),
    "max_length": ([256, 128], {}),
    "packing": ([True, False], {}),
    "max_train_examples": ([64, 128], {}),
    "learning_rate": ([1e-3, 2e-3], {}),
    "per_device_train_batch_size": ([4, 2], {}),
    "gradient_accumulation_steps": ([2, 4], {}),
    "num_train_epochs": ([2, 3], {}),
    "max_steps": ([50, 60], {}),
    "lr_scheduler_type": (["cosine", "linear"], {}),
    "warmup_ratio": ([0.1, 0.2], COSINE),
    "warmup_steps": ([10, 20], COSINE),
    "decay_ratio": ([0.2, 0.3], DECAYING),
    "decay_steps": ([10, 20], DECAYING),
    "optim": (["sgd", "adamw_8bit"], {}),
    "loraplus_lr_ratio": ([16.0, 4.0], {}),
    "gradient_checkpointing": ([True, False], {}),
    "weight_decay": ([0.1, 0.2], {}),
    "adam_beta1": ([0.8, 0.85], {}),
    "adam_beta2": ([0.95, 0.99], {}),
    "adam_epsilon": ([1e-6, 1e-7], {}),
    "max_grad_norm": ([0.5, 0.3], {}),
    "seed": ([3, 4], {}),
    "eval_steps": ([10, 20], {}),
    "per_device_eval_batch_size": ([4, 2], {}),
    "logging_steps": ([5, 10], {}),
    "load_best_model_at_end": ([True, False], {}),
    "metric_for_best_model": (
        ["perplexity", "eval_loss"],
        {**KEPT, "evaluation": {"metrics": ["perplexity"], "at": "evaluations"}},
    ),
    "early_stopping_patience": ([3, 5], KEPT),
    "early_stopping_threshold": ([0.1, 0.2], {"training": {**KEPT["training"], "early_stopping_patience": 2}}),
    "r": ([8, 32], {}),
    "lora_alpha": ([8.0, 64.0], {}),
    "alpha_ratio": ([0.5, 1.0], {}),
    "target_modules": ([["q_proj"], "attention"], {}),
    "layers": (["first_half", [0, 2]], {}),
    "target_parameters": (["experts", ["experts.down_proj"]], {}),
    "lora_dropout": ([0.1, 0.2], {}),
    "use_rslora": ([True, False], {}),
    "init_lora_weights": (["gaussian", False], {}),
    "use_dora": ([True, False], {}),
    "bias": (["all", "lora_only"], {}),
    "modules_to_save": ([["lm_head"], ["lm_head", "embed_tokens"]], {}),
}
"""Two values that a study may search, the first not the default, and the fixed settings that they need."""
BASE_LOSS = 5.0


def study(name: str, values: dict[str, Any], fixed: dict[str, Any]) -> dict[str, Any]:
    """A study file as a mapping."""
    sections: dict[str, Any] = {
        "study_name": name,
        "model": {"model_name_or_path": "builtin/tiny-llama"},
        "data": {"train": "builtin/stdlib-code"},
        "training": {},
        "lora": {},
    }
    for section, settings in fixed.items():
        sections[section] = {**sections.get(section, {}), **settings}
    return {**sections, "sweep": {"sampler": "grid", "pruner": "none", "parameters": values}}


def load(folder, mapping):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return load_study(path, [])


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """One database for all of these studies."""
    return f"sqlite:///{tmp_path_factory.mktemp('storage')}/studies.db"


def test_every_searchable_setting_is_walked() -> None:
    assert set(VALUES) == set(SEARCHABLE)


@pytest.mark.parametrize("name", VALUES)
def test_it_reaches_everything_that_tells_trials_apart(name: str, tmp_path, storage) -> None:
    values, fixed = VALUES[name]
    spec = load(tmp_path, study(name, {name: {"values": values}}, fixed))
    with open_store(spec, storage) as store:
        asked = [store.ask(), store.ask()]
        for number, one in enumerate(asked):
            store.finish(number, {"eval_loss": 4.0 + 0.1 * value_is(one.config, name, values[1])})
        trials = store.results()
    assert [trial.config for trial in trials] == [one.config for one in asked]
    best = min(trials, key=lambda trial: trial.metrics["eval_loss"])
    other = next(trial for trial in trials if trial is not best)
    value = value_of(best.config, name)
    assert value == (tuple(values[0]) if isinstance(values[0], list) else values[0])

    assert trial_params(best.config, "packed")[name] == value
    labels = [trial_label(trial.config, trial.params) for trial in (best, other)]
    names = [trial_name(0, trial.config, trial.params) for trial in (best, other)]
    assert labels[0] != labels[1]
    assert names[0] != names[1]
    assert f"<b>{name}</b>" in [note.text for note in parallel_coordinates(trials).figure.layout.annotations]

    findings = decide(trials, BASE_LOSS, 0.0)
    evidence = Evidence(
        spec=spec, results=trials, findings=findings, reproduction=Reproduction(command="", study_hash="")
    )
    write_report(tmp_path / "report.html", evidence, [])
    page = (tmp_path / "report.html").read_text()
    recommended = page.split("The recommended configuration</h3>")[1].split("</pre>")[0]
    shown = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else setting_text(name, value)
    assert f"{name}: {shown}" in recommended.removeprefix("\n<pre>").splitlines()

    sections = yaml.safe_load(configuration_yaml(best))
    pasted = load(tmp_path, {**study(name, {name: {"values": values}}, {}), **sections})
    assert settings_of(pasted.trial_config({})) == settings_of(best.config)


def value_is(config, name, value) -> bool:
    return value_of(config, name) == (tuple(value) if isinstance(value, list) else value)
