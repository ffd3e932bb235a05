"""The trial to hand over, with everything that a study file leaves to be worked out: modules, steps, dtype, tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lora_lab.data.examples import Completion, Conversation, Example, Labeled, Text
from lora_lab.data.sources import load_splits
from lora_lab.data.strings import StringEncoder
from lora_lab.results.card import base_words
from lora_lab.results.choosing import chosen_trial
from lora_lab.study.peft_targets import peft_targets
from lora_lab.study.targets import resolve_targets
from lora_lab.training.base.architecture import linear_map_of_config
from lora_lab.training.base.classification import stored_order
from lora_lab.training.base.loading import (
    classes_of,
    default_device,
    load_tokenizer,
    locate,
    model_config,
    resolve_dtype,
)
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.schedule import BatchPlan, decay_steps, warmup_steps

if TYPE_CHECKING:
    from lora_lab.analysis.findings import Findings, Role
    from lora_lab.data.sources import ExampleSplits
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results
    from lora_lab.study.data_settings import DataSettings
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.targets import LinearMap
    from lora_lab.training.datasets import TokenizedSplits

DataForm = Literal["tokens", "rows"]
RowFormat = Literal["text", "prompt_completion", "messages", "labeled", "mixed"]
FORMATS: dict[type[Example], RowFormat] = {
    Text: "text",
    Completion: "prompt_completion",
    Conversation: "messages",
    Labeled: "labeled",
}
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]

BASE = "base"
"""The name in an export folder of a base that lies on this machine: a link, so that no file holds a path."""
BYTES_PER_ELEMENT: dict[int, DtypeName] = {8: "float64", 4: "float32", 2: "bfloat16"}


class Dtype(NamedTuple):
    """What the base's weights were loaded in."""

    name: DtypeName
    known: bool
    """Whether the trial says so; else it is what `auto` means on this machine."""


