"""Loading the frozen base model: only safetensors and JSON are read, and no code of the model's."""

from __future__ import annotations

import logging
import platform
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from lora_lab.builtin.catalog import model_folder
from lora_lab.common.errors import InputError
from lora_lab.study.targets import CLASSIFICATION_HEADS
from lora_lab.training.base.abilities import require_causal
from lora_lab.training.base.architecture import (
    UNKNOWN_CONFIG,
    linear_map,
    linear_map_of_config,
    linear_modules,
    no_model,
    quantized,
)
from lora_lab.training.base.classification import (
    classifier_config,
    draw,
    head_weights,
    missing_weights,
    reorder_head,
    stored_order,
)
from lora_lab.training.base.mixed_precision import prepare_quantized
from lora_lab.training.base.stored_quantization import check_stored_quantization, compute_in, stored_quantization
from lora_lab.training.device import let_segments_expand, use_granted_cpus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.study.measures import TaskType
    from lora_lab.study.settings import ModelSettings
    from lora_lab.study.targets import LinearMap

DeviceType = Literal["cpu", "cuda"]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

HEAD_SEED = 0
"""Of the classification head that the bare base is measured with; each trial has one of its own seed."""

NOT_LOADABLE = (OSError, ValueError, TypeError, LookupError, ImportError, SafetensorError, StrictDataclassError)
"""What transformers raises for a model that does not exist, is damaged, or needs a package that is not here."""


@dataclass(frozen=True, slots=True)
class Base:
    """A frozen base model on its device."""

    model: Any
    """A `transformers` model, frozen, in evaluation mode: a causal language model, or one that gives classes."""
    tokenizer: Any
    linears: LinearMap
    device: torch.device
    dtype: torch.dtype
    """Of the weights that are not quantized, and of the products with those that are."""
    adapter_dtype: torch.dtype
    """What PEFT rounds fresh adapters to on this base, before it takes them to float32 at least."""
    compute_dtype: torch.dtype
    """Of the products with adapters."""
    location: str
    """The folder or Hub id that the weights came from."""
    fan_in_fan_out: bool
    """Whether the adapted modules keep their weights transposed (GPT-2's Conv1D)."""
    module_devices: Mapping[str, torch.device] = field(default_factory=dict)
    """The linear modules that are on another device than `device`, which is the one of the input embeddings."""
    drawn: frozenset[str] = frozenset()
    """The weights of a classification head, and around it, that the checkpoint lacks: each trial draws its own."""


def default_device() -> torch.device:
    """The first CUDA device where there is one, otherwise the CPU; ready to be used."""
    use_granted_cpus()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    let_segments_expand()
    return torch.device("cuda", torch.cuda.current_device())


def device_name() -> str:
    """The device that trials train on, in words."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'' if threads == 1 else 's'}"


def resolve_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    """The dtype of the base's weights: `auto` is bfloat16 on a GPU that computes in it, and float32 elsewhere.

    Never float16: no loss is scaled here, and gradients of trials would underflow in it.
    """
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def locate(settings: ModelSettings) -> str:
    """The folder or Hub id behind `model_name_or_path`.

    Raises:
        InputError: a builtin name that does not exist, or a folder that is no safetensors model.
    """
    name = settings.model_name_or_path
    if name.startswith("builtin/"):
        return str(model_folder(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    if folder.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"model.model_name_or_path: {name} is not a folder; "
            "give a folder with config.json and *.safetensors, or a Hub id (owner/name)"
        )
    return name


def _check_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise _is_an_adapter(str(folder))
    if not (folder / "config.json").is_file():
        raise InputError(f"model.model_name_or_path: {folder} has no config.json; save it with save_pretrained")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only {pickles[0]}, a pickle, which can run code" if pickles else "no weights"
        raise InputError(
            f"model.model_name_or_path: {folder} has {found}; "
            "convert it with model.save_pretrained(folder), which writes *.safetensors"
        )


def architecture(settings: ModelSettings) -> LinearMap:
    """The base's linear modules from its config alone: nothing is loaded.

    Raises:
        InputError: the model does not exist or is not of the kind that `task_type` needs.
    """
    linears = linear_map_of_config(_read_config(locate(settings), settings), classes_of(settings))
    return linears if settings.quantization == "none" else quantized(linears)


def classes_of(settings: ModelSettings) -> tuple[str, ...] | None:
    """The classes that a base is loaded for; None where it is a language model."""
    if settings.classifies and settings.labels is None:
        raise InputError(
            "model.labels: task_type SEQ_CLS needs the classes; give them, or training rows that have them"
        )
    return settings.labels if settings.classifies else None


def model_config(settings: ModelSettings) -> Any:
    """The config of a base whose weights need not be here: a folder or file with nothing else is enough.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = Path(settings.model_name_or_path).expanduser()
    if path.is_file() and path.suffix == ".json":
        path = path.parent
    is_config = (path / "config.json").is_file() and not (path / "adapter_config.json").is_file()
    return _read_config(str(path) if is_config else locate(settings), settings)


