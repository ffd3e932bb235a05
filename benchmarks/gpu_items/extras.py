"""Single questions about the machine: a decoder layer eager, as a graph and compiled; the allocator; cuDNN's plans."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from gpu_items.bases import llama
from gpu_items.cells import Cell, Context
from gpu_items.device import device, gpu_ms, on_gpu, sync, wall_ms
from lora_lab.training.packed.captured_step import cuda_graph

if TYPE_CHECKING:
    from collections.abc import Callable

NEW_SHAPES = """
import time, torch
def once(n):
    q, k, v = (torch.randn(8, h, n, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (32, 8, 8))
    torch.cuda.synchronize(); t = time.perf_counter()
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()
    torch.cuda.synchronize(); return round(1000 * (time.perf_counter() - t), 1)
print([once(n) for n in (64, 64, 72, 88, 104, 120, 72)], "ms for lengths 64, 64, 72, 88, 104, 120, 72")
"""
ONE_GIB = """
import torch
x = torch.empty(2**30, device="cuda", dtype=torch.uint8)
y = x.clone()
torch.cuda.synchronize()
print(torch.cuda.memory_reserved())
"""


class Layer:
    """A frozen decoder layer of the 8B shape, Flash attention."""

    def __init__(self, *, toy: bool) -> None:
        torch.backends.cuda.enable_cudnn_sdp(False)
        self._config = llama("toy" if toy else "8B")
        self._config._attn_implementation = "sdpa"
        with device():
            self.module = LlamaDecoderLayer(self._config, 0).to(torch.bfloat16).requires_grad_(False)
            self._rotary = LlamaRotaryEmbedding(self._config)

    def step(self, run: Any, tokens: int) -> Callable[[], None]:
        """A forward and backward pass over rows of 64 tokens by `run`: the module, or what was made of it."""
        rows = max(1, tokens // 64)
        shape = (rows, tokens // rows, self._config.hidden_size)
        x = torch.randn(*shape, device=device(), dtype=torch.bfloat16, requires_grad=True)
        places = torch.arange(shape[1], device=device())[None]
        turned = self._rotary(x, places)
        grad = torch.randn_like(x)

        def step() -> None:
            y = run(x, position_embeddings=turned, attention_mask=None, position_ids=places)
            x.grad = None
            (y[0] if isinstance(y, tuple) else y).backward(grad)

        return step


def eager_and_graph(*, toy: bool) -> dict:
    layer = Layer(toy=toy)
    result: dict[int, dict] = {}
    for tokens in (64,) if toy else (64, 512, 4096):
        step = layer.step(layer.module, tokens)
        found = result[tokens] = {"eager_ms": gpu_ms(step, 5, 5), "eager_host_ms": wall_ms(step, 5)}
        if on_gpu():
            found["graph_ms"] = gpu_ms(cuda_graph(step), 5, 5)
    return result


def compiled(*, toy: bool) -> dict:
    layer = Layer(toy=toy)
    begun = time.perf_counter()
    run = torch.compile(layer.module)
    result: dict[int, dict] = {}
    for tokens in (512,) if toy else (512, 4096):
        step = layer.step(run, tokens)
        step()
        sync()
        result[tokens] = {"compile_s": time.perf_counter() - begun, "ms": gpu_ms(step, 5, 5)}
        begun = time.perf_counter()
    return result


def another(code: str, **variables: str) -> dict:
    """A few lines in a process that gets these variables before CUDA starts."""
    if not on_gpu():
        return {"skipped": "no CUDA"}
    done = subprocess.run(  # noqa: S603 -- the lines above
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return {"rc": done.returncode, "out": done.stdout.strip()[-300:], "error": done.stderr.strip()[-200:]}


def extras_item(context: Context) -> list[Cell]:
    toy = context.toy
    segments = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    no_plans = {"TORCH_CUDNN_SDPA_AVOID_RECOMPILE": "1"}
    return [
        Cell("decoder layer, eager and graph", lambda: eager_and_graph(toy=toy), 4, 40),
        Cell("expandable segments", lambda: another(ONE_GIB, **segments), 8, 60),
        Cell("cuDNN plans, TORCH_CUDNN_SDPA_AVOID_RECOMPILE=1", lambda: another(NEW_SHAPES, **no_plans), 8, 60),
        Cell("decoder layer, torch.compile", lambda: compiled(toy=toy), 25, 120),
    ]
