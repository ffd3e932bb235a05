"""Exports that are Python scripts: a template of this package with the trial's settings in it as literals."""

from __future__ import annotations

import pprint
from importlib import resources
from string import Template
from typing import Any


def template(name: str) -> str:
    """The text of `templates/<name>.in`."""
    return resources.files("lora_lab.exporters").joinpath("templates", f"{name}.in").read_text(encoding="utf-8")


def fill(name: str, heading: str, settings: dict[str, Any]) -> str:
    """The text of `templates/<name>.in` with its settings, each as a Python literal; strings are put as they are.

    Args:
        name: Such as `train_peft.py`.
        heading: The first line of the script's docstring.
        settings: Values by their placeholders; a `str` is code.
    """
    literals = {key: value if isinstance(value, str) else literal(value) for key, value in settings.items()}
    return Template(template(name)).substitute(heading=heading, **literals)


def literal(value: Any) -> str:
    """A value as Python code, a dictionary with one key a line."""
    if not isinstance(value, dict) or not value:
        return repr(value)
    lines = (f"    {key!r}: {pprint.pformat(item, width=1000, compact=True)},\n" for key, item in value.items())
    return "{\n" + "".join(lines) + "}"
