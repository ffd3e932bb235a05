"""`--push` against a local stand-in for the Hub: what is uploaded, and what is said when the Hub refuses."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from export_made import exported
from huggingface_hub import constants

from lora_lab.common.errors import InputError, StorageError
from lora_lab.exporters.hub import push


class Hub(BaseHTTPRequestHandler):
    """The parts of the Hub's API that an upload of small files calls."""

    refuse = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.calls.append((self.path, self.headers.get("Authorization"), body))
        if self.refuse:
            self.answer(403, {"error": "no rights for hf_SECRETSECRET"})
        elif self.path == "/api/repos/create":
            self.answer(200, {"url": f"{self.server.address}/someone/tickets", "name": "someone/tickets"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            self.answer(200, {"files": answer})
        elif "/commit/" in self.path:
            where = f"{self.server.address}/someone/tickets/commit/abc"
            self.answer(200, {"commitUrl": where, "commitOid": "abc", "success": True})
        else:
            self.answer(404, {"error": self.path})

    def do_GET(self):
        self.server.calls.append((self.path, self.headers.get("Authorization"), b""))
        self.answer(200, {"id": "someone/tickets", "sha": "abc", "siblings": []})

    def answer(self, code, content):
        payload = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls, server.address = [], f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    Hub.refuse = False


@pytest.fixture
def online(hub, monkeypatch):
    """As HF_ENDPOINT and HF_TOKEN make it in a new process; the library reads them when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return hub


@pytest.fixture
def trial(data):
    found = exported(data)
    config = {"r": 8, "base_model_name_or_path": str(data)}
    (found.adapter / "adapter_config.json").write_text(json.dumps(config))
    return found


def creation(hub):
    [body] = [body for path, _, body in hub.calls if path == "/api/repos/create"]
    return json.loads(body)


def test_adapter_and_card_are_uploaded_without_a_path(online, trial, data):
    hub = online
    assert push(trial, "someone/tickets", public=False).startswith(f"{hub.address}/someone/tickets")
    created = creation(hub)
    assert created["name"] == "tickets"
    assert created.get("private") is True or created.get("visibility") == "private"
    [commit] = [body for path, _, body in hub.calls if "/commit/main" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert b"library_name: peft" in files["README.md"]
    assert b'from_pretrained(base, "someone/tickets")' in files["README.md"]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] is None
    assert all(str(data).encode() not in content for content in files.values())
    assert {token for _, token, _ in hub.calls if token} == {"Bearer hf_0123456789"}


def test_a_public_repository_is_asked_for(online, trial):
    push(trial, "someone/tickets", public=True)
    created = creation(online)
    assert created.get("private") is False or created.get("visibility") == "public"


def test_a_refusal_is_one_line_with_a_way_out(online, trial):
    Hub.refuse = True
    with pytest.raises(StorageError) as error:
        push(trial, "someone/tickets", public=False)
    said = str(error.value)
    assert said.startswith("--push someone/tickets: ")
    assert "hf auth login" in said
    assert "SECRET" not in said
    assert "\n" not in said
    assert [path for path, _, _ in online.calls if "commit" in path] == []


def test_nothing_is_sent_offline(online, trial, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE"):
        push(trial, "someone/tickets", public=False)
    assert online.calls == []


@pytest.mark.parametrize("repo", ["tickets", "someone/else/tickets", "-x/y", ""])
def test_a_name_that_cannot_be_is_refused(online, trial, repo):
    with pytest.raises(InputError, match="must be owner/name"):
        push(trial, repo, public=False)
    assert online.calls == []


def test_an_adapter_that_was_not_kept_is_not_pushed(online, trial):
    with pytest.raises(InputError, match="was not kept"):
        push(replace(trial, adapter=None), "someone/tickets", public=False)
