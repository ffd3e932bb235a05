"""Whether every value that a sweep may choose is one that a trial can have, found before any trial starts."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lora_lab.common.secrets import shown
from lora_lab.study.file.problems import Problem, problems
from lora_lab.study.settings import LINKED
from lora_lab.study.space import combinations, corners, deciding
from lora_lab.study.sweep import SEARCHABLE, SECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_lab.study.file.yaml_source import KeyPath
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value

_PARAMETERS: KeyPath = ("sweep", "parameters")
_MAX_COMBINATIONS = 2_000
MAX_PROBLEMS = 50


def value_problems(parameters: Any) -> list[Problem]:
    """Values and range ends that the field of that name refuses; `parameters` is data as it was read."""
    if not isinstance(parameters, dict):
        return []
    found = (
        problem
        for name, parameter in parameters.items()
        if name in SEARCHABLE and isinstance(parameter, dict)
        for problem in _parameter_problems(name, parameter)
    )
    return list(islice(found, MAX_PROBLEMS))


def _parameter_problems(name: str, parameter: dict[str, Any]) -> Iterator[Problem]:
    for place, value in _candidates(parameter):
        yield from _field_problems(name, value, (*_PARAMETERS, name, *place))
    low, step = parameter.get("min"), parameter.get("step")
    if isinstance(low, (int, float)) and isinstance(step, (int, float)):
        for path, text in _field_problems(name, low + step, (*_PARAMETERS, name, "step")):
            yield Problem(path, f"min + step {text}")
    when = parameter.get("when")
    for other, condition in when.items() if isinstance(when, dict) else ():
        if other in SEARCHABLE:
            for place, value in _condition_values(condition):
                yield from _field_problems(other, value, (*_PARAMETERS, name, "when", other, *place))


def _candidates(parameter: dict[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    values = parameter.get("values")
    if isinstance(values, list):
        yield from ((("values", index), value) for index, value in enumerate(values))
    yield from (((end,), parameter[end]) for end in ("min", "max") if parameter.get(end) is not None)


def _condition_values(condition: Any) -> Iterator[tuple[KeyPath, Any]]:
    at: KeyPath = ("values",) if isinstance(condition, dict) else ()
    values = condition.get("values") if isinstance(condition, dict) else condition
    if isinstance(values, list):
        yield from (((*at, index), value) for index, value in enumerate(values))
    elif not isinstance(condition, dict):
        yield (), condition


def _field_problems(name: str, value: Any, place: KeyPath) -> list[Problem]:
    data = {name: value}
    try:
        SECTIONS[SEARCHABLE[name]].model_validate(data)
    except ValidationError as error:
        # Other fields of the section are missing here; only what is said of this one counts.
        mine = [one for one in error.errors(include_url=False) if one["loc"][:1] == (name,)]
        return [Problem((*place, *path[1:]), text) for path, text in problems(mine, data)]
    return []


def combination_problems(spec: StudySpec) -> list[Problem]:
    """Searched values that are each right but that no trial can have together, one problem for each rule.

    Ranges are tried at their ends, and where conditions (`when`) on them begin and end.
    """
    return list(dict.fromkeys(problem for group in LINKED for problem in _first_refused(spec, group)))


def dtype_problems(spec: StudySpec) -> list[Problem]:
    """A dtype in which the small gradients of a trial would become zero, as no loss is scaled here."""
    if spec.model.dtype != "float16":
        return []
    text = "float16 is not trained in: small gradients vanish there, as no loss is scaled"
    return [Problem(("model", "dtype"), f"{text}; take bfloat16, or float32 on a device without it")]


def _first_refused(spec: StudySpec, group: tuple[str, ...]) -> Iterator[Problem]:
    searched = [name for name in spec.sweep.parameters if name in group]
    tried = combinations(spec, deciding(spec, searched), corners)
    for chosen in islice(tried, _MAX_COMBINATIONS):  # a bound on the time; the rest is refused when it is asked for
        problem = _refusal(spec, chosen)
        if problem is not None:
            names = [name for name in searched if name in chosen] or list(chosen)
            yield problem if problem == _refusal(spec, {}) else _of_values(problem, {one: chosen[one] for one in names})
            return


def _refusal(spec: StudySpec, chosen: Mapping[str, Value]) -> Problem | None:
    try:
        spec.trial_config(chosen)
    except ValidationError as error:
        return problems(error.errors(include_url=False), {})[0]
    return None


def _of_values(problem: Problem, chosen: Mapping[str, Value]) -> Problem:
    """A problem of searched values, placed at the last of them; `problem` is why no trial can have them."""
    values = ", ".join(f"{name}={shown(value)}" for name, value in chosen.items())
    text = f"no trial can have {values}: {problem.text}; drop a value, or search it only `when` others allow"
    return Problem((*_PARAMETERS, list(chosen)[-1]), text)
