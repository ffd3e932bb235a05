"""The workshop of all tests: small random models, data, engines and slots, and plain `peft` to compare them with."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from lora_lab.data.tokens import IGNORED, TokenizedDataset
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.settings import EvaluationSettings, LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.adapters import initial_weights, lora_config
from lora_lab.training.base.architecture import linear_map, linear_modules
from lora_lab.training.base.loading import Base, load_base
from lora_lab.training.batch import PackedBatch, pad_rows
from lora_lab.training.datasets import DataCatalog, TokenizedSplits
from lora_lab.training.packed.slot import Slot
from lora_lab.training.packed_engine import PackedEngine

VOCABULARY = 64
CPU = torch.device("cpu")


def llama_config(**changes) -> LlamaConfig:
    fields = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "initializer_range": 0.08,
    }
    return LlamaConfig(**(fields | changes))


def write_base(folder, config=None) -> None:
    """A loadable folder: a random model in float64, and a tokenizer of the words w0, w1, ..."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config or llama_config()).double().save_pretrained(folder)
    words = {f"w{index}": index for index in range(VOCABULARY - 2)}
    words |= {"<eos>": VOCABULARY - 2, "<unk>": VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)


def write_texts(path, rows: int, seed: int = 0) -> None:
    """Texts of 6 to 29 random words."""
    numbers = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        words = numbers.integers(0, VOCABULARY - 2, size=int(numbers.integers(6, 30)))
        lines.append(json.dumps({"text": " ".join(f"w{word}" for word in words)}))
    path.write_text("\n".join(lines) + "\n")


def own_base(settings: ModelSettings, device: torch.device = CPU) -> Base:
    """A base that nobody else has adapters on: a copy of one that was read from disk, which takes longer."""
    if settings.quantization != "none":
        return load_base(settings, device)
    try:
        return copy.deepcopy(_read_base(settings, device))
    except RuntimeError:  # RecurrentGemma keeps what its last pass left, which torch cannot copy
        return load_base(settings, device)


@lru_cache(maxsize=8)
def _read_base(settings: ModelSettings, device: torch.device) -> Base:
    return load_base(settings, device)


class Bench:
    """A base and data on disk, and engines and trials over them.

    Args:
        base_folder: What `write_base` wrote.
        data_folder: Where train.jsonl and validation.jsonl lie.
        scratch: Room for trials and converted data.
        dtype: Of the base, for trials and engines that do not say another.
        device: Of the base.
        quantization: `quantization` and `double_quant` of the base.
    """

    def __init__(self, base_folder, data_folder, scratch, dtype="float64", *, device=CPU, **quantization) -> None:
        self.base_folder, self.data_folder, self.scratch = base_folder, data_folder, scratch
        self.dtype, self.quantization, self.device = dtype, quantization, device
        self._engines = 0

    def model(self, dtype=None) -> ModelSettings:
        return ModelSettings(model_name_or_path=str(self.base_folder), dtype=dtype or self.dtype, **self.quantization)

    @property
    def data(self) -> DataCatalog:
        """The token sets of trials, by their data settings."""
        return DataCatalog(AutoTokenizer.from_pretrained(self.base_folder), self.scratch)

    def trial(self, *, dtype=None, lora=None, data=None, evaluation=None, **training) -> TrialConfig:
        defaults = {"per_device_train_batch_size": 4, "learning_rate": 1e-3}
        train, held_out = (str(self.data_folder / f"{name}.jsonl") for name in ("train", "validation"))
        return TrialConfig(
            model=self.model(dtype),
            data=DataSettings(**({"train": train, "eval": held_out, "max_length": 32} | (data or {}))),
            training=TrainingSettings(**(defaults | training)),
            lora=LoraSettings(**({"r": 4} | (lora or {}))),
            evaluation=EvaluationSettings(**(evaluation or {})),
        )

    def engine(self, *, dtype=None, folder=None) -> PackedEngine:
        base = own_base(self.model(dtype), self.device)
        self._engines += 1
        return PackedEngine(
            base, DataCatalog(base.tokenizer, self.scratch), folder or self.scratch / f"trials-{self._engines}"
        )

    def run(self, *configs, dtype=None):
        """All events of these trials in one pack."""
        engine = self.engine(dtype=dtype)
        for number, config in enumerate(configs):
            engine.admit(number, config)
        return drain(engine)


def drain(engine):
    events = []
    while engine.active:
        events += engine.step()
    return events


