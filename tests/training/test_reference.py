"""What only the reference engine trains: DoRA, biases, whole modules, and initializations that change the base."""

from __future__ import annotations

import types
import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import layer as peft_layer
from peft.utils import loftq_utils
from safetensors.torch import load_file
from samples import sample
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config
from workshop import CPU, drain, llama_config, only, own_base, write_base

from lora_lab.analysis.paired import token_mean
from lora_lab.common.errors import InputError
from lora_lab.study.events import Evaluated, Finished, Logged
from lora_lab.study.settings import LoftQSettings
from lora_lab.study.targets import trainable_parameters
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.evaluation import evaluate
from lora_lab.training.objective import LanguageModeling
from lora_lab.training.reference.loftq import loftq
from lora_lab.training.reference.losses import label_losses
from lora_lab.training.reference.model import set_mode
from lora_lab.training.reference_engine import ReferenceEngine

EXACT = {
    "dora": {"use_dora": True},
    "dora with dropout and a head": {"use_dora": True, "lora_dropout": 0.2, "target_modules": "all-linear+head"},
    "all biases": {"bias": "all", "target_modules": "attention"},
    "biases of adapted modules": {"bias": "lora_only", "target_modules": "attention"},
    "the head in full": {"modules_to_save": ("lm_head",), "target_modules": "attention"},
    "embeddings in full": {"modules_to_save": ("embed_tokens",)},
    "a norm in full, with dora": {"modules_to_save": ("model.norm",), "use_dora": True},
}
"""On a float64 base the adapter that is loaded again gives the very loss."""
ROUNDED = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa with rslora": {"init_lora_weights": "pissa", "use_rslora": True, "r": 8},
    "pissa with dora and a tied head": {
        "init_lora_weights": "pissa",
        "use_dora": True,
        "target_modules": "all-linear+head",
    },
    "pissa with biases and a norm": {"init_lora_weights": "pissa", "bias": "all", "modules_to_save": ("model.norm",)},
    "olora": {"init_lora_weights": "olora"},
    "olora with a tied head": {"init_lora_weights": "olora", "target_modules": "all-linear+head", "lora_dropout": 0.1},
    "loftq": {"init_lora_weights": "loftq", "alpha_ratio": 1.0},
    "loftq of 8 bits": {
        "init_lora_weights": "loftq",
        "loftq_config": LoftQSettings(loftq_bits=8, loftq_iter=3),
        "alpha_ratio": 1.0,
    },
    "loftq with dora": {"init_lora_weights": "loftq", "use_dora": True, "alpha_ratio": 1.0},
}
"""PEFT computes these in float32."""
ALL = EXACT | ROUNDED
TIMES = {"train_seconds", "eval_seconds", "tokens_per_second"}


@pytest.fixture(scope="module")
def biased_base(tmp_path_factory):
    """A Llama with biases in it, and a head that is tied to the embeddings."""
    folder = tmp_path_factory.mktemp("biased-base")
    write_base(folder, llama_config(attention_bias=True, mlp_bias=True, tie_word_embeddings=True))
    return folder


@pytest.fixture
def biased(bench, biased_base):
    """The bench on that base."""
    bench.base_folder = biased_base
    return bench


@pytest.fixture(autouse=True)
def _loftq_of_peft_on_a_cpu(monkeypatch):
    """PEFT's own function, but for the device that it names."""
    monkeypatch.setattr(peft_layer, "loftq_init", peft_loftq())


def peft_loftq():
    real = loftq_utils.loftq_init.__wrapped__
    constants = tuple("cpu" if value == "cuda" else value for value in real.__code__.co_consts)
    return types.FunctionType(real.__code__.replace(co_consts=constants), real.__globals__)


def dtype_of(case):
    return "float64" if case in EXACT else "float32"


def trial(bench, case, **training):
    settings = {"learning_rate": 5e-3, "num_train_epochs": 2, **training}
    return bench.trial(dtype=dtype_of(case), lora=ALL[case], **settings)


def engine_of(bench, config, folder=None):
    base = own_base(config.model, CPU)
    return ReferenceEngine(base, DataCatalog(base.tokenizer, bench.scratch), folder or bench.scratch / "trials"), base


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}


def losses(base, model, dataset):
    set_mode(model, training=False)
    [measured] = evaluate(
        lambda batch: label_losses(base, model, batch), dataset, LanguageModeling(), trials=1, rows_per_trial=16
    )
    return measured