def _read_config(location: str, settings: ModelSettings) -> Any:
    try:
        config = AutoConfig.from_pretrained(location, revision=settings.revision, trust_remote_code=False)
    except NOT_LOADABLE as error:
        raise _not_loadable(location, error) from error
    check_stored_quantization(config, settings, location)
    return config


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer that comes with the base.

    Raises:
        InputError: there is none, or it asks for code of its own.
    """
    location = locate(settings)
    try:
        # Left out, trust_remote_code means: ask on the terminal whether to run the model's code.
        return AutoTokenizer.from_pretrained(location, revision=settings.revision, trust_remote_code=False)
    except NOT_LOADABLE as error:
        raise _not_loadable(location, error) from error


def load_base(settings: ModelSettings, device: torch.device) -> Base:
    """Load the base and its tokenizer, frozen, onto `device`, or (`device_map`) over all that there are.

    Raises:
        InputError: the model does not exist, has no safetensors, asks for code of its own, does not fit, or is not
            causal.
    """
    location = locate(settings)
    disable_progress_bar()  # the sweep has its own display
    set_verbosity_error()  # its report on missing weights becomes an error here
    dtype = resolve_dtype(settings, device)
    tokenizer = load_tokenizer(settings)
    config = _read_config(location, settings)
    compute_in(config, dtype)
    if dtype == torch.float64:  # torch has no grouped products of experts in it
        config._experts_implementation = "eager"  # noqa: SLF001 -- as from_pretrained's `experts_implementation` does
    labels = classes_of(settings)
    stored = None if labels is None else stored_order(config, labels)
    auto = AutoModelForCausalLM
    if labels is not None:
        auto, config = AutoModelForSequenceClassification, classifier_config(config, labels, tokenizer)
    try:
        with torch.random.fork_rng(devices=[], enabled=labels is not None):
            if labels is not None:
                torch.manual_seed(HEAD_SEED)
            model, report = auto.from_pretrained(
                location,
                config=config,
                revision=settings.revision,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_placement(settings, dtype, device, is_stored=stored_quantization(config) is not None),
            )
    except NOT_LOADABLE as error:
        raise _not_loadable(location, error) from error
    if labels is None:
        _check_weights(model, report, location)
    drawn = frozenset() if labels is None else _drawn(model, report, location, stored)
    if settings.device_map is not None:
        _check_placement(model, location)
        device = model.get_input_embeddings().weight.device
    elif settings.quantization == "none":
        model.to(device)
    # Packed weights hide their number.
    linears = linear_map(model, settings.task_type) if settings.quantization == "none" else architecture(settings)
    base = frozen_base(model, settings, dtype, device, linears=linears, tokenizer=tokenizer, location=location)
    if labels is None:
        require_causal(base.model, device)
    return replace(base, module_devices=modules_elsewhere(model, device), drawn=drawn)


def _drawn(model: Any, report: dict[str, Any], location: str, stored: list[int] | None) -> frozenset[str]:
    """The weights that each trial draws, among them a stored head for other classes; one for these is put in order."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _is_an_adapter(location)
    missing, head = missing_weights(report, location), head_weights(model)
    if stored is None:
        fresh = head - missing
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(HEAD_SEED)
            draw(model, fresh)
        return missing | fresh
    if not missing & head:
        reorder_head(model, head, stored)
    return missing


def modules_elsewhere(model: Any, device: torch.device) -> dict[str, torch.device]:
    """The linear modules whose weights are not on `device`, and where they are."""
    devices = {name: next(module.parameters()).device for name, module in linear_modules(model).items()}
    return {name: other for name, other in devices.items() if other != device}


