"""The configurations that a study may ask for, enumerated without a sampler."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lora_lab.study.identity import trial_identity
from lora_lab.study.section import Trait
from lora_lab.study.space import combinations, deciding
from lora_lab.study.targets import adapted
from lora_lab.study.trajectory import trajectory_identity
from lora_lab.study.trial_settings import settings_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.targets import LinearMap

MOST_CELLS = 20_000
"""More are not compared with each other: their number alone is told."""
MOST_VARIANTS = 1_000


def configurations(spec: StudySpec, names: Sequence[str]) -> Iterator[TrialConfig]:
    """The configurations of all `combinations` that a trial can have."""
    for chosen in combinations(spec, names):
        try:
            yield spec.trial_config(chosen)
        except ValidationError:
            continue  # when it is asked for, that trial ends at once and says why


@dataclass(frozen=True, slots=True)
class Trainings:
    """How many trainings a study comes down to, as far as that is known before it begins."""

    configurations: int
    """Cells of the grid that are asked for; otherwise trials."""
    is_exact: bool
    """Whether all of them were looked at: it is a grid, and not too large a one."""
    duplicates: int | None
    """Cells that are the same training as another one; None where that is seen only as trials are asked for."""
    shared: int | None
    """Cells that are read off a longer run; None as for duplicates."""
    trained: int
    """Trainings that are left, at most."""
    retrainings: int
    """With fresh seeds, of the best and of the cheapest that may tie with it (`confirm`)."""
    examples: tuple[TrialConfig, ...]
    """What is trained: each configuration of a grid, and otherwise one of each kind that differs in memory or work."""

    @property
    def all(self) -> int:
        """Trainings of the search and of its finalists."""
        return self.trained + self.retrainings


def count_trainings(spec: StudySpec, linears_of: Callable[[TrialConfig], LinearMap]) -> Trainings:
    """Count what a study trains.

    Args:
        spec: The study.
        linears_of: The linear modules of a configuration's base.
    """
    sweep = spec.sweep
    grid = GridTrainings(spec, linears_of) if sweep.sampler == "grid" else None
    asked = grid.cells if grid and sweep.n_trials is None else sweep.n_trials or 0
    if grid and sweep.n_trials is not None:
        asked = min(asked, grid.cells)
    whole = grid if grid is not None and grid.is_compared and asked == grid.cells else None
    trained = len(whole.trained) if whole else asked
    if whole:
        examples = tuple(whole.trained.values())
    else:
        names = (*settings_with(Trait.MEMORY), *settings_with(Trait.WORK))
        examples = tuple(islice(dict.fromkeys(configurations(spec, deciding(spec, names))), MOST_VARIANTS))
    return Trainings(
        configurations=asked,
        is_exact=whole is not None,
        duplicates=asked - whole.distinct if whole else None,
        shared=whole.distinct - trained if whole else None,
        trained=trained,
        retrainings=sweep.confirm.top * sweep.confirm.seeds if sweep.confirm else 0,
        examples=examples,
    )


class GridTrainings:
    """The cells of a grid, and how many trainings they come down to.

    Args:
        spec: A study with `sampler: grid`.
        linears_of: The linear modules of a configuration's base.
    """

    def __init__(self, spec: StudySpec, linears_of: Callable[[TrialConfig], LinearMap]) -> None:
        self._linears_of = linears_of
        names = list(spec.sweep.parameters)
        self.cells = sum(1 for _ in combinations(spec, names))
        self.is_compared = self.cells <= MOST_CELLS
        self.trained: dict[str, TrialConfig] = {}
        """The configurations that are trained, by an identity: of runs that contain each other, the longest."""
        self._modules: dict[tuple[object, ...], tuple[str, ...]] = {}
        distinct = set()
        for config in islice(configurations(spec, names), MOST_CELLS if self.is_compared else 0):
            modules = self._modules_of(config)
            identity = trial_identity(config, modules)
            distinct.add(identity)
            key = trajectory_identity(config, modules) or identity
            known = self.trained.get(key)
            if known is None or known.training.num_train_epochs < config.training.num_train_epochs:
                self.trained[key] = config
        self.distinct = len(distinct)

    def _modules_of(self, config: TrialConfig) -> tuple[str, ...]:
        """Resolved once per target set and layers."""
        key = (config.lora.target_modules, config.lora.target_parameters, config.lora.layers)
        if key not in self._modules:
            self._modules[key] = adapted(self._linears_of(config), config.lora)
        return self._modules[key]
