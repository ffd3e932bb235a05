"""Values as strict JSON has them, which every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any


def strict_json(values: dict[str, Any], *, indent: int | None = None) -> str:
    """An object as JSON: null for what is not finite, and texts for paths and other values."""
    return json.dumps(_strict(values), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
    """A value as strict JSON has it: no NaN, no paths, no tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "items"):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value if isinstance(value, (str, int, type(None))) else str(value)
