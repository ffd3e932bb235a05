"""A whole study: one question, a model, data, fixed settings, and a sweep over the rest."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from lora_lab.study.data_settings import DataSettings  # noqa: TC001 -- pydantic reads the annotation
from lora_lab.study.section import RuleError, Settings, is_default
from lora_lab.study.settings import EvaluationSettings, LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.study.sweep import SEARCHABLE, SweepSettings, Value

if TYPE_CHECKING:
    from collections.abc import Mapping

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class StudySpec(Settings):
    """A validated study file."""

    study_name: str
    question: str = ""
    storage: str | None = None
    """The URL of a SQLite, PostgreSQL or MySQL database; by default `sqlite:///runs/<study_name>/study.db`."""
    model: ModelSettings
    data: DataSettings
    training: TrainingSettings = TrainingSettings()
    lora: LoraSettings = LoraSettings()
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), exclude_if=is_default)
    sweep: SweepSettings

    @field_validator("study_name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not STUDY_NAME.fullmatch(name) or ".." in name:
            raise ValueError(
                "must be 1 to 100 letters, digits, '.', '_' or '-', begin with a letter or digit and "
                f"not contain '..' (it names a folder), but is {name[:120]!r}"
            )
        return name

    @model_validator(mode="after")
    def _parameters_exist_and_fit(self) -> StudySpec:
        searched = self.sweep.parameters
        above: list[str] = []
        for name, parameter in searched.items():
            for other in parameter.when:
                key = ("sweep", "parameters", name, "when", other)
                if other not in searched:
                    raise RuleError(key, f"{other} is not searched; searched are {', '.join(searched)}")
                if other not in above:
                    raise RuleError(key, f"{other} must stand above {name} among the parameters")
            above.append(name)
        if any(metric.name == "forgetting" for metric in self.sweep.metric) and self.data.forgetting is None:
            raise RuleError(("sweep", "metric"), "metric forgetting needs data.forgetting: a dataset of general text")
        for metric in self.sweep.metric:
            if metric.measure.source != "always" and metric.name not in self.evaluation.metrics:
                text = f"{metric.name} is measured only where evaluation.metrics asks for it; add it there"
                raise RuleError(("sweep", "metric"), text)
        return self

    def with_labels(self, labels: tuple[str, ...] | None) -> StudySpec:
        """The study with these classes."""
        return self.model_copy(update={"model": self.model.model_copy(update={"labels": labels})})

    def active(self, name: str, chosen: Mapping[str, Value]) -> bool:
        """Whether parameter `name` is searched, given the values chosen for those above it."""
        conditions = self.sweep.parameters[name].when
        return all(other in chosen and condition.holds(chosen[other]) for other, condition in conditions.items())

    def stored(self) -> str:
        """The study as JSON, as its storage keeps it: without `storage`, a URL that may hold a password."""
        return self.model_copy(update={"storage": None}).model_dump_json()

    @property
    def digest(self) -> str:
        """The sha256 of `stored`: of the study's settings, its sweep and all overrides, however they are written."""
        return hashlib.sha256(self.stored().encode()).hexdigest()

    def trial_config(self, chosen: Mapping[str, Value]) -> TrialConfig:
        """The configuration of a trial: the fixed settings with the chosen parameter values put in.

        Raises:
            pydantic.ValidationError: a combination of values that no trial can have.
        """
        sections: dict[str, dict[str, Any]] = {
            section: getattr(self, section).model_dump()
            for section in ("model", "data", "training", "lora", "evaluation")
        }
        for name, value in chosen.items():
            sections[SEARCHABLE[name]][name] = value
        lora = sections["lora"]
        if "alpha_ratio" in chosen and "lora_alpha" not in chosen:
            lora["lora_alpha"] = None
        if "lora_alpha" in chosen and "alpha_ratio" not in chosen:
            lora["alpha_ratio"] = None
        return TrialConfig.model_validate(sections)
