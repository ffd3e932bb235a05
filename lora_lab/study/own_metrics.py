"""Metrics of one's own: functions of a Python file that the command line names (`--metrics`), never a study file.

A function `name(prediction, reference, row) -> float` scores one answer, given what was written, what should have been,
and the columns of the row. It may say more of itself:

    def edits(prediction, reference, row):
        return float(distance(prediction, reference))

    edits.goal = "minimize"     # default: maximize
    edits.range = (0, inf)      # default: any finite number
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

from lora_lab.common.errors import InputError
from lora_lab.study.measures import MEASURES, Goal
from lora_lab.study.settings import DeclaredMetric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    MetricFunction = Callable[[str, str, Mapping[str, Any]], float]

NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
"""What a metric may be called: it stands in file names, in MLflow and in study files."""
MODULE = "lora_lab_own_metrics"
ARGUMENTS = 3


class MetricError(Exception):
    """A metric of one's own cannot score an answer; the message names the function, the row and the reason."""


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """One function of the file."""

    declared: DeclaredMetric
    function: MetricFunction
    file: str

    def score(self, place: str, prediction: str, reference: str, row: Mapping[str, Any]) -> float:
        """The score of one answer to the row that stands at `place`.

        Raises:
            MetricError: the function raises, or returns what its range does not have.
        """
        where = f"{self.file}: {self.declared.name} of {place}"
        try:
            value = float(self.function(prediction, reference, row))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise MetricError(f"{where} raised {reason}") from error
        measure = MEASURES[self.declared.name]
        if not measure.can_be(value):
            raise MetricError(
                f"{where} is {value}, but must be a finite number from {measure.low:g} to {measure.high:g}"
            )
        return value


OWN_METRICS: dict[str, OwnMetric] = {}
"""Those that this process can compute, by name."""


def add_own_metrics(path: Path) -> None:
    """Run a file and add its public functions to the table of measures, for as long as this process lives.

    Raises:
        InputError: it cannot be read or run, has no such function, or one that cannot be a metric.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"--metrics {path}: cannot be read ({error.strerror}); correct the path") from None
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 -- named on the command line to be run
    except Exception as error:
        raise InputError(f"--metrics {path}: {type(error).__name__}: {error}; mend the file") from error
    digest = hashlib.sha256(source).hexdigest()
    functions = dict(_functions(module))
    if not functions:
        raise InputError(f"--metrics {path}: has no function; write one, `name(prediction, reference, row) -> float`")
    for name, function in functions.items():
        OWN_METRICS[name] = OwnMetric(_declared(path, name, function, digest), function, str(path))
        OWN_METRICS[name].declared.add()


def _functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The functions that the file itself defines, but those that begin with an underscore."""
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == MODULE and not name.startswith("_"):
            yield name, value


def _declared(path: Path, name: str, function: Any, digest: str) -> DeclaredMetric:
    def refused(problem: str) -> InputError:
        return InputError(f"--metrics {path}: {name} {problem}")

    if not NAME.fullmatch(name):
        raise refused("is no name for a metric; take lower-case letters, digits and underscores, 50 at most")
    if name in MEASURES and name not in OWN_METRICS:
        raise refused("is the name of a measure that lora_lab has; call it otherwise")
    try:
        inspect.signature(function).bind(*range(ARGUMENTS))
    except TypeError:
        raise refused(f"takes {inspect.signature(function)}; it must take (prediction, reference, row)") from None
    goal: Any = getattr(function, "goal", "maximize")
    if goal not in get_args(Goal):
        raise refused(f"has the goal {goal!r}; it must be one of {', '.join(get_args(Goal))}")
    try:
        low, high = map(float, getattr(function, "range", (-math.inf, math.inf)))
    except (TypeError, ValueError):
        low = high = math.nan
    if not low < high:
        raise refused(f"has the range {function.range!r}; it must be two numbers, the smaller one first")
    bounds = {end: value for end, value in (("low", low), ("high", high)) if math.isfinite(value)}
    return DeclaredMetric(name=name, goal=goal, digest=digest, **bounds)
