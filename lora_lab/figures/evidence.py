"""What the report, its short form and its pictures are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.adequate_rank import RankCurve
    from lora_lab.analysis.agreement import Agreement
    from lora_lab.analysis.audit import AuditNote
    from lora_lab.analysis.epochs import EpochCurve
    from lora_lab.analysis.equal_budget import ArmComparison
    from lora_lab.analysis.findings import Findings
    from lora_lab.analysis.forgetting import ForgettingTrade
    from lora_lab.analysis.importance import Importance
    from lora_lab.analysis.metric_values import FinalistValues
    from lora_lab.analysis.pareto import Front
    from lora_lab.analysis.scale import RuleScore, ScaleResponse
    from lora_lab.analysis.spectrum import SpectrumSummary
    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.task_scores import TaskScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What someone else needs to run the study again."""

    command: str
    """The command line, without secrets."""
    study_hash: str
    """`StudySpec.digest`: changes with the study file, with its sweep file, and with overrides."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """By package; also the device and the operating system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpectrum:
    """What the adapter of one trial makes of its rank."""

    number: int
    label: str
    """The configuration in words."""
    role: str
    """`best`, `recommended`, both, or empty."""
    summary: SpectrumSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRow:
    """A held-out prompt, and what was said to it."""

    prompt: str
    reference: str
    base: str | None
    """The answer of the bare base; None where it was not kept."""
    answers: Mapping[int, str]
    """By trial number."""

    @property
    def variety(self) -> int:
        """2 where the finalists differ, 1 where they are alike and the bare base is not, else 0."""
        said = {" ".join(answer.split()) for answer in self.answers.values()}
        if len(said) > 1:
            return 2
        return int(self.base is not None and " ".join(self.base.split()) not in said)


@dataclass(frozen=True, slots=True)
class Answers:
    """What finalists answered, side by side."""

    labels: Mapping[int, str]
    """The finalists' configurations by trial number, the best first."""
    rows: Sequence[AnsweredRow]
    total: int
    """Rows that were asked."""
    differing: int
    """Rows on which not all said the same."""
    has_base: bool
    """Whether the answers of the bare base were kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A study and what its trials say."""

    spec: StudySpec
    results: Sequence[TrialResult]
    """Every trial in every state, retrainings included."""
    findings: Findings
    """Of `decide` on the same results; so are all that follow."""
    base_forgetting: float | None = None
    """Loss of the bare base on general text, nats per token."""
    notes: Sequence[AuditNote] = ()
    rank_curves: Sequence[RankCurve] = ()
    arms: Sequence[ArmComparison] = ()
    scale: ScaleResponse | None = None
    rules: Sequence[RuleScore] = ()
    fronts: Sequence[Front] = ()
    """One for each cost that was measured."""
    epochs: Sequence[EpochCurve] = ()
    forgetting: ForgettingTrade | None = None
    on_test: str | None = None
    """What the verdict's choices are worth on rows that chose nothing."""
    importance: Importance | None = None
    spectra: Sequence[AdapterSpectrum] = ()
    values: Sequence[FinalistValues] = ()
    """The finalists by all metrics that were measured."""
    base_values: Mapping[str, float] = field(default_factory=dict)
    """The bare base by the same metrics."""
    agreements: Sequence[Agreement] = ()
    """Each metric against the loss."""
    answers: Answers | None = None
    task_scores: Sequence[TaskScores] = ()
    """What lm-evaluation-harness measured."""
    reproduction: Reproduction
