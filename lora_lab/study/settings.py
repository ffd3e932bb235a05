"""The sections of a study file as typed, immutable values; a trial's configuration is made of the same ones.

Field names are those of `peft.LoraConfig` and `transformers.TrainingArguments` wherever these have one.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_list_to_tuple), Field(min_length=1)]
Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_list_to_tuple), Field(min_length=1)]

LAYER_PRESETS = ("all", "first_half", "last_half", "every_2nd")
TARGET_PRESETS = ("attention", "mlp", "all-linear", "all-linear+head")


class RuleError(ValueError):
    """A rule over several keys that does not hold; `key` leads from the model to the one to change."""

    def __init__(self, key: tuple[str, ...], problem: str) -> None:
        super().__init__(problem)
        self.key = key


class Settings(BaseModel):
    """Base of all sections: immutable, unknown keys refused, no silent conversion, finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelSettings(Settings):
    """The frozen base model that all trials share."""

    model_name_or_path: str = Field(min_length=1)
    """`builtin/tiny-llama`, a local folder, or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    quantization: Literal["none", "int8", "nf4", "fp4"] = "none"
    double_quant: bool = False
    """Quantize the quantization constants too (4-bit only); saves about 0.37 bit per parameter."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """`auto`: bfloat16 on a GPU that has it, float32 on a CPU."""

    @model_validator(mode="after")
    def _double_quant_needs_four_bits(self) -> ModelSettings:
        if self.double_quant and self.quantization not in ("nf4", "fp4"):
            raise RuleError(
                ("double_quant",),
                f"double_quant needs quantization nf4 or fp4, but quantization is {self.quantization}",
            )
        return self


class DatasetRef(Settings):
    """Where rows come from; in a study file the plain string `path` is short for `{path: path}`."""

    path: str = Field(min_length=1)
    """A `builtin/` name, a `.jsonl`/`.json`/`.csv`/`.parquet` file, a folder of such files, or a Hub id."""
    name: str | None = None
    """The configuration of a Hub dataset."""
    split: str | None = None
    """`train`, `validation`, ...; by default `train` to train on, `validation` or `test` to evaluate on."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """Use the first N rows."""


def _string_to_ref(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


DatasetField = Annotated[DatasetRef, BeforeValidator(_string_to_ref)]
EvalShare = Annotated[float, Field(gt=0, lt=1)]


class DataSettings(Settings):
    """Training, evaluation and forgetting text, and how it is cut into examples."""

    train: DatasetField
    eval: EvalShare | DatasetField = 0.1
    """A share of the training rows, held out, or a dataset of its own."""
    forgetting: DatasetField | None = None
    """General text that the base must not get worse on; measured before and after training."""
    max_length: int = Field(default=512, ge=8)
    """Tokens per example; longer ones are cut, and how many is reported."""


class LoraSettings(Settings):
    """What an adapter is; the names are those of `peft.LoraConfig`."""

    r: int = Field(default=16, ge=1, le=4096)
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    """The numerator of the scaling; give this or `alpha_ratio`, not both (default: 2 r)."""
    alpha_ratio: Annotated[float, Field(gt=0)] | None = None
    """`lora_alpha / r`."""
    target_modules: Names | Annotated[str, Field(min_length=1)] = "all-linear"
    """A preset (attention, mlp, all-linear, all-linear+head), PEFT's list of names, or PEFT's regex."""
    layers: Literal["all", "first_half", "last_half", "every_2nd"] | Indices = "all"
    """Which decoder layers are adapted: a preset, or PEFT's `layers_to_transform` indices from 0."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    use_rslora: bool = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = True
    bias: Literal["none"] = "none"

    @model_validator(mode="after")
    def _one_alpha(self) -> LoraSettings:
        if self.lora_alpha is not None and self.alpha_ratio is not None:
            raise RuleError(
                ("alpha_ratio",),
                f"give lora_alpha or alpha_ratio, not both, but got lora_alpha={self.lora_alpha} "
                f"and alpha_ratio={self.alpha_ratio}",
            )
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise RuleError(("init_lora_weights",), f"orthogonal needs an even r, but r is {self.r}")
        return self

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

    learning_rate: float = Field(default=2e-4, gt=0)
    per_device_train_batch_size: int = Field(default=8, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    num_train_epochs: int = Field(default=1, ge=1)
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, whatever `num_train_epochs` says."""
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of all optimizer steps; give this or `warmup_steps`."""
    warmup_steps: int = Field(default=0, ge=0)
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

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainingSettings:
        if self.warmup_ratio and self.warmup_steps:
            raise RuleError(
                ("warmup_ratio",),
                f"give warmup_ratio or warmup_steps, not both, but got warmup_ratio={self.warmup_ratio} "
                f"and warmup_steps={self.warmup_steps}",
            )
        if self.lr_scheduler_type == "constant" and (self.warmup_ratio or self.warmup_steps):
            raise RuleError(
                ("lr_scheduler_type",),
                "lr_scheduler_type constant has no warm-up; use constant_with_warmup, or drop the warm-up",
            )
        return self


class TrialConfig(Settings):
    """Everything that determines one trial's result."""

    model: ModelSettings
    data: DataSettings
    training: TrainingSettings
    lora: LoraSettings
