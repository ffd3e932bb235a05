"""Whether a base takes a study's adapters and rows, found from its config before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.wording import value_text
from lora_lab.planning.row_checks import base_notes
from lora_lab.study.settings import TrialConfig
from lora_lab.study.space import combinations, corners, deciding
from lora_lab.study.targets import adapted, experts_share, full_rank_excess, parameter_ending, placement, unusual

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lora_lab.study.settings import LoraSettings, ModelSettings
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.targets import LinearMap

PLACING = ("r", "target_modules", "target_parameters", "layers")
"""The parameters that decide where adapters sit, and whether they fit there."""


def target_examples(spec: StudySpec) -> list[TrialConfig]:
    """One configuration for each place where a study puts adapters, with the highest rank that it has there.

    Everything else is as the study fixes it, so what is always searched may not fit: these need not be trials' own.
    """
    by_place: dict[tuple[object, ...], TrialConfig] = {}
    for choice in combinations(spec, deciding(spec, PLACING), corners):
        lora = spec.lora.model_copy(update={name: choice[name] for name in PLACING if name in choice})
        place = (lora.target_modules, lora.target_parameters, lora.layers)
        if place not in by_place or by_place[place].lora.r < lora.r:
            by_place[place] = TrialConfig.model_construct(
                model=spec.model, data=spec.data, training=spec.training, lora=lora, evaluation=spec.evaluation
            )
    return list(by_place.values())


def expert_notes(spec: StudySpec, linears: LinearMap) -> list[str]:
    """What to know of a mixture of experts: that these stay frozen in all trials, or what it costs to train them.

    Raises:
        InputError: a combination of targets and layers matches nothing of the base.
    """
    if not linears.experts:
        return []
    trained = {
        name for config in target_examples(spec) for name in adapted(linears, config.lora) if name in linears.experts
    }
    if not trained:
        way = (
            "target_modules are linear modules, and these are none. `lora.target_parameters: experts` trains them too; "
            "`target_parameters: {values: [none, experts]}` under sweep.parameters compares both"
        )
        return [f"the experts ({_experts_text(linears, linears.experts)}) stay frozen in all trials: {way}"]
    cost = (
        "peft adds each adapter to its weights in every forward pass, and keeps the sums, as large as these weights, "
        "for the backward pass, then with their gradients; with gradient_checkpointing it keeps those of one layer"
    )
    return [f"target_parameters trains experts ({_experts_text(linears, trained)}) on the reference engine: {cost}"]


def _experts_text(linears: LinearMap, names: Iterable[str]) -> str:
    endings = ", ".join(sorted({parameter_ending(name) for name in names}))
    return f"{endings}: {experts_share(linears, names):.0%} of the base"


def _targets_text(lora: LoraSettings) -> str:
    modules = f"target_modules {value_text(lora.target_modules)}"
    parameters = lora.target_parameters
    return modules if parameters == "none" else f"{modules} with target_parameters {value_text(parameters)}"


def check_targets(spec: StudySpec, linears: Callable[[ModelSettings], LinearMap]) -> list[str]:
    """Resolve every combination of target modules and layers, and compare the longest row with the base's positions.

    Returns:
        Notes on experts, on rows longer than the base was made for, on its own dropout, on what is adapted and left
        out, where the base has more than attention and feed-forward modules, and on ranks above the smaller side of a
        matrix.

    Raises:
        InputError: a combination matches no module of the model, or rows may be longer than it can read.
    """
    base = linears(spec.model)
    notes = [*expert_notes(spec, base), *base_notes(spec, base)]
    beyond: dict[int, dict[str, int]] = {}
    placed: dict[str, None] = {}
    for config in target_examples(spec):
        there = linears(config.model)
        chosen, left_out = placement(there, config.lora)
        if unusual(there):
            rest = f"; left out: {'; '.join(left_out)}" if left_out else ""
            placed[f"{_targets_text(config.lora)} adapts {'; '.join(chosen)}{rest}"] = None
        excess = full_rank_excess(there, config.lora)
        if excess:
            beyond.setdefault(config.lora.r, {}).update(excess)
    return [*notes, *placed] + [
        f"r={r} is above the smaller side of {len(modules)} adapted matrices (smallest: {min(modules.values())}): "
        "there the adapter has more rank than the matrix"
        for r, modules in sorted(beyond.items())
    ]
