"""Packs are filled while what is predicted of their trials fits."""

from __future__ import annotations

import pytest

from lora_lab.common.errors import InputError
from lora_lab.planning.devices import DEVICES, device_named
from lora_lab.training.memory.predictor import MemoryPrediction
from lora_lab.training.memory.room import MemoryLimit, Need, Room, machine_bytes, pack_bytes
from lora_lab.training.memory.trial_memory import does_not_fit

BASE = 1000


def need(fixed=10, by_length=100, length=64, shared=BASE) -> Need:
    return Need(shared=shared, fixed=fixed, by_length=by_length, length=length)


def test_the_limit_is_a_share_of_what_is_free_on_a_gpu_and_none_on_a_cpu():
    assert MemoryLimit.parse(None).bytes_of(1000) == 920
    assert MemoryLimit.parse(None).bytes_of(None) is None
    assert MemoryLimit.parse("50%").bytes_of(1000) == 500
    assert MemoryLimit.parse("50%").bytes_of(None) == machine_bytes() // 2
    assert MemoryLimit.parse("600B").bytes_of(1000) == 600


@pytest.mark.parametrize("text", ["0%", "101%", "half", "12 parsecs"])
def test_a_limit_that_cannot_be_right_is_refused(text):
    with pytest.raises(InputError, match="--memory-limit"):
        MemoryLimit.parse(text)


def test_devices_are_known_by_name_or_by_bytes():
    assert device_named("h200") is DEVICES["H200"]
    assert not device_named("T4").fused_attention
    assert device_named("24GB").total_bytes == 24 * 10**9
    assert device_named("24GB").name == "CUDA device of 24GB"
    with pytest.raises(InputError, match=r"A100-80GB.*24GB"):
        device_named("H900")


def test_what_does_not_fit_is_told_in_the_units_of_the_report():
    terms = {"base": 2**31, "quantization": 0, "adapters": 0, "gradients": 0, "optimizer": 0}
    predicted = MemoryPrediction(**terms, activations=0, logits=0, dequantization=0, rounding=0, context=0)
    reason = does_not_fit(predicted, 1_500_000_000, "")
    assert "needs 2,147,483,648 bytes (2 GiB) by prediction, 1,500,000,000 bytes (1.4 GiB) are available" in reason


def test_a_pack_shares_its_base_and_pads_to_its_longest_rows():
    assert pack_bytes([]) == 0
    assert pack_bytes([need()]) == BASE + 110
    assert pack_bytes([need(), need()]) == BASE + 220
    assert pack_bytes([need(), need(length=128)]) == BASE + 10 + 200 + 110


def test_a_need_is_made_of_a_prediction_without_the_context():
    terms = {"base": 100, "quantization": 7, "adapters": 20, "gradients": 21, "optimizer": 40}
    predicted = MemoryPrediction(**terms, activations=300, logits=50, dequantization=13, rounding=2, context=600)
    assert Need.of(predicted, 64) == Need(shared=120, fixed=20 + 21 + 40 + 50 + 2, by_length=300, length=64)
    assert predicted.total == predicted.allocated + 600
    assert pack_bytes([Need.of(predicted, 64)]) == predicted.allocated


def test_room_is_filled_up_to_the_limit_and_given_back():
    room = Room(BASE + 250)
    room.take(1, need())
    assert room.fits(need())
    room.take(2, need())
    assert not room.fits(need())
    room.keep([2])
    assert room.fits(need())


def test_without_a_limit_or_a_prediction_everything_fits_until_memory_runs_out():
    room = Room(None)
    room.take(1, need())
    assert room.fits(need(fixed=10**12))
    assert room.fits(None)
    room.ran_out()  # one trial was in the pack, and a second one was too much
    assert not room.fits(need())
    assert room.pack_limit_bytes == BASE + 110


def test_a_limit_only_falls():
    room = Room(BASE + 500)
    room.take(1, need())
    room.ran_out()
    room.take(2, need())
    room.ran_out()
    assert room.pack_limit_bytes == BASE + 110
    assert room.limit_bytes == BASE + 500
