"""Configurations and quantities in the words that the terminal, the report and the verdict share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.common.sizes import bytes_text
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lora_lab.study.measures import Measure, Style
    from lora_lab.study.settings import ModelSettings, TrialConfig
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
    """A number as one writes it in a study file: 0.5, 16, 3e-4."""
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


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
    """A difference of two values with its unit: `0.0100 nats`, `0.012 points`."""
    return f"{measure_text(measure, distance)} {measure.distance_unit}".rstrip()


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
    if isinstance(value, (int, float)):
        return number_text(value)
    if isinstance(value, str):
        return one_line(value, 60)
    shown = [value_text(item) for item in value[:4]]
    return ",".join(shown) + (f",… ({len(value)})" if len(value) > len(shown) else "")


def config_label(config: TrialConfig) -> str:
    """A trial's configuration in a few words, without what is usually fixed."""
    lora, training = config.lora, config.training
    layers = "" if lora.layers == "all" else f" layers {value_text(lora.layers)}"
    length = plural(training.num_train_epochs, "epoch") if training.max_steps is None else f"{training.max_steps} steps"
    parts = [
        f"r={lora.r} alpha={number_text(lora.alpha)} {value_text(lora.target_modules)}{layers}",
        length,
        f"lr {rate_text(training.learning_rate)}",
        *_unusual(config),
    ]
    return ", ".join(parts)


def _unusual(config: TrialConfig) -> Iterator[str]:
    """Settings of a trial that most studies leave at their default, where they are not."""
    model, data, lora, training = config.model, config.data, config.lora, config.training
    if model.quantization != "none":
        yield quantization_text(model)
    if data.max_train_examples is not None:
        yield plural(data.max_train_examples, "example")
    if lora.init_lora_weights is not True:
        yield f"init {value_text(lora.init_lora_weights)}"
    if lora.use_rslora:
        yield "rsLoRA"
    if lora.use_dora:
        yield "DoRA"
    if lora.lora_dropout:
        yield f"dropout {number_text(lora.lora_dropout)}"
    if lora.bias != "none":
        yield f"bias {lora.bias}"
    if training.loraplus_lr_ratio is not None:
        yield f"LoRA+ {number_text(training.loraplus_lr_ratio)}"
    if training.gradient_checkpointing:
        yield "checkpointing"


def quantization_text(model: ModelSettings) -> str:
    """How the base is quantized, such as `nf4` or `nf4 double`."""
    return model.quantization + (" double" if model.double_quant else "")
