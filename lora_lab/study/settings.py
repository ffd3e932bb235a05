"""The sections of a study file as typed, immutable values; a trial's configuration is made of the same ones.

Field names are those of `peft.LoraConfig` and `transformers.TrainingArguments` wherever these have one.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lora_lab.study import measures
from lora_lab.study.data_settings import LABELED_COLUMNS, DataSettings
from lora_lab.study.initializations import INITIALIZATIONS, Initialization, InitializationName
from lora_lab.study.schedules import SCHEDULES, Schedule, ScheduleName
from lora_lab.study.section import Indices, Names, RuleError, Settings, Trait, is_default, is_none, known, list_to_tuple

if TYPE_CHECKING:
    from collections.abc import Mapping

EVAL_LOSS = measures.EVAL_LOSS.name
TARGET_PRESETS = ("attention", "mlp", "all-linear", "all-linear+head", "none")


class ModelSettings(Settings):
    """The frozen base model that all trials share."""

    model_name_or_path: str = Field(min_length=1)
    """`builtin/tiny-llama`, a local folder, or a Hub id."""
    # Left out of dumps where they are not given: trials from before these keys existed keep their identity.
    task_type: measures.TaskType = Field(default="CAUSAL_LM", exclude_if=lambda value: value == "CAUSAL_LM")
    """`CAUSAL_LM` learns text; `SEQ_CLS` learns the class of a row, with a head that is trained in full."""
    labels: Names | None = Field(default=None, exclude_if=is_none)
    """The classes in the order of the head's outputs (`SEQ_CLS`); by default those of the training rows."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    quantization: Annotated[Literal["none", "int8", "nf4", "fp4"], Trait.MEMORY] = "none"
    double_quant: Annotated[bool, Trait.MEMORY] = False
    """Quantize the quantization constants too (4-bit only); saves about 0.37 bit per parameter."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """`auto`: bfloat16 on a GPU that has it, float32 on a CPU."""
    device_map: Literal["auto"] | None = None
    """`auto`: split the base over all visible devices with accelerate, for one that fits on none of them."""

    @model_validator(mode="after")
    def _double_quant_needs_four_bits(self) -> ModelSettings:
        if self.double_quant and self.quantization not in ("nf4", "fp4"):
            raise RuleError(
                ("double_quant",),
                f"double_quant needs quantization nf4 or fp4, but quantization is {self.quantization}",
            )
        return self

    @model_validator(mode="after")
    def _labels_are_classes(self) -> ModelSettings:
        if self.labels is None:
            return self
        if not self.classifies:
            raise RuleError(("labels",), f"needs task_type SEQ_CLS, but that is {self.task_type}; change it, or remove")
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise RuleError(("labels",), f"must be two classes or more that differ, but are {', '.join(self.labels)}")
        return self

    @property
    def classifies(self) -> bool:
        """Whether trials learn the classes of rows, not text."""
        return self.task_type == "SEQ_CLS"


class LoftQSettings(Settings):
    """How LoftQ approximates the base (`peft.LoftQConfig`)."""

    loftq_bits: Literal[2, 4, 8] = 4
    loftq_iter: int = Field(default=1, ge=1)
    """Alternating steps of quantizing and of fitting the adapter to the error."""


class LoraSettings(Settings):
    """What an adapter is; the names are those of `peft.LoraConfig`."""

    r: Annotated[int, Trait.MEMORY, Trait.RATIO] = Field(default=16, ge=1, le=4096)
    lora_alpha: Annotated[Annotated[float, Field(gt=0)] | None, Trait.RATIO] = None
    """The numerator of the scaling; give this or `alpha_ratio`, not both (default: 2 r)."""
    alpha_ratio: Annotated[Annotated[float, Field(gt=0)] | None, Trait.RATIO] = None
    """`lora_alpha / r`."""
    target_modules: Annotated[Names | Annotated[str, Field(min_length=1)], Trait.MEMORY] = "all-linear"
    """A preset (attention, mlp, all-linear, all-linear+head, none), PEFT's list of names, or PEFT's regex."""
    layers: Annotated[Literal["all", "first_half", "last_half", "every_2nd"] | Indices, Trait.MEMORY] = "all"
    """Which decoder layers are adapted: a preset, or PEFT's `layers_to_transform` indices from 0."""
    # Left out of dumps where it is not given: trials from before this key existed keep their identity.
    target_parameters: Annotated[Literal["none", "experts"] | Names, Trait.MEMORY] = Field(
        default="none", exclude_if=lambda targets: targets == "none"
    )
    """The fused weights of experts that are adapted too: `experts` for all of them, or PEFT's list of names."""
    lora_dropout: Annotated[float, Trait.MEMORY] = Field(default=0.0, ge=0, lt=1)
    use_rslora: bool = False
    init_lora_weights: Annotated[InitializationName, Trait.MEMORY] = True
    """`pissa`, `olora` and `loftq` also change the base's weights under the adapter."""
    loftq_config: LoftQSettings | None = None
    """Only with `init_lora_weights: loftq`."""
    use_dora: Annotated[bool, Trait.MEMORY] = False
    """Train a magnitude per output beside the low-rank direction (arXiv:2402.09353)."""
    bias: Annotated[Literal["none", "all", "lora_only"], Trait.MEMORY] = "none"
    """Which biases of the base are trained too; the model then differs from the base without the adapter."""
    modules_to_save: Annotated[Names | None, Trait.MEMORY] = None
    """Modules trained in full beside the adapter, and saved with it."""

    @model_validator(mode="after")
    def _one_alpha(self) -> LoraSettings:
        if self.lora_alpha is not None and self.alpha_ratio is not None:
            raise RuleError(
                ("alpha_ratio",),
                f"give lora_alpha or alpha_ratio, not both, but got lora_alpha={self.lora_alpha} "
                f"and alpha_ratio={self.alpha_ratio}",
            )
        if self.initialization.needs_even_rank and self.r % 2:
            raise RuleError(("init_lora_weights",), f"{self.init_lora_weights} needs an even r, but r is {self.r}")
        if self.loftq_config is not None and self.loftq is None:
            raise RuleError(
                ("loftq_config",),
                f"has no effect unless init_lora_weights is loftq, but that is {str(self.init_lora_weights).lower()}; "
                "change it, or remove loftq_config",
            )
        return self

    @model_validator(mode="after")
    def _what_peft_does_to_parameters(self) -> LoraSettings:
        if self.target_parameters == "none":
            if self.target_modules == "none":
                raise RuleError(("target_modules",), "none leaves nothing to adapt without target_parameters; set one")
            return self
        without = "with target_parameters, which peft adapts without"
        if self.lora_dropout:
            raise RuleError(("lora_dropout",), f"must be 0 {without} dropout, but is {self.lora_dropout:g}")
        if self.use_dora:
            raise RuleError(("use_dora",), f"must be false {without} DoRA; set one of them to its default")
        if not self.initialization.fits_parameters:
            raise RuleError(
                ("init_lora_weights",),
                f"must be true, false or gaussian with target_parameters, but is {self.init_lora_weights}, which peft "
                "cannot compute from the weights of experts",
            )
        return self

    @property
    def initialization(self) -> Initialization:
        """The facts of `init_lora_weights`."""
        return INITIALIZATIONS[self.init_lora_weights]

    @property
    def loftq(self) -> LoftQSettings | None:
        """How LoftQ approximates the base; None where it is not the initialization."""
        return (self.loftq_config or LoftQSettings()) if self.init_lora_weights == "loftq" else None

    @property
    def alpha(self) -> float:
        """`lora_alpha` as PEFT takes it, whichever way it was given."""
        if self.lora_alpha is not None:
            return self.lora_alpha
        return (2.0 if self.alpha_ratio is None else self.alpha_ratio) * self.r

    @property
    def scaling(self) -> float:
        """The factor before B A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732)."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class TrainingSettings(Settings):
    """How an adapter is trained; the names are those of `transformers.TrainingArguments`."""

    learning_rate: Annotated[float, Trait.RATIO] = Field(default=2e-4, gt=0)
    per_device_train_batch_size: Annotated[int, Trait.MEMORY, Trait.RATIO] = Field(default=8, ge=1)
    gradient_accumulation_steps: Annotated[int, Trait.WORK, Trait.RATIO] = Field(default=1, ge=1)
    num_train_epochs: Annotated[int, Trait.WORK] = Field(default=1, ge=1)
    max_steps: Annotated[Annotated[int, Field(ge=1)] | None, Trait.WORK] = None
    """Stop after this many optimizer steps, whatever `num_train_epochs` says."""
    lr_scheduler_type: ScheduleName = "constant"
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of all optimizer steps; give this or `warmup_steps`."""
    warmup_steps: int = Field(default=0, ge=0)
    decay_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """For warmup_stable_decay: share of all optimizer steps at the end in which the rate falls to 0 (default 0.1)."""
    decay_steps: Annotated[int, Field(ge=1)] | None = None
    """The same as a number of steps; give this or `decay_ratio`."""
    optim: Annotated[Literal["adamw_torch", "adamw_8bit", "sgd"], Trait.MEMORY] = "adamw_torch"
    """`adamw_8bit` keeps its moments in 8 bits (bitsandbytes)."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = None
    """LoRA+ (arXiv:2402.12354): the learning rate of B over that of A, which is `learning_rate`."""
    gradient_checkpointing: Annotated[bool, Trait.MEMORY] = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient norm above which a trial's gradients are scaled down; 0 switches clipping off."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Initial weights, data order and dropout of a trial."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Evaluate every N optimizer steps; by default at the end of every epoch."""
    per_device_eval_batch_size: int = Field(default=16, ge=1)
    logging_steps: int = Field(default=1, ge=1)
    # Left out of dumps where they are not given: trials from before these keys existed keep their identity.
    load_best_model_at_end: bool = Field(default=False, exclude_if=operator.not_)
    """Leave the adapter of the best evaluation, not that of the last one."""
    metric_for_best_model: Annotated[str, known(measures.curves)] = Field(
        default=EVAL_LOSS, exclude_if=lambda name: name == EVAL_LOSS
    )
    """What the best evaluation is the best by: eval_loss, or one of `evaluation.metrics`."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(default=None, exclude_if=is_none)
    """End after so many evaluations in a row without a better one (`transformers.EarlyStoppingCallback`)."""
    early_stopping_threshold: float = Field(default=0.0, ge=0, exclude_if=operator.not_)
    """By more than this must an evaluation be better than the best before it, or patience is used up."""

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainingSettings:
        if self.warmup_ratio and self.warmup_steps:
            raise RuleError(
                ("warmup_ratio",),
                f"give warmup_ratio or warmup_steps, not both, but got warmup_ratio={self.warmup_ratio} "
                f"and warmup_steps={self.warmup_steps}",
            )
        with_warmup = self.schedule.with_warmup
        if with_warmup is not None and (self.warmup_ratio or self.warmup_steps):
            raise RuleError(
                ("lr_scheduler_type",),
                f"lr_scheduler_type {self.lr_scheduler_type} has no warm-up; use {with_warmup}, or drop the warm-up",
            )
        return self

    @model_validator(mode="after")
    def _decay_only_where_there_is_one(self) -> TrainingSettings:
        if self.decay_ratio is not None and self.decay_steps is not None:
            raise RuleError(
                ("decay_ratio",),
                f"give decay_ratio or decay_steps, not both, but got decay_ratio={self.decay_ratio} "
                f"and decay_steps={self.decay_steps}",
            )
        if not self.schedule.has_decay:
            with_decay = " or ".join(name for name, schedule in SCHEDULES.items() if schedule.has_decay)
            for name in ("decay_ratio", "decay_steps"):
                if getattr(self, name) is not None:
                    raise RuleError(
                        (name,), f"needs lr_scheduler_type {with_decay}, but that is {self.lr_scheduler_type}"
                    )
        return self

    @model_validator(mode="after")
    def _what_needs_the_best_evaluation(self) -> TrainingSettings:
        given = {
            "metric_for_best_model": self.metric_for_best_model != EVAL_LOSS,
            "early_stopping_patience": self.early_stopping_patience is not None,
        }
        for name in (name for name, is_given in given.items() if is_given and not self.load_best_model_at_end):
            raise RuleError((name,), f"needs load_best_model_at_end: true; set that, or remove {name}")
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise RuleError(
                ("early_stopping_threshold",), "needs early_stopping_patience; set that, or remove the threshold"
            )
        return self

    @property
    def schedule(self) -> Schedule:
        """The facts of `lr_scheduler_type`."""
        return SCHEDULES[self.lr_scheduler_type]


MetricName = Annotated[str, known(measures.metrics)]


class DeclaredMetric(Settings):
    """What must be known of a metric of one's own (`--metrics`) to read a study, without the file that computes it."""

    name: str
    goal: measures.Goal
    low: float | None = None
    """The least value that it can have; None for no bound."""
    high: float | None = None
    digest: str
    """The sha256 of the file."""

    def add(self) -> None:
        """Put it into the table of measures, for as long as this process lives."""
        bounds = {end: value for end, value in (("low", self.low), ("high", self.high)) if value is not None}
        measures.add_own(self.name, self.goal, **bounds)


