"""Which parameters mattered: Optuna's own estimators, over the trials of the search alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

from lora_lab.analysis.selection import finished
from lora_lab.analysis.wording import plural
from lora_lab.search.space import SearchSpace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.importance import BaseImportanceEvaluator

    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec

MIN_TRIALS = 10
"""Fewer leave one trial or none in the best tenth."""
STEADY_TRIALS = 50
"""From here on the best tenth has the five trials that Optuna's documentation asks for."""
ADAPTIVE = ("tpe", "gp", "nsga2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Importances:
    """Shares by parameter that sum to 1, largest first."""

    metric: str
    trials: int
    """Trials with a value."""
    ped_anova: Mapping[str, float]
    """How much each parameter decides whether a trial is among the best tenth; conditional parameters included."""
    fanova: Mapping[str, float]
    """Share of the variance of the metric; parameters that every trial has. Empty: it needs scikit-learn."""
    caveat: str
    """What must be said beside the numbers; never empty."""


def importances(spec: StudySpec, results: Sequence[TrialResult], metric: str = "eval_loss") -> Importances | None:
    """Importance of every searched parameter for a metric that is minimized; None below ten trials with a value.

    PED-ANOVA (arXiv:2304.10255) and fANOVA (Hutter et al. 2014) as Optuna computes them. Retrainings are left out:
    they repeat the best values, and so would make these look decisive.
    """
    pairs = finished(results, metric)
    if len(pairs) < MIN_TRIALS or len({value for _, value in pairs}) < 2:
        return None
    study = _study(spec, pairs)
    return Importances(
        metric=metric,
        trials=len(pairs),
        ped_anova=_shares(study, PedAnovaImportanceEvaluator()),
        fanova=_fanova(study),
        caveat=_caveat(spec, len(pairs)),
    )


def _study(spec: StudySpec, pairs: Sequence[tuple[TrialResult, float]]) -> optuna.Study:
    """The search as a study in memory: one objective, and nothing but trials with a value."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = SearchSpace(spec)
    study = optuna.create_study(direction="minimize", storage=optuna.storages.InMemoryStorage())
    for result, value in pairs:
        params, distributions = space.recorded(result.params)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return study


def _fanova(study: optuna.Study) -> dict[str, float]:
    try:
        return _shares(study, FanovaImportanceEvaluator(seed=0))
    except ImportError:  # scikit-learn comes with MLflow, but is none of our own requirements
        return {}


def _shares(study: optuna.Study, evaluator: BaseImportanceEvaluator) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        shares = get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _caveat(spec: StudySpec, trials: int) -> str:
    said = [f"Over {trials} finished trials; pruned and diverged ones are left out, so what they decide is missing."]
    if spec.sweep.sampler in ADAPTIVE:
        said.append(
            f"The sampler ({spec.sweep.sampler}) tried promising values more often than others, so the shares are "
            "those of the region that it searched, not of the whole range; `sampler: random`, `qmc` or `grid` "
            "measures that."
        )
    if trials < STEADY_TRIALS:
        said.append(f"PED-ANOVA looks at the best tenth, here {plural(-(-trials // 10), 'trial')}: read it as a hint.")
    return " ".join(said)
