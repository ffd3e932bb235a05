"""`lora-lab doctor`: what it finds here, and that each kind of trouble is found."""

from __future__ import annotations

import json
import os
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from typer.testing import CliRunner

from lora_lab.__main__ import app
from lora_lab.checkup import devices, machine, services
from lora_lab.training import device_check

NAMES = ["packages", "extras", "processors", "memory", "disk", "clock", "device", "quantization", "hub", "mlflow"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(*words: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(app, ["doctor", *words])
    return outcome.exit_code, outcome.stdout + outcome.stderr


def test_this_machine_is_ready(tmp_path):
    code, text = call("--json")
    found = json.loads(text)
    assert [one["name"] for one in found["findings"]] == NAMES
    assert found["problems"] == sum(one["level"] == "problem" for one in found["findings"]) == code == 0
    values = {one["name"]: one["values"] for one in found["findings"]}
    assert values["packages"]["packages"]["torch"] == torch.__version__
    assert 1 <= values["processors"]["granted"] <= values["processors"]["present"]
    assert values["hub"]["offline"] is True  # as the tests set it
    assert list(tmp_path.iterdir()) == [], "a look leaves nothing behind"
    code, text = call()
    assert code == 0
    assert text.rstrip().endswith("ready")


def test_a_package_of_another_version_is_named(monkeypatch):
    real = machine.requires(machine.PACKAGE)
    monkeypatch.setattr(machine, "requires", lambda _: [*real, "peft>=99", "no-such-package>=1"])
    found = machine.python_and_packages()
    assert found.level == "problem"
    assert "peft is " in found.text
    assert ", but must be >=99; no-such-package is not installed; run pip install" in found.text


def test_extras_are_told_apart():
    values = machine.extras().values
    assert "postgresql" in values["installed"]  # the tests need it
    assert not set(values["installed"]) & set(values["not_installed"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(stat.S_IREAD | stat.S_IEXEC)
    found = machine.disk(tmp_path)
    tmp_path.chmod(stat.S_IRWXU)
    assert found.level == "problem"
    assert "cannot be written" in found.text


def test_a_network_file_system_is_refused_as_a_sweep_refuses_it(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_lab.search.file_system.file_system", lambda _: "nfs4")
    found = machine.disk(tmp_path)
    assert found.level == "problem"
    assert "PostgreSQL" in found.text


def test_files_with_times_of_another_clock(tmp_path, monkeypatch):
    real = machine.time.time
    monkeypatch.setattr(machine.time, "time", lambda: real() + 100)
    found = machine.clock(tmp_path)
    assert found.level == "note"
    assert "-100 s" in found.text


def test_a_build_for_cpus_beside_a_driver(monkeypatch):
    monkeypatch.setattr(device_check.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(device_check.torch.version, "cuda", None)
    found = devices.device()
    assert found.level == "problem"
    assert "is a build for CPUs" in found.text


def test_broken_kernels_are_noticed(monkeypatch):
    from bitsandbytes import functional

    assert device_check.quantizes(torch.device("cpu")) is None
    monkeypatch.setattr(functional, "dequantize_4bit", lambda packed, state: torch.zeros(state.shape))
    assert "off by 1" in (device_check.quantizes(torch.device("cpu")) or "")
    monkeypatch.delattr(functional, "dequantize_4bit")
    assert (device_check.quantizes(torch.device("cpu")) or "").startswith("AttributeError")
    assert devices.quantization().level == "problem"


class Silent(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_hub_that_answers_and_one_that_does_not(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(services.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(services.constants, "is_offline_mode", lambda: False)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    found = services.hub()
    assert found.level == "ok"
    assert "answers (200)" in found.text
    assert "secret" not in str(found)
    server.shutdown()
    server.server_close()
    assert services.hub().level == "note"


def test_mlflow_and_a_database_that_are_away(monkeypatch):
    found = json.loads(call("--json", "--tracking-uri", "http://user:geheim@127.0.0.1:9")[1])
    [mlflow] = [one for one in found["findings"] if one["name"] == "mlflow"]
    assert mlflow["level"] == "note"
    assert "does not answer" in mlflow["text"]
    assert "geheim" not in json.dumps(found)
    found = services.storage("postgresql+psycopg://user:geheim@127.0.0.1:9/db")
    assert found.level == "problem"
    assert "geheim" not in str(found)


def test_a_study_file_that_is_wrong_is_told_first():
    code, text = call("nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml" in text
