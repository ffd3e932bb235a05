from __future__ import annotations

import pytest

from lora_lab.tracking.redaction import redact


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://me:pw@host/db", "postgresql://***@host/db"),
        ("https://host/x?api_key=abc&y=1", "https://host/x?api_key=***&y=1"),
        ("HF_TOKEN=abc failed", "HF_TOKEN=*** failed"),
        ("bearer hf_abcdefghijklmnopqrst", "bearer ***"),
        ("loss per label token: 3.2 nats at user@host", "loss per label token: 3.2 nats at user@host"),
    ],
)
def test_secrets_are_cut_and_the_rest_stays(text, clean):
    assert redact(text) == clean


def test_secret_environment_values_are_cut(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-0123456789")
    assert redact("got canary-0123456789!") == "got ***!"
