"""The values that searched parameters can take, and the choices of them that a study may ask for.

Everything that enumerates a search space reads it here: the sampler's grid, the plan, the checks of a study file.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from lora_lab.study.sweep import SEARCHABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Condition, Parameter, Value

DECIMALS = 12
"""Values on the grid of a range are rounded to so many digits after the point: 0.3, not 0.30000000000000004."""


def options(parameter: Parameter) -> Sequence[Value]:
    """Every value of a parameter that has finitely many, in the order of the study file, or upwards.

    A range has a value at `min` and at every `step` from there, up to the last one that is not above `max`. The step
    of whole numbers is 1 by default.
    """
    return _numbers(parameter) if parameter.values is None else parameter.values


def ends(parameter: Parameter) -> Sequence[Value]:
    """All `values` of a parameter, or the lowest and the highest value of its range."""
    return _lowest_and_highest(parameter) if parameter.values is None else parameter.values


def choices(spec: StudySpec, name: str) -> tuple[Value | None, ...]:
    """The `ends` of a parameter and, unless every trial has one of its values, the fixed setting of the study file."""
    parameter = spec.sweep.parameters.get(name)
    searched = () if parameter is None else tuple(ends(parameter))
    if parameter is not None and not parameter.when:
        return searched
    fixed: Value | None = getattr(getattr(spec, SEARCHABLE[name]), name)
    return searched if fixed in searched else (*searched, fixed)


def corners(spec: StudySpec, name: str) -> Sequence[Value]:
    """The `ends` of a parameter, and where in its range the conditions (`when`) of other parameters begin and end.

    So every parameter that some trial has is searched under some choice of corners.
    """
    parameter = spec.sweep.parameters[name]
    if parameter.values is not None:
        return parameter.values
    conditions = [other.when[name] for other in spec.sweep.parameters.values() if name in other.when]
    inside = [value for condition in conditions for value in _where_it_holds(condition, parameter)]
    return sorted({*_lowest_and_highest(parameter), *inside})


def representatives(spec: StudySpec, name: str) -> Sequence[Value]:
    """Every value of a parameter with `values` or `step`, the `corners` of any other range."""
    parameter = spec.sweep.parameters[name]
    return corners(spec, name) if parameter.values is None and parameter.step is None else options(parameter)


def combinations(
    spec: StudySpec,
    names: Sequence[str],
    values_of: Callable[[StudySpec, str], Sequence[Value]] = representatives,
) -> Iterator[dict[str, Value]]:
    """Every choice of values for some parameters; one that is not active (`when`) takes no part.

    Args:
        spec: The study.
        names: Parameters in the order of the study file, with all that their `when` refers to: see `deciding`.
        values_of: The values to choose from; the last name's vary fastest.
    """

    def extend(chosen: dict[str, Value], index: int) -> Iterator[dict[str, Value]]:
        if index == len(names):
            yield chosen
        elif not spec.active(names[index], chosen):
            yield from extend(chosen, index + 1)
        else:
            for value in values[index]:
                yield from extend({**chosen, names[index]: value}, index + 1)

    values = [values_of(spec, name) for name in names]
    yield from extend({}, 0)


def deciding(spec: StudySpec, names: Sequence[str]) -> list[str]:
    """The searched parameters among `names`, and all that their `when` refers to, in the order of the study file."""
    searched = spec.sweep.parameters
    needed = {name for name in names if name in searched}
    for name in reversed(searched):
        if name in needed:
            needed |= searched[name].when.keys()
    return [name for name in searched if name in needed]


def _numbers(parameter: Parameter) -> Sequence[int | float]:
    low, high = _bounds(parameter)
    step = parameter.step
    if parameter.is_integer:
        return range(int(low), int(high) + 1, 1 if step is None else int(step))
    assert step is not None, "a range of fractions without a step has no next value"
    count = (Decimal(str(high)) - Decimal(str(low))) // Decimal(str(step))  # as exact as the study file is written
    return [round(low + index * step, DECIMALS) for index in range(int(count) + 1)]


def _lowest_and_highest(parameter: Parameter) -> tuple[int | float, int | float]:
    if parameter.step is None:
        return _bounds(parameter)
    numbers = _numbers(parameter)
    return numbers[0], numbers[-1]


def _bounds(parameter: Parameter) -> tuple[int | float, int | float]:
    assert parameter.min is not None
    assert parameter.max is not None
    return parameter.min, parameter.max


def _where_it_holds(condition: Condition, parameter: Parameter) -> Sequence[int | float]:
    """The values of a range at which a condition begins and ceases to hold; none where it never does."""
    if parameter.is_integer or parameter.step is not None:
        held = [value for value in _numbers(parameter) if condition.holds(value)]
        return held[:1] + held[-1:]
    low, high = _bounds(parameter)
    if condition.values is not None:
        return [float(one) for one in condition.values if isinstance(one, (int, float)) and low <= one <= high]
    least = low if condition.min is None else max(low, condition.min)
    most = high if condition.max is None else min(high, condition.max)
    return (least, most) if least <= most else ()