class EvaluationSettings(Settings):
    """What is measured of trials on held-out rows beside their loss, and when."""

    metrics: Annotated[tuple[MetricName, ...], BeforeValidator(list_to_tuple)] = ()
    at: Literal["end", "evaluations"] = "end"
    """`end`: of trained adapters only; `evaluations`: whenever eval_loss is, so that trials can be pruned by it."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of an answer, at most."""
    own_metrics: Annotated[tuple[DeclaredMetric, ...], BeforeValidator(list_to_tuple)] = Field(
        default=(), exclude_if=operator.not_
    )
    """Those of `metrics` that are functions of the file that `--metrics` named; never written in a study file."""

    @model_validator(mode="before")
    @classmethod
    def _own_ones_are_known(cls, data: Any) -> Any:
        """A study that was stored is read without the file: what it declares comes into the table of measures."""
        declared = data.get("own_metrics") if isinstance(data, dict) else None
        for one in declared or ():
            metric = DeclaredMetric.model_validate(one)
            if metric.name not in measures.MEASURES:
                metric.add()
        return data

    @model_validator(mode="after")
    def _each_once(self) -> EvaluationSettings:
        if len(set(self.metrics)) < len(self.metrics):
            raise RuleError(("metrics",), f"metrics must differ, but got {list(self.metrics)}")
        return self

    def metrics_of(self, source: measures.Source, task: measures.TaskType) -> list[str]:
        """The metrics that are made of this in a task."""
        return [name for name in self.metrics if measures.MEASURES[name].source_in(task) == source]


