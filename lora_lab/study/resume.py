"""Whether trials of an edited study may stand beside those it already has."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.common.secrets import redact, shown
from lora_lab.study.identity import WITHOUT_EFFECT
from lora_lab.study.section import Settings
from lora_lab.study.sweep import SEARCHABLE, SECTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Parameter, Value


def _settings() -> list[tuple[str, str]]:
    """Section and name of every setting that a result may depend on."""
    return [
        (section, name)
        for section, settings in SECTIONS.items()
        for name in settings.model_fields
        if name not in WITHOUT_EFFECT
    ]


def _searched(spec: StudySpec, section: str, name: str) -> Parameter | None:
    return spec.sweep.parameters.get(name) if SEARCHABLE.get(name) == section else None


def compare_for_resume(old: StudySpec, new: StudySpec) -> None:
    """Check that the trials of `old` are among those that `new` could have made.

    Everything that only says how, and how far, the study is searched may change: n_trials, sampler, pruner,
    seed, pack_size, confirm, verdict, question, storage. A setting may take more values than before, not
    fewer.

    Raises:
        InputError: the change would mix trials that do not compare; a line `key: old -> new` each.
    """
    changes = [*_changed_metric(old, new), *_changed_evaluation(old, new)] + [
        _change(old, new, section, name) for section, name in _settings() if not _keeps(old, new, section, name)
    ]
    if changes:
        lines = "\n".join(f"  {change}" for change in changes)
        raise InputError(
            f"study {new.study_name} has trials that would not compare with those after these changes:\n"
            f"{lines}\ntake the changes back, or begin a new study with --fresh"
        )


def compare_contents(kept: Mapping[str, str], present: Mapping[str, str], study_name: str) -> None:
    """Check that what a study goes on with is what its trials were trained and measured on.

    Args:
        kept: The digest of each source when the trials were trained, by what it is.
        present: The digests as they are now; a source that is not in `kept` is new, and so compares.
        study_name: For the message.

    Raises:
        InputError: a source has another content than it had.
    """
    changed = [what for what, digest in present.items() if kept.get(what, digest) != digest]
    if changed:
        raise InputError(
            f"study {study_name} has trials that were trained and measured on another content of "
            f"{'; '.join(changed)}; put back what was there then, or begin a new study with --fresh"
        )


def _changed_metric(old: StudySpec, new: StudySpec) -> list[str]:
    before, after = ([f"{one.goal} {one.name}" for one in spec.sweep.metric] for spec in (old, new))
    return [] if before == after else [f"sweep.metric: {', '.join(before)} -> {', '.join(after)}"]


def _changed_evaluation(old: StudySpec, new: StudySpec) -> list[str]:
    """Trials that ended cannot be measured anew, and longer answers score otherwise."""
    before, after = old.evaluation, new.evaluation
    if before != after and before == after.model_copy(update={"own_metrics": before.own_metrics}):
        return ["--metrics: the file has another content than when these trials were measured"]
    return [] if before == after else [f"evaluation: {_compact(before)} -> {_compact(after)}"]


def _keeps(old: StudySpec, new: StudySpec, section: str, name: str) -> bool:
    """Whether every value that trials of the old study may have is one that new trials may have."""
    before, after = _searched(old, section, name), _searched(new, section, name)
    if before is not None and (after is None or not _widens(before, after)):
        return False
    if before is not None and not before.when:
        return True
    value = getattr(getattr(old, section), name)
    if after is not None and not after.when:
        return _contains(after, value)
    return bool(value == getattr(getattr(new, section), name))


def _widens(before: Parameter, after: Parameter) -> bool:
    if before.when != after.when:
        return False
    if before.values is not None:
        return after.values is not None and set(before.values) <= set(after.values)
    if before.min is None or before.max is None or after.max is None:
        return False  # a range cannot become a list of values
    same_kind = before.log == after.log and before.is_integer == after.is_integer
    finer = after.step is None or (before.step is not None and _is_multiple(before.step, after.step))
    return same_kind and finer and _contains(after, before.min) and before.max <= after.max


def _contains(parameter: Parameter, value: Value) -> bool:
    if parameter.values is not None:
        return value in parameter.values
    low, high = parameter.min, parameter.max
    if isinstance(value, (bool, str, tuple)) or value is None or low is None or high is None:
        return False
    on_grid = parameter.step is None or _is_multiple(value - low, parameter.step)
    return low <= value <= high and on_grid


def _is_multiple(value: float, step: float) -> bool:
    return math.isclose(value / step, round(value / step), abs_tol=1e-9)


def _change(old: StudySpec, new: StudySpec, section: str, name: str) -> str:
    before, after = _searched(old, section, name), _searched(new, section, name)
    both_fixed = before is None and after is None
    same_search = before is not None and after is not None and _widens(before, after)
    if both_fixed or same_search:  # then it is the fixed value that differs
        return f"{section}.{name}: {_fixed(old, section, name)} -> {_fixed(new, section, name)}"
    return f"sweep.parameters.{name}: {_domain(old, section, name)} -> {_domain(new, section, name)}"


def _domain(spec: StudySpec, section: str, name: str) -> str:
    parameter = _searched(spec, section, name)
    if parameter is None:
        return f"fixed at {_fixed(spec, section, name)}"
    return _compact(parameter)


def _fixed(spec: StudySpec, section: str, name: str) -> str:
    value = getattr(getattr(spec, section), name)
    return _compact(value) if isinstance(value, Settings) else shown(value)


def _compact(settings: Settings) -> str:
    """A range or a choice as a study file writes it: `{min: 1, max: 2}`."""
    return redact(json.dumps(settings.model_dump(mode="json", exclude_defaults=True)).replace('"', ""))
