"""What is measured of a trial: the one table of it, which every part of lora_lab reads.

A measure has one entry here: its name in study files, in the storage and in MLflow, what it is called and how it is
written, and which direction is better. Losses and costs are better when small, scores when large. Search, pruning,
verdict, Pareto fronts, report, display and MLflow take all of that from the entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Goal = Literal["minimize", "maximize"]
Kind = Literal["loss", "score", "cost", "detail"]
"""A loss and a score say how good a trial is, a cost what it takes; a detail can be neither searched for nor judged."""
Style = Literal["nats", "score", "count", "bytes", "seconds", "percent", "number"]
Source = Literal["always", "tokens", "answers", "choices", "classes"]
"""What a measure is made of: what every trial has, how it predicts held-out tokens, what it answers to prompts, which
of several choices it finds likeliest, or which classes it gives to held-out rows."""
TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]
"""What a base is trained to do, as `peft.TaskType` names it: predict the next token, or the class of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure of a trial."""

    name: str
    label: str
    """In a sentence and on an axis, such as `peak memory`."""
    header: str = ""
    """Over its column in the table of all trials; empty: it has no column there."""
    kind: Kind
    style: Style
    """How it is written (`analysis.wording.measure_text`)."""
    unit: str = ""
    """After a value of it, such as `nats per token`; empty where its text has one."""
    distance_unit: str = ""
    """After a difference of two values, such as `nats`."""
    low: float = -math.inf
    """The least value that it can have."""
    high: float = math.inf
    """The largest value that it can have."""
    noisy: bool = False
    """Whether another seed changes it."""
    log: bool = False
    """Whether a factor counts, not a difference."""
    gain: bool = False
    """Whether the bare base has it too and training is to better it: a verdict can be about it."""
    curve: bool = False
    """Whether it is also known at every evaluation."""
    source: Source = "always"
    """What it is made of (`source_in`); any but `always` is measured where `evaluation.metrics` asks for it."""
    tasks: tuple[TaskType, ...] = ("CAUSAL_LM",)
    """The tasks in which `evaluation.metrics` may ask for it."""
    on_test: bool = False
    """Whether it is of `data.test`, rows that choose nothing: it is neither searched for nor judged."""
    package: str = ""
    """The package that computes it, where that is not installed with lora_lab by itself (`lora-lab[metrics]`)."""
    term: str | None = None
    """The part of a trial's peak memory that it is, as the engine counts it."""

    @property
    def goal(self) -> Goal:
        """Whether the search minimizes or maximizes the measure."""
        return "maximize" if self.kind == "score" else "minimize"

    def of_test(self) -> Measure:
        """What the measure is called where it is measured on `data.test`, at the end of trials alone."""
        return replace(
            self,
            name=on_test(self.name),
            label=f"{self.label} on test rows",
            header=f"test: {self.header or self.label}",
            gain=False,
            curve=False,
            source="always",
            on_test=True,
        )

    def source_in(self, task: TaskType) -> Source:
        """What it is made of in a task: where rows have classes, all that is asked for is made of these."""
        return "classes" if task == "SEQ_CLS" and self.source != "always" else self.source

    def as_loss(self, value: float) -> float:
        """The value on an axis on which less is better; called on that, it gives the value back."""
        return 0.0 - value if self.goal == "maximize" else value  # no -0.0, which is written as one

    def gain_over(self, base: float, value: float) -> float:
        """By how much a value is better than that of the bare base; negative where it is worse."""
        return self.as_loss(base) - self.as_loss(value)

    @property
    def better(self) -> str:
        """Where a better value lies on an axis."""
        return "above" if self.goal == "maximize" else "below"

    @property
    def worse(self) -> str:
        """Where a worse value lies on an axis."""
        return "below" if self.goal == "maximize" else "above"

    def interval(self, loss_interval: tuple[float, float]) -> tuple[float, float]:
        """An interval of `as_loss` as one of values, within what values can be."""
        low, high = sorted(map(self.as_loss, loss_interval))
        return max(low, self.low), min(high, self.high)

    def can_be(self, value: float) -> bool:
        """Whether a value is finite and within the bounds."""
        return math.isfinite(value) and self.low <= value <= self.high


