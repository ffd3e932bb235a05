"""Which configurations are one training, one trajectory, or replicates of each other, by hashes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.study.identity import trial_identity
from lora_lab.study.targets import adapted
from lora_lab.study.trajectory import trajectory_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.study.targets import LinearMap


class Identities:
    """Hashes configurations as their bases see them: two ways to name the same modules are one.

    Every method raises InputError where the targets match no module of the base.

    Args:
        linears: The linear modules of a base.
    """

    def __init__(self, linears: Callable[[ModelSettings], LinearMap]) -> None:
        self._linears = linears

    def of_training(self, config: TrialConfig) -> str:
        """A hash that is equal for configurations whose trainings are the same."""
        return trial_identity(config, self._modules(config))

    def of_replicates(self, config: TrialConfig) -> str:
        """A hash that is equal for configurations whose trainings differ at most in the seed."""
        return self.of_training(config.changed(training={"seed": 0}))

    def of_trajectory(self, config: TrialConfig) -> str | None:
        """A hash that is equal for runs of one trajectory; None where longer runs do not contain shorter ones."""
        return trajectory_identity(config, self._modules(config))

    def _modules(self, config: TrialConfig) -> tuple[str, ...]:
        return adapted(self._linears(config.model), config.lora)
