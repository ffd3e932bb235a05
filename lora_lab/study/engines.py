"""Which training engine a trial runs on, and why, as far as its settings decide it.

The packed engine trains many trials in one pass, and does exactly what it does. What it does not do runs on the
reference engine, `transformers.Trainer` with `peft`, one trial at a time. So does what runs on a base that the packed
engine refuses when it sees it, which no setting tells: the engine that trained a trial is kept with it in the storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.study.settings import LoraSettings, TrialConfig

EngineName = Literal["packed", "reference"]


class EngineChoice(NamedTuple):
    """An engine, and why it is this one, in words."""

    name: EngineName
    reason: str


def engine_for(config: TrialConfig) -> EngineChoice:
    """The engine that trains this configuration, unless the packed one refuses its base."""
    reasons = list(_beyond_packing(config.lora))
    if reasons:
        return EngineChoice("reference", "; ".join(reasons))
    return EngineChoice("packed", "the base stays as it is, and only A and B are trained")


def _beyond_packing(lora: LoraSettings) -> Iterator[str]:
    if lora.use_dora:
        yield "use_dora trains magnitudes beside A and B"
    if lora.bias != "none":
        yield f"bias {lora.bias} trains biases of the base"
    if lora.modules_to_save is not None:
        yield f"modules_to_save trains {', '.join(lora.modules_to_save)} in full"
    if lora.initialization.changes_base:
        yield f"init_lora_weights {lora.init_lora_weights} changes the base under the adapter"
