"""The team server without containers: each service's own command and files, on this machine's addresses.

What containers add (users, networks, volumes, images) is not tried; `test_compose.py` reads what is promised.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from postgres_server import PostgresServer, missing, program_folder
from runner.scripted import spec

from lora_lab.results.folder import RunFolder
from lora_lab.runner.options import RunOptions
from lora_lab.runner.scripted import scripted
from lora_lab.runner.session import run_study
from lora_lab.runner.stopping import StopRequest
from lora_lab.terminal.display import Display, PlainView
from lora_lab.training.memory.room import DEFAULT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(900)]
DOCKER = Path(__file__).parents[2] / "docker"
SERVICES = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
START_S = 400
"""MLflow takes half a minute to start, and many on a machine that is busy."""
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


def absent() -> str:
    """What the stack lacks on this machine; empty where it has everything."""
    needed = {"psql": (program_folder() or Path()) / "psql", "nginx": Path(NGINX or "nginx")}
    programs = [name for name, path in needed.items() if not path.is_file()]
    modules = [name for name in ("optuna_dashboard",) if find_spec(name) is None]
    lacking = ", ".join([*programs, *modules])
    return missing() or (f"not installed: {lacking}" if lacking else "")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stack:
    """The running services."""

    def __init__(self, folder: Path, postgres: PostgresServer) -> None:
        self.folder, self.postgres = folder, postgres
        self.secrets = folder / "secrets"
        self.ports = {name: free_port() for name in ("mlflow", "dashboard", "8080", "8081", "8082")}

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def here(self, text: str) -> str:
        """A command or setting of a container, as it is on this machine."""
        text = text.replace("@postgres/", f"@127.0.0.1:{self.postgres.port}/").replace("${MLFLOW_WORKERS:-1}", "1")
        text = text.replace("/run/secrets/", f"{self.secrets}/").replace("/artifacts", str(self.folder / "artifacts"))
        return text.replace("${PUBLIC_HOST:-localhost}", "localhost").replace("0.0.0.0", "127.0.0.1")

    def start(self, name: str) -> subprocess.Popen[bytes]:
        service = SERVICES[name]
        words = [self.here(word) for word in service["command"]]
        words = [f"--port={self.ports[name]}" if word.startswith("--port=") else word for word in words]
        environment = {key: self.here(value) for key, value in service.get("environment", {}).items()}
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            [DOCKER / "entrypoint.sh", *words],
            env={**os.environ, "PATH": programs, **environment},
            stdout=(self.folder / f"{name}.log").open("wb"), stderr=subprocess.STDOUT, cwd=self.folder,
            start_new_session=True,
        )  # fmt: skip

    def start_proxy(self) -> subprocess.Popen[bytes]:
        text = (DOCKER / "nginx.conf").read_text()
        for port in ("8080", "8081", "8082"):
            text = text.replace(f"listen {port};", f"listen 127.0.0.1:{self.ports[port]};")
            text = text.replace(f"listen 127.0.0.1:{port};", f"listen 127.0.0.1:{self.ports[port]};")
        for name, inside in (("mlflow", 5000), ("dashboard", 8080)):
            text = text.replace(f"http://{name}:{inside}", f"http://127.0.0.1:{self.ports[name]}")
        text = text.replace("/tmp/", f"{self.folder}/nginx-").replace("/run/secrets/", f"{self.secrets}/")
        (self.folder / "nginx.conf").write_text(text)
        command = [NGINX, "-c", self.folder / "nginx.conf", *SERVICES["proxy"]["command"][1:]]
        return subprocess.Popen(command, stderr=(self.folder / "proxy.log").open("wb"), start_new_session=True)

    def ask(self, port: str, path: str, *, login: str = "", method: str = "GET", body: Any = None) -> tuple[int, Any]:
        """Ask the proxy, or a service itself; the status and what came back."""
        request = urllib.request.Request(f"http://localhost:{self.ports[port]}{path}", method=method)
        if login:
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def wait_for(self, port: str, path: str, process: subprocess.Popen[bytes], name: str) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None, (self.folder / f"{name}.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (self.folder / f"{name}.log").read_text()[-3000:]
            try:
                if self.ask(port, path)[0] < 400:
                    return
            except OSError:
                pass
            time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a service and the processes that it started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def running(folder: Path) -> Iterator[Stack]:
    shutil.copy(DOCKER / "secrets.sh", folder)
    subprocess.run([folder / "secrets.sh"], check=True, capture_output=True)
    (folder / "secrets").chmod(0o755)  # in a container each file is mounted by itself, here they are reached by a path
    server = PostgresServer()
    server.start()
    stack = Stack(folder, server)
    (folder / "artifacts").mkdir()
    started: list[subprocess.Popen[bytes]] = []
    try:
        stack.postgres.run_file(DOCKER / "init.sql", {"/run/secrets/": f"{stack.secrets}/"})
        tables = stack.start("tables")
        assert tables.wait(START_S) == 0, (folder / "tables.log").read_text()
        started += [stack.start("mlflow"), stack.start("dashboard"), stack.start_proxy()]
        for name, process in zip(("mlflow", "dashboard"), started, strict=False):
            health = SERVICES[name]["environment"]["HEALTH_URL"]
            stack.wait_for(name, "/" + health.split("/", 3)[3], process, name)
        stack.wait_for("8082", "/", started[-1], "proxy")
        yield stack
    finally:
        for process in reversed(started):
            end(process)
        server.close()


@pytest.fixture(scope="module")
def stack():
    reason = absent()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="lora-lab-stack-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # nginx' workers are other users
        with running(Path(folder)) as one:
            yield one


def storage(stack: Stack) -> str:
    return f"postgresql+psycopg://lora_lab:{stack.secret('storage_password')}@127.0.0.1:{stack.postgres.port}/lora_lab"


def test_nothing_is_shown_without_a_login(stack):
    login = f"admin:{stack.secret('admin_password')}"
    for port, path in (("8080", "/"), ("8080", "/api/2.0/mlflow/experiments/search"), ("8081", "/api/studies")):
        assert stack.ask(port, path)[0] == 401
        assert stack.ask(port, path, login="admin:wrong")[0] == 401
    for port, path in (("8080", "/"), ("8081", "/api/studies"), ("8081", "/dashboard/")):
        assert stack.ask(port, path, login=login)[0] == 200


def test_a_study_is_seen_in_both_through_the_proxy(stack, tmp_path, monkeypatch):
    login = f"admin:{stack.secret('admin_password')}"
    study = spec().model_copy(update={"storage": storage(stack)})
    folder = RunFolder.of(study.study_name, tmp_path)
    address = f"http://localhost:{stack.ports['8080']}"

    def run(tracking_uri: str) -> Any:
        options = RunOptions(memory_limit=DEFAULT_LIMIT, tracking_uri=tracking_uri)
        return run_study(
            study, folder, "", options, display=Display(PlainView(io.StringIO())), stop=StopRequest(),
            backend=scripted(folder),
        )  # fmt: skip

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong password")
    refused = run(address)
    assert refused.complete, "a login that is refused does not disturb the training"
    assert "lacks" in refused.tracking_note
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", stack.secret("admin_password"))
    from lora_lab.tracking.mirror import catch_up

    assert catch_up(folder.root, address, timeout_s=START_S) is None
    found = stack.ask("8080", "/api/2.0/mlflow/experiments/search", login=login, method="POST", body={"max_results": 9})
    names = {one["name"]: one["experiment_id"] for one in json.loads(found[1])["experiments"]}
    search = {"experiment_ids": [names["scripted"]], "max_results": 100}
    runs = json.loads(stack.ask("8080", "/api/2.0/mlflow/runs/search", login=login, method="POST", body=search)[1])
    assert len(runs["runs"]) == 1 + 6
    assert any(path.name == "report.html" for path in (stack.folder / "artifacts").rglob("*"))
    [seen] = json.loads(stack.ask("8081", "/api/studies", login=login)[1])["study_summaries"]
    assert seen["study_name"] == "scripted"
    deleted, _ = stack.ask("8081", f"/api/studies/{seen['study_id']}", login=login, method="DELETE", body={})
    assert deleted >= 400
    assert stack.ask("8081", f"/api/studies/{seen['study_id']}", login=login)[0] == 200, "its role only reads"


def test_mlflow_answers_to_no_other_name(stack):
    login = f"admin:{stack.secret('admin_password')}"
    request = urllib.request.Request(f"http://localhost:{stack.ports['8080']}/", headers={"Host": "evil.example"})
    request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 403


def test_roles_reach_their_own_databases_only(stack):
    import psycopg

    def connect(role: str, database: str) -> psycopg.Connection:
        secret = {"lora_lab": "storage"}.get(role, role)
        return psycopg.connect(
            host="127.0.0.1", port=stack.postgres.port, user=role, dbname=database,
            password=stack.secret(f"{secret}_password"),
        )  # fmt: skip

    for role, database in (("mlflow", "lora_lab"), ("lora_lab", "mlflow"), ("dashboard", "mlflow")):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            connect(role, database)
    with connect("dashboard", "lora_lab") as reader:
        reader.execute("set default_transaction_read_only = off")
        reader.commit()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("delete from trials")
