"""Trained adapters asked side by side: each says what `peft` says of it alone, however many share the pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from workshop import VOCABULARY, own_base, write_base

from lora_lab.common.errors import CheckpointError
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.adapted_base import AdaptedBase, Continuation, Trained
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.base.stored_adapter import StoredAdapter
from lora_lab.training.generation import Greedy, Until
from lora_lab.training.packed.linear import UnpackableError

LORAS = {
    "plain": {"r": 4},
    "attention, rsLoRA": {"r": 2, "target_modules": "attention", "use_rslora": True},
    "DoRA": {"r": 4, "use_dora": True},
    "head saved": {"r": 2, "modules_to_save": ["lm_head"]},
}
ALONE = (3, 4)
"""The places of the last two behind the bare base: they are more than A and B."""
STOP = frozenset({VOCABULARY - 2})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    write_base(folder / "base")
    return folder


def settings(place) -> ModelSettings:
    return ModelSettings(model_name_or_path=str(place / "base"), dtype="float64")


def model_of(place, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float64)
    return model.eval() if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


@pytest.fixture(scope="module")
def trained(place) -> list[Trained | None]:
    """The bare base, and adapters as peft writes them, all of whose weights are random."""
    base, members = own_base(settings(place)), [None]
    for index, changes in enumerate(LORAS.values()):
        lora = LoraSettings(**changes)
        config = TrialConfig(
            model=settings(place), data=DataSettings(train="none"), training=TrainingSettings(), lora=lora
        )
        torch.manual_seed(index)
        model = get_peft_model(model_of(place), lora_config(lora, base.linears))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(place / str(index))
        members.append(Trained(config, place / str(index)))
    return members


@pytest.fixture(scope="module")
def alone(place, trained):
    return [model_of(place, None if member is None else member.folder) for member in trained]


def continuations(count=7, seed=0) -> list[Continuation]:
    numbers = np.random.default_rng(seed)
    lengths = numbers.integers(2, 20, size=count)
    return [Continuation(numbers.integers(0, VOCABULARY, size=n), int(numbers.integers(1, n))) for n in lengths]


@torch.no_grad()
def said(model, row: Continuation) -> tuple[float, bool]:
    logits = model(torch.tensor(row.tokens[None, :-1])).logits[0, -row.judged :]
    targets = torch.tensor(row.tokens[-row.judged :])
    logs = logits.log_softmax(dim=-1)
    return float(logs.gather(1, targets[:, None]).sum()), bool((logs.argmax(dim=-1) == targets).all())


@torch.no_grad()
def answer(model, prompt, new: int) -> list[int]:
    ids = torch.tensor(prompt[None])
    ends = {"eos_token_id": list(STOP), "pad_token_id": 0}
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, **ends)
    return whole[0, len(prompt) :].tolist()


def test_likelihoods_are_those_of_each_adapter_alone(place, trained, alone):
    rows = continuations()
    likeliest = [model(torch.tensor([[5, 6]])).logits[0, -1].argmax().item() for model in alone]
    rows += [Continuation(np.array([5, 6, token]), 1) for token in likeliest]

    adapted = AdaptedBase(own_base(settings(place)), trained, rows=3)
    found = adapted.likelihoods(rows)

    assert adapted.alone == ALONE
    for member, model in zip(found, alone, strict=True):
        expected = [said(model, row) for row in rows]
        assert [one.log_probability for one in member] == pytest.approx([value for value, _ in expected], abs=1e-9)
        assert [one.is_greedy for one in member] == [greedy for _, greedy in expected]
        assert any(one.is_greedy for one in member)
        assert not all(one.is_greedy for one in member)


def test_answers_are_those_of_each_adapter_alone_up_to_a_text(place, trained, alone):
    numbers = np.random.default_rng(1)
    prompts = [numbers.integers(0, VOCABULARY - 2, size=n) for n in (3, 7, 4)]
    base = own_base(settings(place))
    adapted = AdaptedBase(base, trained, rows=2)

    free = adapted.answers(prompts, Greedy(6, STOP))
    for own, model in zip(free, alone, strict=True):
        assert [one.tolist() for one in own] == [answer(model, prompt, 6) for prompt in prompts]

    text = base.tokenizer.decode(free[1][0][2:3])
    until = Until(base.tokenizer, (text,))
    cut = adapted.answers(prompts, Greedy(6, STOP, until))
    for own, whole in zip(cut, free, strict=True):
        for short, long in zip(own, whole, strict=True):
            assert long.tolist()[: len(short)] == short.tolist(), "an answer that ends sooner is no other answer"
            assert until.cut(short) == until.cut(long)
            ends = [n for n in range(1, 7) if until.ends(long.tolist()[:n])]
            assert len(short) == min(ends, default=len(long))
    assert len(cut[1][0]) <= 3


def test_where_adapters_cannot_be_told_apart_each_is_asked_alone(place, trained, alone, monkeypatch):
    adapted = AdaptedBase(own_base(settings(place)), trained[:3], rows=4)

    def refuse(*_, **__):
        raise UnpackableError("experts")

    monkeypatch.setattr(adapted._model, "label_scores", refuse)
    rows = continuations(3)
    found = adapted.likelihoods(rows)
    assert adapted.alone == (0, 1, 2)
    for member, model in zip(found, alone, strict=False):
        assert [one.log_probability for one in member] == pytest.approx([said(model, row)[0] for row in rows], abs=1e-9)


def test_a_damaged_adapter_is_refused_with_its_folder(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="cannot be read"):
        StoredAdapter.read(tmp_path)


@pytest.mark.slow
def test_on_a_quantized_base_they_are_what_peft_says_of_it(place, trained):
    nf4 = ModelSettings(model_name_or_path=str(place / "base"), dtype="float32", quantization="nf4")
    members = [
        None if member is None else Trained(member.config.model_copy(update={"model": nf4}), member.folder)
        for member in trained[:4]
    ]
    rows = continuations(5, seed=3)
    found = AdaptedBase(own_base(nf4), members, rows=3).likelihoods(rows)
    for member, own in zip(members, found, strict=True):
        model = own_base(nf4).model
        model = model if member is None else PeftModel.from_pretrained(model, member.folder).train()  # no dropout
        expected = [said(model, row)[0] for row in rows]
        assert [one.log_probability for one in own] == pytest.approx(expected, abs=2e-4)
