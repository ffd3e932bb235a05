"""Tasks of lm-evaluation-harness, and what they measure of one model."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.common.errors import InputError
from lora_lab.study.task_scores import STDERR, TaskScore, TaskScores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.harness.asked import Asked

NO_FILTER = "none"
"""The harness's name for answers that go into a metric as they are."""


class Harness:
    """The harness with its tasks.

    Args:
        asked: The tasks, and how they are asked.

    Raises:
        InputError: it is not installed, or there is no such task.
    """

    def __init__(self, asked: Asked) -> None:
        try:
            import lm_eval
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise InputError(
                f'evaluate needs lm-evaluation-harness ({error}); install it with pip install "lora-lab[lm-eval]"'
            ) from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._asked = asked
        self._version = lm_eval.__version__
        include = None if asked.include_path is None else str(asked.include_path)
        self._manager = TaskManager(include_path=include)
        unknown = [name for name in asked.tasks if not self._manager.match_tasks([name])]
        if unknown:
            raise InputError(
                f"--tasks {', '.join(unknown)}: lm-evaluation-harness {self._version} has no such task; "
                "`lm-eval ls tasks` lists its own, and --include-path adds a folder of task files"
            )

    def measure(self, model: Any) -> Mapping[str, Any]:
        """What the harness measures of a model, as `simple_evaluate` does it, which also looks the machine over."""
        from lm_eval import evaluate

        asked = self._asked
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it is doing
            found: Mapping[str, Any] = evaluate(
                lm=model,
                task_dict=self._load(),
                limit=asked.limit,
                apply_chat_template=asked.apply_chat_template,
                fewshot_as_multiturn=True,
                log_samples=False,
            )
        return found

    def _load(self) -> Any:
        """The tasks, and random numbers as every evaluation begins with: few-shot examples are the same for all."""
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
        from lm_eval.utils import set_torch_seed

        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002 -- what tasks draw from
        set_torch_seed(DEFAULT_OTHER_SEED)
        loaded = self._manager.load(list(self._asked.tasks))
        for task in loaded["tasks"].values():
            own, wanted = task.get_config("num_fewshot"), self._asked.num_fewshot
            if own is None or (wanted is not None and own != 0):  # a task that says 0 has none
                task.set_config(key="num_fewshot", value=wanted or 0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        return loaded

    def scores(self, measured: Mapping[str, Mapping[str, Any]]) -> list[TaskScores]:
        """The scores of every task and group of tasks that has any.

        Args:
            measured: By column, what `measure` returned.
        """
        first = next(iter(measured.values()))
        columns = {
            task: {name: _metrics(found["results"].get(task, {})) for name, found in measured.items()}
            for task in first["results"]
        }
        return [
            TaskScores(
                task=task,
                settings=self._settings(first, task),
                higher_is_better={
                    name: bool(is_better)
                    for name, is_better in first["higher_is_better"].get(task, {}).items()
                    if is_better is not None
                },
                columns=own,
            )
            for task, own in columns.items()
            if any(own.values())
        ]

    def _settings(self, found: Mapping[str, Any], task: str) -> dict[str, object]:
        """What decides a task's scores beside the model."""
        return {
            "lm_eval": self._version,
            "task_version": found["versions"].get(task),
            "num_fewshot": found["n-shot"].get(task),
            "limit": self._asked.limit,
            "apply_chat_template": self._asked.apply_chat_template,
        }


def _metrics(results: Mapping[str, Any]) -> dict[str, TaskScore]:
    """The numbers of a task, by metric; the harness names them `metric,filter` and `metric_stderr,filter`."""
    found = {}
    for key, value in results.items():
        metric, is_metric, kind = key.partition(",")
        if not is_metric or metric.endswith(STDERR) or not isinstance(value, (int, float)):
            continue
        stderr = results.get(f"{metric}{STDERR},{kind}")
        known = isinstance(stderr, (int, float)) and math.isfinite(stderr)
        name = metric if kind == NO_FILTER else f"{metric}/{kind}"
        found[name] = TaskScore(float(value), float(stderr) if known else None)  # type: ignore[arg-type]
    return found
