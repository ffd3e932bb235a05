"""After the search: the finalists are trained again with fresh seeds, each as often as the study says."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lora_lab.runner.finalists import finalists, first_fresh_seed
from lora_lab.terminal.messages import RetrainingsPlanned

if TYPE_CHECKING:
    from lora_lab.runner.identities import Identities
    from lora_lab.search.store import StudyStore
    from lora_lab.study.spec import StudySpec
    from lora_lab.terminal.display import Display


class Confirmation:
    """Asks for retrainings, each once however often the study is interrupted, and says how many there are.

    Args:
        spec: The study.
        store: The search and its storage.
        identities: Tell which trials are replicates of each other.
        display: What the user sees.
    """

    def __init__(self, spec: StudySpec, store: StudyStore, identities: Identities, display: Display) -> None:
        self._spec, self._store, self._identities, self._display = spec, store, identities, display

    def take_up(self) -> None:
        """Say which retrainings an earlier session asked for and did not finish."""
        self._say(self._store.unfinished_replicates())

    def enqueue(self) -> bool:
        """Ask for what is missing once the search is over; whether the study has retrainings at all."""
        sweep, confirm = self._spec.sweep, self._spec.sweep.confirm
        if confirm is None:
            return False
        results = self._store.results()
        chosen = finalists(
            results,
            self._identities.of_replicates,
            top=confirm.top,
            base_value=self._store.record.base_value(),
            verdict=sweep.verdict,
            measure=sweep.judged,
        )
        seed = first_fresh_seed(results)
        self._say(
            [
                result.number
                for result in chosen
                for replicate in range(1, confirm.seeds + 1)
                if self._store.enqueue_replicate(result.number, seed=seed + replicate - 1, replicate=replicate)
            ]
        )
        return True

    def _say(self, retrained: list[int]) -> None:
        """Show how many retrainings are to come, given the finalist of each."""
        if retrained:
            self._display.tell(RetrainingsPlanned(tuple(Counter(retrained)), len(retrained)))
