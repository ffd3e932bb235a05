"""What a study keeps of itself in its storage, beside its trials."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lora_lab.common.errors import StorageError
from lora_lab.study.file.loading import load_spec_json
from lora_lab.study.measures import EVAL_LOSS
from lora_lab.study.sweep import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study

    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import SweepSettings

SPEC = "spec"
BASE_VALUES = "base_losses"
CONTENTS = "contents"
COMPLETE = "complete"
DECLARED = "declared_verdict"
LOOKS = "looks"
HOME = "home"


@dataclass(frozen=True, slots=True)
class Home:
    """Where the files of a study's trials are: adapters, checkpoints and the journal."""

    journal: str | None
    """The identity of the journal there; None before there is one."""
    host: str
    folder: str
    """The run folder's absolute path."""

    def __str__(self) -> str:
        return f"{self.folder} on {self.host}"


class StudyRecord:
    """The specification, what the bare base has, the digests of data and weights, and whether the study is complete.

    Args:
        study: The study in Optuna.
        sweep: The sweep as its settings are now.
    """

    def __init__(self, study: Study, sweep: SweepSettings) -> None:
        self._study, self._sweep = study, sweep

    @property
    def has_trials(self) -> bool:
        """Whether a trial was ever asked for; until then, the study may still become another."""
        return bool(self._study.get_trials(deepcopy=False))

    def stored_spec(self) -> StudySpec | None:
        """The study as it was when its trials were last trained, without its `storage`; None before there were any.

        Raises:
            StorageError: it is damaged, or was written by a version with other settings.
        """
        text = self._study.user_attrs.get(SPEC)
        return None if text is None else load_spec_json(text)

    def replace_spec(self, spec: StudySpec) -> None:
        """Store this spec as the study's, without `storage`: a database URL may hold a password.

        What counts as a tie stays on record as it was declared before there were results.
        """
        before = self.stored_spec() if self.has_trials else None
        if before is None or DECLARED not in self._study.user_attrs:
            self._study.set_user_attr(DECLARED, (before or spec).sweep.verdict.model_dump(mode="json"))
        self._study.set_user_attr(SPEC, spec.stored())

    def declared_verdict(self) -> Verdict | None:
        """What counted as a tie when the first trial began; None before that."""
        kept = self._study.user_attrs.get(DECLARED)
        return None if kept is None else Verdict.model_validate(kept)

    def looks(self) -> list[int]:
        """The numbers of seeds at which a verdict was tested, in order; of an old study, those of its last one."""
        kept = self._study.user_attrs.get(LOOKS)
        if kept is not None:
            return list(kept)
        completed = json.loads(self._study.user_attrs.get(COMPLETE, "{}"))
        seeds = (completed.get("confirm") or {}).get("seeds") or completed.get("seeds")
        return [seeds] if seeds else []

    def keep_look(self, seeds: int) -> None:
        """Remember that a verdict was tested with so many seeds; the number of the last look changes nothing."""
        looks = self.looks()
        if looks[-1:] != [seeds]:
            self._study.set_user_attr(LOOKS, [*looks, seeds])

    def contents(self) -> dict[str, str]:
        """What the trials were trained and measured on: the digest of each source, by what it is."""
        return dict(self._study.user_attrs.get(CONTENTS, {}))

    def keep_contents(self, contents: Mapping[str, str]) -> None:
        """Keep the digests of what trials are trained and measured on; those of sources not named here stay."""
        kept = self.contents() if self.has_trials else {}
        self._study.set_user_attr(CONTENTS, {**kept, **contents})

    def home(self) -> Home | None:
        """Where the trials' files are; None for a study that was begun when this was not kept."""
        kept = self._study.user_attrs.get(HOME)
        return None if kept is None else Home(**kept)

    def keep_home(self, home: Home) -> None:
        """Keep where the trials' files are, so that no other folder goes on without them."""
        if home != self.home():
            self._study.set_user_attr(HOME, asdict(home))

    def base_values(self) -> dict[str, float] | None:
        """What was measured of the bare base, by name; None before that."""
        kept = self._study.user_attrs.get(BASE_VALUES)
        if isinstance(kept, list):  # of studies begun with lora_lab 0.1
            names = (EVAL_LOSS.name, "forgetting_loss")
            kept = {name: value for name, value in zip(names, kept, strict=True) if value is not None}
        return kept

    def keep_base_values(self, values: Mapping[str, float | None]) -> None:
        """Keep what was measured of the bare base, which every gain is measured against; None is left out."""
        self._study.set_user_attr(BASE_VALUES, {name: value for name, value in values.items() if value is not None})

    def base_value(self) -> float:
        """What the study judges, of the bare base.

        Raises:
            StorageError: it was not measured.
        """
        judged, known = self._sweep.judged.name, self.base_values() or {}
        if judged not in known:
            raise StorageError(
                f"study {self._study.study_name} judges {judged}, which was not measured of the bare base "
                f"({', '.join(known) or 'nothing'} was); begin it anew with --fresh"
            )
        return known[judged]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do for the sweep as its settings are now."""
        return bool(self._study.user_attrs.get(COMPLETE) == self._sweep.model_dump_json())

    def mark_complete(self) -> None:
        """Remember that the sweep, as its settings are now, was carried out to its end."""
        self._study.set_user_attr(COMPLETE, self._sweep.model_dump_json())
