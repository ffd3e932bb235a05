"""A plan as a value: what a study will do, and what it needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_lab.planning.calibration import Calibration


@dataclass(frozen=True, slots=True)
class Adapter:
    """A shape of adapter, and what it trains."""

    r: int
    target_modules: str
    layers: str
    trainable_params: int
    trainable_percent: float
    """Of the base and the adapter."""
    adapted: tuple[str, ...]
    """The modules and weights of experts that it sits on, by what they do."""
    left_out: tuple[str, ...]
    """The other linear modules, and the weights of experts."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that was tried on a configuration that does not fit."""

    change: str
    predicted_bytes: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """What the trials of one shape need."""

    quantization: str
    r: int
    target_modules: str
    layers: str
    rows: int
    max_length: int
    other: str
    """What else is searched and matters: gradient checkpointing, optimizer, ..."""
    engine: str
    predicted_bytes: int | None
    """Of one trial alone, CUDA's context counted; None for the reference engine, and where it cannot be known."""
    terms: dict[str, int] | None
    fits: bool | None
    """Within the limit; None where there is no limit."""
    at_once: int | None
    """How many such trials fit side by side."""
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineUse:
    """An engine, why trials get it, and how many of the enumerated shapes do."""

    name: str
    reason: str
    shapes: int


@dataclass(frozen=True, slots=True)
class Work:
    """How much there is to compute. Rows are taken as full, so these are upper bounds."""

    examples: int | None
    """Training rows; None where they are not counted."""
    flops_per_epoch: tuple[float, float] | None
    """Of one trial: of the cheapest and of the dearest shape."""
    total_flops: float | None
    seconds: float | None
    """From the speed of this study's finished trials, None where there are none."""
    tokens_per_second: float | None
    uncounted: str = ""
    """Why the rows are not counted."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What it takes to let trials answer the held-out prompts."""

    prompts: int | None
    """None where they are not counted."""
    test_prompts: int | None
    """Those of `data.test`, which a trial answers once; None where they are not counted."""
    max_new_tokens: int
    rounds: float | None
    """How often a trial answers them, on average; None where its evaluations are not counted."""
    tokens: int | None
    """Generated in the whole study, at most: every answer as long as it may be."""
    rows: int
    """Prompts that a trial answers at once, at most."""
    length: int
    """Tokens of prompt and answer, at most."""
    kept_bytes: int | None
    """What the base keeps of a trial's rows of this length (keys and values, states); None where it is not known."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study will do and need."""

    study_name: str
    question: str
    model: str
    base_parameters: int
    device: str
    device_bytes: int | None
    limit_bytes: int | None
    sampler: str
    pruner: str
    configurations: int
    """Cells of the grid; otherwise trials."""
    is_exact: bool
    """Whether `configurations` is a grid's, all of which were looked at."""
    duplicates: int | None
    """Cells that are the same training as another one; None where that is seen only as trials are asked for."""
    shared: int | None
    """Cells that are read off a longer run; None as for duplicates."""
    trained: int
    """Trainings that are left, at most."""
    retrainings: int
    """With fresh seeds, of the best and of the cheapest that may tie with it (`confirm`)."""
    space: dict[str, str]
    trajectory: str | None
    pack_size: str
    packs: int | None
    """Packs that follow each other, at least; None where the pack size is found by measuring."""
    engines: tuple[EngineUse, ...]
    adapters: tuple[Adapter, ...]
    memory: tuple[Memory, ...]
    work: Work
    notes: tuple[str, ...]
    generation: Generation | None = None
    """None where trials answer no prompts."""
    calibration: Calibration | None = None
    """What the study will take, from steps that were timed here; None where none were."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