def on_test(name: str) -> str:
    """The name of the measure of test rows that goes with one of evaluation rows."""
    return f"test_{name}"


EVAL_LOSS = Measure(
    name="eval_loss",
    label="eval_loss",
    kind="loss",
    style="nats",
    unit="nats per token",
    distance_unit="nats",
    noisy=True,
    gain=True,
    curve=True,
)
FORGETTING = Measure(
    name="forgetting",
    label="forgetting",
    header="forgetting, nats",
    kind="loss",
    style="nats",
    unit="nats per token",
    distance_unit="nats",
    noisy=True,
)


BOTH_TASKS: tuple[TaskType, ...] = ("CAUSAL_LM", "SEQ_CLS")


def _score(
    name: str, label: str, source: Source, tasks: tuple[TaskType, ...] = ("CAUSAL_LM",), package: str = ""
) -> Measure:
    """A score between 0 and 1 of every held-out row, and their mean."""
    return Measure(
        name=name,
        label=label,
        header=label,
        kind="score",
        style="score",
        distance_unit="points",
        low=0.0,
        high=1.0,
        noisy=True,
        gain=True,
        curve=True,
        source=source,
        tasks=tasks,
        package=package,
    )


PERPLEXITY = Measure(
    name="perplexity",
    label="perplexity",
    header="perplexity",
    kind="loss",
    style="number",
    low=1.0,
    noisy=True,
    gain=True,
    curve=True,
    source="tokens",
)
TOKEN_ACCURACY = _score("token_accuracy", "token accuracy", "tokens")
EXACT_MATCH = _score("exact_match", "exact match", "answers")
F1 = _score("f1", "F1 of words", "answers")
ROUGE_1 = _score("rouge1", "ROUGE-1", "answers", package="rouge-score")
ROUGE_L = _score("rougeL", "ROUGE-L", "answers", package="rouge-score")
BLEU = _score("bleu", "BLEU", "answers", package="sacrebleu")
CHRF = _score("chrf", "chrF", "answers", package="sacrebleu")
JSON_MATCH = _score("json_match", "JSON match", "answers")
CLASSIFICATION_ACCURACY = _score("classification_accuracy", "classification accuracy", "answers")
MACRO_F1 = _score("macro_f1", "macro F1", "answers", BOTH_TASKS)
ACCURACY = _score("accuracy", "accuracy", "choices", BOTH_TASKS)
ACCURACY_NORM = _score("accuracy_norm", "accuracy by length", "choices")
TRAINABLE_PARAMS = Measure(
    name="trainable_params", label="trained parameters", header="params", kind="cost", style="count", low=0, log=True
)
PEAK_MEMORY = Measure(
    name="peak_memory_bytes", label="peak memory", header="memory", kind="cost", style="bytes", low=0, log=True
)
TRAIN_SECONDS = Measure(
    name="train_seconds", label="training time", header="time", kind="cost", style="seconds", low=0, log=True
)


def _detail(name: str, label: str, style: Style, header: str = "", term: str | None = None) -> Measure:
    return Measure(name=name, label=label, header=header, kind="detail", style=style, term=term)


BEST_EVALUATION = _detail("best_evaluation", "best evaluation", "count", header="best evaluation")
BEST_STEP = _detail("best_step", "step of the best evaluation", "count")

