"""What the report is made of, gathered from the trials of a study and from the adapters in its folder."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, deserialize

from lora_lab.analysis.adequate_rank import rank_curves
from lora_lab.analysis.agreement import agreement
from lora_lab.analysis.epochs import epoch_curves
from lora_lab.analysis.equal_budget import compare_arms
from lora_lab.analysis.metric_values import finalist_values, finalists
from lora_lab.analysis.pareto import front
from lora_lab.analysis.scale import scale_response, score_rules
from lora_lab.analysis.spectrum import factors, spectrum, summarize
from lora_lab.analysis.wording import config_label
from lora_lab.common.errors import CheckpointError, InputError
from lora_lab.figures.evidence import AdapterSpectrum, Evidence, Reproduction
from lora_lab.results.answers import read_answers
from lora_lab.results.example_losses import read_example_losses
from lora_lab.results.harness_scores import read_harness_scores
from lora_lab.search.importance import importances
from lora_lab.study.measures import EVAL_LOSS, MEASURES, costs, on_test
from lora_lab.tracking.describe import versions

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.analysis.metric_values import FinalistValues
    from lora_lab.analysis.spectrum import Spectrum
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results
    from lora_lab.study.measures import Measure
    from lora_lab.study.spec import StudySpec

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
MOST_SPECTRA = 6
"""Adapters whose singular values are computed: the chosen ones and their closest rivals."""


def gather(results: Results, folder: RunFolder, command: str, device: str | None = None) -> Evidence:
    """Compute everything that the report shows; adapters are read where they are still there.

    Args:
        results: Of `read_results`.
        folder: The study's files.
        command: The command line that repeats the study, without secrets.
        device: What the trials were trained on, in words.

    Raises:
        CheckpointError: an adapter is damaged.
    """
    spec, trials, findings = results.spec, results.trials, results.findings
    comparisons = (compare_arms(trials, "target_modules"), compare_arms(trials, "layers"))
    fronts = (front(trials, (cost,), findings.measure) for cost in costs())
    chosen = finalists(findings)
    packages = versions() | ({"device": device} if device else {})
    return Evidence(
        spec=spec,
        results=trials,
        findings=findings,
        base_forgetting=results.base_values.get("forgetting_loss"),
        notes=results.notes,
        rank_curves=rank_curves(trials, findings, results.losses),
        arms=[comparison for comparison in comparisons if comparison is not None],
        scale=scale_response(trials),
        rules=score_rules(trials),
        fronts=[one for one in fronts if one is not None],
        epochs=epoch_curves(trials),
        forgetting=results.forgetting(),
        on_test=results.on_test(),
        importance=importances(spec, trials),
        spectra=adapter_spectra(results, folder),
        values=_values(results, folder),
        base_values=results.base_values,
        agreements=[one for measure in _metrics(spec) if (one := agreement(trials, measure)) is not None],
        answers=read_answers(folder, trials, chosen),
        task_scores=read_harness_scores(folder),
        reproduction=Reproduction(command=command, study_hash=spec.digest, versions=packages),
    )


def _metrics(spec: StudySpec) -> list[Measure]:
    """What the study asked for beside the loss."""
    return [MEASURES[name] for name in spec.evaluation.metrics]


def _values(results: Results, folder: RunFolder) -> list[FinalistValues]:
    """The finalists by the loss and all metrics, on test rows too; empty where only one loss was measured."""
    metrics, has_test = _metrics(results.spec), results.spec.data.test is not None
    measures = [EVAL_LOSS, *metrics] if metrics or has_test else []
    measures += [MEASURES[on_test(measure.name)] for measure in measures] if has_test else []
    judged = results.findings.measure
    losses = {
        measure.name: results.losses if measure is judged else read_example_losses(folder, results.trials, measure)
        for measure in measures
    }
    return finalist_values(results.trials, results.findings, measures, losses)


def adapter_spectra(results: Results, folder: RunFolder) -> list[AdapterSpectrum]:
    """Spectra of the adapters of the chosen trials and of their closest rivals, as far as they were kept.

    DoRA is left out: its update is not scaling * B A alone.

    Raises:
        CheckpointError: an adapter is damaged.
    """
    findings = results.findings
    by_number = {trial.number: trial for trial in results.trials}
    spectra = []
    for number in (standing.number for standing in findings.compared):
        trial = by_number[number]
        adapter = folder.adapter_of(trial)
        if trial.config.lora.use_dora or not (adapter / "adapter_model.safetensors").is_file():
            continue
        role = " and ".join(findings.roles(number))
        summary = summarize(read_spectra(adapter).values())
        spectra.append(
            AdapterSpectrum(number=number, label=config_label(trial.config, trial.params), role=role, summary=summary)
        )
    return spectra[:MOST_SPECTRA]


def read_spectra(adapter: Path) -> dict[str, Spectrum]:
    """The spectrum of every adapted matrix of a PEFT adapter folder, by the name of its A (and the expert's number).

    Raises:
        CheckpointError: the adapter is damaged.
    """
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        payload = (adapter / "adapter_model.safetensors").read_bytes()
        entries = dict(deserialize(payload))  # type: ignore[no-untyped-call]
        scaling = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
        pairs = {name: name.replace(".lora_A.", ".lora_B.") for name in entries if ".lora_A." in name}
        stacks = {a: factors(_array(entries[a]), _array(entries[b]), config["r"]) for a, b in sorted(pairs.items())}
        return {
            f"{a}[{expert}]" if len(stack) > 1 else a: spectrum(*matrix, scaling)
            for a, stack in stacks.items()
            for expert, matrix in enumerate(stack)
        }
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, InputError) as error:
        raise CheckpointError(
            f"the adapter {adapter} cannot be read ({error}); remove that folder to have the report without it"
        ) from error


def _array(entry: dict[str, object]) -> np.ndarray:
    """An array from what safetensors gives; numpy has no bfloat16, which is the upper half of a float32."""
    dtype, shape, data = entry["dtype"], entry["shape"], entry["data"]
    assert isinstance(dtype, str)
    assert isinstance(shape, list)
    assert isinstance(data, (bytes, bytearray))
    if dtype == "BF16":
        flat = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(data, DTYPES[dtype])
    return flat.reshape(shape)
