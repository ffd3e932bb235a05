"""Whether adapters can sit where a study wants them, found from the base's config before anything is loaded."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from lora_lab.study.targets import full_rank_excess, resolve_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Parameter, Value
    from lora_lab.study.targets import LinearMap


def target_examples(spec: StudySpec) -> Iterator[TrialConfig]:
    """Configurations with every combination of the parameters that decide where adapters sit."""
    decisive = [name for name in ("r", "target_modules", "layers") if name in spec.sweep.parameters]
    choices = [_candidates(spec.sweep.parameters[name]) for name in decisive]
    for values in itertools.product(*choices):
        yield spec.trial_config(dict(zip(decisive, values, strict=True)))


def _candidates(parameter: Parameter) -> tuple[Value, ...]:
    if parameter.values is not None:
        return parameter.values
    assert parameter.max is not None
    return (parameter.max,)


def check_targets(spec: StudySpec, linears: Callable[[ModelSettings], LinearMap]) -> list[str]:
    """Resolve every combination of target modules and layers before anything is loaded.

    Returns:
        Notes on ranks above the smaller side of a matrix.

    Raises:
        InputError: a combination matches no module of the model.
    """
    beyond: dict[int, dict[str, int]] = {}
    for config in target_examples(spec):
        there = linears(config.model)
        resolve_targets(there, config.lora)
        excess = full_rank_excess(there, config.lora)
        if excess:
            beyond.setdefault(config.lora.r, {}).update(excess)
    return [
        f"r={r} is above the smaller side of {len(modules)} adapted matrices (smallest: {min(modules.values())}): "
        "there the adapter has more rank than the matrix"
        for r, modules in sorted(beyond.items())
    ]
