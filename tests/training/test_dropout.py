"""A dropout mask depends on the trial's seed, the step, the micro-batch and the module, and on nothing else."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from lora_lab.training.dropout import Dropout
from lora_lab.training.packed.linear import AdapterView, Routing, Span, attach

CPU = torch.device("cpu")
ROWS, LENGTH, WIDTH = 3, 7, 16


def mask(*, p=0.3, seed=5, step=2, micro_batch=1, module=4, rows=ROWS, length=LENGTH, padded=LENGTH, width=WIDTH):
    dropout = Dropout(p, seed)
    dropout.prepare(step, micro_batch, rows, length)
    return dropout.mask(module, torch.zeros(rows * padded, width))


def test_the_same_place_gives_the_same_mask_again_whatever_was_drawn_between():
    dropout = Dropout(0.3, 5)
    x = torch.zeros(ROWS * LENGTH, WIDTH)
    dropout.prepare(2, 1, ROWS, LENGTH)
    first = dropout.mask(4, x)
    dropout.mask(0, x)
    dropout.prepare(3, 0, ROWS + 1, LENGTH)
    dropout.mask(4, torch.zeros((ROWS + 1) * LENGTH, WIDTH))
    dropout.prepare(2, 1, ROWS, LENGTH)
    assert torch.equal(dropout.mask(4, x), first)
    assert torch.equal(mask(), first)


@pytest.mark.parametrize("change", [{"seed": 6}, {"step": 3}, {"micro_batch": 0}, {"module": 5}], ids=str)
def test_everything_that_names_the_place_changes_the_mask(change):
    assert (mask() != mask(**change)).float().mean() > 0.2


def test_neighboring_keys_do_not_run_into_each_other():
    """1/23 and 12/3 are different places."""
    assert not torch.equal(mask(step=1, micro_batch=23), mask(step=12, micro_batch=3))


def test_what_is_in_the_rows_does_not_matter():
    dropout = Dropout(0.3, 5)
    dropout.prepare(2, 1, ROWS, LENGTH)
    assert torch.equal(dropout.mask(4, torch.randn(ROWS * LENGTH, WIDTH)), mask())


@pytest.mark.parametrize("padded", [LENGTH + 1, 8, 64])
def test_padding_for_longer_neighbors_leaves_the_own_part_as_it_is(padded):
    own = mask().view(ROWS, LENGTH, WIDTH)
    longer = mask(padded=padded).view(ROWS, padded, WIDTH)
    assert torch.equal(longer[:, :LENGTH], own)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_keep_rate_and_gain(p):
    drawn = mask(p=p, rows=50, length=40, padded=40, width=64)
    n = drawn.numel()
    assert abs(float(drawn.sum()) - n * (1 - p)) < 5 * math.sqrt(n * p * (1 - p))
    assert drawn.dtype == torch.bool
    assert Dropout(p, 0).gain == 1 / (1 - p)


def test_the_mask_of_the_head_has_a_row_for_every_label():
    dropout = Dropout(0.5, 0)
    dropout.prepare(0, 0, ROWS, LENGTH)
    for labels in (1, ROWS, 5, ROWS * (LENGTH - 1)):
        drawn = dropout.mask(9, torch.zeros(labels, WIDTH))
        assert drawn.shape == (labels, WIDTH)
        assert drawn.dtype == torch.bool


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    mask()
    assert torch.equal(torch.rand(3), expected)


def projected(found, expected):
    """The one factor by which `found` is `expected`, but for noise that has no direction."""
    found, expected = found.double(), expected.double()
    return float((found * expected).sum() / (expected * expected).sum())


@pytest.mark.parametrize("p", [0.05, 0.1, 0.25])
def test_half_precision_keeps_the_gain(p):
    """1 / (1 - p), rounded to bfloat16, would change outputs and all three gradients by 0.16% to 0.2%."""
    torch.manual_seed(0)
    rows, d, r, dropout = 400, 256, 32, Dropout(p, 0)
    dropout.prepare(0, 0, 1, rows)
    x, a, bt, grad_y = (torch.randn(*shape).bfloat16() for shape in ((rows, d), (r, d), (r, d), (rows, d)))
    view = AdapterView(
        a,
        bt,
        torch.zeros(r, d),
        torch.zeros(r, d),
        scaling=0.5,
        dropout=partial(dropout.mask, 0),
        masked_scaling=0.5 * dropout.gain,
    )
    module = torch.nn.Linear(d, d, bias=False, dtype=torch.bfloat16).requires_grad_(requires_grad=False)
    torch.nn.init.zeros_(module.weight)
    routing = Routing()
    routing.spans, routing.rows = (Span(0, rows, {"module": view}, torch.zeros(1, requires_grad=True)),), rows
    attach(module, "module", routing)
    x.requires_grad_()
    y = module(x)
    y.backward(grad_y)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, a, bt)]
    expected = 0.5 / (1 - p) * (exact[0] * dropout.mask(0, x)) @ exact[1].t() @ exact[2]
    expected.backward(grad_y.double())
    pairs = zip(
        (y.detach(), x.grad, view.grad_a, view.grad_bt), (expected.detach(), *(e.grad for e in exact)), strict=True
    )
    for found, right in pairs:
        assert projected(found, right) == pytest.approx(1, abs=2e-4)


def test_no_dropout_is_inactive():
    assert not Dropout(0.0, 0).active
    assert Dropout(0.1, 0).active
