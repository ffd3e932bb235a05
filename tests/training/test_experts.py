"""Adapters on the fused weights of experts, which the reference engine alone trains."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from samples import sample
from workshop import CPU, drain, make_base, only, write_base

from lora_lab.analysis.paired import token_mean
from lora_lab.common.errors import InputError
from lora_lab.results.gather import read_spectra
from lora_lab.study.events import Finished, Logged
from lora_lab.study.targets import trainable_parameters
from lora_lab.training.base.loading import load_base
from lora_lab.training.dropout import Dropout
from lora_lab.training.evaluation import evaluate
from lora_lab.training.objective import LanguageModeling
from lora_lab.training.reference.losses import label_losses
from lora_lab.training.reference.model import peft_model, set_mode
from lora_lab.training.reference_engine import ReferenceEngine

EXPERTS = {"target_modules": "attention", "target_parameters": "experts"}
TIMES = {"train_seconds", "eval_seconds", "tokens_per_second"}


@pytest.fixture(scope="module", params=[pytest.param("Mixtral", marks=pytest.mark.slow), "gpt-oss"])
def experts_base(request, tmp_path_factory):
    """gpt-oss has biases in its experts, and their weights transposed."""
    folder = tmp_path_factory.mktemp("experts-base")
    write_base(folder, FAMILIES[request.param])
    return folder


@pytest.fixture
def mixture(bench, experts_base):
    """The bench on that base."""
    bench.base_folder = experts_base
    return bench


def engine_of(bench, config, name):
    base = load_base(config.model, CPU)
    return ReferenceEngine(base, bench.data, bench.scratch / name), base


def losses_of(base, model, dataset):
    set_mode(model, training=False)
    [measured] = evaluate(
        lambda batch: label_losses(base, model, batch), dataset, LanguageModeling(), trials=1, rows_per_trial=16
    )
    return token_mean(measured)


CASES = {
    "plain": {},
    "one layer": {"layers": (1,), "use_rslora": True},
    "one of two": {"target_parameters": ("experts.down_proj",), "init_lora_weights": False},
    "experts alone": {"target_modules": "none"},
    "gaussian": {"init_lora_weights": "gaussian", "target_modules": "all-linear+head"},
}


@pytest.mark.parametrize("case", sample(CASES, ["one layer"]))
def test_it_trains_counts_saves_and_leaves_the_base_alone(mixture, case):
    config = mixture.trial(lora=EXPERTS | CASES[case], learning_rate=5e-3, num_train_epochs=2)
    engine, base = engine_of(mixture, config, "trials")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    bare = engine.base_losses(config)[0]
    engine.admit(0, config)
    counted = engine.trial(0).model.get_nb_trainable_parameters()[0]
    [final] = only(drain(engine), Finished)
    assert final.metrics["eval_loss"] < bare
    assert final.metrics["trainable_params"] == counted == trainable_parameters(base.linears, config.lora)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    loaded = PeftModel.from_pretrained(base.model, engine.trial_folder(0) / "adapter")
    held_out = mixture.data.splits(config.data).eval
    assert losses_of(base, loaded, held_out) == pytest.approx(final.metrics["eval_loss"], abs=1e-12)


def test_taken_up_in_the_middle_it_ends_bit_equal(mixture):
    config = mixture.trial(lora=EXPERTS, lr_scheduler_type="cosine", weight_decay=0.1, loraplus_lr_ratio=4.0)
    control, _ = engine_of(mixture, config, "control")
    control.admit(0, config)
    whole = drain(control)
    first, _ = engine_of(mixture, config, "stopped")
    first.admit(0, config)
    done = [event for _ in range(3) for event in first.step()]
    first.save_checkpoints()
    again, _ = engine_of(mixture, config, "stopped")
    again.admit(0, config)
    events = done + drain(again)
    assert only(events, Logged) == only(whole, Logged)
    metrics = [{k: v for k, v in told[-1].metrics.items() if k not in TIMES} for told in (whole, events)]
    assert metrics[0] == metrics[1]
    files = [engine.trial_folder(0) / "adapter" / "adapter_model.safetensors" for engine in (control, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("recompute", [False, True])
def test_the_sums_of_weights_and_adapters_are_kept_as_the_plan_says(mixture, recompute):
    """The adapted weights once more, or those of one layer of two, and their gradients."""
    activations = {}
    for parameters in ("none", "experts"):
        lora = EXPERTS | {"target_parameters": parameters}
        config = mixture.trial(lora=lora, gradient_checkpointing=recompute, max_steps=1)
        engine, base = engine_of(mixture, config, f"trials-{parameters}")
        engine.admit(0, config)
        activations[parameters] = engine.memory(0).measured.terms["activations"]
    kept = 8 * sum(shape.elements for shape in base.linears.experts.values()) / (2 if recompute else 1)
    assert kept < activations["experts"] - activations["none"] < 3 * kept


@pytest.mark.parametrize("case", sample(["nf4", "int8"], []))
def test_a_quantized_base_keeps_its_experts_as_they_are_and_trains_them(mixture, case):
    mixture.quantization = {"quantization": case}
    config = mixture.trial(dtype="float32", lora=EXPERTS, learning_rate=5e-3, gradient_checkpointing=True)
    engine, base = engine_of(mixture, config, "trials")
    engine.admit(0, config)
    weights = dict(base.model.named_parameters())
    assert all(weights[name].dtype == torch.float32 for name in base.linears.experts)
    [final] = only(drain(engine), Finished)
    loaded = PeftModel.from_pretrained(load_base(config.model, CPU).model, engine.trial_folder(0) / "adapter")
    held_out = mixture.data.splits(config.data).eval
    assert losses_of(base, loaded, held_out) == pytest.approx(final.metrics["eval_loss"], abs=1e-5)


def test_the_spectra_of_an_adapter_are_those_of_every_expert(bench):
    config = bench.trial(dtype="float32", lora=EXPERTS | {"init_lora_weights": False})
    model = peft_model(make_base(FAMILIES["gpt-oss"], torch.float32), config, Dropout(0.0, 0))
    model.save_pretrained(bench.scratch / "adapter")
    spectra = read_spectra(bench.scratch / "adapter")
    wrappers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, ParamWrapper)]
    assert len(wrappers) == 4
    for name, wrapper in wrappers:
        for expert, update in enumerate(wrapper.get_delta_weight("default")):
            meant = torch.linalg.svdvals(update.detach())[: config.lora.r]
            found = spectra[f"{name}.lora_A.weight[{expert}]"].singular_values
            torch.testing.assert_close(torch.tensor(found, dtype=torch.float32), meant, rtol=1e-4, atol=1e-6)
    assert len(spectra) == 4 * 4 + 2 * 4


def test_experts_are_not_trained_in_full_beside_their_adapter(mixture):
    config = mixture.trial(lora=EXPERTS | {"modules_to_save": ("experts",)})
    engine, _ = engine_of(mixture, config, "trials")
    with pytest.raises(InputError, match=r"experts would be trained in full, but lora.target_parameters puts an ada"):
        engine.admit(0, config)


def test_biases_are_those_that_peft_trains(bench):
    """`gate_up_proj_bias` of gpt-oss's experts is none of them."""
    config = bench.trial(lora=EXPERTS | {"bias": "all"})
    base = make_base(FAMILIES["gpt-oss"])
    counted = peft_model(base, config, Dropout(0.0, 0)).get_nb_trainable_parameters()[0]
    assert counted == trainable_parameters(base.linears, config.lora)
