"""Why an int8 base is not packed on CUDA: its products look for outliers over all rows that they are given."""

from __future__ import annotations

from dataclasses import replace

import bitsandbytes
import pytest
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt
from workshop import Bench

from lora_lab.training.packed.linear import UnpackableError


@pytest.fixture
def linear():
    torch.manual_seed(0)
    module = bitsandbytes.nn.Linear8bitLt(256, 256, bias=False, has_fp16_weights=False, threshold=6.0)
    weight = torch.randn(256, 256) * 0.05
    module.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    module.to("cpu")(torch.zeros(1, 256))  # its first pass takes the weight to the state
    return module


def on_cpu(linear, rows):
    return linear(rows)


def on_cuda(linear, rows):
    """What bitsandbytes calls for rows on a CUDA device; on a CPU it has kernels for it, too."""
    return MatMul8bitLt.apply(rows, linear.weight, None, None, linear.state)


@pytest.mark.parametrize(("product", "changes"), [(on_cpu, False), (on_cuda, True)])
def test_an_outlier_of_a_neighbor_changes_other_rows_on_cuda(linear, product, changes):
    own, neighbor = torch.randn(16, 256), torch.randn(16, 256).clamp(-4, 4)
    calm = product(linear, torch.cat([own, neighbor]))[:16]
    neighbor[3, 7] = 8.0
    stirred = product(linear, torch.cat([own, neighbor]))[:16]
    assert bool((calm != stirred).any()) == changes


def test_a_pack_on_a_cuda_device_refuses_a_trial_on_an_int8_base(tiny_base, tiny_data, tmp_path):
    """The executor then gives it to the reference engine."""
    bench = Bench(tiny_base, tiny_data, tmp_path, "float32", quantization="int8")
    engine = bench.engine()
    engine.admit(0, bench.trial())
    engine._base = replace(engine._base, device=torch.device("cuda"))
    with pytest.raises(UnpackableError, match="int8 products on CUDA"):
        engine.admit(1, bench.trial())
    assert engine.active == (0,)