class Specials(NamedTuple):
    """What the tokenizer puts before and after a text, as text."""

    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class ExportedTrial:
    """A trial and its study, as exporters read them; tokens are made on first use."""

    spec: StudySpec
    result: TrialResult
    findings: Findings
    roles: tuple[Role, ...]
    """What the verdict calls this trial."""
    linears: LinearMap
    model_config: Any
    """The base's `transformers` configuration."""
    location: str
    """The folder or Hub id of the base."""
    dtype: Dtype
    adapter: Path | None
    """The folder of the trained adapter, None where it was not kept."""
    data_cache: Path
    data_form: DataForm | None = None
    """How the data are handed over, None: as tokens, or as rows to a target that reads no tokens."""

    @property
    def config(self) -> TrialConfig:
        """The trial's settings."""
        return self.result.config

    @property
    def title(self) -> str:
        """Such as `trial 7 of study rank_alpha (best and recommended)`."""
        roles = f" ({' and '.join(self.roles)})" if self.roles else ""
        return f"trial {self.result.number} of study {self.spec.study_name}{roles}"

    # The base

    @property
    def local_base(self) -> Path | None:
        """The folder of a base on this machine, None for one on the Hub."""
        folder = Path(self.location)
        return folder if folder.is_dir() else None

    @property
    def model(self) -> str:
        """The base as the files name it: its Hub id, or `base`, a link in the export folder."""
        return self.location if self.local_base is None else BASE

    @property
    def model_words(self) -> str:
        """The base in words, without a path."""
        return base_words(self.config.model)

    @property
    def checkpoint_dtype(self) -> str | None:
        """The dtype of the base's files as its configuration says."""
        dtype = getattr(self.model_config, "dtype", None)
        return None if dtype is None else str(dtype).removeprefix("torch.")

    @property
    def tied_head(self) -> bool:
        """Whether the base's head is its input embeddings."""
        return bool(getattr(self.model_config.get_text_config(), "tie_word_embeddings", False))

    @property
    def base_dropout(self) -> dict[str, float]:
        """The base's own dropout by the name in its configuration; our engines never use it."""
        values = self.model_config.to_dict().items()
        return {key: value for key, value in values if "drop" in key and isinstance(value, float) and value > 0}

    @property
    def has_other_head(self) -> bool:
        """Whether the base has a head for other classes than the trial's, or for these in another order."""
        labels, kinds = self.config.model.labels, self.model_config.architectures or ()
        if labels is None or not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            return False
        return stored_order(self.model_config, labels) != list(range(len(labels)))

    # The adapter

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Full names of the adapted modules, in the model's order."""
        return resolve_targets(self.linears, self.config.lora)

    @property
    def adapts_head(self) -> bool:
        """Whether the output head has an adapter."""
        return self.linears.head in self.modules

    @property
    def target_modules(self) -> tuple[str, ...]:
        """PEFT's `target_modules`: endings where these say it (with `layers_to_transform`), else full names."""
        return peft_targets(self.linears, self.config.lora).modules

    @property
    def layers_to_transform(self) -> tuple[int, ...] | None:
        """PEFT's `layers_to_transform`, None for all layers, and where `target_modules` are full names."""
        return peft_targets(self.linears, self.config.lora).layers

    @property
    def flat_targets(self) -> tuple[str, ...]:
        """One list that says modules and layers at once: endings where all layers are adapted, else full names."""
        return self.target_modules if self.layers_to_transform is None else self.modules

    @property
    def target_parameters(self) -> tuple[str, ...]:
        """PEFT's `target_parameters`, the weights of experts: empty where none is adapted."""
        return peft_targets(self.linears, self.config.lora).parameters

    @property
    def served_rank(self) -> int:
        """The rank of the trained adapter; PiSSA and OLoRA leave one of twice the rank that was trained."""
        r = self.config.lora.r
        return 2 * r if self.config.lora.initialization.is_convertible else r

    @property
    def draws_by_peft(self) -> bool:
        """Whether the adapter starts as A and B alone, drawn by PEFT from the trial's seed."""
        lora = self.config.lora
        more = lora.use_dora or lora.modules_to_save or lora.bias != "none" or lora.initialization.changes_base
        return not (more or self.target_parameters)

    @property
    def alpha(self) -> int | float:
        """`lora_alpha`, an int where it is a whole number."""
        alpha = self.config.lora.alpha
        return int(alpha) if alpha.is_integer() else alpha

    # The training

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return load_tokenizer(self.config.model)

    @cached_property
    def tokens(self) -> TokenizedSplits:
        """The token sets of the trial; with packing, the training rows hold several examples."""
        return self._tokenized(self.config.data)

    @cached_property
    def unpacked_tokens(self) -> TokenizedSplits:
        """The token sets with one example in each row."""
        data = self.config.data.model_copy(update={"packing": False})
        return self._tokenized(data) if self.config.data.packing else self.tokens

    def _tokenized(self, data: DataSettings) -> TokenizedSplits:
        return DataCatalog(self.tokenizer, self.data_cache, classes=classes_of(self.config.model)).splits(data)

    @cached_property
    def examples(self) -> ExampleSplits:
        """The rows that the tokens are made of."""
        return load_splits(self.config.data, self.data_cache, classes=classes_of(self.config.model))

    @cached_property
    def row_format(self) -> RowFormat:
        """What the rows are; alpaca rows are prompts and completions."""
        kinds = {type(example) for part in self._parts for example in part}
        return FORMATS[kinds.pop()] if len(kinds) == 1 else "mixed"

    @property
    def has_given_turns(self) -> bool:
        """Whether conversations have messages of the assistant that are not learned."""
        return any(isinstance(example, Conversation) and example.given for part in self._parts for example in part)

    @property
    def _parts(self) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        return self.examples.train.examples, self.examples.eval.examples

    @property
    def specials(self) -> Specials:
        """What the tokenizer puts before and after a text, as text."""
        ids = StringEncoder(self.tokenizer)
        return Specials(self.tokenizer.decode(ids.before), self.tokenizer.decode(ids.after))

    @cached_property
    def plan(self) -> BatchPlan:
        """Steps per epoch and in all."""
        return BatchPlan(len(self.tokens.train), self.config.training)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.plan.total_steps

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps in which the rate rises."""
        return warmup_steps(self.config.training, self.total_steps)

    @property
    def decay_steps(self) -> int | None:
        """Optimizer steps in which warmup_stable_decay falls, None for another schedule."""
        if self.config.training.lr_scheduler_type != "warmup_stable_decay":
            return None
        return decay_steps(self.config.training, self.total_steps)


def read_trial(
    results: Results, folder: RunFolder, choice: int | Role, data_form: DataForm | None = None
) -> ExportedTrial:
    """The trial of a study that is to be handed over.

    Args:
        results: The study's trials and the verdict.
        folder: Where the study's adapters are.
        choice: A trial's number, or what the verdict calls it.
        data_form: How to hand the data over, None: as each target likes it best.

    Raises:
        InputError: there is no such trial, or its base cannot be found.
    """
    option = f"--trial {choice}" if isinstance(choice, int) else f"--{choice}"
    chosen = chosen_trial(results, choice, option)
    settings = chosen.config.model
    config = model_config(settings)
    linears = linear_map_of_config(config, classes_of(settings))
    adapter = folder.adapter_of(chosen)
    return ExportedTrial(
        spec=results.spec,
        result=chosen,
        findings=results.findings,
        roles=results.findings.roles(chosen.number),
        linears=linears,
        model_config=config,
        location=locate(settings),
        dtype=_dtype(chosen, linears),
        adapter=adapter if (adapter / "adapter_model.safetensors").is_file() else None,
        data_cache=folder.data_cache,
        data_form=data_form,
    )


def _dtype(result: TrialResult, linears: LinearMap) -> Dtype:
    """What the base was loaded in: as the settings say, or for `auto` as the bytes that it took tell."""
    settings = result.config.model
    if settings.dtype != "auto":
        return Dtype(settings.dtype, known=True)
    measured = result.metrics.get("base_bytes")
    if measured is not None and settings.quantization == "none":
        width = round(measured / linears.total_parameters)
        if width in BYTES_PER_ELEMENT:
            return Dtype(BYTES_PER_ELEMENT[width], known=True)
    name: Any = str(resolve_dtype(settings, default_device())).removeprefix("torch.")
    return Dtype(name, known=False)
