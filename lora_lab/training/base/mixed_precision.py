"""What is computed in which precision around the quantized products of a k-bit base.

PEFT's `prepare_model_for_kbit_training` takes all that is not quantized to float32. Under the autocast of
`Trainer(bf16=True)` attention and the head compute in half precision all the same. The packed engine has no autocast
around it, so here the two are made to; residuals, norms and rotary embeddings stay in float32, as under autocast.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft import prepare_model_for_kbit_training
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


def prepare_quantized(model: Any, dtype: torch.dtype) -> Any:
    """Freeze a base with quantized weights and give the others the dtypes that they compute in.

    All others become float32. With `dtype` in half precision the head keeps the half precision that it was loaded in,
    and attention computes in `dtype` where transformers computes it by its `sdpa` function.

    Args:
        model: As `from_pretrained` gave it; changed in place.
        dtype: Of what autocast computes in half precision, and of the products with adapters.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    loaded = None if head is None else head.weight.dtype  # a model for classes has no head of its embeddings' kind
    # Freezes everything. After adapters are attached it would freeze them too, and nothing would train.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a name inside transformers that peft still uses
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if dtype not in HALF:
        return model
    if head is not None and loaded in HALF:
        head.to(loaded)
        head.register_forward_pre_hook(_to_dtype_of_weight)
        if head.weight is embedding.weight:
            embedding.register_forward_hook(_to_float32)
    if model.config._attn_implementation == "sdpa":  # noqa: SLF001 -- transformers has no public name for it
        model.set_attn_implementation(_registered(dtype))
    return model


def _to_dtype_of_weight(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    first, *others = args
    return (first.to(module.weight.dtype), *others)  # type: ignore[arg-type]


def _to_float32(_: nn.Module, __: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
    return embedded.float()


def _registered(dtype: torch.dtype) -> str:
    """The name under which transformers knows `sdpa` attention in this dtype."""
    name = f"sdpa_{str(dtype).removeprefix('torch.')}"
    AttentionInterface.register(name, partial(_attention, dtype=dtype))
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dtype: torch.dtype,
    **others: Any,
) -> tuple[Tensor, None]:
    """`sdpa` attention in `dtype`; what it gives stays in it, as under autocast.

    Args:
        module: The attention module.
        query: [rows, heads, length, width], as `key` and `value` are.
        key: With as many heads or fewer.
        value: As `key`.
        attention_mask: [rows, 1, length, length], bool or to be added; None where attention is causal and nothing more.
        dtype: What to compute in.
        others: What `sdpa_attention_forward` takes beside these.
    """
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.to(dtype)
    found: tuple[Tensor, None] = sdpa_attention_forward(
        module, query.to(dtype), key.to(dtype), value.to(dtype), attention_mask, **others
    )
    return found
