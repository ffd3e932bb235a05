"""What each finalist is worth by every metric that the study measured, with intervals over seeds and examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.analysis.comparison import contrast
from lora_lab.analysis.noise import noise_floor
from lora_lab.analysis.paired import ExampleLosses, example_difference, with_examples
from lora_lab.analysis.replicates import group_of, replicate_groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.findings import Findings, Standing
    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.paired import Evidence
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult

MOST_FINALISTS = 6
"""Configurations that are compared in detail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One finalist by one metric."""

    measure: Measure
    value: float
    """The mean over its trainings."""
    interval: tuple[float, float] | None
    """95%, within what the metric can be; None where nothing says how far it would move."""
    evidence: Evidence | None
    """What the interval covers: other seeds, other examples of this kind, or both."""
    runs: int


@dataclass(frozen=True, slots=True)
class FinalistValues:
    """One finalist by all metrics."""

    standing: Standing
    values: Sequence[MetricValue]


def finalists(findings: Findings) -> list[Standing]:
    """The best configuration, the recommended one, and the next best of those that the verdict compares."""
    return findings.compared[:MOST_FINALISTS]


def finalist_values(
    results: Sequence[TrialResult],
    findings: Findings,
    measures: Sequence[Measure],
    losses: Mapping[str, Mapping[int, ExampleLosses]],
) -> list[FinalistValues]:
    """The values of all finalists.

    Args:
        results: every trial of the study, retrainings included.
        findings: of `decide` on the same trials.
        measures: what to tell of each.
        losses: by measure and trial number, what was measured on every evaluation example, as a loss.
    """
    told: dict[int, list[MetricValue]] = {}
    chosen = finalists(findings)
    for measure in measures:
        groups = replicate_groups(results, measure)
        noise = noise_floor(groups)
        for standing in chosen:
            group = group_of(standing.number, groups)
            if group is not None:
                value = _value(group, noise, losses.get(measure.name, {}))
                told.setdefault(standing.number, []).append(value)
    return [FinalistValues(standing, told[standing.number]) for standing in chosen if standing.number in told]


def _value(group: ReplicateGroup, noise: Noise | None, losses: Mapping[int, ExampleLosses]) -> MetricValue:
    known = [losses[run.number] for run in group.runs.values() if run.number in losses]
    # Against nothing, so that the difference is the value itself.
    nothing = [replace(one, nll=np.zeros_like(one.nll)) for one in known]
    has_all = len(known) == len(group.runs) and all(one.clusters > 1 for one in known)
    told = None
    if noise is not None:
        told = contrast([(1.0, group)], noise)
        told = with_examples(told, known, nothing) if has_all else told
    elif has_all and len(known) == 1:
        told = example_difference(known[0], nothing[0])
    measure = group.measure
    return MetricValue(
        measure=measure,
        value=group.value,
        interval=None if told is None else measure.interval(told.interval()),
        evidence=None if told is None else told.evidence,
        runs=len(group.values),
    )
