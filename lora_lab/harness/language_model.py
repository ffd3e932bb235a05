"""lm-evaluation-harness's own model, but for the forward passes: what a request needs is computed for all adapters.

The harness asks one model at a time. The requests of a task are the same for every adapter, so the first to be asked
has them computed for all, in batches with rows of each, and the others find their answers. How texts become tokens,
what is truncated, and what counts as an answer stay the harness's own.
"""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from lora_lab.common.errors import InputError
from lora_lab.training.adapted_base import Continuation
from lora_lab.training.generation import Greedy, Until, end_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from lm_eval.api.instance import Instance

    from lora_lab.training.adapted_base import AdaptedBase, Likelihood
    from lora_lab.training.base.loading import Base

OF_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")
"""What tasks say of sampling, which says nothing where the most likely token is taken."""


class SharedAnswers:
    """What is known of requests so far, for every member of an `AdaptedBase`.

    Args:
        adapted: Who is asked.
        base: Whose tokenizer reads and writes.
    """

    def __init__(self, adapted: AdaptedBase, base: Base) -> None:
        self._adapted, self.base = adapted, base
        self._known: dict[Hashable, list[Any]] = {}
        """By request, what each member says."""

    def likelihoods(self, rows: Sequence[Continuation]) -> list[list[Likelihood]]:
        """What each member says of every row."""
        keys: list[Hashable] = [(row.judged, hashlib.sha256(row.tokens.tobytes()).digest()) for row in rows]
        return self._of_all(keys, rows, self._adapted.likelihoods)

    def answers(self, prompts: Sequence[np.ndarray], greedy: Greedy) -> list[list[np.ndarray]]:
        """What each member answers to every prompt."""
        texts = None if greedy.until is None else greedy.until.texts
        keys: list[Hashable] = [(greedy.max_new_tokens, texts, prompt.tobytes()) for prompt in prompts]
        return self._of_all(keys, prompts, lambda new: self._adapted.answers(new, greedy))

    def _of_all(
        self, keys: Sequence[Hashable], asked: Sequence[Any], compute: Callable[[list[Any]], list[list[Any]]]
    ) -> list[list[Any]]:
        """What each member says, computed for all of them where it is not known yet; by request."""
        new = {key: one for key, one in zip(keys, asked, strict=True) if key not in self._known}
        if new:
            by_member = compute(list(new.values()))
            self._known |= {key: list(said) for key, said in zip(new, zip(*by_member, strict=True), strict=True)}
        return [self._known[key] for key in keys]


class SharedLM(HFLM):  # type: ignore[misc]
    """One member as the harness sees it.

    Args:
        shared: What all members say.
        member: Which of them this is.
        rows: Rows of each in a forward pass.
    """

    def __init__(self, shared: SharedAnswers, member: int, rows: int) -> None:
        base = shared.base
        # Only its config and device are read: the harness would put the base's modules into another mode.
        model: Any = SimpleNamespace(config=base.model.config, device=base.device)
        super().__init__(pretrained=model, backend="causal", tokenizer=base.tokenizer, batch_size=rows)
        self._shared, self._member = shared, member

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: the study knows more of base and adapter."""
        return {}

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> Any:
        """The likelihood of each continuation, without a bar of the harness's own."""
        del disable_tqdm
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> Any:
        """The likelihood of each text, without a bar of the harness's own."""
        del disable_tqdm
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        del disable_tqdm, override_bs
        rows = [
            Continuation(np.array([*context, *continuation][-(self.max_length + 1) :], np.int64), len(continuation))
            for _, context, continuation in requests
        ]
        own = (said[self._member] for said in self._shared.likelihoods(rows))
        return [(one.log_probability, one.is_greedy) for one in own]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the member answers to each request."""
        del disable_tqdm
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        said = [""] * len(requests)
        for group in groups.values():
            for index, text in zip(group, self._generated([requests[index] for index in group]), strict=True):
                said[index] = text
        return said

    def _generated(self, requests: Sequence[Instance]) -> list[str]:
        """Answers to requests that are to be answered in the same way."""
        task, settings = requests[0].task_name, normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        new, eos = settings.pop("max_gen_toks"), self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        until = [text for text in handle_stop_sequences(settings.pop("until"), eos=eos) if text]
        _require_greedy(task, settings)
        room = self.max_length - new
        if room <= 0:
            raise InputError(
                f"--tasks {task}: answers of {new} tokens leave no room for a prompt in the {self.max_length} "
                "positions that the base reads; evaluate another task"
            )
        encoded = (self.tok_batch_encode([request.args[0]], left_truncate_len=room)[0] for request in requests)
        prompts = [ids[0].numpy() if ids.numel() else np.array([self.prefix_token_id]) for ids in encoded]
        stop = end_tokens(self.tokenizer, self._shared.base.model)
        texts = tuple(text for text in until if text != eos)
        greedy = Greedy(new, stop, Until(self.tokenizer, texts) if texts else None)
        answers = (said[self._member] for said in self._shared.answers(prompts, greedy))
        return [postprocess_generated_text(self.tok_decode(one.tolist()), until, None) for one in answers]


def _require_greedy(task: str, settings: dict[str, Any]) -> None:
    """Raise InputError where a task wants another answer than the most likely one."""
    samples = settings["do_sample"]
    other = {name: value for name, value in settings.items() if name not in OF_SAMPLING}
    if samples or other:
        asked = ", ".join(f"{name}: {value}" for name, value in (settings if samples else other).items())
        raise InputError(
            f"--tasks {task}: its generation_kwargs ask for {asked}, but answers are the most likely tokens, for all "
            "trials alike; evaluate another task, or a copy of it (--include-path) with do_sample: false"
        )
