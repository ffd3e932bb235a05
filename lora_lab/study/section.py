"""What every section of a study file is made with: strict, immutable models, and what is known of a key."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

if TYPE_CHECKING:
    from collections.abc import Callable


def list_to_tuple(value: Any) -> Any:
    """A list, as YAML and JSON have it, as the tuple that a setting is."""
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(list_to_tuple), Field(min_length=1)]
Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(list_to_tuple), Field(min_length=1)]


class Trait(Enum):
    """What is known of a setting beside its type, as part of the field's annotation."""

    MEMORY = "decides a trial's memory, its engine or its number of parameters"
    WORK = "decides how many steps or tokens a trial trains"
    RATIO = "is compared by ratios: drawn on a logarithmic axis"


class RuleError(ValueError):
    """A rule over several keys that does not hold; `key` leads from the model to the one to change."""

    def __init__(self, key: tuple[str, ...], problem: str) -> None:
        super().__init__(problem)
        self.key = key


class Settings(BaseModel):
    """Base of all sections: immutable, unknown keys refused, no silent conversion, finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


def is_none(value: object) -> bool:
    """Whether a key is not given; left out of dumps then, as `is_default`."""
    return value is None


def known(names: Callable[[], list[str]]) -> AfterValidator:
    """One of the names that the table of measures has: it alone says which there are."""

    def check(name: str) -> str:
        if name not in names():
            raise PydanticKnownError("literal_error", {"expected": ", ".join(map(repr, names()))})
        return name

    return AfterValidator(check)


def is_default(settings: Settings) -> bool:
    """Whether a section says nothing; left out of dumps then: what was stored before it existed keeps its identity."""
    return settings == type(settings)()
