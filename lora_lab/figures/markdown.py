"""The verdict and the best trials as Markdown, for a pull request, a chat or MLflow's description."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import finished
from lora_lab.analysis.verdict import sentences
from lora_lab.analysis.wording import config_label, count_text, nats, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.analysis.audit import AuditNote
    from lora_lab.analysis.verdict import Findings
    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec

SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")


def markdown_text(text: str) -> str:
    """Foreign text on one line that no Markdown reader takes for markup."""
    return SPECIAL.sub(r"\\\1", one_line(text))


def markdown_summary(
    spec: StudySpec,
    results: Sequence[TrialResult],
    findings: Findings,
    notes: Sequence[AuditNote] = (),
    top: int = 8,
) -> str:
    """Question, verdict, caveats and the best trials of the search, best first."""
    lines = [f"# {markdown_text(spec.question or spec.study_name)}", ""]
    lines += [f"- {markdown_text(sentence)}" for sentence in sentences(findings)]
    if notes:
        lines += ["", "## Read with care", "", *(f"- {markdown_text(note.sentence)}" for note in notes)]
    ranking = sorted(finished(results), key=lambda pair: pair[1])[:top]
    if ranking:
        lines += ["", "| trial | eval_loss | configuration | parameters |", "|---:|---:|---|---:|"]
        lines += [_row(result, value) for result, value in ranking]
    return "\n".join(lines) + "\n"


def _row(result: TrialResult, value: float) -> str:
    params = result.metrics.get("trainable_params")
    cells = (
        str(result.number),
        nats(value),
        markdown_text(config_label(result.config)),
        "" if params is None else count_text(params),
    )
    return f"| {' | '.join(cells)} |"
