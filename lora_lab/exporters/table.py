"""What each target can say: one row per property of a trial, one cell per target; no cell means that it is written.

A cell is `warned` (the meaning is kept, numbers may differ) or `refused` (the target cannot do it). The facts were
read and tried in the versions of `targets.TARGETS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_lab.exporters.targets import SERVERS, TRAINERS, TargetName, package
from lora_lab.study.measures import EVAL_LOSS
from lora_lab.study.settings import LoftQSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_lab.exporters.trial import ExportedTrial

Outcome = Literal["warned", "refused"]

OTHER_TRAINERS: tuple[TargetName, ...] = tuple(name for name in TRAINERS if name != "peft")
ADAPTER_SERVERS: tuple[TargetName, ...] = tuple(name for name in SERVERS if name != "merged")


@dataclass(frozen=True, slots=True)
class Cell:
    """What becomes of a property at one target."""

    outcome: Outcome
    reason: str


Cells = dict[TargetName, Cell]


def warned(reason: str, *targets: TargetName) -> Cells:
    """Cells of targets that keep the meaning but not every digit."""
    return dict.fromkeys(targets, Cell("warned", reason))


def refused(reason: str, *targets: TargetName) -> Cells:
    """Cells of targets that cannot do it."""
    return dict.fromkeys(targets, Cell("refused", reason))


@dataclass(frozen=True, slots=True)
class Row:
    """A property that some trials have and some targets cannot simply write."""

    field: str
    """The key of the study file."""
    value: Callable[[ExportedTrial], object]
    """What the trial has there."""
    holds: Callable[[ExportedTrial], bool]
    """Whether the trial has the property."""
    cells: Mapping[TargetName, Cell]


MODEL: tuple[Row, ...] = (
    Row(
        "model.model_name_or_path",
        lambda trial: ", ".join(f"{key} {value}" for key, value in trial.base_dropout.items()),
        lambda trial: bool(trial.base_dropout),
        warned("the base's own dropout is on while it trains there; here it is off", *OTHER_TRAINERS),
    ),
    Row(
        "model.task_type",
        lambda trial: trial.config.model.task_type,
        lambda trial: trial.config.model.classifies,
        refused("what is written for it here trains language models", *OTHER_TRAINERS)
        | refused("it serves language models", *ADAPTER_SERVERS),
    ),
    Row(
        "model.labels",
        lambda trial: ", ".join(trial.config.model.labels or ()),
        lambda trial: trial.has_other_head,
        refused("the base has a head for other classes, or these in another order, which it would start from", "peft"),
    ),
    Row(
        "model.quantization",
        lambda trial: trial.config.model.quantization,
        lambda trial: trial.config.model.quantization != "none",
        warned("TRL keeps norms and adapters in bfloat16; here they are float32", "trl")
        | warned("norms are float32 as here, embeddings and head are not", "llama-factory")
        | warned("which modules are taken to float32 differs", "axolotl", "unsloth", "ms-swift")
        | warned("the adapter learned against the quantized base, and is served over the base as it is", *SERVERS)
        | warned("weights merged into the unquantized base are not the model that was measured", "merged"),
    ),
    Row(
        "model.dtype",
        lambda trial: trial.dtype.name,
        lambda trial: not trial.dtype.known,
        warned("the trial's settings say auto, and this is what that means on this machine", *TRAINERS),
    ),
    Row(
        "model.dtype",
        lambda _: "float64",
        lambda trial: trial.dtype.name == "float64",
        refused("it trains in at most float32", *OTHER_TRAINERS)
        | warned("the adapter is stored in float32", *ADAPTER_SERVERS),
    ),
    Row(
        "model.dtype",
        lambda _: "float16",
        lambda trial: trial.dtype.name == "float16",
        warned("Trainer scales the loss in float16; here it is not scaled", *TRAINERS),
    ),
    Row(
        "model.dtype",
        lambda trial: trial.dtype.name,
        lambda trial: trial.checkpoint_dtype != trial.dtype.name,
        warned("the base is loaded in the dtype of its files, whatever one says", "llama-factory")
        | warned("the merged weights are rounded to the dtype of the base's files", "merged")
        | warned("the server takes the dtype of the base's files unless told otherwise", "vllm", "sglang"),
    ),
    Row(
        "model.device_map",
        lambda trial: trial.config.model.device_map,
        lambda trial: trial.config.model.device_map is not None,
        warned("left to the launcher", *TRAINERS),
    ),
)

DATA: tuple[Row, ...] = (
    Row(
        "training.seed",
        lambda trial: trial.config.training.seed,
        lambda _: True,
        warned("the same examples come in another order", *OTHER_TRAINERS),
    ),
    Row(
        "data.forgetting",
        lambda trial: trial.config.data.forgetting.path if trial.config.data.forgetting else None,
        lambda trial: trial.config.data.forgetting is not None,
        warned("has no counterpart: the loss on general text is not measured", *TRAINERS),
    ),
    Row(
        "data.test",
        lambda trial: trial.config.data.test.path if trial.config.data.test else None,
        lambda trial: trial.config.data.test is not None,
        warned("has no counterpart: test rows are not measured", *TRAINERS),
    ),
    Row(
        "data.packing",
        lambda _: True,
        lambda trial: trial.config.data.packing,
        warned("rows are filled in another way; max_steps holds the number of steps", "trl", "axolotl", "unsloth")
        | warned(
            "rows are filled in another way, and examples that do not fit are dropped; max_steps holds the steps",
            "llama-factory",
        )
        | warned("needs flash attention, and fills rows in another way; max_steps holds the steps", "ms-swift"),
    ),
    Row(
        "--tokens",
        lambda _: "tokens",
        lambda trial: trial.data_form == "tokens",
        refused("it reads no token ids; use --rows", "ms-swift"),
    ),
    Row(
        "data",
        lambda trial: trial.row_format,
        lambda trial: trial.row_format in ("messages", "mixed"),
        refused("it renders conversations by a template of its own", "ms-swift"),
    ),
    Row(
        "data",
        lambda _: "rows",
        lambda trial: trial.data_form != "tokens" and trial.row_format in ("text", "prompt_completion"),
        warned(
            "rows are tokenized there: prompt and completion apart and beginning and end written out, as here, but "
            "tokens may still differ",
            "ms-swift",
        ),
    ),
    Row(
        "--rows",
        lambda trial: trial.row_format,
        lambda trial: trial.data_form == "rows",
        refused("its script reads tokens; leave --rows out", "peft", "unsloth")
        | warned("TRL tokenizes prompt and completion together, so tokens may merge where they meet", "trl")
        | warned("rows are tokenized there, and what is longer than max_length is cut otherwise", "axolotl"),
    ),
    Row(
        "--rows",
        lambda _: "several formats",
        lambda trial: trial.data_form == "rows" and trial.row_format == "mixed",
        refused("its rows must be of one format; leave --rows out", "trl", "axolotl", "llama-factory"),
    ),
    Row(
        "--rows",
        lambda _: "messages of the assistant that are not learned",
        lambda trial: trial.data_form == "rows" and trial.has_given_turns,
        refused("it learns all messages of the assistant; leave --rows out", "trl", "axolotl"),
    ),
    Row(
        "--rows",
        lambda trial: trial.row_format,
        lambda trial: trial.data_form == "rows" and trial.row_format == "messages",
        refused("it needs the name of one of its own templates; leave --rows out", "llama-factory"),
    ),
    Row(
        "--rows",
        lambda trial: trial.row_format,
        lambda trial: trial.data_form == "rows" and trial.row_format in ("text", "prompt_completion"),
        warned("rows are tokenized there, and what is longer than max_length is cut on both sides", "llama-factory"),
    ),
)

TRAINING: tuple[Row, ...] = (
    Row(
        "training.per_device_eval_batch_size",
        lambda trial: trial.config.training.per_device_eval_batch_size,
        lambda trial: len(trial.tokens.eval) > trial.config.training.per_device_eval_batch_size,
        warned("eval_loss is a mean over batches there, over tokens here", *OTHER_TRAINERS),
    ),
    Row(
        "training.eval_steps",
        lambda trial: trial.config.training.eval_steps,
        lambda trial: bool(trial.total_steps % (trial.config.training.eval_steps or 1)),
        warned(
            "the last step is not evaluated there, because it is not a multiple",
            *OTHER_TRAINERS,
        ),
    ),
    Row(
        "training.eval_steps",
        lambda trial: trial.plan.steps_per_epoch,
        lambda trial: trial.config.training.load_best_model_at_end and trial.config.training.eval_steps is None,
        warned("it knows a best checkpoint only where evaluations are counted in steps: those of an epoch", "axolotl"),
    ),
    Row(
        "training.metric_for_best_model",
        lambda trial: trial.config.training.metric_for_best_model,
        lambda trial: trial.config.training.metric_for_best_model != EVAL_LOSS.name,
        refused("what is written for it measures eval_loss alone at its evaluations", *TRAINERS),
    ),
    Row(
        "training.early_stopping_patience",
        lambda trial: trial.config.training.early_stopping_patience,
        lambda trial: trial.config.training.early_stopping_patience is not None,
        refused("its command line has no early stopping", "trl"),
    ),
    Row(
        "training.early_stopping_threshold",
        lambda trial: trial.config.training.early_stopping_threshold,
        lambda trial: trial.config.training.early_stopping_threshold > 0,
        refused("its early stopping has no threshold", "axolotl", "llama-factory", "ms-swift"),
    ),
    Row(
        "training.warmup_steps",
        lambda trial: trial.warmup_steps,
        lambda trial: trial.warmup_steps == 1 and trial.config.training.lr_scheduler_type != "constant",
        warned("Axolotl makes 2 steps of 1", "axolotl"),
    ),
    Row(
        "training.loraplus_lr_ratio",
        lambda trial: trial.config.training.loraplus_lr_ratio,
        lambda trial: trial.config.training.loraplus_lr_ratio is not None,
        refused("it has no LoRA+", "trl"),
    ),
    Row(
        "sweep",
        lambda trial: ", ".join(_choosing(trial)),
        lambda trial: bool(_choosing(trial)),
        warned("chooses among trials, and has no counterpart in one training", *TRAINERS),
    ),
)

WRITES_NO_INIT = "it has no key for the initial weights"
LEFT_OUT = "it loads A and B only"

LORA: tuple[Row, ...] = (
    Row(
        "lora.lora_dropout",
        lambda trial: trial.config.lora.lora_dropout,
        lambda trial: trial.config.lora.lora_dropout > 0,
        warned("the same rate, but other masks", *TRAINERS),
    ),
    Row(
        "lora.lora_alpha",
        lambda trial: trial.alpha,
        lambda trial: isinstance(trial.alpha, float),
        refused("it takes whole numbers only", "axolotl"),
    ),
    Row(
        "lora.target_modules",
        lambda trial: trial.linears.head,
        lambda trial: trial.adapts_head,
        refused("its loss goes past an adapter on the head", "trl")
        | refused("it trains the head in full instead", "unsloth")
        | warned("the head with its adapter is outside its own tests", "axolotl", "llama-factory", "ms-swift")
        | warned("not every architecture takes an adapter on the head there", "vllm", "sglang"),
    ),
    Row(
        "lora.target_modules",
        lambda trial: f"{trial.linears.head}, tied to the input embeddings",
        lambda trial: trial.adapts_head and trial.tied_head,
        refused("it has no head apart from the embeddings", "llama-cpp", "ollama", "mlx")
        | warned("the head is written apart from the embeddings, so the model grows by it", "merged"),
    ),
    Row(
        "lora.target_parameters",
        lambda trial: ", ".join(trial.target_parameters),
        lambda trial: bool(trial.target_parameters),
        refused("it has no key for parameters", "llama-factory"),
    ),
    Row(
        "lora.target_parameters",
        lambda trial: ", ".join(trial.target_parameters),
        lambda trial: trial.config.lora.target_parameters != "none",
        refused("adapters on the fused weights of experts are not written for it", *ADAPTER_SERVERS),
    ),
    Row(
        "lora.init_lora_weights",
        lambda trial: trial.config.lora.init_lora_weights,
        lambda trial: trial.config.lora.init_lora_weights is False,
        refused(WRITES_NO_INIT, "trl", "llama-factory") | refused("it takes no notice of it", "axolotl"),
    ),
    Row(
        "lora.init_lora_weights",
        lambda trial: trial.config.lora.init_lora_weights,
        lambda trial: not trial.draws_by_peft,
        warned("it draws another adapter of the same distribution", "axolotl"),
    ),
    Row(
        "lora.init_lora_weights",
        lambda trial: trial.config.lora.init_lora_weights,
        lambda trial: trial.config.lora.init_lora_weights in ("gaussian", "orthogonal", "olora"),
        refused(WRITES_NO_INIT, "trl", "llama-factory"),
    ),
    Row(
        "lora.init_lora_weights",
        lambda trial: trial.config.lora.init_lora_weights,
        lambda trial: trial.config.lora.init_lora_weights == "pissa",
        refused(WRITES_NO_INIT, "trl"),
    ),
    Row(
        "lora.init_lora_weights",
        lambda trial: trial.config.lora.init_lora_weights,
        lambda trial: trial.config.lora.init_lora_weights == "loftq",
        refused(WRITES_NO_INIT, "trl", "llama-factory")
        | refused("it hands no loftq_config on", "ms-swift")
        | warned("peft computes LoftQ on a GPU only", "peft", "axolotl", "unsloth")
        | refused("LoftQ changed the base under the adapter", *ADAPTER_SERVERS),
    ),
    Row(
        "lora.init_lora_weights",
        lambda trial: trial.config.lora.init_lora_weights,
        lambda trial: trial.config.lora.initialization.changes_base,
        warned("the adapter that it saves belongs to the base that this initialization changed", *TRAINERS),
    ),
    Row(
        "lora.loftq_config.loftq_iter",
        lambda trial: _loftq(trial).loftq_iter,
        lambda trial: trial.config.lora.init_lora_weights == "loftq" and _loftq(trial).loftq_iter > 1,
        refused("it makes one iteration only", "axolotl"),
    ),
    Row(
        "lora.use_dora",
        lambda _: True,
        lambda trial: trial.config.lora.use_dora,
        refused(LEFT_OUT, *ADAPTER_SERVERS),
    ),
    Row(
        "lora.bias",
        lambda trial: trial.config.lora.bias,
        lambda trial: trial.config.lora.bias != "none",
        refused("it has no key for biases", "trl", "axolotl", "llama-factory") | refused(LEFT_OUT, *ADAPTER_SERVERS),
    ),
    Row(
        "lora.bias",
        lambda _: "lora_only",
        lambda trial: trial.config.lora.bias == "lora_only",
        refused("it knows none and all", "ms-swift"),
    ),
    Row(
        "lora.modules_to_save",
        lambda trial: ", ".join(trial.config.lora.modules_to_save or ()),
        lambda trial: trial.config.lora.modules_to_save is not None,
        refused(LEFT_OUT, *ADAPTER_SERVERS),
    ),
    Row(
        "lora.modules_to_save",
        lambda trial: ", ".join(trial.config.lora.modules_to_save or ()),
        lambda trial: any(not _unsloth_saves(name) for name in trial.config.lora.modules_to_save or ()),
        refused("it trains head, embeddings and norms in full, but no other module", "unsloth"),
    ),
    Row(
        "lora.r",
        lambda trial: trial.served_rank,
        lambda trial: trial.served_rank > 512,
        refused("it serves ranks up to 512", "vllm"),
    ),
    Row(
        "adapter",
        lambda _: "not kept",
        lambda trial: trial.adapter is None,
        refused("there is nothing to serve; choose --best or --recommended, or train it again (--to peft)", *SERVERS),
    ),
)

TABLE: tuple[Row, ...] = (*MODEL, *DATA, *TRAINING, *LORA)


def _choosing(trial: ExportedTrial) -> list[str]:
    sweep = trial.spec.sweep
    return [f"pruner {sweep.pruner}"] * (sweep.pruner != "none") + ["confirm"] * (sweep.confirm is not None)


def _loftq(trial: ExportedTrial) -> LoftQSettings:
    return trial.config.lora.loftq_config or LoftQSettings()


def _unsloth_saves(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("lm_head", "embed_tokens") or name.endswith("norm")


@dataclass(frozen=True, slots=True)
class Remark:
    """A property of a trial that a target does not simply write."""

    target: TargetName
    field: str
    value: object
    outcome: Outcome
    reason: str
    instead: tuple[TargetName, ...] = ()
    """For a refusal: the targets of the same kind that do not refuse it."""

    @property
    def text(self) -> str:
        """The remark in one line."""
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        way = f"; {_listed(self.instead)} can" if self.instead else ""
        return f"{self.field}: {value}: {package(self.target)}: {self.reason}{way}"


def judge(trial: ExportedTrial, target: TargetName) -> list[Remark]:
    """What a target does not simply write of a trial: refusals first, then warnings."""
    remarks = []
    for row in TABLE:
        cell = row.cells.get(target)
        if cell is None or not row.holds(trial):
            continue
        instead = _without_refusal(row, target) if cell.outcome == "refused" else ()
        remarks.append(Remark(target, row.field, row.value(trial), cell.outcome, cell.reason, instead))
    return sorted(remarks, key=lambda remark: remark.outcome)


def _without_refusal(row: Row, target: TargetName) -> tuple[TargetName, ...]:
    kin: tuple[TargetName, ...] = TRAINERS if target in TRAINERS else SERVERS
    return tuple(name for name in kin if name not in row.cells or row.cells[name].outcome == "warned")


def _listed(names: tuple[TargetName, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
