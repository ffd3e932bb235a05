"""What a linear module does in its architecture, told from the classes and names of the modules that it lies in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Role = Literal[
    "attention",
    "linear attention",
    "state space",
    "convolution",
    "recurrence",
    "mlp",
    "expert",
    "shared expert",
    "router",
    "other",
    "other modality",
    "head",
]
TOKEN_MIXERS: tuple[Role, ...] = ("attention", "linear attention", "state space", "convolution", "recurrence")
"""What carries information from one token to another: the preset `attention`."""
FEED_FORWARD: tuple[Role, ...] = ("mlp", "expert", "shared expert")
"""What works on every token by itself: the preset `mlp`. Routers, which choose experts, are not of it."""

Step = tuple[str, str]
"""A module on the way to another one: its attribute name, and the name of its class ('' where it is not known)."""

_BY_CLASS: tuple[tuple[Role, str], ...] = (
    ("linear attention", r"(DeltaNet|DeltaAttention|L(inear|ightning)Attention|Rwkv\w*Attention|Retention|[ms]LSTM)$"),
    ("state space", r"(Mixer|Mamba2?|MambaLayer|SSM)$"),
    ("convolution", r"Conv$"),
    ("recurrence", r"(RecurrentBlock|Rglru)$"),
    ("attention", r"(Attention|Attn)(?!\w*(Layer|Block)$)"),
    ("mlp", r"(MLP|Mlp|FeedForward|FFN|MoE|Moe|MoeBlock|Experts?)$"),
)
_BY_NAME: tuple[tuple[Role, str], ...] = (
    ("linear attention", r"linear_attn|mlstm_layer"),
    ("state space", r"mamba|ssm"),
    ("convolution", r"(short_)?conv"),
    ("attention", r"self_attn|attn|attention|self_attention|mixer_attn"),
    ("mlp", r"mlp|ffn?|feed_forward|mlp_block"),
)


def roles_of(paths: Mapping[str, Sequence[Step]], layer_of: Mapping[str, int | None]) -> dict[str, Role]:
    """The role of every linear module.

    A module of a layer that lies in nothing with a role of its own is of the feed-forward part where the layer has no
    other one (OPT's fc1 and fc2), and `other` where it has (Gemma 3n's per-layer inputs).

    Args:
        paths: The modules on the way to each linear module and, last, itself, by its full name.
        layer_of: The index of the decoder layer that each belongs to, None for those outside.
    """
    told = {name: _told_role(path) for name, path in paths.items()}
    with_feed_forward = {layer_of[name] for name, role in told.items() if role in FEED_FORWARD}

    def default(name: str) -> Role:
        return "other" if layer_of[name] is None or layer_of[name] in with_feed_forward else "mlp"

    return {name: role or default(name) for name, role in told.items()}


def _told_role(path: Sequence[Step]) -> Role | None:
    *around, (name, _) = path
    if _is_router(name, around):
        return "router"
    for attribute, kind in reversed(around):
        role = _role_in(attribute, kind)
        if role == "mlp":
            return _kind_of_feed_forward(around)
        if role is not None:
            return role
    return None


def _role_in(attribute: str, kind: str) -> Role | None:
    by_class = (role for role, pattern in _BY_CLASS if re.search(pattern, kind))
    by_name = (role for role, pattern in _BY_NAME if re.fullmatch(pattern, attribute))
    return next(by_class, None) or next(by_name, None)


def _kind_of_feed_forward(around: Sequence[Step]) -> Role:
    names = [attribute for attribute, _ in around]
    if "experts" in names:
        return "expert"
    return "shared expert" if any(re.match(r"shared_(expert|mlp)", name) for name in names) else "mlp"


def _is_router(name: str, around: Sequence[Step]) -> bool:
    if re.fullmatch(r"(\w+_)?router|shared_expert_gate", name) or any(
        re.search(r"(Router|Gating|TopKGate)$", kind) for _, kind in around
    ):
        return True
    return name == "gate" and bool(around) and bool(re.search(r"(MoE|Moe|MoeBlock|FFN)$", around[-1][1]))
