"""How trials begin and end, as the journal and the user are told."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import plural, trial_label
from lora_lab.common.errors import InputError
from lora_lab.terminal.messages import TrialBegan, TrialOver
from lora_lab.tracking.describe import curve_read_off, trial_started
from lora_lab.tracking.records import TrialEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.results.folder import RunFolder
    from lora_lab.runner.identities import Identities
    from lora_lab.search.records import Asked
    from lora_lab.study.engines import EngineChoice
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig
    from lora_lab.terminal.display import Display
    from lora_lab.tracking.journal import Journal


class Announcer:
    """Journals and shows trials.

    Args:
        journal: Where events are kept for MLflow and the report.
        display: What the user sees.
        folder: The study's files.
        identities: Tell which trials are replicates of each other.
        judged: What the study judges, of which the user sees the value.
    """

    def __init__(
        self, journal: Journal, display: Display, folder: RunFolder, identities: Identities, judged: Measure
    ) -> None:
        self._journal, self._display, self._folder, self._identities = journal, display, folder, identities
        self._judged = judged

    def started(self, asked: Asked, engine: EngineChoice) -> None:
        """A trial trains from now on."""
        tags = self._tags(asked.config, engine)
        if asked.confirms is not None:
            tags |= {"confirms": str(asked.confirms), "replicate": str(asked.replicate)}
        if asked.branched_from is not None:
            tags |= {"branched_from": str(asked.branched_from)}
        number, config, searched = asked.number, asked.config, asked.params
        self._journal.append(trial_started(number, config, searched=searched, engine=engine.name, tags=tags))
        label = trial_label(config, searched)
        self._display.tell(TrialBegan(number, config, label, is_retraining=asked.confirms is not None))

    def shared(self, result: TrialResult, result_of: Callable[[int], TrialResult]) -> None:
        """A trial was told the outcome of another."""
        self.record(result, result_of)
        reason = _reason(result, result_of)
        self._display.tell(TrialOver(result.number, result.state, result.metrics.get(self._judged.name), reason))

    def record(self, result: TrialResult, result_of: Callable[[int], TrialResult]) -> None:
        """Journal a trial from the storage alone: one that was not trained, or whose end a kill kept out."""
        tags = self._tags(result.config, result.engine)
        if result.source is not None:
            tags["shares"] = str(result.source)
        adapter = self._folder.files_of(result.number).adapter
        self._journal.append(
            trial_started(
                result.number,
                result.config,
                searched=result.params,
                engine=result.engine.name,
                tags=tags,
            ),
            *curve_read_off(result),
        )
        # Later than the curve: of two values at one step, MLflow shows the later one as the trial's.
        self._journal.append(
            TrialEnded(
                number=result.number,
                state=result.state,
                step=int(result.metrics.get("steps", 0)),
                reason=_reason(result, result_of),
                metrics=result.metrics,
                adapter_folder=adapter if adapter.is_dir() else None,
            ),
        )

    def _tags(self, config: TrialConfig, engine: EngineChoice) -> dict[str, str]:
        """What ties the trial to its replicates, and says why its engine trains it."""
        tags = {"engine_reason": engine.reason}
        with suppress(InputError):  # of targets that match nothing: the trial is told as failed with that
            tags["config_id"] = self._identities.of_replicates(config)[:12]
        return tags


def _reason(result: TrialResult, result_of: Callable[[int], TrialResult]) -> str:
    """Why a trial ended as it did, or whose outcome it has."""
    if result.source is None or not result.has_value:
        return result.reason
    epochs = result.config.training.num_train_epochs
    if result_of(result.source).config.training.num_train_epochs == epochs:
        return f"the same training as trial {result.source}"
    if result.stopped_early:
        trained = f"{result.metrics['epochs']:g} of {plural(epochs, 'epoch')}"
        return f"trial {result.source}, which stopped early after {trained}"
    return f"trial {result.source} after {plural(epochs, 'epoch')}"
