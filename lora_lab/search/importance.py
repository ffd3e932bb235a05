"""Which parameters mattered: Optuna's own estimators, over the trials of the search alone."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

from lora_lab.analysis.importance import ADAPTIVE, MIN_TRIALS, Importance
from lora_lab.analysis.selection import finished
from lora_lab.analysis.wording import plural
from lora_lab.search.space import SearchSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.importance import BaseImportanceEvaluator

    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Scalar

STEADY_TRIALS = 50
"""From here on the best tenth has the five trials that Optuna's documentation asks for."""


def importances(spec: StudySpec, results: Sequence[TrialResult]) -> Importance | None:
    """Importance of every searched parameter for what the study judges; None below ten trials with a value.

    PED-ANOVA (arXiv:2304.10255) says how much each parameter decides whether a trial is among the best tenth,
    conditional parameters included; fANOVA (Hutter et al. 2014) compares the main effects of the parameters that every
    trial has, and is left out without scikit-learn. Both as Optuna computes them, with log-searched numbers by their
    logarithm. Shares of one method sum to 1, so they are no shares of the variance: interactions and noise are in
    none. Retrainings are left out: they repeat the best values, and so would make these look decisive.
    """
    judged = spec.sweep.judged
    pairs = finished(results, judged.name)
    if len(pairs) < MIN_TRIALS or len({value for _, value in pairs}) < 2:
        return None
    study = _study(spec, pairs)
    shares = {"PED-ANOVA": _shares(study, PedAnovaImportanceEvaluator()), "fANOVA": _fanova(study)}
    return Importance(
        trials=len(pairs), shares={method: of for method, of in shares.items() if of}, caveat=_caveat(spec, len(pairs))
    )


def _study(spec: StudySpec, pairs: Sequence[tuple[TrialResult, float]]) -> optuna.Study:
    """The search as a study in memory: one objective, and nothing but trials with a value."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = SearchSpace(spec)
    study = optuna.create_study(direction=spec.sweep.judged.goal, storage=optuna.storages.InMemoryStorage())
    for result, value in pairs:
        params, distributions = space.recorded(result.params)
        scaled = {name: _on_its_scale(one, distributions[name]) for name, one in params.items()}
        study.add_trial(
            optuna.trial.create_trial(
                params={name: number for name, (number, _) in scaled.items()},
                distributions={name: distribution for name, (_, distribution) in scaled.items()},
                value=value,
            )
        )
    return study


def _on_its_scale(value: Scalar, distribution: BaseDistribution) -> tuple[Scalar, BaseDistribution]:
    """A number that was searched by its logarithm, as that: Optuna's fANOVA would integrate over the number itself."""
    if not isinstance(distribution, (FloatDistribution, IntDistribution)) or not distribution.log:
        return value, distribution
    return math.log(float(value)), FloatDistribution(math.log(distribution.low), math.log(distribution.high))


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
    said = [
        f"Over {trials} finished trials; pruned and diverged ones are left out, so what they decide is missing.",
        "Shares are of what single parameters do: interactions and noise are in none.",
    ]
    if spec.sweep.sampler in ADAPTIVE:
        said.append(f"They hold for the region that the sampler ({spec.sweep.sampler}) searched.")
    if trials < STEADY_TRIALS:
        said.append(f"PED-ANOVA looks at the best tenth, here {plural(-(-trials // 10), 'trial')}: read it as a hint.")
    return " ".join(said)
