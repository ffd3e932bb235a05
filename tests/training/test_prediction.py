"""Predicted memory equals measured memory, on the step of the engine that measures it."""

from __future__ import annotations

import itertools

import pytest
import torch
from samples import sample
from transformers import GPT2Config, LlamaConfig, MixtralConfig, Qwen2Config
from workshop import llama_config, write_base, write_texts

from lora_lab.study.data_settings import DataSettings
from lora_lab.study.events import Finished
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.study.targets import trainable_parameters
from lora_lab.training.base.loading import load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.memory.predictor import MemoryPredictor
from lora_lab.training.packed_engine import PackedEngine

TOLERANCE_PERCENT = 2.0
LARGER = {"hidden_size": 96, "intermediate_size": 256, "max_position_embeddings": 128, "vocab_size": 512}
"""Wide enough for 8-bit moments and for blocks of quantized weights."""


def trial(quantization="none", *, double_quant=False, lora=None, data=None, **training) -> TrialConfig:
    settings = {"per_device_train_batch_size": 4, "max_steps": 1} | training
    rows = {"train": "train.jsonl", "eval": "eval.jsonl"}
    return TrialConfig(
        model=ModelSettings(model_name_or_path="base", quantization=quantization, double_quant=double_quant),
        data=DataSettings(**(rows | {"max_length": 64} | (data or {}))),
        training=TrainingSettings(**settings),
        lora=LoraSettings(**({"r": 8} | (lora or {}))),
    )


@pytest.fixture(scope="module", autouse=True)
def _in_a_folder_with_base_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_base(folder / "base", llama_config(**LARGER))
    write_texts(folder / "train.jsonl", 40)
    write_texts(folder / "eval.jsonl", 2, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def engine_for(tmp_path_factory):
    engines = {}

    def get(model: ModelSettings) -> PackedEngine:
        if model not in engines:
            base = load_base(model, torch.device("cpu"))
            folder = tmp_path_factory.mktemp("prediction")
            engines[model] = PackedEngine(base, DataCatalog(base.tokenizer, folder / "data"), folder / "trials")
        return engines[model]

    return get


def memory(engine: PackedEngine, config: TrialConfig):
    engine.admit(0, config)
    try:
        return engine.memory(0)
    finally:
        engine.discard(0)


def agree(found) -> None:
    assert found.predicted is not None
    assert found.measured is not None
    assert abs(found.metrics["memory_error_percent"]) <= TOLERANCE_PERCENT
    for term in ("base", "quantization", "adapters", "gradients"):
        assert getattr(found.predicted, term) == found.measured.terms[term], term
    assert found.predicted.context == 0
    assert found.predicted.total == found.predicted.allocated


QUICK = [
    trial(),
    trial("nf4", lora={"r": 64, "target_modules": "attention"}),
    trial("int8"),
    trial(lora={"lora_dropout": 0.1}, gradient_checkpointing=True),
    trial(optim="adamw_8bit", lora={"r": 48}),
]


@pytest.mark.parametrize("config", QUICK, ids=["plain", "nf4", "int8", "checkpointing", "8-bit AdamW"])
def test_prediction_is_what_is_measured(engine_for, config):
    agree(memory(engine_for(config.model), config))


MANY = [
    *(
        trial(lora={"r": r, "target_modules": targets}, per_device_train_batch_size=batch)
        for r, targets, batch in itertools.product((4, 32, 256), ("attention", "mlp", "all-linear+head"), (1, 8))
    ),
    *(
        trial(kind, double_quant=double, lora={"r": r}, data={"max_length": length})
        for kind, double in (("nf4", False), ("nf4", True), ("fp4", False), ("int8", False))
        for r, length in ((8, 32), (128, 128))
    ),
    *(trial(lora={"layers": layers, "lora_dropout": 0.05}) for layers in ("first_half", "last_half", (0,))),
    *(trial(optim=optim, loraplus_lr_ratio=8.0) for optim in ("adamw_torch", "adamw_8bit", "sgd")),
    *(trial(kind, gradient_checkpointing=True) for kind in ("none", "nf4", "int8")),
    trial(gradient_accumulation_steps=2),
    trial(data={"packing": True, "max_length": 96}),
    trial(data={"packing": True, "max_length": 96}, gradient_checkpointing=True),
]


@pytest.mark.slow
def test_at_least_thirty_configurations_agree(engine_for):
    assert len(MANY) >= 30
    for config in MANY:
        agree(memory(engine_for(config.model), config))


def test_a_trial_logs_predicted_and_measured_memory(engine_for):
    config = trial()
    engine = engine_for(config.model)
    engine.admit(7, config)
    events = []
    while engine.active:
        events += engine.step()
    [metrics] = [event.metrics for event in events if isinstance(event, Finished)]
    assert metrics["predicted_memory_bytes"] == pytest.approx(metrics["peak_memory_bytes"], rel=0.02)
    assert abs(metrics["memory_error_percent"]) < 2
    assert metrics["base_bytes"] > 0


def test_checkpointing_needs_less_and_the_prediction_knows(engine_for):
    plain, saving = (trial(gradient_checkpointing=on, per_device_train_batch_size=8) for on in (False, True))
    engine = engine_for(plain.model)
    assert engine.predict(saving).total < 0.8 * engine.predict(plain).total


# Without weights

LLAMA_2_7B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32000,
)
LLAMA_2_13B = LlamaConfig(
    hidden_size=5120,
    intermediate_size=13824,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=40,
    vocab_size=32000,
)
GIGABYTE = 1e9