LINKED = (
    ("quantization", "double_quant"),
    ("r", "init_lora_weights"),
    ("quantization", "init_lora_weights"),
    ("init_lora_weights", "loftq_config"),
    ("target_modules", "target_parameters"),
    ("target_parameters", "lora_dropout"),
    ("target_parameters", "use_dora"),
    ("target_parameters", "init_lora_weights"),
    ("lr_scheduler_type", "warmup_ratio", "warmup_steps"),
    ("lr_scheduler_type", "decay_ratio", "decay_steps"),
    ("load_best_model_at_end", "metric_for_best_model", "early_stopping_patience", "early_stopping_threshold"),
    ("packing",),
    ("target_modules",),
)
"""The names that each rule over several keys (`RuleError`) is about, where these can be searched together."""


class TrialConfig(Settings):
    """Everything that determines one trial's result."""

    model: ModelSettings
    data: DataSettings
    training: TrainingSettings
    lora: LoraSettings
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), exclude_if=is_default)

    @model_validator(mode="after")
    def _initialization_fits_the_base(self) -> TrialConfig:
        if self.lora.initialization.changes_base and self.model.quantization != "none":
            raise RuleError(
                ("lora", "init_lora_weights"),
                f"{self.lora.init_lora_weights} starts from unquantized weights, but model.quantization is "
                f"{self.model.quantization}; set it to none",
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> TrialConfig:
        name, key = self.training.metric_for_best_model, ("training", "metric_for_best_model")
        if name == EVAL_LOSS:
            return self
        if name not in self.evaluation.metrics:
            raise RuleError(key, f"{name} is measured only where evaluation.metrics asks for it; add it there")
        if self.evaluation.at != "evaluations":
            raise RuleError(key, f"{name} must be measured at every evaluation; set evaluation.at to evaluations")
        return self

    @model_validator(mode="after")
    def _fits_the_task(self) -> TrialConfig:
        task, columns = self.model.task_type, self.data.columns.given() if self.data.columns else {}
        unread = [name for name in columns if (name in LABELED_COLUMNS) != self.model.classifies and name != "text"]
        if unread:
            raise RuleError(
                ("data", "columns", unread[0]), f"is no column that model.task_type {task} reads; remove it"
            )
        other = [name for name in self.evaluation.metrics if task not in measures.MEASURES[name].tasks]
        if other:
            known = ", ".join(measures.metrics(task))
            raise RuleError(
                ("evaluation", "metrics"), f"{other[0]} is no metric of model.task_type {task}; that has {known}"
            )
        if self.model.classifies:
            self._refuse_what_is_of_text()
        return self

    def _refuse_what_is_of_text(self) -> None:
        if self.data.forgetting is not None:
            raise RuleError(
                ("data", "forgetting"),
                "is measured by predicting text, which model.task_type SEQ_CLS does not; remove it",
            )
        if self.data.packing:
            raise RuleError(
                ("data", "packing"), "a class is that of a whole row (model.task_type SEQ_CLS); set packing to false"
            )
        if self.lora.target_modules == "all-linear+head":
            raise RuleError(
                ("lora", "target_modules"),
                "model.task_type SEQ_CLS trains the head in full beside the adapter; take all-linear",
            )

    def changed(self, **sections: Mapping[str, Any]) -> TrialConfig:
        """A copy with other values in some sections, validated as if it had been read: `changed(training={"seed": 1})`.

        Raises:
            pydantic.ValidationError: a value that its setting refuses, or a configuration that no trial can have.
        """
        before = {name: getattr(self, name) for name in type(self).model_fields}
        after = {
            name: type(before[name]).model_validate({**before[name].model_dump(), **changes})
            for name, changes in sections.items()
        }
        return type(self).model_validate(before | after)
