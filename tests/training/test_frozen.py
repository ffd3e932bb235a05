"""The cheaper arithmetic of a frozen base gives the numbers of the modules that it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, GPT2Config, MistralConfig, Qwen3Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from workshop import CPU, gradients, llama_config, make_base, make_batch, make_slot, make_tokens

from lora_lab.training.packed import frozen
from lora_lab.training.packed.frozen import FrozenNorm, GatedProduct, product, simplify
from lora_lab.training.packed.frozen_head import ROWS_AT_ONCE, head_loss
from lora_lab.training.packed.model import PackedModel


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 4, 6)])
def test_the_norm_has_its_own_gradient(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: FrozenNorm.apply(x, weight, 1e-3), x)


def test_the_gated_product_has_its_own_gradient():
    torch.manual_seed(0)
    gate, up = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(GatedProduct.apply, (gate, up))
    assert torch.autograd.gradcheck(lambda gate: GatedProduct.apply(gate, up.detach()), gate)
    assert torch.autograd.gradcheck(lambda up: GatedProduct.apply(gate.detach(), up), up)


def run(module, x):
    """Output, and gradient of the input."""
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    return y.detach(), x.grad


def small_modules(dtype):
    config = llama_config()
    torch.manual_seed(0)
    modules = nn.ModuleList([LlamaRMSNorm(config.hidden_size), LlamaMLP(config)]).to(dtype)
    with torch.no_grad():
        modules[0].weight.add_(torch.randn_like(modules[0].weight), alpha=0.1)
    return modules.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_simplified_modules_give_the_same_numbers(dtype):
    modules = small_modules(dtype)
    pristine = copy.deepcopy(modules)
    simplify(modules)
    x = torch.randn(3, 7, 32, dtype=dtype)
    for plain, simple in zip(pristine, modules, strict=True):
        (y, grad), (expected, expected_grad) = run(simple, x), run(plain, x)
        assert torch.equal(y, expected)
        if isinstance(plain, LlamaMLP) or dtype != torch.float32:
            assert torch.equal(grad, expected_grad)
        else:
            assert (grad - expected_grad).abs().max() < 1e-6 * expected_grad.abs().max()
        with torch.no_grad():
            assert torch.equal(simple(x), expected)


def test_a_norm_whose_weight_is_trained_is_left_alone():
    modules = small_modules(torch.float32)
    simplify(modules)
    modules[0].weight.requires_grad_()
    modules[0](torch.randn(2, 32, requires_grad=True)).sum().backward()
    assert modules[0].weight.grad is not None


def test_a_copy_computes_with_its_own_weights():
    modules = small_modules(torch.float32)
    simplify(modules)
    twin = copy.deepcopy(modules)
    with torch.no_grad():
        twin[0].weight.mul_(2)
        twin[1].down_proj.weight.mul_(2)
    x = torch.randn(2, 32, requires_grad=True)
    for own, other in zip(twin, modules, strict=True):
        assert torch.allclose(own(x), 2 * other(x))


def simplified(config):
    base = make_base(config)
    simplify(base.model)
    return {type(module).__name__ for module in base.model.modules() if "forward" in vars(module)}


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (llama_config(), {"LlamaRMSNorm", "LlamaMLP"}),
        (llama_config(hidden_act="gelu"), {"LlamaRMSNorm"}),
        (MistralConfig(**SMALL, num_key_value_heads=2), {"MistralRMSNorm", "MistralMLP"}),
        (Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8), {"Qwen3RMSNorm", "Qwen3MLP"}),
        (Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8), set()),
        (GPT2Config(n_embd=32, n_head=4, n_layer=1, n_positions=64, vocab_size=64), set()),
    ],
    ids=["llama", "llama gelu", "mistral", "qwen3", "gemma2", "gpt2"],
)
def test_modules_are_recognized_by_what_they_compute(config, expected):
    """Gemma's norm multiplies by 1 + weight and its gate is a GELU: same names, other numbers."""
    assert simplified(config) == expected


def test_a_norm_of_another_formula_is_not_taken_for_llamas():
    assert not frozen._runs(Gemma2RMSNorm(8), LlamaRMSNorm)


