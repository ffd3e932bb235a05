"""Sizes in bytes, as people write them and as all of lora_lab writes them: in binary units."""

from __future__ import annotations

import re

from lora_lab.common.errors import InputError

BINARY_UNITS = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    unit.upper(): size for unit, size in BINARY_UNITS.items()
}
"""What a size can be written in, in capitals."""
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*|%)")


def parse_size(text: str) -> int:
    """Bytes from `20000000000`, `20GB` or `18.6GiB`.

    Raises:
        InputError: it is none of these, or 0.
    """
    match = SIZE.fullmatch(text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) == 0:
        raise InputError(f"{text!r} is no number of bytes; write such as 20GB, 18.6GiB or 20000000000")
    return int(float(match[1]) * unit)


def bytes_text(count: float) -> str:
    """Bytes in three digits and a binary unit: `38.1 MiB`."""
    for unit, size in BINARY_UNITS.items():
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"
