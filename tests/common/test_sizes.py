"""Sizes as people write them, and as they are written for people."""

from __future__ import annotations

import pytest

from lora_lab.common.errors import InputError
from lora_lab.common.sizes import bytes_text, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("18.5 GiB", int(18.5 * 2**30)), ("512mb", 512 * 10**6), ("123456", 123456), ("7 b", 7)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "20 apples", "-3GB", "0", "nan", "1e9", "20GBB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(InputError, match="20GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (40_000_000, "38.1 MiB"),
        (3 * 2**20, "3 MiB"),
        (999.7 * 2**20, "1,000 MiB"),
        (1023 * 2**20, "1,023 MiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (3 * 2**40, "3 TiB"),
    ],
)
def test_bytes_are_written_in_binary_units(size, text):
    assert bytes_text(size) == text


@pytest.mark.parametrize("size", [7, 1500, 40_000_000, 24 * 10**9, 3 * 2**41])
def test_what_is_written_can_be_read_to_three_digits(size):
    assert parse_size(bytes_text(size)) == pytest.approx(size, rel=5e-3)