def large(quantization="none", *, double_quant=False, length=512, rows=1, **lora) -> TrialConfig:
    return TrialConfig(
        model=ModelSettings(model_name_or_path="none/none", quantization=quantization, double_quant=double_quant),
        data=DataSettings(train="none.jsonl", max_length=length),
        training=TrainingSettings(per_device_train_batch_size=rows),
        lora=LoraSettings(**({"r": 8} | lora)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("config", "published"), [(LLAMA_2_7B, 0.302), (LLAMA_2_13B, 0.592)], ids=["7B", "13B"])
def test_double_quantization_saves_what_is_published(config, published):
    """QLoRA (arXiv:2305.14314): 0.37 bit per parameter.

    The published figures are of the constants; bitsandbytes adds a code table and an offset to every module.
    """
    totals = []
    for double in (False, True):
        settings = large("nf4", double_quant=double, target_modules=("q_proj", "v_proj"))
        totals.append(MemoryPredictor(config, settings.model, "cuda").predict(settings).total)
    tables = 7 * config.num_hidden_layers * (1024 + 512)
    assert (totals[0] - totals[1] + tables) / GIGABYTE == pytest.approx(published, abs=5e-4)


@pytest.mark.slow
def test_nf4_saves_what_is_published():
    """7.15 GB (21.33 against 14.18) for Llama-2-7B with r=8 on q and v, one row at a time, by Raschka.

    How long his rows were is not published. The saving falls with the length, since residuals and gated products of a
    quantized base are float32: 8.59 GB at 256 tokens, 8.19 at 512, 7.33 at 1024. The weights alone save 9.05 GB.
    """
    lora = {"target_modules": ("q_proj", "v_proj"), "lora_dropout": 0.05}
    found = {}
    for kind in ("none", "nf4"):
        config = large(kind, length=1024, **lora)
        found[kind] = MemoryPredictor(LLAMA_2_7B, config.model, "cuda").predict(config)
    assert (found["none"].total - found["nf4"].total) / GIGABYTE == pytest.approx(7.15, rel=0.05)
    weights = {kind: one.base + one.quantization for kind, one in found.items()}
    assert (weights["none"] - weights["nf4"]) / GIGABYTE == pytest.approx(9.047, abs=1e-3)


# Fewer steps than there are configurations

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "bos_token_id": None,
    "eos_token_id": None,
}
DEEP = SMALL | {"num_hidden_layers": 7, "num_key_value_heads": 2}


def small(quantization="none", *, length=48, lora=None, **training) -> TrialConfig:
    return TrialConfig(
        model=ModelSettings(model_name_or_path="none/none", quantization=quantization),
        data=DataSettings(train="none.jsonl", max_length=length),
        training=TrainingSettings(**({"per_device_train_batch_size": 2} | training)),
        lora=LoraSettings(**({"r": 16} | (lora or {}))),
    )


