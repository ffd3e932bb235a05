"""The trade-off report: question and verdict in words, then figures, tables, and how to reproduce it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from lora_lab.analysis.verdict_words import sentences
from lora_lab.analysis.wording import (
    config_label,
    measure_text,
    one_line,
    plural,
    setting_text,
    value_text,
)
from lora_lab.common.secrets import redact
from lora_lab.figures.behavior import behavior_panels
from lora_lab.figures.cells import Table, folded, html_table, text_cell
from lora_lab.figures.epochs import epochs_and_overfitting
from lora_lab.figures.equal_budget import arm_panels
from lora_lab.figures.fronts import forgetting_against_gain, pareto_panel
from lora_lab.figures.importance import importance_panel
from lora_lab.figures.losses import (
    learning_curves,
    loss_by_rank,
    rank_and_ratio,
)
from lora_lab.figures.memory import memory_by_rank, memory_terms, predicted_memory
from lora_lab.figures.page import contents, not_drawn, section, write_page
from lora_lab.figures.parallel import parallel_coordinates
from lora_lab.figures.ranks import adequate_ranks, rules_of_thumb, scale_response
from lora_lab.figures.spectra import rank_used
from lora_lab.figures.tables import ranks_table, trials_table, value_table
from lora_lab.figures.verdict import facts_table, verdict_table
from lora_lab.study.measures import MEASURES, PEAK_MEMORY, TRAINABLE_PARAMS, in_unit_of
from lora_lab.study.trial_settings import told_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_lab.analysis.audit import AuditNote
    from lora_lab.analysis.findings import Findings, Standing
    from lora_lab.figures.evidence import Evidence, Reproduction
    from lora_lab.figures.style import Panel
    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value


def write_report(path: Path, evidence: Evidence, panels: Sequence[Panel]) -> None:
    """Write the report as one HTML file that needs no network; the file is replaced as a whole.

    Args:
        path: where to write; its folder must exist.
        evidence: the study and what its trials say.
        panels: of `panels_of` on the same evidence.

    Raises:
        StorageError: the file cannot be written.

    """
    spec, results, findings = evidence.spec, evidence.results, evidence.findings
    shown = [panel for panel in panels if panel.is_shown]
    parts = [
        _head(spec, findings, evidence.on_test),
        contents(FIRST_SECTIONS + [(f"about-{panel.key}", panel.title) for panel in shown] + OTHER_SECTIONS),
        _evidence_for(findings),
        _notes(evidence.notes),
        *(section(panel) for panel in shown),
        not_drawn(panels),
        _values(spec, results),
        _trials(results, findings),
        _reproduce(spec, results, evidence.reproduction),
    ]
    write_page(path, f"{spec.study_name}: report", in_unit_of(spec.model.task_type, "\n".join(parts)))


FIRST_SECTIONS = [("evidence", "What the verdict rests on"), ("care", "Read with care")]
OTHER_SECTIONS = [("values", "Value by value"), ("trials", "All trials"), ("reproduce", "How to reproduce")]


def panels_of(evidence: Evidence) -> list[Panel]:
    """The figures of a study in the order of the report, each with its words; some have only words."""
    results, findings = evidence.results, evidence.findings
    labels = {result.number: config_label(result.config, result.params) for result in results}
    return [
        loss_by_rank(results, findings),
        adequate_ranks(evidence.rank_curves),
        rank_and_ratio(results),
        rules_of_thumb(evidence.rules),
        scale_response(evidence.scale),
        *(panel for comparison in evidence.arms for panel in arm_panels(comparison)),
        *(pareto_panel(front, results) for front in evidence.fronts),
        epochs_and_overfitting(evidence.epochs, labels),
        learning_curves(results, findings),
        *behavior_panels(evidence),
        forgetting_against_gain(evidence.forgetting, evidence.base_forgetting),
        memory_by_rank(results),
        predicted_memory(results),
        memory_terms(results),
        importance_panel(evidence.importance),
        rank_used(evidence.spectra),
        parallel_coordinates(results),
    ]


def _head(spec: StudySpec, findings: Findings, on_test: str | None) -> str:
    first, *others = [*sentences(findings), *([on_test] if on_test else [])]
    choice = findings.cheapest if findings.helped else None
    return (
        f'<header><p class="dim">lora_lab report: {escape(spec.study_name)}</p>\n'
        f"<h1>{escape(spec.question or spec.study_name)}</h1></header>\n"
        f'<section class="long"><h2>Verdict</h2>\n<p class="lead">{escape(first)}</p>\n'
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in others)}</ul>\n"
        f"{_cards(findings, choice) if choice else ''}"
        f"{_configuration(spec, choice) if choice else ''}</section>"
    )


def _cards(findings: Findings, choice: Standing) -> str:
    measure = findings.measure
    cards = {
        "recommended: the cheapest that ties": f"trial {choice.number}",
        f"{measure.label}, {measure.unit}" if measure.unit else measure.label: measure_text(measure, choice.value),
        f"{measure.better} the bare base, {measure.distance_unit}": measure_text(
            measure, measure.gain_over(findings.base_value, choice.value)
        ),
    }
    shown_costs = dict.fromkeys((TRAINABLE_PARAMS.name, PEAK_MEMORY.name, choice.cost_metric))
    cards |= {
        MEASURES[name].label: measure_text(MEASURES[name], choice.costs[name])
        for name in shown_costs
        if name in choice.costs
    }
    shown = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for label, value in cards.items()
    )
    return f'<div class="cards">{shown}</div>\n'


def _configuration(spec: StudySpec, choice: Standing) -> str:
    settings = told_of(spec, choice.config)
    text = "\n".join(f"{name}: {_in_full(name, value)}" for name, value in settings.items())
    return f"<h3>The recommended configuration</h3>\n<pre>{escape(text)}</pre>\n"


def _in_full(name: str, value: Value | None) -> str:
    """The value of a setting as in a study file, however long, without secrets."""
    if isinstance(value, str):
        return redact(one_line(value, len(value)))
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else setting_text(name, value)


def _evidence_for(findings: Findings) -> str:
    said = (
        "one-sided paired tests against the margin, Holm-corrected" if findings.tested else "not tested: no replicates"
    )
    unit = f" in {findings.measure.unit}" if findings.measure.unit else ""
    rows = (
        f'<p class="dim">Each configuration against the best one ({said}). p is against "worse by the margin or '
        f'more", {findings.measure.label}{unit}.</p>\n{html_table(verdict_table(findings))}'
        if findings.rows
        else ""
    )
    return (
        f'<section class="long breakout" id="evidence"><h2>What the verdict rests on</h2>\n{rows}\n'
        f"<h3>Every other number that it says</h3>{folded(facts_table(findings))}</section>"
    )


def _notes(notes: Sequence[AuditNote]) -> str:
    items = "".join(f"<li>{escape(note.sentence)}</li>" for note in notes)
    said = f'<ul class="warn">{items}</ul>' if notes else "<p>The audit found none of its confounds.</p>"
    return f'<section id="care"><h2>Read with care</h2>{said}</section>'


def _values(spec: StudySpec, results: Sequence[TrialResult]) -> str:
    if not results:
        return ""
    tables = "".join(
        f"<div><h3>{escape(name)}</h3>{html_table(value_table(results, name))}</div>" for name in spec.sweep.parameters
    )
    return (
        '<section class="long" id="values"><h2>Value by value</h2>\n'
        '<p class="dim">eval_loss in nats per token over the finished trials. A sampler tries promising '
        "values more often and with better companions: read best and median as hints.</p>\n"
        f'<div class="grid">{tables}</div>\n<h3>Rank by target set</h3>{html_table(ranks_table(results))}</section>'
    )


def _trials(results: Sequence[TrialResult], findings: Findings) -> str:
    choice = findings.cheapest.number if findings.cheapest and findings.helped else None
    return (
        f'<section class="long breakout" id="trials"><h2>All {plural(len(results), "trial")}</h2>\n'
        '<p class="dim">One row per trial; "nats" are nats per token.'
        '<span class="needs-script"> Press a column\'s name to sort by it.</span></p>\n'
        f"{html_table(trials_table(results, choice))}</section>"
    )


def _reproduce(spec: StudySpec, results: Sequence[TrialResult], reproduction: Reproduction) -> str:
    seeds = sorted({result.config.training.seed for result in results})
    facts = {
        "study, sweep and overrides (sha256)": reproduction.study_hash,
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
        f'<section id="reproduce"><h2>How to reproduce</h2><pre>{escape(reproduction.command)}</pre>\n{remark}'
        f"{html_table(Table(['what', 'value'], rows))}</section>"
    )
