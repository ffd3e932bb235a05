"""A trial's settings by name: the one list that trackers, labels, tables, axes, reports and plans walk.

It is made from the fields of the sections, so a setting that is added there is in all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.study.data_settings import DataSettings
from lora_lab.study.section import Settings
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.study.sweep import SEARCHABLE, SECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lora_lab.study.section import Trait
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value

    Named = dict[str, Value | None]

DERIVED: Mapping[str, Callable[[LoraSettings], float]] = {
    "lora_alpha": lambda lora: lora.alpha,
    "alpha_ratio": lambda lora: lora.alpha / lora.r,
    "scaling": lambda lora: lora.scaling,
}
"""What follows from the other settings of an adapter, whichever of alpha and its ratio was given."""
ALWAYS_TOLD = ("r", "lora_alpha", "scaling", "target_modules", "num_train_epochs", "learning_rate")
"""What is told of every trial, also where a study fixes it at its default."""


def settings_of(config: TrialConfig) -> Named:
    """Every setting of a trial by its name, section after section; None for what is switched off.

    A setting inside a setting has both names: `train.path`, or `train.0.path` in a list. `lora_alpha` and `alpha_ratio`
    are what the trial has, whichever was given; `scaling` comes last.
    """
    named: Named = {}
    for section in SECTIONS:
        named |= _named(getattr(config, section))
    return named | {name: derive(config.lora) for name, derive in DERIVED.items()}


def value_of(config: TrialConfig, name: str) -> Value:
    """The value of a searchable setting, searched or fixed; alpha and its ratio are derived from each other."""
    if name in DERIVED:
        return DERIVED[name](config.lora)
    value: Value = getattr(getattr(config, SEARCHABLE[name]), name)
    return value


def changed_of(config: TrialConfig) -> Named:
    """The settings of `settings_of` that differ from their defaults, or have no default."""
    plain = TrialConfig(
        model=ModelSettings(model_name_or_path=config.model.model_name_or_path),
        data=DataSettings(train=config.data.train),
        training=TrainingSettings(),
        lora=LoraSettings(r=config.lora.r),  # the default alpha depends on r
    )
    defaults = settings_of(plain) | {"r": LoraSettings().r}
    return {
        name: value
        for name, value in settings_of(config).items()
        if value != (None if name.partition(".")[0] in _WITHOUT_DEFAULT else defaults.get(name))
    }


def told_of(spec: StudySpec, config: TrialConfig) -> Named:
    """The settings that a reader of a study must know of one trial.

    That is what the study searched, then what is told of every trial, then whatever differs from its default.
    """
    values = settings_of(config)
    names = dict.fromkeys((*spec.sweep.parameters, *ALWAYS_TOLD, *changed_of(config)))
    return {name: values[name] for name in names}


def settings_with(trait: Trait) -> tuple[str, ...]:
    """The names of the searchable settings that are marked so."""
    return tuple(name for name, section in SEARCHABLE.items() if trait in SECTIONS[section].model_fields[name].metadata)


def _named(settings: Settings) -> Named:
    return dict(_walk(settings))


def _walk(settings: Settings) -> Iterator[tuple[str, Value | None]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        inside = value if isinstance(value, tuple) else (value,)
        if not isinstance(inside[0], Settings):
            yield name, value
            continue
        for index, one in enumerate(inside):
            path = f"{name}.{index}" if isinstance(value, tuple) else name
            yield from ((f"{path}.{inner}", inner_value) for inner, inner_value in _walk(one))


_WITHOUT_DEFAULT = {
    name for section in SECTIONS.values() for name, field in section.model_fields.items() if field.is_required()
}