def loaded_again(config, folder):
    """The trained model as somebody makes it who has the plain base, PEFT and the adapter's folder."""
    base = own_base(config.model, CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT: with biases, the base is not what it was
        return base, PeftModel.from_pretrained(base.model, folder)


QUICK = [
    *("dora with dropout and a head", "all biases", "embeddings in full", "a norm in full, with dora"),
    *("pissa with dora and a tied head", "olora", "loftq"),
]


@pytest.mark.parametrize("case", sample(ALL, QUICK))
def test_it_trains_counts_saves_and_leaves_the_base_alone(biased, case):
    config = trial(biased, case)
    engine, base = engine_of(biased, config)
    before = state_of(base.model)
    bare = engine.base_losses(config)[0]
    engine.admit(0, config)
    counted = engine.trial(0).model.get_nb_trainable_parameters()[0]
    events = drain(engine)
    logged = [event.loss for event in only(events, Logged)]
    assert sum(logged[-4:]) < sum(logged[:4])
    [final] = only(events, Finished)
    assert final.metrics["eval_loss"] < bare
    assert final.metrics["trainable_params"] == counted == trainable_parameters(base.linears, config.lora)
    held_out = biased.data.splits(config.data).eval
    plain, model = loaded_again(config, engine.trial_folder(final.number) / "adapter")
    measured = losses(plain, model, held_out)
    assert token_mean(measured) == pytest.approx(final.metrics["eval_loss"], abs=1e-12 if case in EXACT else 2e-6)
    kept = load_file(engine.trial_folder(0) / "evaluations" / "eval-0002.safetensors")
    assert abs(measured.nll - kept["nll"].numpy()).max() < (1e-9 if case in EXACT else 1e-3)
    after = state_of(base.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    names = {path.name for path in engine.trial_folder(0).rglob("*") if path.is_file()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "eval-0001.safetensors",
        "eval-0002.safetensors",
    }


@pytest.mark.parametrize("case", ["dora", "pissa", "pissa with dora and a tied head", "olora with a tied head"])
def test_before_the_first_step_it_is_the_bare_base(biased, case):
    config = trial(biased, case)
    engine, base = engine_of(biased, config)
    engine.admit(0, config)
    held_out = biased.data.splits(config.data).eval
    start = losses(base, engine.trial(0).model, held_out)
    assert token_mean(start) == pytest.approx(engine.base_losses(config)[0], abs=2e-6)


@pytest.mark.parametrize("case", sample(ALL, ["dora with dropout and a head", "pissa"]))
def test_taken_up_in_the_middle_it_ends_bit_equal(biased, case):
    config = trial(biased, case, lr_scheduler_type="cosine", weight_decay=0.1)
    control, _ = engine_of(biased, config, biased.scratch / "control")
    control.admit(0, config)
    whole = drain(control)
    for stop in (6, 9):  # with an evaluation just made, and inside an epoch
        first, _ = engine_of(biased, config, biased.scratch / f"stopped-{stop}")
        first.admit(0, config)
        done = [event for _ in range(stop) for event in first.step()]
        first.save_checkpoints()
        again, _ = engine_of(biased, config, biased.scratch / f"stopped-{stop}")
        again.admit(0, config)
        events = done + drain(again)
        assert only(events, Logged) == only(whole, Logged)
        assert [event.eval_loss for event in only(events, Evaluated)] == [e.eval_loss for e in only(whole, Evaluated)]
        assert {k: v for k, v in events[-1].metrics.items() if k not in TIMES} == {
            k: v for k, v in whole[-1].metrics.items() if k not in TIMES
        }
        adapters = [engine.trial_folder(0) / "adapter" / "adapter_model.safetensors" for engine in (control, again)]
        assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.parametrize(
    "case",
    sample(
        ["dora", "all biases", "biases of adapted modules", "the head in full", "a norm in full, with dora"],
        ["biases of adapted modules", "a norm in full, with dora"],
    ),
)
def test_every_step_is_that_of_peft_in_a_loop_by_hand(biased, case):
    """Written out once more without `Trainer`: one micro-batch a step, AdamW, clipping, a linear schedule."""
    config = trial(biased, case, lr_scheduler_type="linear", weight_decay=0.1, max_grad_norm=0.5)
    engine, _ = engine_of(biased, config)
    engine.admit(0, config)
    plan, train, peft_config = (
        engine.trial(0).progress.plan,
        biased.data.splits(config.data).train,
        engine.trial(0).model.peft_config,
    )
    events = drain(engine)
    model = AutoModelForCausalLM.from_pretrained(biased.base_folder, dtype=torch.float64)
    torch.manual_seed(config.training.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, LoraConfig(**fields(peft_config["default"])))
    model.eval()
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and "bias" not in n and "norm" not in n]
    others = [p for n, p in model.named_parameters() if p.requires_grad and ("bias" in n or "norm" in n)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.training.learning_rate)
    for event in only(events, Logged):
        rate = config.training.learning_rate * (plan.total_steps - event.step + 1) / plan.total_steps
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_by_hand(model, train, plan.micro_batches(event.step - 1)[0])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([*decayed, *others], 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert event.loss == pytest.approx(loss.item(), abs=1e-9)
        assert event.grad_norm == pytest.approx(norm.item(), abs=1e-9)
        assert event.learning_rate == pytest.approx(rate, rel=1e-12)


def fields(config):
    names = ("r", "lora_alpha", "target_modules", "use_dora", "bias", "modules_to_save", "task_type")
    return {name: getattr(config, name) for name in names}


def loss_by_hand(model, train, rows):
    """The mean over the labels of all rows, one row at a time."""
    total, labels = 0.0, 0
    for index in rows:
        logits = model(input_ids=torch.from_numpy(train.input_ids[index])[None]).logits[0, :-1]
        wanted = torch.from_numpy(train.labels[index])[1:]
        total = total + functional.cross_entropy(logits, wanted, reduction="sum", ignore_index=-100)
        labels += int((wanted != -100).sum())
    return total / labels


# Initializations


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "r": 8}], ids=str)
def test_the_conversion_of_pissa_is_that_of_peft(biased, settings):
    """Where PEFT's own conversion loses nothing, which is without magnitudes, biases and whole modules."""
    config = biased.trial(dtype="float32", lora={"init_lora_weights": "pissa", **settings}, learning_rate=5e-3)
    engine, _ = engine_of(biased, config)
    engine.admit(0, config)
    model, initial = engine.trial(0).model, biased.scratch / "pissa_init"
    model.save_pretrained(initial)
    for _ in range(3):
        engine.step()
    engine.save_adapter(0, biased.scratch / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(biased.scratch / "theirs", path_initial_model_for_weight_conversion=str(initial))
    ours, theirs = (load_file(biased.scratch / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    configs = [LoraConfig.from_pretrained(biased.scratch / name) for name in ("ours", "theirs")]
    for name in ("r", "lora_alpha", "use_rslora", "init_lora_weights", "use_dora", "bias"):
        assert getattr(configs[0], name) == getattr(configs[1], name), name


@pytest.mark.parametrize(("bits", "iterations"), [(4, 1), (4, 3), (8, 2)])
def test_loftq_is_that_of_peft(bits, iterations):
    torch.manual_seed(0)
    weight = torch.randn(96, 64)
    quantized, a, b = loftq(weight, bits=bits, rank=5, iterations=iterations)
    expected = peft_loftq()(weight, bits, 5, iterations)
    assert torch.equal(quantized, expected[0])
    torch.testing.assert_close(a, expected[1])
    torch.testing.assert_close(b, expected[2])
    assert (weight - quantized - b @ a).norm() < (weight - quantized).norm()


def test_a_model_with_loftq_begins_as_peft_begins_it(biased):
    config = trial(biased, "loftq with dora")
    engine, _ = engine_of(biased, config)
    engine.admit(0, config)
    ours = engine.trial(0).model.state_dict()
    model = AutoModelForCausalLM.from_pretrained(biased.base_folder, dtype=torch.float32)
    for (
        module
    ) in model.modules():  # PEFT would change the tied head and the embeddings at once; no head is adapted here
        assert not hasattr(module, "lora_A")
    theirs = get_peft_model(
        model,
        replace(
            engine.trial(0).model.peft_config["default"],
            init_lora_weights="loftq",
            loftq_config={"loftq_bits": 4, "loftq_iter": 1},
        ),
    ).state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


# What is refused


@pytest.mark.parametrize(
    ("lora", "model", "message"),
    [
        ({"init_lora_weights": "pissa"}, {}, "pissa is computed in float32, but model.dtype is float64"),
        ({"init_lora_weights": "olora", "r": 64}, {"dtype": "float32"}, "takes r=64 directions .* has 16; lower r"),
        ({"bias": "all"}, {}, "bias: all trains the base's biases, but this base has none"),
        ({"modules_to_save": ("nowhere",)}, {}, "no module is called nowhere; the model has .*lm_head"),
        (
            {"modules_to_save": ("lm_head",), "target_modules": "all-linear+head"},
            {},
            "lm_head would be trained in full, but lora.target_modules puts an adapter on lm_head",
        ),
        (
            {"modules_to_save": ("gate_proj",), "target_modules": "attention"},
            {"dtype": "float32", "quantization": "nf4"},
            "gate_proj is quantized",
        ),
        ({"use_dora": True}, {"dtype": "float32", "quantization": "int8"}, "int8 base on a CPU; use nf4, or a GPU"),
        (
            {"init_lora_weights": "loftq", "loftq_config": LoftQSettings(loftq_bits=2)},
            {"dtype": "float32"},
            "4 and 8 bits, but got 2",
        ),
    ],
    ids=str,
)
def test_what_peft_cannot_do_is_refused_with_a_way_out(bench, lora, model, message):
    config = bench.trial(lora=lora)
    config = config.model_copy(update={"model": config.model.model_copy(update=model)})
    engine, _ = engine_of(bench, config)
    with pytest.raises(InputError, match=message):
        engine.admit(0, config)
    assert engine.active == ()


def test_olora_is_refused_on_conv1d_where_peft_would_take_the_wrong_sides(bench, tmp_path):
    write_base(tmp_path / "gpt2", GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=64))
    bench.base_folder = tmp_path / "gpt2"
    config = bench.trial(dtype="float32", lora={"init_lora_weights": "olora"})
    engine, _ = engine_of(bench, config)
    with pytest.raises(InputError, match="does not fit the Conv1D modules of this base; use pissa"):
        engine.admit(0, config)
    pissa = bench.trial(dtype="float32", lora={"init_lora_weights": "pissa", "use_dora": True}, learning_rate=5e-3)
    engine.admit(1, pissa)
    [final] = only(drain(engine), Finished)
    plain, model = loaded_again(pissa, engine.trial_folder(final.number) / "adapter")
    measured = losses(plain, model, bench.data.splits(pissa.data).eval)
    assert token_mean(measured) == pytest.approx(final.metrics["eval_loss"], abs=2e-6)


# Bases of other precision


@pytest.mark.parametrize(
    ("quantization", "lora"),
    [
        pytest.param("nf4", {"use_dora": True}, marks=pytest.mark.slow),
        ("nf4", {"use_dora": True, "lora_dropout": 0.2}),
        pytest.param(
            "nf4",
            {"modules_to_save": ("embed_tokens", "lm_head"), "target_modules": "attention"},
            marks=pytest.mark.slow,
        ),
        pytest.param("fp4", {"use_dora": True}, marks=pytest.mark.slow),
        ("int8", {"modules_to_save": ("model.norm",)}),
    ],
    ids=str,
)
def test_quantized_bases_train_what_peft_supports_on_them(bench, quantization, lora):
    config = bench.trial(dtype="float32", lora=lora, learning_rate=5e-3)
    config = config.model_copy(update={"model": config.model.model_copy(update={"quantization": quantization})})
    engine, base = engine_of(bench, config)
    bare = engine.base_losses(config)[0]
    for number in range(2):  # the second finds the base as the first did
        engine.admit(number, config)
        [final] = only(drain(engine), Finished)
        assert final.metrics["eval_loss"] < bare
        plain, model = loaded_again(config, engine.trial_folder(final.number) / "adapter")
        measured = losses(plain, model, bench.data.splits(config.data).eval)
        assert token_mean(measured) == pytest.approx(final.metrics["eval_loss"], abs=1e-6)
    assert token_mean(losses(base, base.model, bench.data.splits(config.data).eval)) == pytest.approx(bare, abs=1e-9)


def test_accumulated_losses_are_not_divided_again_whatever_the_model_accepts(bench, monkeypatch):
    """`Trainer` divides them unless the model takes the number of label tokens, or its user computes the loss."""
    config = bench.trial(dtype="float64", gradient_accumulation_steps=3, max_steps=4)
    found = []
    for accepts in (True, False):
        engine, base = engine_of(bench, config, bench.scratch / f"accepts-{accepts}")
        monkeypatch.setattr(type(base.model), "accepts_loss_kwargs", accepts, raising=False)
        engine.admit(0, config)
        found.append([(event.loss, event.grad_norm) for event in only(drain(engine), Logged)])
    assert len(found[0]) == 4
    assert found[0] == found[1]


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_on_a_bfloat16_base_adapters_are_trained_in_float32(bench, lora):
    config = bench.trial(dtype="bfloat16", lora=lora, learning_rate=5e-3)
    engine, _ = engine_of(bench, config)
    engine.admit(0, config)
    assert {parameter.dtype for parameter in engine.trial(0).parameters.values()} == {torch.float32}
    [final] = only(drain(engine), Finished)
    exact = bench.trial(dtype="float32", lora=lora, learning_rate=5e-3)
    other, _ = engine_of(bench, exact, bench.scratch / "exact")
    other.admit(0, exact)
    assert final.metrics["eval_loss"] == pytest.approx(only(drain(other), Finished)[0].metrics["eval_loss"], abs=0.02)


def test_dora_costs_memory_and_its_magnitudes_are_counted(bench):
    figures = {}
    for name, lora in {"plain": {}, "dora": {"use_dora": True}}.items():
        config = bench.trial(lora=lora)
        engine, _ = engine_of(bench, config, bench.scratch / name)
        engine.admit(0, config)
        figures[name] = drain(engine)[-1].metrics
    outputs = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    assert figures["dora"]["trainable_params"] == figures["plain"]["trainable_params"] + outputs
    assert figures["dora"]["adapter_bytes"] == figures["plain"]["adapter_bytes"] + 8 * outputs
    assert figures["dora"]["peak_memory_bytes"] > figures["plain"]["peak_memory_bytes"]