@pytest.mark.parametrize("device_type", sample(["cpu", "cuda"], ["cuda"]))
@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        pytest.param(LlamaConfig(**DEEP), small(), id="llama"),
        *(
            pytest.param(architecture, config, id=name, marks=pytest.mark.slow)
            for name, architecture, config in (
                (
                    "checkpointing",
                    LlamaConfig(**DEEP),
                    small("nf4", gradient_checkpointing=True, lora={"r": 64, "target_modules": "mlp"}),
                ),
                ("int8", LlamaConfig(**DEEP), small("int8", lora={"target_modules": "attention", "lora_dropout": 0.1})),
                (
                    "8-bit AdamW",
                    LlamaConfig(**DEEP),
                    small(optim="adamw_8bit", lora={"target_modules": "all-linear+head"}),
                ),
                ("biases", Qwen2Config(**DEEP), small("nf4")),
                (
                    "gpt2",
                    GPT2Config(n_layer=7, n_embd=64, n_head=4, vocab_size=500, bos_token_id=None, eos_token_id=None),
                    small(),
                ),
            )
        ),
    ],
)
def test_a_deep_base_is_predicted_from_two_of_few_layers(architecture, config, device_type):
    predictor = MemoryPredictor(architecture, config.model, device_type)
    assert predictor._shallow
    extrapolated = predictor.predict(config)
    whole = MemoryPredictor(architecture, config.model, device_type)
    whole._shallow = []
    assert extrapolated == whole.predict(config)


def test_layers_that_differ_are_not_extrapolated():
    kinds = ["full_attention"] * 4 + ["sliding_attention"] * 3
    mixed = Qwen2Config(**DEEP, layer_types=kinds, use_sliding_window=True, sliding_window=16)
    assert not MemoryPredictor(mixed, small().model, "cpu")._shallow
    some = small(lora={"layers": "first_half"})
    predictor = MemoryPredictor(LlamaConfig(**DEEP), some.model, "cpu")
    assert not predictor._is_alike_in_all_layers(some)
    assert predictor.predict(some).adapters == 4 * trainable_parameters(predictor.linears, some.lora)


def test_other_ranks_are_on_the_line_through_two():
    architecture = LlamaConfig(**SMALL, num_hidden_layers=1)
    at_once = MemoryPredictor(architecture, small().model, "cpu")
    for r in (8, 64):
        at_once.predict(small(lora={"r": r}))
    for r in (2, 12, 256):
        config = small(lora={"r": r})
        alone = MemoryPredictor(architecture, config.model, "cpu").predict(config)
        assert at_once.predict(config).total == pytest.approx(alone.total, rel=3e-3)  # sizes are rounded to 512 bytes
        assert at_once.predict(config).adapters == alone.adapters


def test_attention_on_cuda_takes_the_kernel_that_torch_takes_there():
    """Half precision: FlashAttention; float32 in groups of heads: none that does without all pairs of tokens."""
    rows, heads, length, layers = 2, 4, 512, 1
    pairs = rows * heads * length**2
    plain = LlamaConfig(**SMALL, num_hidden_layers=layers, num_key_value_heads=4)
    grouped = LlamaConfig(**SMALL, num_hidden_layers=layers, num_key_value_heads=2)

    def activations(architecture, **options):
        config = small(length=length)
        return MemoryPredictor(architecture, config.model, "cuda", **options).predict(config).activations

    full = {"dtype": torch.float32}
    assert activations(grouped, **full) - activations(plain, **full) > layers * pairs * 4
    assert activations(grouped) <= activations(plain)
    assert activations(grouped, fused_attention=False) - activations(grouped) > layers * pairs * 2


def test_a_base_whose_step_needs_values_is_not_predicted(capfd):
    """Here: a kernel for experts of which torch knows only the half-precision one without data."""
    architecture = MixtralConfig(**SMALL, num_hidden_layers=2, num_key_value_heads=2, num_local_experts=4)
    config = small(lora={"target_modules": "attention"})
    assert MemoryPredictor(architecture, config.model, "cpu").predict(config) is None
    assert "error" not in capfd.readouterr().err.lower()
