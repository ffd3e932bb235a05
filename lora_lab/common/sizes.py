"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from lora_lab.common.errors import InputError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


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
