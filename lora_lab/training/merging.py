"""An adapter merged into its base on disk, file by file: never more than one file of weights in memory.

Only an adapter on fused weights of experts takes the whole base into memory: files keep these apart, expert by expert,
and transformers alone knows how they become one parameter.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar

from lora_lab.common.errors import InputError
from lora_lab.training.base.classification import classifier_config
from lora_lab.training.base.stored_adapter import PREFIX, StoredAdapter
from lora_lab.training.reference.loftq import loftq

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".md")


@dataclass(frozen=True, slots=True)
class _Names:
    """What a base's architecture calls its head and its input embeddings, whose weights it may share."""

    head: str
    embeddings: str
    tied: bool

    @classmethod
    def of(cls, folder: Path) -> _Names:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        names = {module: name for name, module in model.named_modules()}
        return cls(
            head=f"{names[model.get_output_embeddings()]}.weight",
            embeddings=f"{names[model.get_input_embeddings()]}.weight",
            tied=bool(config.get_text_config().tie_word_embeddings),
        )


def write_merged(location: str, revision: str | None, adapter_folder: Path, folder: Path) -> None:
    """Write the base with the adapter in it into `folder`, in the dtypes of the base's own files.

    Products are computed in float32 and rounded once. A head that shares the embeddings' weights gets weights of its
    own where the adapter is on it.

    Args:
        location: The base's folder, or its Hub id.
        revision: Of the Hub.
        adapter_folder: PEFT's `adapter_config.json` and `adapter_model.safetensors`.
        folder: Exists.

    Raises:
        InputError: the base's files are quantized, or lack a weight that the adapter is on.
    """
    base = Path(location)
    if not base.is_dir():
        base = Path(
            snapshot_download(location, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.model"])
        )
    adapter, names = StoredAdapter.read(adapter_folder), _Names.of(base)
    if adapter.has_experts:
        _write_whole(base, adapter_folder, folder, names)
        return
    changed = {f"{module}.weight" for module in adapter.low_rank} | set(adapter.whole)
    untied = names.tied and names.head in changed
    merging = _Merging(adapter, names if untied else None)
    index: dict[str, str] = {}
    for file in _weight_files(base):
        tensors = dict(merging.tensors(base / file))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    missing = sorted(changed - merging.done)
    if missing:
        raise InputError(
            f"--to merged: the files of the base have no {missing[0]} ({len(missing)} such): they keep it under "
            "another name; load the base with transformers and use merge_and_unload"
        )
    _copy_rest(base, folder, untied=untied)
    if (base / INDEX).is_file():
        size = sum((folder / file).stat().st_size for file in set(index.values()))
        (folder / INDEX).write_text(
            json.dumps({"metadata": {"total_size": size}, "weight_map": index}, indent=2) + "\n"
        )


def _write_whole(base: Path, adapter_folder: Path, folder: Path, names: _Names) -> None:
    """Load the base whole, merge, and save it as its own files are; each product is computed in float32 too."""
    disable_progress_bar()  # the export says what it writes
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False)
    if getattr(model.config, "quantization_config", None) is not None:
        raise InputError("--to merged: the files of the base are quantized; merge into the base that it was made from")
    adapted = PeftModel.from_pretrained(model, adapter_folder)
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            if names.tied and name.endswith(names.head.removesuffix(".weight")):
                raise InputError(
                    "--to merged: the adapter is on experts and on a head that is tied to the embeddings, which is not "
                    "merged; load both with peft and use merge_and_unload"
                )
            weight = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
            dtype = weight.dtype
            weight.data = weight.data.to(torch.promote_types(dtype, torch.float32))
            layer.merge(safe_merge=True)
            weight.data = weight.data.to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all is merged already: this puts modules that were trained in full in
        merged = adapted.merge_and_unload()
    merged.save_pretrained(folder)
    _copy_rest(base, folder, untied=False)


