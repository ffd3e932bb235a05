"""The model card of an adapter: what it is, how it was chosen, how sure that is, how to load it. No path is in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from lora_lab.analysis.verdict_words import sentences
from lora_lab.analysis.wording import config_label, measure_interval, measure_text, value_and_unit, value_name
from lora_lab.data.locations import HUB_ID
from lora_lab.study.data_settings import DatasetRef
from lora_lab.study.measures import EVAL_LOSS, in_unit_of, metrics, on_test

if TYPE_CHECKING:
    from lora_lab.analysis.findings import Findings
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import ModelSettings

BUILTIN = "builtin/"


def hub_id(name: str) -> str | None:
    """The Hub's id behind a model's or dataset's name in a study file, None for a path or a builtin name."""
    if name.startswith(BUILTIN) or Path(name).expanduser().exists() or not HUB_ID.fullmatch(name):
        return None
    return name


def base_words(model: ModelSettings) -> str:
    """The base in words: its Hub id, its builtin name, or the name of its folder without the path to it."""
    name = model.model_name_or_path
    return name if name.startswith(BUILTIN) or hub_id(name) else Path(name).expanduser().resolve().name


def card_data(study: str, result: TrialResult) -> ModelCardData:
    """The metadata that the Hub reads."""
    base = hub_id(result.config.model.model_name_or_path)
    data = result.config.data
    evaluated = data.eval if isinstance(data.eval, DatasetRef) else data.train_refs[0]
    names = (EVAL_LOSS.name, *metrics())
    measured = [(name, name, evaluated) for name in names]
    measured += [(name, on_test(name), data.test) for name in names if data.test is not None]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_id(rows.path) or "local",
            dataset_name=_dataset_words(rows),
            metric_type="loss" if name == EVAL_LOSS.name else name,
            metric_name=known_as,
            metric_value=round(value, 6),
        )
        for name, known_as, rows in measured
        if math.isfinite(value := result.metrics.get(known_as, math.nan))
    ]
    extra: dict[str, Any] = {"base_model": base, "base_model_relation": "adapter"} if base else {}
    datasets = [found for ref in data.train_refs if (found := hub_id(ref.path))]
    return ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "peft", "lora_lab", *([f"base_model:adapter:{base}"] if base else [])],
        datasets=list(dict.fromkeys(datasets)) or None,
        model_name=f"{study} trial {result.number}",
        eval_results=results or None,
        **extra,
    )


def card(study: str, result: TrialResult, findings: Findings, adapter: str = "adapter") -> str:
    """The README.md of an adapter folder.

    Args:
        study: The study's name.
        result: The trial that the adapter is of.
        findings: The verdict on the study.
        adapter: What the adapter is loaded from, a Hub id or the name of its folder.
    """
    label = config_label(result.config, result.params)
    parts = [
        f"---\n{card_data(study, result).to_yaml()}\n---",
        f"# LoRA adapter of study {study}, trial {result.number}",
        f"{label}, on {base_words(result.config.model)}. {_measured(result, findings)}",
        "## How it was chosen",
        _chosen(result, findings),
        "\n".join(f"- {sentence}" for sentence in sentences(findings)),
        "## How to load it",
        f"```python\n{_snippet(result, adapter)}\n```",
        "## How it was trained",
        *([f"{result.reason[0].upper()}{result.reason[1:]}."] if result.reason else []),
        f"```yaml\n{_settings(result)}```",
    ]
    return in_unit_of(result.config.model.task_type, "\n\n".join(parts) + "\n")


def _dataset_words(ref: DatasetRef) -> str:
    return ref.path if ref.path.startswith(BUILTIN) or hub_id(ref.path) else Path(ref.path).name


def _measured(result: TrialResult, findings: Findings) -> str:
    measure = findings.measure
    value = result.metrics.get(measure.name)
    if value is None:
        return "It has no result."
    row = next((row for row in findings.rows if row.standing.number == result.number), None)
    text = (
        f"{value_name(measure).capitalize()} on held-out data: {value_and_unit(measure, value)}; the bare base has "
        f"{measure_text(measure, findings.base_value)}."
    )
    if row is None or row.value_interval is None:
        return f"{text} It was trained once, so no interval is known."
    interval = measure_interval(measure, row.value_interval)
    mean = measure_text(measure, row.standing.value)
    return f"{text} Over {row.standing.runs} trainings: {mean}, 95% {interval}."


def _chosen(result: TrialResult, findings: Findings) -> str:
    end = "highest" if findings.measure.goal == "maximize" else "lowest"
    best = f"the {end} {value_name(findings.measure)}"
    standings = {best: findings.best, "the cheapest that ties with it": findings.cheapest}
    roles = [role for role, standing in standings.items() if standing and standing.number == result.number]
    if not roles:
        return f"Trial {result.number} was picked by hand. The study's verdict:"
    return f"Of {sum(findings.states.values())} trials it is {' and '.join(roles)}. The study's verdict:"


def _snippet(result: TrialResult, adapter: str) -> str:
    model = result.config.model
    base = hub_id(model.model_name_or_path)
    revision = f', revision="{model.revision}"' if base and model.revision else ""
    where = f'"{base}"{revision}' if base else '"..."'
    folder = "" if base else f"  # the folder of {base_words(model)}"
    kind, classes = "CausalLM", ""
    if model.labels is not None:
        kind, classes = "SequenceClassification", f", id2label={dict(enumerate(model.labels))}"
    return (
        "from peft import PeftModel\n"
        f"from transformers import AutoModelFor{kind}\n\n"
        f"base = AutoModelFor{kind}.from_pretrained({where}{classes}){folder}\n"
        f'model = PeftModel.from_pretrained(base, "{adapter}")'
    )


def _settings(result: TrialResult) -> str:
    """The sections without paths."""
    sections = result.config.model_dump(mode="json", exclude_none=True, include={"training", "lora"})
    sections["lora"].pop("alpha_ratio", None)
    sections["lora"]["lora_alpha"] = result.config.lora.alpha
    return str(yaml.safe_dump(sections, sort_keys=False))
