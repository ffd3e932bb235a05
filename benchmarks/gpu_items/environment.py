"""The machine and its libraries: versions, ceilings, costs of launches, operators, attention, quantization."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from torch.nn import functional

from gpu_items.cells import Cell, Context
from gpu_items.device import device, gpu_ms, kernels, on_gpu, sync, wall_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PACKAGES = (
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy", "triton", "pydantic", "optuna"),
    *("sqlalchemy", "plotly", "scipy", "scikit-learn", "mlflow-skinny", "datasets", "pyarrow", "rich", "typer"),
    "flash-attn",
)
VARIABLES = ("PYTORCH_", "CUBLAS_", "CUDA_", "TORCH_", "OMP_", "NVIDIA_TF32")
CARD = (
    "name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,"
    "temperature.gpu,ecc.mode.current,mig.mode.current"
)


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, requires_grad: bool = False) -> Tensor:
    return torch.randn(*shape, device=device(), dtype=dtype, requires_grad=requires_grad)


def error_of(found: Tensor, exact: Tensor) -> float:
    """The norm of the difference by the norm of what is right."""
    return float((found.double() - exact).norm() / exact.norm())


def nvidia_smi(query: str, layout: str) -> list[str]:
    """Lines of its answer; none where it is not there."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", query, f"--format={layout}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)  # noqa: S603
        return done.stdout.strip().splitlines()
    return []


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict:
    b = torch.backends.cuda
    result = {
        "python": sys.version.split()[0],
        "packages": {name: version_of(name) for name in PACKAGES},
        "peft from": Path(find_spec("peft").origin).parent.parent.name,
        "bitsandbytes library": type(getattr(bitsandbytes.cextension, "lib", None)).__name__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "sdp": {
            "flash": b.flash_sdp_enabled(),
            "efficient": b.mem_efficient_sdp_enabled(),
            "math": b.math_sdp_enabled(),
            "cudnn": b.cudnn_sdp_enabled(),
        },
        "tf32": b.matmul.allow_tf32,
        "bf16 reduced precision reduction": str(b.matmul.allow_bf16_reduced_precision_reduction),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "variables": {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)},
    }
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        result["processor"] = next((line.partition(":")[2].strip() for line in lines if "model name" in line), None)
        result["memory_gb"] = round(int(Path("/proc/meminfo").read_text().split()[1]) / 1e6, 1)
    if on_gpu():
        p = torch.cuda.get_device_properties(0)
        result |= {"device": p.name, "sm": [p.major, p.minor], "multiprocessors": p.multi_processor_count}
        result |= {"device_gb": round(p.total_memory / 1e9, 2), "L2_mb": round(getattr(p, "L2_cache_size", 0) / 1e6, 1)}
        result["nvidia_smi"] = nvidia_smi(f"--query-gpu={CARD}", "csv")
    return result


def context_size() -> dict:
    """What CUDA itself takes: with nothing, after a product, after one in the backward thread, after attention."""
    if not on_gpu():
        return {"skipped": "no CUDA"}
    steps: dict[str, Any] = {}

    def note(name: str) -> None:
        sync()
        free, total = torch.cuda.mem_get_info()
        outside = round((total - free - torch.cuda.memory_reserved()) / 2**20)
        steps[name] = {"outside_mb": outside, "allocated_mb": round(torch.cuda.memory_allocated() / 2**20, 2)}

    x = random(512, 512)
    note("first tensor")
    torch.mm(x, x)
    note("first product")
    y = x.clone().requires_grad_()
    (y @ x).sum().backward()
    note("first backward")
    q = random(1, 32, 64, 128, requires_grad=True)
    functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    note("attention")
    steps["nvidia_smi_apps"] = nvidia_smi("--query-compute-apps=pid,used_memory", "csv,noheader")[:12]
    return steps


def _square_tflops(n: int, dtype: torch.dtype, reps: int, inner: int) -> float:
    a, b = (random(n, n, dtype=dtype) for _ in range(2))
    return 2 * n**3 / gpu_ms(lambda: a @ b, reps, inner=inner) / 1e9


def _copy_tb_s(size: int) -> float:
    x = torch.empty(size, dtype=torch.uint8, device=device()).random_()
    y = torch.empty_like(x)
    return 2 * size / gpu_ms(lambda: y.copy_(x), 5) / 1e9


def _mlp_rows(weights: list[Tensor], rows: int) -> dict:
    """A product with each of an MLP's weights [h, d]."""
    h, d = weights[0].shape
    x = random(rows, d)

    def products() -> None:
        for weight in weights:
            functional.linear(x, weight)

    ms = gpu_ms(products, 5, inner=4) / len(weights)
    moved = 2 * (d * h + rows * (d + h))
    return {"us": 1000 * ms, "tflops": 2 * rows * d * h / ms / 1e9, "tb_s": moved / ms / 1e9}


