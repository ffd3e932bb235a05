"""Greedy decoding by `generate` of transformers, one model at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from lora_lab.common.activity import unwatched
from lora_lab.training.generation import side_by_side
from lora_lab.training.reference.losses import autocast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lora_lab.common.activity import Beat
    from lora_lab.training.base.loading import Base
    from lora_lab.training.generation import Greedy, Until

PLAIN = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
"""What some bases' own generation config would change about the most likely token."""


@torch.no_grad()
def generated(
    base: Base,
    model: Any,
    prompts: Sequence[np.ndarray],
    greedy: Greedy,
    *,
    rows: int = 1,
    beat: Beat = unwatched,
) -> list[np.ndarray]:
    """The new tokens of each prompt; prompts of one length are answered together, so that none is padded.

    Args:
        base: What the model is made of.
        model: The base itself, or a PEFT model over it, in evaluation mode.
        prompts: Token ids [n] of each.
        greedy: When an answer ends.
        rows: Prompts that are answered at once.
        beat: Called before each batch of prompts.
    """
    stop = sorted(greedy.stop)
    config = GenerationConfig(
        **PLAIN, max_new_tokens=greedy.max_new_tokens, eos_token_id=stop, pad_token_id=stop[0], use_cache=True
    )
    answers: list[np.ndarray] = [np.zeros(0, np.int64)] * len(prompts)
    for chosen in side_by_side([len(prompt) for prompt in prompts], rows, 0, beat):
        ids = torch.from_numpy(np.stack([prompts[index] for index in chosen])).to(base.device)
        with autocast(base):
            whole = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                stopping_criteria=None if greedy.until is None else _said(greedy.until, ids.shape[1]),
            )
        for index, row in zip(chosen, whole[:, ids.shape[1] :].cpu().numpy(), strict=True):
            answers[index] = _cut(row, greedy.stop)
    return answers


class _Said(StoppingCriteria):  # type: ignore[misc]
    """Ends the rows that have written a text which ends an answer."""

    def __init__(self, until: Until, prompt_length: int) -> None:
        self._until, self._prompt_length = until, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        del scores, kwargs
        said = [self._until.ends(row) for row in input_ids[:, self._prompt_length :].tolist()]
        return torch.tensor(said, device=input_ids.device)


def _said(until: Until, prompt_length: int) -> StoppingCriteriaList:
    return StoppingCriteriaList([_Said(until, prompt_length)])


def _cut(row: np.ndarray, stop: frozenset[int]) -> np.ndarray:
    """The row up to and with the first token that ends an answer: shorter answers are padded to the longest."""
    ends = np.flatnonzero(np.isin(row, list(stop)))
    return row[: ends[0] + 1] if len(ends) else row
