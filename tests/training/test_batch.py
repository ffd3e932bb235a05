"""The lengths that rows are padded to: few of them on a CUDA device, close to the rows everywhere."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from workshop import CPU, drain, make_tokens, only, own_base

from lora_lab.study.data_settings import DataSettings
from lora_lab.study.events import Finished, Logged
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.study.targets import InputLimits
from lora_lab.training.batch import Padding, padded
from lora_lab.training.memory.predictor import MemoryPredictor
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

CUDA, ON_CPU = Padding(is_cuda=True), Padding(is_cuda=False)


def test_there_are_eight_lengths_an_octave_on_cuda_and_multiples_of_eight_below():
    lengths = sorted({CUDA.training(longest) for longest in range(1, 1025)})
    assert lengths[:9] == [8, 16, 24, 32, 40, 48, 56, 64, 72]
    assert [length for length in lengths if 128 < length <= 256] == [144, 160, 176, 192, 208, 224, 240, 256]
    assert [length for length in lengths if length > 512] == [576, 640, 704, 768, 832, 896, 960, 1024]
    assert len(lengths) == 8 + 4 * 8


@pytest.mark.parametrize("padding", [CUDA, ON_CPU])
def test_a_padded_row_is_no_shorter_and_at_most_an_eighth_longer(padding):
    for longest in range(1, 5000):
        for length in (padding.training(longest), padding.evaluation(longest)):
            assert longest <= length < longest + max(8, longest / 8)


def test_on_a_cpu_lengths_are_multiples_of_eight_and_evaluation_is_not_padded():
    assert [ON_CPU.training(longest) for longest in (1, 8, 9, 129, 1001)] == [8, 8, 16, 136, 1008]
    assert [ON_CPU.evaluation(longest) for longest in (1, 129)] == [1, 129]
    assert CUDA.evaluation(129) == 144


@pytest.mark.parametrize("limits", [InputLimits(positions=140), InputLimits(positions=500, alike_up_to=140)])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_no_padding_goes_beyond_what_the_base_reads_alike(device_type, limits):
    padding = Padding.of(device_type, limits)
    assert padding.training(139) == padding.training(140) == 140
    assert padding.training(150) == 150, "a row that is too long is not cut"


def test_the_longest_row_of_all_sets_decides():
    sets = [make_tokens(3, shortest=129, longest=129), make_tokens(2, longest=20)]
    assert padded(sets, [[0, 1], [0]], CUDA.training).input_ids.shape == (3, 144)
    assert padded(sets, [[0, 1], [0]]).input_ids.shape == (3, 129)


@pytest.mark.parametrize("kind", [PackedEngine, ReferenceEngine])
def test_rows_that_are_padded_further_give_the_numbers_that_they_give(bench, monkeypatch, kind):
    """In training and in evaluation, of both engines: no real token sees a pad."""
    config = bench.trial(dtype="float64", num_train_epochs=2, lora={"lora_dropout": 0.2})

    def figures(folder):
        base = own_base(config.model, CPU)
        engine = kind(base, bench.data, bench.scratch / folder)
        engine.admit(0, config)
        events = drain(engine)
        losses = [event.loss for event in only(events, Logged)]
        return torch.tensor([*losses, *(event.metrics["eval_loss"] for event in only(events, Finished))])

    plain = figures("plain")
    for name in ("training", "evaluation"):
        monkeypatch.setattr(Padding, name, lambda _, longest: -(-longest // 48) * 48)
    assert (figures("further") - plain).abs().max() < 1e-12


def test_memory_is_predicted_for_the_padded_length():
    architecture = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=500
    )

    def activations(length, device_type):
        config = TrialConfig(
            model=ModelSettings(model_name_or_path="none/none"),
            data=DataSettings(train="none.jsonl", max_length=length),
            training=TrainingSettings(per_device_train_batch_size=2),
            lora=LoraSettings(r=8),
        )
        return MemoryPredictor(architecture, config.model, device_type).predict(config).activations

    assert activations(1100, "cuda") == pytest.approx(activations(1152, "cuda"), rel=0.01)
    assert activations(1100, "cpu") < 0.97 * activations(1152, "cpu")
