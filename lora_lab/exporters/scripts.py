"""Exports that are Python scripts: a template of this package with the trial's settings in it as literals."""

from __future__ import annotations

import pprint
from importlib import resources
from string import Template
from typing import Any


def fill(template: str, heading: str, settings: dict[str, Any]) -> str:
    """The text of `templates/<template>.in` with its settings, each as a Python literal; strings are put as they are.

    Args:
        template: Such as `train_peft.py`.
        heading: The first line of the script's docstring.
        settings: Values by their placeholders; a `str` is code.
    """
    text = resources.files("lora_lab.exporters").joinpath("templates", f"{template}.in").read_text(encoding="utf-8")
    literals = {name: value if isinstance(value, str) else literal(value) for name, value in settings.items()}
    return Template(text).substitute(heading=heading, **literals)


def literal(value: Any) -> str:
    """A value as Python code, a dictionary with one key a line."""
    if not isinstance(value, dict) or not value:
        return repr(value)
    lines = (f"    {key!r}: {pprint.pformat(item, width=1000, compact=True)},\n" for key, item in value.items())
    return "{\n" + "".join(lines) + "}"
