"""What the tests of loading share: references to datasets, what was loaded of them, and refusals of one line."""

from __future__ import annotations

import pytest

from lora_lab.common.errors import InputError
from lora_lab.study.data_settings import DatasetRef

TEN = [{"text": f"row {index}"} for index in range(10)]


def ref(path, **more):
    return DatasetRef(path=str(path), **more)


def texts(loaded):
    return [example.text for example in loaded.examples]


def refusal(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    return message
