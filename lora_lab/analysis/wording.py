"""Configurations and quantities in the words that the terminal, the report and the verdict share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_lab.common.sizes import bytes_text
from lora_lab.study.measures import EVAL_LOSS
from lora_lab.study.trial_settings import changed_of, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from lora_lab.study.measures import Measure, Style
    from lora_lab.study.settings import LoraSettings, ModelSettings, TrialConfig
    from lora_lab.study.sweep import Value


def one_line(text: str, limit: int = 300) -> str:
    """Foreign text made safe for one line of a terminal or a table: printable, `limit` characters at most."""
    clean = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"


def nats(value: float) -> str:
    """A loss or a difference of losses."""
    return f"{value:.4f}"


def score_text(value: float) -> str:
    """A score between 0 and 1, or a difference of scores."""
    return f"{value:.3f}"


def interval_text(interval: tuple[float, float]) -> str:
    """An interval of losses: `-0.0012 to 0.0030`."""
    return f"{nats(interval[0])} to {nats(interval[1])}"


def p_text(p: float) -> str:
    """A p-value: `0.012`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def count_text(count: float) -> str:
    """A count in three digits and a unit: 54.3k, 1.23M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def duration_text(seconds: float) -> str:
    """Seconds as the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def plural(count: int, word: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def number_text(value: float) -> str:
    """A number as one writes it in a study file: 0.5, 16, 3e-4; what is none is called so."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.0f}" if value == round(value) else f"{value:.4g}"


def signed_percent_text(percent: float) -> str:
    """A number of percent with its sign."""
    return f"{percent:+.1f}%"


WRITTEN: Mapping[Style, Callable[[float], str]] = {
    "nats": nats,
    "score": score_text,
    "count": count_text,
    "bytes": bytes_text,
    "seconds": duration_text,
    "percent": signed_percent_text,
    "number": number_text,
}


LEAST_WRITTEN: Mapping[Style, float] = {"nats": 1e-4, "score": 1e-3}
"""The least value but 0 that a style can write."""


def measure_text(measure: Measure, value: float) -> str:
    """A value of a measure, or a difference of two, as it is written everywhere."""
    return WRITTEN[measure.style](value)


def value_name(measure: Measure) -> str:
    """What stands over a column of its values: `loss` for the loss that is trained on, else its own name."""
    return "loss" if measure is EVAL_LOSS else measure.label


def value_and_unit(measure: Measure, value: float) -> str:
    """A value of a measure with its unit: `2.7869 nats per token`, `0.813`."""
    return f"{measure_text(measure, value)} {measure.unit}".rstrip()


def distance_text(measure: Measure, distance: float) -> str:
    """A difference of two values with its unit: `0.0100 nats`, `0.012 points`; none but 0 is called 0."""
    text = measure_text(measure, distance)
    if distance and measure.style in LEAST_WRITTEN and not float(text):
        text = f"under {measure_text(measure, LEAST_WRITTEN[measure.style])}"
    return f"{text} {measure.distance_unit}".rstrip()


def measure_interval(measure: Measure, interval: tuple[float, float]) -> str:
    """An interval of values or of differences: `-0.0012 to 0.0030`."""
    return " to ".join(measure_text(measure, end) for end in interval)


def rate_text(value: float) -> str:
    """A learning rate, always with an exponent: 2e-3."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def value_text(value: Value) -> str:
    """A parameter's value on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, str):
        return one_line(value, 60)
    shown = [value_text(item) for item in value[:4]]
    return ",".join(shown) + (f",… ({len(value)})" if len(value) > len(shown) else "")


def targets_text(lora: LoraSettings) -> str:
    """What an adapter sits on, as the study file names it: `attention`, or `attention+experts`."""
    modules = value_text(lora.target_modules)
    return modules if lora.target_parameters == "none" else f"{modules}+{value_text(lora.target_parameters)}"


def setting_text(name: str, value: Value | None) -> str:
    """The value of the setting of this name on one line."""
    if value is None:
        return "none"
    if name == "learning_rate" and isinstance(value, float):
        return rate_text(value)
    return value_text(value)


def config_label(config: TrialConfig, searched: Collection[str]) -> str:
    """A configuration in a few words: its adapter, length and rate, then what makes it unlike other trainings.

    The seed is left out, which tells replicates apart but no configurations: see `trial_label`.

    Args:
        config: What is trained.
        searched: The parameters that the study searched in it. What is fixed for the whole study is told only where it
            makes another kind of training (`_KINDS`).
    """
    parts = config_parts(config, searched)
    adapter = " ".join(text for name, text in parts.items() if text and name in _ADAPTER)
    return ", ".join([adapter, *(text for name, text in parts.items() if text and name not in _ADAPTER)])


def config_parts(config: TrialConfig, searched: Collection[str], *, defaults: bool = False) -> dict[str, str]:
    """What `config_label` says of a configuration, by the name of the setting that it is about.

    All configurations have the names that such a label always begins with; a text is empty where nothing is said.

    Args:
        config: What is trained.
        searched: The parameters that the study searched in it.
        defaults: Whether what was searched is also told where it is at its default.
    """
    lora, training = config.lora, config.training
    steps = training.max_steps
    changed = changed_of(config)
    parts = {
        "r": f"r={lora.r}",
        "lora_alpha": f"alpha={number_text(lora.alpha)}",
        "target_modules": targets_text(lora),
        "layers": "" if lora.layers == "all" else f"layers {value_text(lora.layers)}",
        "length": plural(training.num_train_epochs, "epoch") if steps is None else f"{steps} steps",
        "learning_rate": f"lr {rate_text(training.learning_rate)}",
        **{name: words(config) if name in changed else "" for name, words in _KINDS.items()},
        **{
            name: f"{name}={setting_text(name, changed[name])}"
            for name in changed
            if name in searched and name not in _SAID
        },
    }
    unsaid = (name for name in searched if not parts.get(name) and (name in parts or name not in _SAID))
    return parts | {name: f"{name}={setting_text(name, value_of(config, name))}" for name in unsaid if defaults}


def trial_label(config: TrialConfig, searched: Collection[str]) -> str:
    """A configuration in a few words, as `config_label` has them, with the seed where it is not the default one."""
    seed = changed_of(config).get("seed")
    return config_label(config, searched) + ("" if seed is None else f", seed {seed}")


_KINDS: Mapping[str, Callable[[TrialConfig], str]] = {
    "quantization": lambda config: quantization_text(config.model),
    "max_train_examples": lambda config: plural(config.data.max_train_examples or 0, "example"),
    "init_lora_weights": lambda config: f"init {value_text(config.lora.init_lora_weights)}",
    "use_rslora": lambda _: "rsLoRA",
    "use_dora": lambda _: "DoRA",
    "lora_dropout": lambda config: f"dropout {number_text(config.lora.lora_dropout)}",
    "bias": lambda config: f"bias {config.lora.bias}",
    "modules_to_save": lambda config: f"{value_text(config.lora.modules_to_save or ())} in full",
    "loraplus_lr_ratio": lambda config: f"LoRA+ {number_text(config.training.loraplus_lr_ratio or 0)}",
    "gradient_checkpointing": lambda _: "checkpointing",
}
"""Settings with a word of their own: where one is not at its default, it is another kind of training."""
_ADAPTER = ("r", "lora_alpha", "target_modules", "layers")
"""What a label says first, without commas."""
_SAID = {
    *_KINDS,
    *("r", "lora_alpha", "alpha_ratio", "scaling", "target_modules", "target_parameters", "layers"),
    *("num_train_epochs", "max_steps", "learning_rate", "double_quant", "seed"),
}
"""What a label says in other words than `name=value`, or not at all."""


def quantization_text(model: ModelSettings) -> str:
    """How the base is quantized, such as `nf4` or `nf4 double`."""
    return model.quantization + (" double" if model.double_quant else "")
