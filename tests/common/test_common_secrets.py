"""Secrets are cut from every text, and the rest of it stays."""

from __future__ import annotations

import traceback

import pytest
import yaml

from lora_lab.command_line import command_text
from lora_lab.common.secrets import redact, redact_address, secrets_of, shown

CANARY = "c4n4ry-7f3a"
PASSWORDS = [CANARY, *(form.format(CANARY) for form in ("{}@x", "a/{}", "{}/b@c", "%40{}", "{}'q", "{}?y#z", "x:{}"))]
ADDRESSES = [
    "postgresql+psycopg://me:{}@host:5432/db",
    "redis://:{}@host/0",
    "https://me:{}@mlflow.example.org/api/2.0",
    "http://me:{}@127.0.0.1:5000",
    "postgresql://host/db?user=me&password={}",
    "https://host/x?api_key={}&y=1",
    "postgresql://host:1/db?sslpassword={}",
    "https://host/x?sig={}",
]
CARRIERS = {
    "a sentence": "storage {}: the server is away, for 60 s; nothing told so far is lost",
    "several lines": "Traceback\n  File x\nOperationalError: {}\nat http://127.0.0.1:9 (12 events)",
    "an assignment": "MLFLOW_TRACKING_URI={} python -m lora_lab.sweep",
    "JSON": '{{"uri": "{}", "margin": 0.01}}',
    "an argument": "python -m lora_lab.sweep s.yaml --set storage={}",
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("password", PASSWORDS)
def test_no_password_of_an_address_stays(password: str, address: str) -> None:
    if "?" in address:  # in a query, what ends a value must be encoded
        password = password.translate(str.maketrans({"#": "%23", "'": "%27"}))
    whole = address.format(password)
    assert CANARY not in redact_address(whole)
    for carrier in CARRIERS.values():
        found = redact(carrier.format(whole))
        before, _, after = carrier.partition("{}")
        assert CANARY not in found
        assert "***" in found
        assert found.startswith(before.format())
        assert found.endswith(after.format()[-12:])


def test_a_user_may_be_a_token() -> None:
    assert redact(f"git+https://{CANARY}@host/a/@scope") == "git+https://***@scope"
    assert redact(f"http://{CANARY}@host/a and http://{CANARY}@host/b") == "http://***@host/a and http://***@host/b"


@pytest.mark.parametrize("password", [f"my {CANARY}", f"my {CANARY}@x", f'"{CANARY}"', f"{CANARY}\nx", f"1/{CANARY}"])
def test_a_whole_address_may_hold_anything_in_its_password(password: str) -> None:
    assert redact_address(f"postgresql://me:{password}@host/db") == "postgresql://***@host/db"
    assert CANARY not in shown(f"postgresql://me:{password}@host/db")


@pytest.mark.parametrize(
    "text",
    [
        f"HF_TOKEN={CANARY} failed",
        f"connection with password='{CANARY} and more' refused",
        f'password="{CANARY}"',
        yaml.safe_dump({"storage": {"password": CANARY, "user": "me"}}),
        f"{{'api_key': '{CANARY}', 'r': 8}}",
        f'{{"secret": "{CANARY}"}}',
        f"lab --api-key {CANARY} --trials 3",
        f"Authorization: Bearer {CANARY}",
        f"s3_secret_access_key={CANARY}&x=1",
        "hf_abcdefghijklmnopqrst",
        "sk-proj-abcdefghijklmnop",
        "ghp_abcdefghijklmnopqrst",
        "github_pat_abcdefghij_klmnop",
        "glpat-abcdefghijklmnop",
        "xoxb-12345678901-abcdef",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_what_is_named_or_looks_like_a_secret_is_cut(text: str) -> None:
    found = redact(text)
    assert CANARY not in found
    assert "abcdefghij" not in found.lower()
    assert "***" in found


@pytest.mark.parametrize(
    "text",
    [
        "loss per label token: 3.2 nats at user@host",
        "sqlite:////data/a@b/study.db",
        "file:///srv/runs/x@y",
        "https://huggingface.example/org/model@main",
        "MLflow at http://127.0.0.1:9 lacks 12 events (me@host)",
        "max_tokens=512, tokenizer=bpe, label_tokens=3",
        "hf_transfer is not installed; hf_hub_download failed",
        "sk-learn, task-aaaaaaaaaaaaaaaaaa",
        "key: value, monkey=1",
        "postgresql://host:5432/db",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_variables_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("PGPASSWORD", "s3cr3t-and-long")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:p%40ssw0rd-in-url@host/db")
    monkeypatch.setenv("SHORT_TOKEN", "loss")
    assert redact(f"got {CANARY}, s3cr3t-and-long, p@ssw0rd-in-url!") == "got ***, ***, ***!"
    assert redact("the loss") == "the loss"


def test_the_folder_that_a_shell_is_in_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/somebody/studies")
    monkeypatch.setenv("OLDPWD", "/home/somebody/models")
    monkeypatch.setenv("MYSQL_PWD", CANARY)
    text = "sqlite:////home/somebody/studies/mlflow.db and /home/somebody/models"
    assert redact(f"{text} {CANARY}") == f"{text} ***"


def test_a_drivers_message_is_cut_by_the_secrets_of_its_address() -> None:
    address = f"postgresql://me:c%40n4ry@host/db?sslpassword={CANARY}&connect_timeout=5"
    assert secrets_of(address) == {"c%40n4ry", "c@n4ry", CANARY}
    assert redact(f"login of me with c@n4ry or {CANARY} failed in 5 s", secrets_of(address)) == (
        "login of me with *** or *** failed in 5 s"
    )
    for harmless in ("sqlite:///a.db", "postgresql://me@host/db", "http://host:5000", "nothing"):
        assert secrets_of(harmless) == set()


def test_a_traceback_and_a_command_line_are_texts_too() -> None:
    with pytest.raises(ValueError, match="cannot reach") as raised:
        raise ValueError(f"cannot reach postgresql://me:{CANARY}@host/db")
    assert CANARY not in redact("".join(traceback.format_exception(raised.value)))
    words = ["--set", f"storage=postgresql://me:a {CANARY}@host/db", "--tracking-uri", f"http://{CANARY}@host"]
    assert CANARY not in command_text("sweep", words)


@pytest.mark.parametrize("piece", ["a", "a-", "a=", "a://b:", "://", "?a&", "password", "a.b@", "'", '"', " \n"])
def test_a_long_text_is_read_once(piece: str) -> None:
    """Half a megabyte of what patterns begin with: a quadratic one would meet the time limit that every test has."""
    text = piece * (500_000 // len(piece))
    assert len(redact(text)) <= len(text) + 10


def test_a_shown_value_is_short_and_in_the_words_of_yaml() -> None:
    assert [shown(value) for value in (None, True, "a", 1.5, [1])] == ["empty", "true", "'a'", "1.5", "[1]"]
    assert len(shown("x" * 1000)) == 80