def only(events, kind):
    return [event for event in events if isinstance(event, kind)]


# Without an engine: slots and batches for one forward and backward pass


def make_base(config, dtype=torch.float64) -> Base:
    """A random model in memory; biases and norms are random too, so that leaving one out would show."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.requires_grad_(requires_grad=False)
    model.eval()
    transposed = any(isinstance(module, Conv1D) for module in linear_modules(model).values())
    return Base(
        model=model,
        tokenizer=None,
        linears=linear_map(model),
        device=CPU,
        dtype=dtype,
        adapter_dtype=dtype,
        compute_dtype=dtype,
        location="memory",
        fan_in_fan_out=transposed,
    )


def make_tokens(rows: int, *, shortest=3, longest=20, seed=0) -> TokenizedDataset:
    """Random tokens; every third row has a prompt without labels."""
    numbers = np.random.default_rng(seed)
    ids = tuple(numbers.integers(0, VOCABULARY, size=numbers.integers(shortest, longest + 1)) for _ in range(rows))
    labels = [row.copy() for row in ids]
    for row in labels[::3]:
        row[: len(row) // 2] = IGNORED
    return TokenizedDataset(ids, tuple(labels), f"fingerprint-{rows}-{seed}", ())


def make_slot(base: Base, *, lora=None, data=None, **training) -> Slot:
    """A slot whose B is not zero, so that A has gradients at once."""
    settings = LoraSettings(**({"r": 4, "init_lora_weights": False} | (lora or {})))
    config = TrialConfig(
        model=ModelSettings(model_name_or_path="memory"),
        data=DataSettings(train="memory"),
        training=TrainingSettings(**training),
        lora=settings,
    )
    tokens = data or make_tokens(8)
    return Slot(
        0,
        config,
        weights=initial_weights(settings, base.linears, config.training.seed, base.adapter_dtype),
        data=TokenizedSplits(tokens, tokens, None, {}, ()),
        device=CPU,
        compute_dtype=base.compute_dtype,
        module_devices=base.module_devices,
    )


def make_batch(*per_slot: TokenizedDataset) -> PackedBatch:
    """All examples of every slot, padded to the longest of all."""
    ids = [row for tokens in per_slot for row in tokens.input_ids]
    labels = [row for tokens in per_slot for row in tokens.labels]
    length = max(len(row) for row in ids)
    return PackedBatch(
        pad_rows(ids, length, 0), pad_rows(labels, length, IGNORED), tuple(len(tokens) for tokens in per_slot)
    )


@dataclass(frozen=True)
class Reference:
    """What plain `transformers` + `peft` compute for one adapter."""

    nll: torch.Tensor
    gradients: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """dA [r, d_in] and dB [d_out, r] of the sum of `nll` by module name."""


def peft_model_of(pristine, base: Base, slot: Slot):
    """`get_peft_model` over a copy of the base without hooks, given the slot's weights."""
    config = lora_config(slot.config.lora, base.linears, fan_in_fan_out=base.fan_in_fan_out)
    model = get_peft_model(copy.deepcopy(pristine), config).eval()
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert layers.keys() == slot.adapters.keys()
    with torch.no_grad():
        for name, pair in slot.weights().items():
            layers[name].lora_A["default"].weight.copy_(pair.a)
            layers[name].lora_B["default"].weight.copy_(pair.b)
    return model


def with_peft(pristine, base: Base, slot: Slot, tokens: TokenizedDataset) -> Reference:
    """What the slot's PEFT model computes of its rows alone."""
    model = peft_model_of(pristine, base, slot)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    batch = make_batch(tokens)
    lengths = torch.tensor([len(row) for row in tokens.input_ids])
    attended = (torch.arange(batch.input_ids.shape[1]) < lengths[:, None]).long()
    logits = model(input_ids=batch.input_ids, attention_mask=attended, use_cache=False).logits[:, :-1]
    labels = batch.labels[:, 1:]
    nll = functional.cross_entropy(logits[labels != IGNORED], labels[labels != IGNORED], reduction="none")
    nll.sum().backward()
    gradients = {
        name: (module.lora_A["default"].weight.grad, module.lora_B["default"].weight.grad)
        for name, module in layers.items()
    }
    return Reference(nll.detach(), gradients)


def gradients(slot: Slot) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {name: (view.grad_a, view.grad_bt.t()) for name, view in slot.adapters.items()}