def frozen_base(
    model: Any,
    settings: ModelSettings,
    dtype: torch.dtype,
    device: torch.device,
    *,
    linears: LinearMap,
    tokenizer: Any,
    location: str,
    device_type: DeviceType | None = None,
) -> Base:
    """Make a model, loaded and on its device, the frozen base that adapters are trained on.

    Args:
        model: As `from_pretrained` gave it; changed in place.
        settings: The quantization that it has.
        dtype: Of its weights that are not quantized.
        device: Where it is.
        linears: Its linear modules.
        tokenizer: Its own.
        location: The folder or Hub id that it came from.
        device_type: The kind of device whose precisions it gets, where that is not the one of `device`.
    """
    is_cuda = (device_type or device.type) == "cuda"
    is_quantized = settings.quantization != "none"
    compute_dtype = dtype if is_cuda or not is_quantized else torch.float32
    if is_quantized:
        model = prepare_quantized(model, compute_dtype)
    if device.type == "cuda":
        _prepare_cuda()
    model.requires_grad_(requires_grad=False)
    model.eval()
    modules = linear_modules(model).values()
    if is_quantized:
        for module in modules:
            module.train()  # else bitsandbytes repacks 4-bit weights for inference on a CPU, and gradients end there
    return Base(
        model=model,
        tokenizer=tokenizer,
        linears=linears,
        device=device,
        dtype=dtype,
        adapter_dtype=torch.float32 if is_quantized else dtype,
        compute_dtype=compute_dtype,
        location=location,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules),
    )


def _prepare_cuda() -> None:
    """Settings of this process for a base on a CUDA device.

    cuDNN's attention builds a plan for each new shape, 0.1 to 1.2 seconds long on an H200, and the shapes of packs
    change with every admission and every length. FlashAttention, which torch then takes, needs none.
    """
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_not_of_a_cast)


def _is_not_of_a_cast(record: logging.LogRecord) -> bool:
    """False for what bitsandbytes says at every int8 product on CUDA whose input is not float16."""
    return "inputs will be cast from" not in str(record.msg)


def _placement(settings: ModelSettings, dtype: torch.dtype, device: torch.device, *, is_stored: bool) -> dict[str, Any]:
    """What `from_pretrained` needs to split the base, or to quantize its linear modules (all but the head)."""
    if settings.quantization == "none":
        return {} if settings.device_map is None else {"device_map": settings.device_map}
    placed = {"device_map": settings.device_map or {"": device}}
    return placed if is_stored else placed | {"quantization_config": quantization_config(settings, dtype)}


def _check_placement(model: Any, location: str) -> None:
    """Accelerate keeps what fits on no device in main memory or on disk, and fetches it for every pass."""
    absent = sorted({name.rpartition(".")[0] for name, weight in model.named_parameters() if weight.is_meta})
    if absent:
        raise InputError(
            f"model.device_map: {len(absent)} modules of {location} (first: {absent[0]}) fit on no visible device, and "
            "a base that is fetched anew for every step cannot train; quantize it (model.quantization: nf4), make "
            "more devices visible, or use a smaller base"
        )


def quantization_config(settings: ModelSettings, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How bitsandbytes quantizes a base for which `quantization` is not none; a head for classes stays as it is."""
    skipped = list(CLASSIFICATION_HEADS) if settings.classifies else None
    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantization,
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def _check_weights(model: Any, report: dict[str, Any], location: str) -> None:
    """Every weight must come from the files: transformers fills the others with random numbers."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _is_an_adapter(location)
    wrong = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if wrong:
        raise InputError(
            f"model.model_name_or_path: {location} lacks {len(wrong)} weights that its config.json asks for, or has "
            f"them in another shape (first: {wrong[0]}); give a folder whose config and weights belong together"
        )


def _is_an_adapter(location: str) -> InputError:
    return InputError(
        f"model.model_name_or_path: {location} is a LoRA adapter (it has an adapter_config.json), not a base; give "
        "the base that it was trained on, or merge the two with merge_and_unload and save_pretrained"
    )


def _not_loadable(location: str, error: Exception) -> InputError:
    if "trust_remote_code" in str(error):
        return InputError(
            f"model.model_name_or_path: {location} brings code of its own, which is never run; "
            "use a model whose architecture transformers has itself"
        )
    if UNKNOWN_CONFIG in str(error):
        config = re.search(r"\.(\w+)'>", str(error))
        task: TaskType = "CAUSAL_LM" if "AutoModelForCausalLM" in str(error) else "SEQ_CLS"
        reason = no_model(config[1] if config else "this", task)
        return InputError(f"model.model_name_or_path: {location}: {reason}")
    # transformers' advice on connections helps nobody whose path is wrong.
    reason = " ".join(str(error).split()).partition(" Check your internet connection")[0][:300]
    seen_from = "" if Path(location).is_dir() else f" (seen from {Path.cwd()})"
    return InputError(
        f"model.model_name_or_path: {location} is neither a usable model folder{seen_from} nor a Hub model that can be "
        f"reached ({reason}); give a folder with config.json and *.safetensors, or a Hub id"
    )
