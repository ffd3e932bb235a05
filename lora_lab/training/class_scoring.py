"""Which classes trials give to held-out rows, how sure they are of them, and how often they are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lora_lab.analysis.paired import ExampleLosses
from lora_lab.common.activity import Activity, unwatched
from lora_lab.study.measures import ACCURACY, MACRO_F1
from lora_lab.training.batch import padded
from lora_lab.training.metrics import macro_f1_of
from lora_lab.training.scoring import Scored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.common.activity import Beat
    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.batch import PackedBatch

    ProbabilitiesOf = Callable[[PackedBatch, int | None], np.ndarray]
    """The probability [R, classes] of each class of each row, by the trial with this number; None is the bare base."""


class ClassScorer:
    """Compares the likeliest class of every row with its own (a `Scorer`).

    Args:
        tokenizer: Writes rows as text.
        probabilities: What trials in training say of a batch.
        beat: Called before each batch.
    """

    def __init__(self, tokenizer: Any, probabilities: ProbabilitiesOf, beat: Beat = unwatched) -> None:
        self._tokenizer, self._probabilities, self._beat = tokenizer, probabilities, beat

    def score(self, numbers: Sequence[int | None], dataset: TokenizedDataset, config: TrialConfig) -> list[Scored]:
        """The metrics that `config.evaluation` asks for, of the trials with these numbers; None is the bare base."""
        return [self._scored(dataset, self._of_all_rows(number, dataset, config), config) for number in numbers]

    @torch.no_grad()
    def _of_all_rows(self, number: int | None, dataset: TokenizedDataset, config: TrialConfig) -> np.ndarray:
        """[rows, classes], in the order of the dataset; rows come in order of length, so that little is padded."""
        size = config.training.per_device_eval_batch_size
        order = np.argsort([-len(ids) for ids in dataset.input_ids], kind="stable")
        starts = range(0, len(order), size)
        parts = []
        for done, start in enumerate(starts):
            self._beat(Activity("classes of the evaluation rows", done, len(starts)))
            parts.append(self._probabilities(padded([dataset], [order[start : start + size]]), number))
        told = np.concatenate(parts)
        return told[np.argsort(order)]

    def _scored(self, dataset: TokenizedDataset, told: np.ndarray, config: TrialConfig) -> Scored:
        assert dataset.classes is not None
        names, metrics = config.model.labels or (), config.evaluation.metrics
        given = told.argmax(axis=1)
        hits = (given == dataset.classes).astype(np.float64)
        lines = [
            {
                "place": question.place,
                "text": self._tokenizer.decode(question.prompt, skip_special_tokens=True),
                "label": question.reference,
                "prediction": names[index],
                "probability": round(float(row[index]), 6),
            }
            for question, index, row in zip(dataset.questions, given.tolist(), told, strict=True)
        ]
        once = np.ones(len(hits), dtype=np.int64)
        return Scored(
            {ACCURACY.name: ExampleLosses(-hits, once)} if ACCURACY.name in metrics else {},
            {MACRO_F1.name: macro_f1_of(given.tolist(), dataset.classes.tolist())} if MACRO_F1.name in metrics else {},
            lines,
        )
