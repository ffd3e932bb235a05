"""On a CUDA device a k-bit base computes attention and head in half precision, as under autocast, in both engines."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from half_base import half_base
from samples import sample
from torch.nn import functional
from transformers import LlamaConfig
from workshop import CPU, Bench, drain, llama_config, only, write_base

from lora_lab.study.data_settings import DataSettings
from lora_lab.study.events import Finished, Logged
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.loading import frozen_base, load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.memory.predictor import MemoryPredictor
from lora_lab.training.packed.model import PackedModel
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

HALF = torch.bfloat16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base by whether its head is tied to its embeddings."""
    places = {tied: tmp_path_factory.mktemp("tied" if tied else "untied") for tied in (False, True)}
    for tied, place in places.items():
        write_base(place, llama_config(hidden_size=64, intermediate_size=128, tie_word_embeddings=tied))
    return places


@pytest.fixture(params=[False, True], ids=["head of its own", "tied head"])
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def attended(monkeypatch):
    """The dtypes that attention is computed in."""
    real, seen = functional.scaled_dot_product_attention, []

    def attention(query, key, value, *others, **keywords):
        seen.append((query.dtype, key.dtype, value.dtype))
        return real(query, key, value, *others, **keywords)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    return seen


def test_head_and_attention_are_in_half_precision_and_nothing_else(folder, attended):
    base = half_base(folder)
    model, loaded = base.model, load_base(ModelSettings(model_name_or_path=str(folder), dtype="bfloat16"), CPU).model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert base.compute_dtype == HALF
    assert torch.equal(head.weight, loaded.get_output_embeddings().weight)
    assert (head.weight is embedding.weight) == loaded.config.tie_word_embeddings
    assert {norm.weight.dtype for name, norm in model.named_modules() if name.endswith("norm")} == {torch.float32}
    ids = torch.arange(9).unsqueeze(0)
    given = []
    for name, module in model.named_modules():
        if name.endswith(("input_layernorm", "gate_proj", "model.norm")):
            module.register_forward_pre_hook(lambda _, args: given.append(args[0].dtype))
    assert embedding(ids).dtype == torch.float32
    assert model(input_ids=ids, use_cache=False).logits.dtype == HALF
    assert set(given) == {torch.float32}
    assert set(attended) == {(HALF, HALF, HALF)}


def test_on_a_cpu_everything_beside_the_quantized_products_is_in_float32(folder, attended):
    settings = ModelSettings(model_name_or_path=str(folder), quantization="nf4", dtype="bfloat16")
    base = load_base(settings, CPU)
    assert base.compute_dtype == torch.float32
    assert base.model(input_ids=torch.arange(9).unsqueeze(0), use_cache=False).logits.dtype == torch.float32
    assert set(attended) == {(torch.float32,) * 3}


def test_the_head_still_gives_its_gradient_with_the_loss(folder):
    """Its input is cast before it, which must not look as if the model changed it."""
    assert PackedModel(half_base(folder))._plain_head is not None


CASES = [
    (True, {}),
    (False, {"lora": {"target_modules": "all-linear+head"}}),
    (True, {"gradient_checkpointing": True}),
    (False, {"data": {"packing": True, "max_length": 64}, "optim": "sgd", "learning_rate": 0.3}),
]


def losses(kind, folder, dtype, config, scratch):
    base = half_base(folder, dtype)
    engine = kind(base, DataCatalog(base.tokenizer, scratch), scratch / f"{kind.__name__}-{dtype}")
    engine.admit(0, config)
    events = drain(engine)
    [end] = only(events, Finished)
    return torch.tensor([event.loss for event in only(events, Logged)] + [end.metrics["eval_loss"]])


@pytest.mark.parametrize(("tied", "case"), sample(CASES, [CASES[3]]), ids=["plain", "head", "checkpointing", "packing"])
def test_packed_is_as_close_to_trainer_as_rounding_allows(folders, tiny_data, tmp_path, tied, case):
    """`Trainer` under autocast; both differ from float32 by what half precision costs, at least four times as much."""
    folder = folders[tied]
    bench = Bench(folder, tiny_data, tmp_path, "bfloat16", quantization="nf4")
    config = bench.trial(max_steps=6, **case)
    packed = losses(PackedEngine, folder, HALF, config, tmp_path)
    reference = losses(ReferenceEngine, folder, HALF, config, tmp_path)
    exact = losses(PackedEngine, folder, torch.float32, config, tmp_path)
    assert (packed - reference).abs().max() < 4e-3
    assert (packed - reference).abs().max() < (packed - exact).abs().max() / 4
    assert (packed - exact).abs().max() < 0.05


def test_a_module_that_is_trained_in_full_is_trained_in_float32(folders, tiny_data, tmp_path):
    folder = folders[False]
    base = half_base(folder)
    bench = Bench(folder, tiny_data, tmp_path, "bfloat16", quantization="nf4")
    engine = ReferenceEngine(base, DataCatalog(base.tokenizer, tmp_path), tmp_path / "trials")
    engine.admit(0, bench.trial(max_steps=2, lora={"modules_to_save": ["lm_head"]}))
    trained = engine.trial(0).parameters
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert any("lm_head" in name for name in trained)
    assert len(only(drain(engine), Logged)) == 2
    assert base.model.get_output_embeddings().weight.dtype == HALF


# Memory

GROUPED = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=500,
)


ROWS, LENGTH = 2, 512


def predicted(dtype):
    settings = ModelSettings(model_name_or_path="none/none", quantization="nf4")
    config = TrialConfig(
        model=settings,
        data=DataSettings(train="none.jsonl", max_length=LENGTH),
        training=TrainingSettings(per_device_train_batch_size=ROWS),
        lora=LoraSettings(r=8),
    )
    return MemoryPredictor(GROUPED, settings, "cuda", dtype=dtype).predict(config)


def test_no_weights_of_all_pairs_of_tokens_are_kept_on_a_k_bit_base():
    """The plain kernel, which float32 in groups of heads takes, keeps them."""
    pairs = ROWS * GROUPED.num_attention_heads * LENGTH**2 * GROUPED.num_hidden_layers
    half, full = (predicted(dtype) for dtype in (HALF, torch.float32))
    assert full.activations - half.activations > 4 * pairs
    assert half.own < full.own / 2


def test_the_head_of_a_k_bit_base_takes_half():
    embedding = GROUPED.vocab_size * GROUPED.hidden_size
    assert predicted(torch.float32).base - predicted(HALF).base == 2 * embedding


# The process


@pytest.fixture
def cudnn():
    was = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled=True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(was)


@pytest.mark.usefixtures("cudnn")
def test_a_base_on_a_cuda_device_turns_the_attention_of_cudnn_off(folders):
    settings = ModelSettings(model_name_or_path=str(folders[False]))
    loaded = load_base(settings, CPU)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    others = {"linears": loaded.linears, "tokenizer": None, "location": ""}
    frozen_base(loaded.model, settings, torch.float32, torch.device("cuda"), **others)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    said = [
        logger.filter(SimpleNamespace(msg=message))
        for message in ("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", "another")
    ]
    assert list(map(bool, said)) == [False, True]
