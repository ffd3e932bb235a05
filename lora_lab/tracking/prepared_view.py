"""How MLflow's page of a study opens: trials in rows with the columns of the question, and charts of the trade-offs.

MLflow keeps a saved view as a tag of the experiment, and offers it to everybody under "Views"; a link with the view's
key opens it. Its form is that of MLflow 3.17's own pages.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any

from lora_lab.study.measures import EVAL_LOSS, PEAK_MEMORY, TRAIN_SECONDS, TRAINABLE_PARAMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.study.measures import Measure

KEY = "lora_lab"
"""Of the view, in links."""
TAG = f"mlflow.sharedViewState.{KEY}"
NAME = "lora_lab: trials and trade-offs"
TRIALS = "tags.`lora_lab.trial` LIKE '%'"
"""Finds the runs of trials, and not that of the study, in which they would be folded up."""
ALWAYS = ("r", "lora_alpha", "target_modules", "layers", "num_train_epochs", "learning_rate")
"""Settings that have a column whether they are searched or not."""
COMPARED = 100
"""Runs in a chart, as many as MLflow draws."""
TRADE_OFFS = "Trade-offs"
OTHERS = ("Model metrics", "System metrics")
"""MLflow's own sections of charts."""


def view_tag(judged: Measure, searched: Sequence[str], at_ms: int) -> str:
    """The value of the tag that keeps the view.

    Args:
        judged: What the study judges.
        searched: The settings that it searches.
        at_ms: When the view was made, in milliseconds since the epoch.
    """
    state = json.dumps(view_state(judged, searched), separators=(",", ":")).encode()
    packed = "deflate;" + base64.b64encode(zlib.compress(state, 9)).decode()
    return json.dumps({"name": NAME, "createdAt": at_ms, "updatedAt": at_ms, "state": packed})


def view_state(judged: Measure, searched: Sequence[str]) -> dict[str, Any]:
    """The view: the filter, order and columns of the table, and the charts."""
    return {
        "searchFilter": TRIALS,
        "orderByKey": _key("metrics", judged.name),
        "orderByAsc": judged.goal == "minimize",
        "selectedColumns": list(_columns(judged, searched)),
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": list(_charts(judged, searched)),
        "compareRunSections": [_section(name) for name in (TRADE_OFFS, *OTHERS)],
        "isAccordionReordered": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def page_path(experiment_id: str, *, charts: bool = False) -> str:
    """The path of the view below the address of MLflow's pages."""
    mode = "CHART" if charts else "TABLE"
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&compareRunsMode={mode}"


def _columns(judged: Measure, searched: Sequence[str]) -> Iterator[str]:
    measures = dict.fromkeys((judged.name, EVAL_LOSS.name, TRAINABLE_PARAMS.name, PEAK_MEMORY.name, TRAIN_SECONDS.name))
    yield from (_key("metrics", name) for name in measures)
    yield from (_key("params", name) for name in dict.fromkeys((*ALWAYS, *searched)))
    yield _key("tags", "lora_lab.state")


def _charts(judged: Measure, searched: Sequence[str]) -> Iterator[dict[str, Any]]:
    for cost in (TRAINABLE_PARAMS, PEAK_MEMORY, TRAIN_SECONDS):
        yield _card("SCATTER", f"{judged.label} against {cost.label}", xaxis=_axis(cost), yaxis=_axis(judged))
    shown = [name for name in searched if name != "seed"] or ["r"]
    yield _card(
        "PARALLEL",
        f"{judged.label} by what was searched",
        selectedParams=shown,
        selectedMetrics=[judged.name],
        showAllRuns=True,
    )
    if judged.curve:
        yield _card("LINE", f"{judged.label} while training", metricKey=judged.name, selectedMetricKeys=[judged.name])


def _card(kind: str, title: str, **more: Any) -> dict[str, Any]:
    return {
        "uuid": f"{KEY}: {title}",
        "type": kind,
        "displayName": title,
        "metricSectionId": TRADE_OFFS,
        "runsCountToCompare": COMPARED,
        "deleted": False,
        "isGenerated": False,
        **more,
    }


def _axis(measure: Measure) -> dict[str, str]:
    return {"key": measure.name, "type": "METRIC"}


def _section(name: str) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}


def _key(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
