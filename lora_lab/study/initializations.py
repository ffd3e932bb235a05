"""The initializations of an adapter, and what each of them does to the base.

A new initialization of PEFT's needs its row here, and a line in `docs/study-file.md`; one that PEFT does not do here,
or does otherwise, also a branch in `training/reference/model.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

InitializationName = bool | Literal["gaussian", "orthogonal", "pissa", "olora", "loftq"]
"""The values of `peft.LoraConfig.init_lora_weights`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialization:
    """What is true of an initialization, whatever the weights that it starts from."""

    changes_base: bool = False
    """Whether it puts other weights under the adapter than the base's own.

    So it takes r directions of every matrix of an unquantized base (what is taken out of a quantized one would have to
    be quantized anew, and then no adapter of the base has the same outcome), and runs on the reference engine.
    """
    is_convertible: bool = False
    """Whether its outcome is again a LoRA adapter of the plain base, at twice the rank."""
    fits_conv1d: bool = True
    """Whether PEFT does it right on `Conv1D` modules, whose weights are transposed."""
    fits_parameters: bool = True
    """Whether PEFT does it on parameters (`target_parameters`), which are not the weight of a module."""
    needs_even_rank: bool = False
    rank_dependence: str = ""
    """In what way ranks start differently, as a predicate; empty where they do not."""


INITIALIZATIONS: dict[InitializationName, Initialization] = {
    True: Initialization(),
    False: Initialization(),
    "gaussian": Initialization(rank_dependence="draws A with a standard deviation of 1 / r"),
    "orthogonal": Initialization(needs_even_rank=True, fits_parameters=False),
    "pissa": Initialization(changes_base=True, is_convertible=True, fits_parameters=False),
    "olora": Initialization(changes_base=True, is_convertible=True, fits_conv1d=False, fits_parameters=False),
    "loftq": Initialization(changes_base=True, fits_conv1d=False, fits_parameters=False),
}