@pytest.mark.parametrize("rows", [3, frozen.ONEDNN_ROWS])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_linear(rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(rows, 24)
    with torch.no_grad():
        assert (product(x, linear.weight, linear.bias) - linear(x)).abs().max() < 1e-5
        y = torch.randn(rows, 40)
        assert (product(y, linear.weight.t()) - y @ linear.weight).abs().max() < 1e-5


def test_a_whole_model_gives_the_same_with_either_product(monkeypatch):
    """oneDNN's is used from many rows on only, which the small models of other tests never have."""
    tokens = [make_tokens(5, seed=1), make_tokens(4, seed=2)]
    results = []
    for rows in (1, 10**9):
        monkeypatch.setattr(frozen, "ONEDNN_ROWS", rows)
        base = make_base(llama_config(attention_bias=True), torch.float32)
        slots = [make_slot(base), make_slot(base, lora={"target_modules": "mlp", "r": 3}, seed=1)]
        losses = PackedModel(base).token_losses(make_batch(*tokens), slots)
        losses.nll.sum().backward()
        results.append((losses.nll.detach(), [gradients(slot) for slot in slots]))
    (nll, found), (expected_nll, expected) = results
    assert (nll - expected_nll).abs().max() < 1e-5
    for one, other in zip(found, expected, strict=True):
        pairs = [pair for name in other for pair in zip(one[name], other[name], strict=True)]
        assert max(float((a - b).norm() / b.norm()) for a, b in pairs) < 1e-5


def losses_both_ways(dtype, n, logits_at_once=2**26, scale=1.0):
    torch.manual_seed(0)
    head = nn.Linear(16, 40, bias=True).to(dtype).requires_grad_(requires_grad=False)
    hidden = (scale * torch.randn(n, 16)).to(dtype).requires_grad_()
    targets = torch.randint(0, 40, (n,))
    weights = torch.rand(n).to(torch.float64 if dtype == torch.float64 else torch.float32)
    results = []
    for fused in (True, False):
        if fused:
            nll = head_loss(hidden, targets, head, logits_at_once)
        else:
            logits = head(hidden)
            nll = nn.functional.cross_entropy(
                logits if dtype == torch.float64 else logits.float(), targets, reduction="none"
            )
        (nll * weights).sum().backward()
        results.append((nll.detach(), hidden.grad))
        hidden.grad = None
    return results


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-5), (torch.bfloat16, 0.05)]
)
@pytest.mark.parametrize("n", [1, 7, ROWS_AT_ONCE + 3])
def test_head_losses_and_gradients_are_those_of_cross_entropy(dtype, tolerance, n):
    (nll, grad), (expected, expected_grad) = losses_both_ways(dtype, n)
    assert nll.dtype == expected.dtype
    assert grad.dtype == expected_grad.dtype == dtype
    assert (nll - expected).abs().max() < min(tolerance, 2e-5)
    assert (grad.float() - expected_grad.float()).abs().max() < tolerance


@pytest.mark.parametrize("labels", [255, 511, 1023])
def test_half_precision_keeps_the_denominator_of_the_loss(labels):
    """One factor on all gradients of a trial's step, and another one for every length, would be no noise."""
    torch.manual_seed(0)
    head = nn.Linear(256, 200, bias=False, dtype=torch.bfloat16).requires_grad_(requires_grad=False)
    hidden, targets = torch.randn(labels + 9, 256).bfloat16().requires_grad_(), torch.randint(0, 200, (labels + 9,))
    nll = head_loss(hidden, targets, head, 2**26, [(labels, labels), (9, 9)])
    (nll[:labels].sum() / labels + nll[labels:].sum() / 9).backward()
    found, hidden.grad = hidden.grad.double(), None
    nll = nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")
    (nll[:labels].sum() / labels + nll[labels:].sum() / 9).backward()
    expected = hidden.grad.double()
    for own in (slice(labels), slice(labels, None)):
        ratio = float((found[own] * expected[own]).sum() / (expected[own] * expected[own]).sum())
        assert ratio == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_denominator_that_is_said_changes_no_number_in_full_precision(dtype):
    torch.manual_seed(0)
    head = nn.Linear(16, 40, dtype=dtype).requires_grad_(requires_grad=False)
    hidden, targets = torch.randn(7, 16, dtype=dtype, requires_grad=True), torch.randint(0, 40, (7,))
    grads = [
        torch.autograd.grad(head_loss(hidden, targets, head, 2**26, said).sum() / 7, hidden)[0]
        for said in ((), [(7, 7)])
    ]
    assert torch.equal(*grads)


def test_large_losses_do_not_underflow():
    (nll, grad), (expected, expected_grad) = losses_both_ways(torch.float32, 9, scale=2000.0)
    assert expected.max() > 500
    assert (nll - expected).abs().max() < 1e-6 * expected.max()
    assert (grad - expected_grad).abs().max() < 1e-5


def test_head_losses_do_not_depend_on_chunks():
    (nll, grad), _ = losses_both_ways(torch.float64, 23)
    (pieces, pieces_grad), _ = losses_both_ways(torch.float64, 23, logits_at_once=5 * 40)
    assert (nll - pieces).abs().max() < 1e-13
    assert (grad - pieces_grad).abs().max() < 1e-13


def test_no_labels_give_no_losses():
    hidden = torch.randn(0, 16, requires_grad=True)
    nll = head_loss(hidden, torch.zeros(0, dtype=torch.int64), nn.Linear(16, 40), 2**20)
    assert nll.shape == (0,)


def test_nothing_is_computed_below_the_lowest_adapter():
    base = make_base(llama_config(num_hidden_layers=3), torch.float32)
    model, slot = PackedModel(base), make_slot(base, lora={"layers": (2,)})
    reached = []
    for index, layer in enumerate(base.model.model.layers):
        layer.register_forward_hook(lambda _, __, y, index=index: reached.append((index, y.requires_grad)))
    losses = model.token_losses(make_batch(make_tokens(4)), [slot])
    assert reached == [(0, False), (1, False), (2, True)]
    assert losses.nll.device == CPU
