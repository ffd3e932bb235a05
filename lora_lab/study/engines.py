"""Which training engine a trial runs on, and why, as far as its settings and the kind of device decide it.

The packed engine trains many trials in one pass, and does exactly what it does. What it does not do runs on the
reference engine, `transformers.Trainer` with `peft`, one trial at a time. So does what runs on a base that the packed
engine refuses when it sees it, which no setting tells: the engine that trained a trial is kept with it in the storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.study.settings import TrialConfig

EngineName = Literal["packed", "reference"]


class EngineChoice(NamedTuple):
    """An engine, and why it is this one, in words."""

    name: EngineName
    reason: str


def engine_for(config: TrialConfig, *, is_cuda: bool = False) -> EngineChoice:
    """The engine that trains this configuration, unless the packed one refuses its base.

    Args:
        config: The trial.
        is_cuda: Whether it trains on a CUDA device.
    """
    reasons = list(_beyond_packing(config, is_cuda=is_cuda))
    if reasons:
        return EngineChoice("reference", "; ".join(reasons))
    return EngineChoice("packed", "the base stays as it is, and only A and B are trained")


def _beyond_packing(config: TrialConfig, *, is_cuda: bool) -> Iterator[str]:
    lora = config.lora
    if config.model.classifies:
        yield "task_type SEQ_CLS trains a classification head in full"
    if lora.use_dora:
        yield "use_dora trains magnitudes beside A and B"
    if lora.target_parameters != "none":
        yield "target_parameters trains the fused weights of experts, which are no linear modules"
    if lora.bias != "none":
        yield f"bias {lora.bias} trains biases of the base"
    if lora.modules_to_save is not None:
        yield f"modules_to_save trains {', '.join(lora.modules_to_save)} in full"
    if lora.initialization.changes_base:
        yield f"init_lora_weights {lora.init_lora_weights} changes the base under the adapter"
    if is_cuda and config.model.quantization == "int8":
        # An outlier in any row takes its column out of the integer product for all of them (arXiv:2208.07339).
        yield "int8 products on CUDA round a row by the outliers of all rows, so neighbors in a pack would change it"