def ceilings(*, toy: bool) -> dict:
    """Bytes per second of a copy; operations per second of products, square and at the shapes of an 8B layer."""
    n, (d, h) = (256, (64, 128)) if toy else (8192, (4096, 14336))
    lengths = (64, 128) if toy else (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    weights = [random(h, d) * 0.02 for _ in range(3)]
    return {
        "copy_tb_s": _copy_tb_s(2**20 if toy else 2**31),
        "square_tflops": _square_tflops(n, torch.bfloat16, 10, 3),
        "square_float32_tflops": _square_tflops(n, torch.float32, 3, 1),
        "mlp_rows": {rows: _mlp_rows(weights, rows) for rows in lengths},
    }


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        return grad


def launches(*, toy: bool) -> dict:
    """Microseconds of the host for one operation."""
    x = torch.zeros(8, device=device())
    y = x.clone().requires_grad_()
    a, b = torch.zeros(8, 8, device=device()), torch.zeros(8, 8, device=device())
    ids = torch.zeros(64, 64, dtype=torch.int64)
    count = 200 if toy else 4000
    result = {
        "add_us": 1000 * wall_ms(lambda: x.add_(1), count),
        "mm_us": 1000 * wall_ms(lambda: torch.mm(a, b), count),
        "slice_us": 1000 * wall_ms(lambda: a[2:6], count),
        "function_us": 1000 * wall_ms(lambda: _Nothing.apply(y), count // 4),
        "item_us": 1000 * wall_ms(x[0].item, count // 10),
        "pageable_copy_us": 1000 * wall_ms(lambda: ids.to(x.device), count // 10),
    }
    if on_gpu():
        pinned = ids.pin_memory()
        result["pinned_copy_us"] = 1000 * wall_ms(lambda: pinned.to(x.device, non_blocking=True), count // 10)
    return result


def adapters(*, toy: bool) -> dict:
    """One module's adapters of 8 trials, r 32, by trials' rows."""
    k, r, d = (4, 4, 64) if toy else (8, 32, 4096)
    return {n: _adapter_products(k, n, r, d) for n in (64, 512)}


def _adapter_products(k: int, n: int, r: int, d: int) -> dict:
    """A loop of products against one batched product; and the gradient into float32."""
    x, a = random(k, n, d), random(k, r, d)
    h = torch.bmm(x, a.transpose(1, 2))
    left = h.transpose(1, 2)
    total = torch.zeros(k, r, d, device=device())

    def loop() -> None:
        for i in range(k):
            torch.mm(x[i], a[i].t())

    def gradient_loop() -> None:
        for i in range(k):
            total[i].add_(torch.mm(h[i].t(), x[i]))

    found = {
        "loop_us": 1000 * gpu_ms(loop, 5, 5),
        "bmm_us": 1000 * gpu_ms(lambda: torch.bmm(x, a.transpose(1, 2)), 5, 5),
        "gradient_loop_us": 1000 * gpu_ms(gradient_loop, 5, 5),
        "gradient_bmm_us": 1000 * gpu_ms(lambda: total.add_(torch.bmm(left, x)), 5, 5),
    }
    exact = torch.bmm(left.double(), x.double())
    found["gradient_bf16_error"] = error_of(torch.bmm(left, x), exact)
    total.zero_()
    into_float32: dict[str, Callable[[], Tensor]] = {
        "bmm_out_dtype": lambda: torch.bmm(left, x, out_dtype=torch.float32),
        "baddbmm_out_dtype": lambda: torch.baddbmm(total, left, x, out_dtype=torch.float32),
    }
    for name, call in into_float32.items():
        try:
            found[f"{name}_error"] = error_of(call(), exact)
            found[f"{name}_us"] = 1000 * gpu_ms(call, 5, 5)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            found[name] = f"{type(error).__name__}: {error}"[:160]
    return found


def _grouped() -> float:
    x, w = random(96, 64), random(3, 64, 32)
    offsets = torch.tensor([32, 64, 96], device=device(), dtype=torch.int32)
    call = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    exact = torch.cat([x[32 * i : 32 * i + 32].double() @ w[i].double() for i in range(3)])
    return error_of(call(x, w, offs=offsets), exact)


def _norm() -> float:
    x = random(64, 256, requires_grad=True)
    y = functional.rms_norm(x, (256,), torch.ones(256, device=device(), dtype=torch.bfloat16), 1e-5)
    y.sum().backward()
    wide = x.detach().double()
    return error_of(y, wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5))


def _fused_adamw() -> dict:
    """What grad_scale and found_inf do."""
    p, g, m, v = (torch.full((4,), value, device=device()) for value in (1.0, 8.0, 0.0, 0.0))
    step = torch.ones((), device=device())
    settings = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    settings |= {"amsgrad": False, "maximize": False, "grad_scale": torch.full((), 4.0, device=device())}
    torch._fused_adamw_([p], [g], [m], [v], [], [step], **settings, found_inf=torch.zeros((), device=device()))
    seen = {"moment (0.2: divides by grad_scale)": float(m[0]), "gradient after": float(g[0])}
    before = p.clone()
    torch._fused_adamw_([p], [g], [m], [v], [], [step], **settings, found_inf=torch.ones((), device=device()))
    return seen | {"found_inf skips": bool((p == before).all())}


def operators() -> dict:
    """Operations that batched blocks and captured steps want: are they there, and do they do what is believed?"""
    wanted: dict[str, Callable[[], Any]] = {
        "grouped_mm_error": _grouped,
        "rms_norm_bf16_error": _norm,
        "fused_adamw": _fused_adamw,
        "bf16 supported, no emulation": lambda: on_gpu() and torch.cuda.is_bf16_supported(including_emulation=False),
    }
    result: dict[str, Any] = {}
    for name, call in wanted.items():
        try:
            result[name] = call()
        except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
            result[name] = f"{type(error).__name__}: {error}"[:200]
    return result


class _Attention:
    """Causal attention with grouped heads, forward and backward."""

    def __init__(self, *, toy: bool) -> None:
        self._batch, self._heads, self._groups, self._width = (1, 4, 2, 16) if toy else (8, 32, 8, 128)

    def _inputs(self, length: int) -> list[Tensor]:
        heads = (self._heads, self._groups, self._groups)
        return [random(self._batch, count, length, self._width, requires_grad=True) for count in heads]

    def once(self, length: int) -> tuple[float, float]:
        """Milliseconds of either pass."""
        q, k, v = self._inputs(length)
        sync()
        begun = time.perf_counter()
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        sync()
        middle = time.perf_counter()
        y.sum().backward()
        sync()
        return 1000 * (middle - begun), 1000 * (time.perf_counter() - middle)

    def steady_ms(self, length: int) -> float:
        self.once(length)
        q, k, v = self._inputs(length)
        grad = torch.randn_like(q)

        def both() -> None:
            functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).backward(grad)

        return gpu_ms(both, 5, 3)


def attention(*, toy: bool) -> dict:
    """Which kernel SDPA takes, and what a new shape costs, with cuDNN and without it."""
    one, result = _Attention(toy=toy), {}
    was = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for name, on, lengths in (("cudnn on", True, (72, 88, 104)), ("cudnn off", False, (120, 136, 152))):
            torch.backends.cuda.enable_cudnn_sdp(on)
            one.once(64)
            pairs = [(one.once(length), one.once(length)) for length in lengths]
            result[name] = {
                "first_ms": [first for first, _ in pairs],
                "second_ms": [second for _, second in pairs],
                "ms_64": one.steady_ms(64),
                "ms_512": one.steady_ms(64 if toy else 512),
                "kernels": kernels(lambda: one.once(64))["attention"],
            }
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
    return result


def _outlier() -> float:
    """How much an outlier in a neighbor's rows changes a trial's outputs of an int8 module."""
    linear = bitsandbytes.nn.Linear8bitLt(256, 256, bias=False, has_fp16_weights=False, threshold=6.0)
    weight = torch.randn(256, 256) * 0.05
    linear.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    linear = linear.to(device())
    x, other = (random(16, 256, dtype=torch.float16).clamp(-5, 5) for _ in range(2))
    calm = linear(torch.cat([x, other]))[:16]
    other[3, 7] = 8.0
    stirred = linear(torch.cat([x, other]))[:16]
    return float((calm - stirred).norm() / calm.norm())


def _dequantize_us(weight: Tensor, *, double: bool) -> float:
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    return 1000 * gpu_ms(lambda: bitsandbytes.functional.dequantize_4bit(packed, state), 5, 3)


def quantized(*, toy: bool) -> dict:
    weight = random(512, 256) * 0.05
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    result = {"nf4_error": error_of(bitsandbytes.functional.dequantize_4bit(packed, state), weight.double())}
    weight = random(*(128, 64) if toy else (14336, 4096)) * 0.02
    result["dequantize_us"] = _dequantize_us(weight, double=False)
    result["dequantize_us double"] = _dequantize_us(weight, double=True)
    leaf = random(16384, dtype=torch.float32, requires_grad=True)
    leaf.grad = torch.randn_like(leaf)
    optimizer = bitsandbytes.optim.AdamW8bit([leaf], lr=1e-3)
    optimizer.step()
    result["adamw_8bit_us"] = 1000 * wall_ms(optimizer.step, 20)
    if on_gpu():
        result["int8: rows change by a neighbor's outlier"] = _outlier()
    return result


def environment_item(context: Context) -> list[Cell]:
    """What the machine and its libraries are and do, without this project."""
    toy = context.toy
    return [
        Cell("context", context_size, 1),
        Cell("versions", versions, 1, 60),
        Cell("ceilings", lambda: ceilings(toy=toy), 2),
        Cell("launches", lambda: launches(toy=toy), 2),
        Cell("attention", lambda: attention(toy=toy), 4, 60),
        Cell("adapters", lambda: adapters(toy=toy), 2),
        Cell("operators", operators, 1),
        Cell("quantized", lambda: quantized(toy=toy), 2),
    ]
