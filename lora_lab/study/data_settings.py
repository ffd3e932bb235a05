"""The section `data` of a study file: which rows, of which columns, cut how."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lora_lab.study.section import RuleError, Settings, Trait, is_none, list_to_tuple

LABELED_COLUMNS = ("text", "text_pair", "label")
"""The columns of rows that have classes, by the names that tokenizers have for the texts."""


class ColumnNames(Settings):
    """Under which names the columns of a format stand in a dataset: `{prompt: question, completion: answer}`."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    conversations: str | None = None
    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None
    # Left out of dumps where they are not given, as above.
    text_pair: str | None = Field(default=None, exclude_if=is_none)
    label: str | None = Field(default=None, exclude_if=is_none)
    choices: str | None = Field(default=None, exclude_if=is_none)
    answer: str | None = Field(default=None, exclude_if=is_none)

    @model_validator(mode="after")
    def _different_columns(self) -> ColumnNames:
        names = list(self.given().values())
        if len(set(names)) < len(names):
            raise RuleError((), f"each name must be a column of its own, but got {', '.join(sorted(names))}")
        return self

    def given(self) -> dict[str, str]:
        """Column of a format -> its name in the dataset, for the columns that have another name there."""
        return {ours: theirs for ours, theirs in self.model_dump().items() if theirs is not None}


class DatasetRef(Settings):
    """Where rows come from; in a study file the plain string `path` is short for `{path: path}`."""

    path: str = Field(min_length=1)
    """A `builtin/` name, a file, a pattern such as `data/*.jsonl`, a folder, or a Hub id."""
    name: str | None = None
    """The configuration of a Hub dataset."""
    split: str | None = None
    """`train`, `validation`, ...; by default `train` to train on, `validation` or `test` to evaluate on."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """Use the first N rows."""
    # Left out of dumps where it is not given: trials from before these keys existed keep their identity.
    revision: str | None = Field(default=None, exclude_if=is_none)
    """Branch, tag or commit of a dataset on the Hub."""
    weight: Annotated[float, Field(gt=0)] | None = Field(default=None, exclude_if=is_none)
    """How often an epoch has each row, in a list of training datasets: 2 is twice, 0.5 a fixed half of the rows."""


def _string_to_ref(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


DatasetField = Annotated[DatasetRef, BeforeValidator(_string_to_ref)]
DatasetList = Annotated[tuple[DatasetField, ...], BeforeValidator(list_to_tuple), Field(min_length=1)]
EvalShare = Annotated[float, Field(gt=0, lt=1)]
Purpose = Literal["train", "eval", "test", "forgetting"]
"""What text is for: the key of `data` in the study file that names it."""


class DataSettings(Settings):
    """Training, evaluation, test and forgetting text, and how it is cut into examples."""

    train: DatasetField | DatasetList
    """A dataset, or a list of them, whose rows are mixed by their weights."""
    eval: EvalShare | DatasetField = 0.1
    """A share of the training rows, held out, or a dataset of its own."""
    forgetting: DatasetField | None = None
    """General text that the base must not get worse on; measured before and after training."""
    max_train_examples: Annotated[Annotated[int, Field(ge=1)] | None, Trait.WORK, Trait.RATIO] = None
    """Train on the first N examples, after those of an `eval` share are held out; unlike a dataset, searchable."""
    max_length: Annotated[int, Trait.MEMORY, Trait.RATIO] = Field(default=512, ge=8)
    """Tokens per example; longer ones are cut, and how many is reported."""
    packing: Annotated[bool, Trait.MEMORY] = False
    """Put several short training examples into one row of up to `max_length` tokens; none sees another."""
    # Left out of dumps where they are not given: trials from before these keys existed keep their identity.
    columns: ColumnNames | None = Field(default=None, exclude_if=is_none)
    """Names of columns, `{ours: theirs}`, in the training data and in other datasets that have them."""
    skip_invalid: bool = Field(default=False, exclude_if=operator.not_)
    """Leave bad rows out, and say how many and which, instead of refusing the dataset."""
    test: DatasetField | None = Field(default=None, exclude_if=is_none)
    """Rows that choose nothing: trials are measured on them at their end, and the verdict is reported there too."""

    @model_validator(mode="after")
    def _weights_in_a_list_only(self) -> DataSettings:
        for name in ("train", "eval", "test", "forgetting"):
            ref = getattr(self, name)
            if isinstance(ref, DatasetRef) and ref.weight is not None:
                raise RuleError((name, "weight"), "is of the datasets in a list under data.train; remove it")
        return self

    @property
    def train_refs(self) -> tuple[DatasetRef, ...]:
        """The datasets that are trained on, one or more."""
        return (self.train,) if isinstance(self.train, DatasetRef) else self.train