_MEASURED: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        EVAL_LOSS,
        FORGETTING,
        PERPLEXITY,
        TOKEN_ACCURACY,
        EXACT_MATCH,
        F1,
        ROUGE_1,
        ROUGE_L,
        BLEU,
        CHRF,
        JSON_MATCH,
        CLASSIFICATION_ACCURACY,
        MACRO_F1,
        ACCURACY,
        ACCURACY_NORM,
        TRAINABLE_PARAMS,
        PEAK_MEMORY,
        _detail("predicted_memory_bytes", "predicted memory", "bytes", header="predicted"),
        _detail("memory_error_percent", "error of the prediction", "percent", header="off by"),
        TRAIN_SECONDS,
        _detail("eval_seconds", "evaluation time", "seconds", header="evaluated in"),
        _detail("tokens_per_second", "tokens per second", "count", header="tokens / s"),
        _detail("base_bytes", "base", "bytes", term="base"),
        _detail("quantization_bytes", "quantization constants", "bytes", term="quantization"),
        _detail("adapter_bytes", "adapter", "bytes", term="adapters"),
        _detail("gradient_bytes", "gradients", "bytes", term="gradients"),
        _detail("optimizer_bytes", "optimizer state", "bytes", term="optimizer"),
        _detail("activation_bytes", "activations", "bytes", term="activations"),
        _detail("logits_bytes", "logits", "bytes", term="logits"),
        _detail("allocated_memory_bytes", "memory that the allocator handed out", "bytes"),
        _detail("requested_memory_bytes", "memory that the allocator was asked for", "bytes"),
        _detail("reserved_memory_bytes", "memory that the allocator reserved", "bytes"),  # of older runs
        _detail("trainable_percent", "share of trained parameters", "percent"),
        _detail("train_tokens", "tokens trained on", "count"),
        _detail("total_flos", "floating-point operations", "number"),
        _detail("steps", "optimizer steps", "count"),
        _detail("epochs", "epochs", "number"),
        BEST_EVALUATION,
        BEST_STEP,
    )
}
MEASURES: dict[str, Measure] = _MEASURED | {
    test.name: test for test in (measure.of_test() for measure in _MEASURED.values() if measure.gain)
}
"""Every measure by its name, in the order of the tables; what a verdict can be about has one of test rows too."""


def add_own(name: str, goal: Goal, low: float = -math.inf, high: float = math.inf) -> None:
    """Add a metric of answers that is a user's own, and its counterpart of test rows, while this process lives."""
    is_share = (low, high) == (0.0, 1.0)
    measure = Measure(
        name=name,
        label=name.replace("_", " "),
        header=name,
        kind="score" if goal == "maximize" else "loss",
        style="score" if is_share else "number",
        distance_unit="points" if is_share else "",
        low=low,
        high=high,
        noisy=True,
        gain=True,
        curve=True,
        source="answers",
    )
    MEASURES[name], MEASURES[on_test(name)] = measure, measure.of_test()


TIE_BREAKERS = (TRAINABLE_PARAMS.name, TRAIN_SECONDS.name)
"""Costs that decide between configurations of equal cost."""


def objectives() -> list[str]:
    """Names that may stand under `sweep.metric`."""
    return [measure.name for measure in MEASURES.values() if measure.kind != "detail" and not measure.on_test]


def metrics(task: TaskType | None = None) -> list[str]:
    """Names that may stand under `evaluation.metrics`: what is measured only where a study asks for it.

    Args:
        task: Leave out what is not measured in it; None: the metrics of all tasks.
    """
    asked = [measure for measure in MEASURES.values() if measure.source != "always"]
    return [measure.name for measure in asked if task is None or task in measure.tasks]


def curves() -> list[str]:
    """Names of what every evaluation may measure, and so may be the best by."""
    return [measure.name for measure in MEASURES.values() if measure.curve]


def in_unit_of(task: TaskType, text: str) -> str:
    """A text about losses, with their unit as it is in a task: the loss of a class is that of a row."""
    return text if task == "CAUSAL_LM" else text.replace(EVAL_LOSS.unit, "nats per row")


def costs() -> list[str]:
    """Names that may stand under `verdict.cost`."""
    return [measure.name for measure in MEASURES.values() if measure.kind == "cost"]


def tie_width(share: float, absolute: float | None, gain: float) -> float:
    """How much worse than the best still ties with it, in the measure's own unit.

    Args:
        share: of the best one's gain over the bare base; 0 where nothing is gained.
        absolute: the width itself; where there is one, `share` does not count.
        gain: of the best one over the bare base.

    """
    return max(0.0, share * gain) if absolute is None else absolute


def price(figures: Mapping[str, float], cost: str, number: int) -> tuple[float, ...]:
    """What orders trials by cost: that of the study, then `TIE_BREAKERS`, then the number; unknown is dearest."""
    return (*(figures.get(name, math.inf) for name in (cost, *TIE_BREAKERS)), number)
