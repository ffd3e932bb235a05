"""From a study file, its sweep file and `--set` arguments to a StudySpec, or to all of its mistakes."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lora_lab.common.errors import InputError, StorageError, StudyFileError
from lora_lab.study.file.checks import MAX_PROBLEMS, combination_problems, dtype_problems, value_problems
from lora_lab.study.file.draft import Draft, parse_override
from lora_lab.study.file.problems import problems
from lora_lab.study.file.yaml_source import YamlSource, read_yaml
from lora_lab.study.own_metrics import OWN_METRICS
from lora_lab.study.spec import StudySpec
from lora_lab.study.sweep import SEARCHABLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_lab.study.file.yaml_source import KeyPath

_SAME_SETTING = {"lora_alpha": "alpha_ratio", "alpha_ratio": "lora_alpha"}


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudySpec:
    """Read and validate a study file.

    `sweep` is a mapping, or the path of a sweep file from the study file's folder. `overrides` are
    `key.path=value`, put in in their order before validation; the value `null` removes the key.

    Raises:
        InputError: the file is not there, or cannot be read.
        StudyFileError: what is wrong, with file, line and key path; one line for each mistake.
    """
    draft = Draft()
    draft.include((), _mapping_in(read_yaml(path)))
    changes = [parse_override(argument) for argument in overrides]
    _apply(draft, [change for change in changes if change[0] == ("sweep",)])
    _include_sweep_file(draft, path.parent)
    _apply(draft, [change for change in changes if change[0] != ("sweep",)])
    _refuse_overridden_search(draft, [key for key, value in changes if value is not None])
    evaluation = draft.data.get("evaluation")
    if isinstance(evaluation, dict) and "own_metrics" in evaluation:
        raise draft.error(("evaluation", "own_metrics"), "is known from --metrics; remove it, and give the file there")
    return _with_own_metrics(_validated(draft))


def _with_own_metrics(spec: StudySpec) -> StudySpec:
    """The study with what its own metrics declare, the file's content included: another content is another study."""
    own = tuple(OWN_METRICS[name].declared for name in spec.evaluation.metrics if name in OWN_METRICS)
    if not own:
        return spec
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"own_metrics": own})})


def _mapping_in(source: YamlSource) -> YamlSource:
    if isinstance(source.data, dict) and source.data:
        return source
    what = "is empty" if not source.data else "is not a mapping"
    problem = f"the file {what}; it must be a mapping of keys (`key: value` lines)"
    raise StudyFileError(source.name, source.lines.get((), 1), "", problem)


def _apply(draft: Draft, changes: Sequence[tuple[KeyPath, Any]]) -> None:
    for key, value in changes:
        draft.set(key, value)


def _include_sweep_file(draft: Draft, folder: Path) -> None:
    name = draft.data.get("sweep")
    if not isinstance(name, str):
        return
    try:
        source = read_yaml(folder / name, shown_as=os.path.normpath(folder / name))
    except StudyFileError:
        raise
    except InputError as error:
        raise draft.error(("sweep",), f"{error} (a sweep is a mapping, or a path from {folder})") from None
    draft.include(("sweep",), _mapping_in(source))


def _refuse_overridden_search(draft: Draft, keys: Sequence[KeyPath]) -> None:
    """A fixed value given on the command line for what is searched would silently have no effect."""
    sweep = draft.data.get("sweep")
    parameters = sweep.get("parameters") if isinstance(sweep, dict) else None
    for key in keys:
        if len(key) != 2 or SEARCHABLE.get(str(key[1])) != key[0] or not isinstance(parameters, dict):
            continue
        for name in (str(key[1]), _SAME_SETTING.get(str(key[1]), "")):
            parameter = parameters.get(name)
            if isinstance(parameter, dict) and not parameter.get("when"):
                raise draft.error(
                    key,
                    f"{name} is searched, so a fixed value has no effect; set sweep.parameters.{name} "
                    f"instead, or remove that with --set sweep.parameters.{name}=null",
                )


def _validated(draft: Draft) -> StudySpec:
    sweep = draft.data.get("sweep")
    found = value_problems(sweep.get("parameters")) if isinstance(sweep, dict) else []
    if len(found) == MAX_PROBLEMS:  # pydantic would repeat them all, at some cost
        raise draft.errors(found)
    try:
        spec = StudySpec.model_validate(draft.data)
    except ValidationError as error:
        known = {problem.path for problem in found}
        more = problems(error.errors(include_url=False), draft.data)
        found += [problem for problem in more if problem.path not in known]
    else:
        found = found or combination_problems(spec) or dtype_problems(spec)
    if found:
        raise draft.errors(found)
    return spec


def load_spec_json(text: str) -> StudySpec:
    """The StudySpec that was written with `spec.model_dump_json()`.

    Raises:
        StorageError: the text is damaged, or was written by a version with other settings.
    """
    try:
        data = json.loads(text)
        return StudySpec.model_validate(data)
    except ValidationError as error:
        found = problems(error.errors(include_url=False), data)[0]
        place = ".".join(map(str, found.path))
        reason = f"{place}: {found.text}"
    except ValueError as error:
        reason = f"no JSON: {error}"
    raise StorageError(
        f"the stored study settings cannot be read ({reason}); they are damaged, or of another version of "
        "lora_lab: use that version, or start over with --fresh"
    )
