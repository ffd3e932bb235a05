"""What the verdict's choices are worth on rows that chose nothing (`data.test`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.comparison import value_interval
from lora_lab.analysis.noise import noise_floor
from lora_lab.analysis.replicates import group_of, replicate_groups
from lora_lab.analysis.wording import measure_interval, measure_text, value_and_unit
from lora_lab.study.measures import MEASURES, on_test

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.findings import Findings
    from lora_lab.study.results import TrialResult


def on_test_rows(results: Sequence[TrialResult], findings: Findings, base_values: Mapping[str, float]) -> str | None:
    """The best and the recommended configuration on the test rows, in a sentence; None where none was measured there.

    The rows that a choice is made on flatter it, by the more, the more trials there are to choose from; these do not.

    Args:
        results: every trial of the study, retrainings included.
        findings: of `decide` on the same trials; what is judged there is told here.
        base_values: what was measured of the bare base, by name.
    """
    measure = MEASURES[on_test(findings.measure.name)]
    groups = replicate_groups(results, measure)
    noise = noise_floor(groups)
    chosen = {"the best": findings.best, "the recommended one": findings.cheapest if findings.helped else None}
    told: list[str] = []
    for role, standing in chosen.items():
        group = None if standing is None else group_of(standing.number, groups)
        if standing is None or group is None or (told and standing is findings.best):
            continue
        interval = value_interval(group, noise)
        sure = "" if interval is None else f"95% interval {measure_interval(measure, interval)}; "
        chosen_by = measure_text(measure, standing.value)
        value = value_and_unit(measure, group.value) if not told else measure_text(measure, group.value)
        told.append(f"trial {standing.number}, {role}, has {value} ({sure}{chosen_by} on the rows that chose it)")
    if not told:
        return None
    base = base_values.get(measure.name)
    bare = "" if base is None else f"; the bare base has {measure_text(measure, base)}"
    return f"{findings.measure.label} on rows that chose nothing (data.test): {', '.join(told)}{bare}."