def write_merged_classifier(
    location: str, revision: str | None, labels: Sequence[str], adapter_folder: Path, folder: Path
) -> None:
    """Write a base with the adapter and its head for classes in it into `folder`, with the tokenizer.

    Products are computed in float32 and rounded once, to the dtype of the base's files. The whole base is in memory.
    """
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(location, **source)
    config = AutoConfig.from_pretrained(location, **source)
    dtype = config.dtype or torch.float32
    model = AutoModelForSequenceClassification.from_pretrained(
        location,
        config=classifier_config(config, labels, tokenizer),
        dtype=torch.promote_types(dtype, torch.float32),
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        **source,
    )
    merged = PeftModel.from_pretrained(model, str(adapter_folder)).merge_and_unload(safe_merge=True)
    merged.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _Merging:
    """Goes through the weights of a base, and remembers which of the adapter's it has put in.

    Args:
        adapter: What to put in.
        untied: The names of head and embeddings, where the head gets weights of its own.
    """

    def __init__(self, adapter: StoredAdapter, untied: _Names | None) -> None:
        self._adapter, self._untied = adapter, untied
        self.done: set[str] = set()

    def tensors(self, file: Path) -> Iterator[tuple[str, Tensor]]:
        """The weights of a file with the adapter in them."""
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 -- not a dictionary
                tensor = weights.get_tensor(name)
                yield name, self._with_adapter(name, tensor)
                if self._untied is not None and _same(name, self._untied.embeddings):
                    yield self._untied.head, self._with_adapter(self._untied.head, tensor.clone())

    def _with_adapter(self, name: str, tensor: Tensor) -> Tensor:
        dtype = tensor.dtype
        for target, whole in self._adapter.whole.items():
            if _same(name, target):
                self.done.add(target)
                tensor = whole.to(dtype)
        for module, low_rank in self._adapter.low_rank.items():
            target = f"{module}.weight"
            if _same(name, target):
                if not tensor.is_floating_point():
                    raise InputError(
                        f"--to merged: {name} in the files of the base is quantized ({dtype}); merge into the base "
                        "that it was made from"
                    )
                self.done.add(target)
                tensor = _merge(tensor, module, low_rank, self._adapter.config)
        return tensor


def _same(name: str, target: str) -> bool:
    """Whether a weight's name in a file is that in the model; some files leave the model's prefix out."""
    return name in (target, target.partition(".")[2])


def _merge(weight: Tensor, module: str, low_rank: Mapping[str, Tensor], config: LoraConfig) -> Tensor:
    """One module's weight with its adapter, by PEFT's own arithmetic in float32 at least."""
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    settings: dict[str, Any] = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "fan_in_fan_out": config.fan_in_fan_out,
    }
    if config.init_lora_weights == "loftq":  # the base under the adapter is a quantized one
        bits, iterations = config.loftq_config["loftq_bits"], config.loftq_config["loftq_iter"]
        exact = loftq(exact, bits=bits, rank=config.r, iterations=iterations).quantized
    root, last = nn.Module(), module.rsplit(".", 1)[-1]
    root.add_module(last, _layer(exact, transposed=bool(config.fan_in_fan_out)))
    inject_adapter_in_model(LoraConfig(**settings, target_modules=[last], init_lora_weights=False), root)
    set_peft_model_state_dict(root, {f"{PREFIX}{last}.{end}": tensor for end, tensor in low_rank.items()})
    layer: Any = root.get_submodule(last)
    assert isinstance(layer, LoraLayer)
    layer.merge(safe_merge=True)
    merged: Tensor = layer.get_base_layer().weight.data
    return merged.to(weight.dtype).contiguous()


def _layer(weight: Tensor, *, transposed: bool) -> nn.Module:
    rows, columns = weight.shape
    with torch.device("meta"):
        layer = Conv1D(columns, rows) if transposed else nn.Linear(columns, rows, bias=False)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if transposed:
        layer.bias = nn.Parameter(torch.zeros(columns), requires_grad=False)
    return layer


def _weight_files(base: Path) -> list[str]:
    if (base / INDEX).is_file():
        return sorted(set(json.loads((base / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    if (base / SINGLE).is_file():
        return [SINGLE]
    raise InputError(f"--to merged: {base.name} has neither {SINGLE} nor {INDEX}; save it with save_pretrained")


def _copy_rest(base: Path, folder: Path, *, untied: bool) -> None:
    """Configuration and tokenizer."""
    for path in base.iterdir():
        if path.is_file() and path.suffix not in NOT_COPIED and path.name != INDEX:
            shutil.copy2(path, folder / path.name)
    if untied:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2) + "\n", encoding="utf-8")
