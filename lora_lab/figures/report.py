"""The trade-off report: question and verdict in words, then figures, tables, and how to reproduce it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from lora_lab.analysis.verdict import sentences
from lora_lab.analysis.wording import bytes_text, count_text, nats, number_text, plural, rate_text, value_text
from lora_lab.figures.page import page
from lora_lab.figures.parallel import parallel_coordinates
from lora_lab.figures.plots import (
    forgetting_by_gain,
    learning_curves,
    loss_by_parameters,
    loss_by_rank,
    memory_by_rank,
    rank_and_ratio,
)
from lora_lab.figures.tables import ranks_table, table, text_cell, trials_table, value_table
from lora_lab.study.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_lab.analysis.audit import AuditNote
    from lora_lab.analysis.verdict import Findings, Standing
    from lora_lab.figures.style import Panel
    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What someone else needs to run the study again."""

    command: str
    """The command line, without secrets."""
    study_hash: str
    """Of the study file and the sweep that it names."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """By package; also the device and the operating system."""


def write_report(
    path: Path,
    spec: StudySpec,
    results: Sequence[TrialResult],
    findings: Findings,
    *,
    base_forgetting: float | None = None,
    notes: Sequence[AuditNote] = (),
    reproduction: Reproduction,
) -> None:
    """Write the report as one HTML file that needs no network; the file is replaced as a whole.

    Args:
        path: where to write; its folder must exist.
        spec: the study.
        results: every trial in every state, retrainings included.
        findings: of `decide` on the same results.
        base_forgetting: loss of the bare base on general text, in nats per token.
        notes: of `audit`.
        reproduction: how to run it again.

    Raises:
        StorageError: the file cannot be written.

    """
    panels = _panels(results, findings, base_forgetting)
    parts = [
        _head(spec, findings, results),
        _notes(notes),
        *map(_panel, panels),
        _values(spec, results),
        _trials(results, findings),
        _reproduce(spec, results, reproduction),
    ]
    _replace(path, page(f"{spec.study_name}: report", "\n".join(parts)))


def _panels(results: Sequence[TrialResult], findings: Findings, base_forgetting: float | None) -> list[Panel]:
    return [
        loss_by_rank(results, findings),
        rank_and_ratio(results),
        loss_by_parameters(results, findings),
        learning_curves(results, findings),
        parallel_coordinates(results),
        memory_by_rank(results),
        forgetting_by_gain(results, findings.base_loss, base_forgetting),
    ]


def _replace(path: Path, text: str) -> None:
    # The number of the process keeps two reports apart; a file left by a killed one blocks nobody.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write the report {path}: {error.strerror or error}; free space or fix permissions, and run the "
            "same command again: nothing is trained twice"
        ) from error


def _head(spec: StudySpec, findings: Findings, results: Sequence[TrialResult]) -> str:
    first, *others = sentences(findings)
    memory = {result.number: result.metrics.get("peak_memory_bytes") for result in results}
    choice = findings.cheapest if findings.helped else None
    return (
        f'<header><p class="dim">lora_lab report: {escape(spec.study_name)}</p>\n'
        f"<h1>{escape(spec.question or spec.study_name)}</h1></header>\n"
        f'<section><h2>Verdict</h2>\n<p class="lead">{escape(first)}</p>\n'
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in others)}</ul>\n"
        f"{_cards(findings, choice, memory.get(choice.number)) if choice else ''}"
        f"{_configuration(choice) if choice else ''}</section>"
    )


def _cards(findings: Findings, choice: Standing, memory: float | None) -> str:
    cards = {
        "recommended: the cheapest that ties": f"trial {choice.number}",
        "eval_loss, nats per token" if findings.metric == "eval_loss" else findings.metric: nats(choice.value),
        "below the bare base, nats": nats(findings.base_loss - choice.value),
        "trained parameters": count_text(choice.trainable_params),
    }
    if memory is not None:
        cards["peak memory"] = bytes_text(memory)
    shown = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for label, value in cards.items()
    )
    return f'<div class="cards">{shown}</div>\n'


def _configuration(choice: Standing) -> str:
    lora, training, model = choice.config.lora, choice.config.training, choice.config.model
    lines = {
        "r": str(lora.r),
        "lora_alpha": number_text(lora.alpha),
        "scaling": number_text(lora.scaling),
        "use_rslora": value_text(lora.use_rslora),
        "target_modules": value_text(lora.target_modules),
        "layers": value_text(lora.layers),
        "lora_dropout": number_text(lora.lora_dropout),
        "learning_rate": rate_text(training.learning_rate),
        "lr_scheduler_type": training.lr_scheduler_type,
        "num_train_epochs": str(training.num_train_epochs),
        "per_device_train_batch_size": str(training.per_device_train_batch_size),
        "model": model.model_name_or_path,
        "quantization": model.quantization,
    }
    text = "\n".join(f"{name}: {value}" for name, value in lines.items())
    return f"<h3>The recommended configuration</h3>\n<pre>{escape(text)}</pre>\n"


def _notes(notes: Sequence[AuditNote]) -> str:
    items = "".join(f"<li>{escape(note.sentence)}</li>" for note in notes)
    said = f'<ul class="warn">{items}</ul>' if notes else "<p>The audit found none of its confounds.</p>"
    return f"<section><h2>Read with care</h2>{said}</section>"


def _panel(panel: Panel) -> str:
    drawing = ""
    if panel.figure is not None:
        # "<" would end the data block early; in JSON it can only stand inside strings.
        data = panel.figure.to_json().replace("<", "\\u003c")
        width = ' class="wide"' if panel.wide else ""
        drawing = (
            f'<div class="scroll"><div{width}><div class="plot" id="{panel.key}"></div>'
            f'<script type="application/json">{data}</script></div></div>\n'
        )
    return f'<section><h2>{escape(panel.title)}</h2>\n<p class="dim">{escape(panel.words)}</p>\n{drawing}</section>'


def _values(spec: StudySpec, results: Sequence[TrialResult]) -> str:
    if not results:
        return ""
    tables = "".join(
        f"<div><h3>{escape(name)}</h3>{value_table(results, name)}</div>" for name in spec.sweep.parameters
    )
    return (
        '<section class="long"><h2>Value by value</h2>\n'
        '<p class="dim">eval_loss in nats per token over the finished trials. A sampler tries promising '
        "values more often and with better companions: read best and median as hints.</p>\n"
        f'<div class="grid">{tables}</div>\n<h3>Rank by target set</h3>{ranks_table(results)}</section>'
    )


def _trials(results: Sequence[TrialResult], findings: Findings) -> str:
    choice = findings.cheapest.number if findings.cheapest and findings.helped else None
    return (
        f'<section class="long breakout"><h2>All {plural(len(results), "trial")}</h2>\n'
        '<p class="dim">Click a column to sort. eval_loss and forgetting are in nats per token.</p>\n'
        f"{trials_table(results, choice)}</section>"
    )


def _reproduce(spec: StudySpec, results: Sequence[TrialResult], reproduction: Reproduction) -> str:
    seeds = sorted({result.config.training.seed for result in results})
    facts = {
        "study file (sha256)": reproduction.study_hash,
        "trial seeds": value_text(tuple(seeds)) if seeds else "none",
        "sampler": f"{spec.sweep.sampler}, seed {spec.sweep.seed}",
        "pruner": spec.sweep.pruner,
        "pack_size": str(spec.sweep.pack_size),
        **reproduction.versions,
    }
    rows = [[text_cell(name), text_cell(value)] for name, value in facts.items()]
    remark = (
        ""
        if spec.sweep.pack_size != "auto"
        else "<p class=dim>With pack_size: auto the order in which trials end "
        "depends on the device, and so does what the sampler tries next; a number makes it repeatable.</p>"
    )
    return (
        f"<section><h2>How to reproduce</h2><pre>{escape(reproduction.command)}</pre>\n{remark}"
        f"{table(['what', 'value'], rows)}</section>"
    )
