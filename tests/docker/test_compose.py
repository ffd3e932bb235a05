"""What the stack in docker/ promises, read from its files: no daemon is needed."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
GPU = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
SERVICES = COMPOSE["services"]
LASTING = {name: service for name, service in SERVICES.items() if "profiles" not in service}
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("lora_lab:")}
DEFAULT = re.compile(r"\$\{\w+:?-([^}]*)\}")


def test_the_stack_has_these_services():
    assert set(LASTING) == {"postgres", "mlflow", "dashboard", "proxy"}
    assert set(SERVICES) - set(LASTING) == {"tables", "sweep"}
    assert set(GPU["services"]) == {"sweep"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_that_it_does_not_need(name):
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged", False)
    user, group = map(int, service["user"].split(":"))
    assert user > 0
    assert group > 0


@pytest.mark.parametrize("name", LASTING)
def test_a_server_comes_back_and_says_that_it_is_well(name):
    service = LASTING[name]
    assert service["restart"] == "unless-stopped"
    assert service.get("healthcheck") or service["environment"]["HEALTH_URL"].startswith("http://127.0.0.1:")
    for other, wanted in service.get("depends_on", {}).items():
        assert wanted == {"condition": "service_healthy"}
        assert other in LASTING


def test_only_the_proxy_is_reached_from_outside_and_on_this_machine_alone_by_default():
    published = {name for name, service in SERVICES.items() if "ports" in service or "network_mode" in service}
    assert published == {"proxy"}
    assert all(DEFAULT.sub(r"\1", port).startswith("127.0.0.1:") for port in SERVICES["proxy"]["ports"])
    open_networks = {name for name, network in COMPOSE["networks"].items() if not network.get("internal")}
    assert {name for name, service in SERVICES.items() if open_networks & set(service["networks"])} == {"proxy"}
    assert "data" not in SERVICES["proxy"]["networks"], "the proxy does not reach the database"


def test_passwords_are_files():
    declared = COMPOSE["secrets"]
    assert all(secret["file"].startswith("./secrets/") for secret in declared.values())
    for service in SERVICES.values():
        assert set(service.get("secrets", [])) <= set(declared)
        for key, value in service.get("environment", {}).items():
            if "PASSWORD" in key:
                assert key.endswith("_FILE")
                assert value.removeprefix("/run/secrets/") in service["secrets"]
    for name in ("compose.yaml", "compose.gpu.yaml"):
        assert not re.search(r"://[^/\s\"]*:[^/\s\"]*@", (DOCKER / name).read_text()), "a password in an address"


def test_images_have_versions_and_files_that_are_mounted_exist():
    for service in SERVICES.values():
        tag = service["image"].rpartition(":")[2]
        assert tag
        assert tag != "latest"
        for volume in service.get("volumes", []):
            source = DEFAULT.sub(r"\1", volume).split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
            assert not source.startswith(".") or volume.endswith(":ro")


def test_the_image_runs_as_the_user_of_its_services_and_owns_their_volumes():
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    [user] = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert {service["user"] for service in OURS.values()} == {user}
    [owned] = [line.split() for line in lines if "chown" in line]
    for service in OURS.values():
        written = {volume.split(":")[-1] for volume in service.get("volumes", []) if not volume.endswith(":ro")}
        assert written <= set(owned)


def test_what_goes_into_the_image_is_let_in():
    """Everything is left out by `.dockerignore` but what it names."""
    ignored = (DOCKER.parent / ".dockerignore").read_text().split()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert {source.rstrip("/") for line in copied for source in line.split()[:-1]} == let_in
    assert not any("secret" in name or ".env" in name for name in let_in)


def test_the_entry_point_reads_secrets_from_files(tmp_path):
    (tmp_path / "password").write_text("canary\n")
    environment = {"PATH": "/usr/bin:/bin", "PGPASSWORD_FILE": str(tmp_path / "password")}
    done = subprocess.run(
        [DOCKER / "entrypoint.sh", "env"], env=environment, capture_output=True, text=True, check=True
    )
    assert "PGPASSWORD=canary" in done.stdout.splitlines()
    assert "_FILE" not in done.stdout
    missing = subprocess.run(
        [DOCKER / "entrypoint.sh", "env"], env={**environment, "PGPASSWORD_FILE": "/none"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert missing.returncode != 0
    assert "/none" in missing.stderr


class Secrets:
    """`secrets.sh` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "secrets"
        self._script = folder / "secrets.sh"
        self._script.write_bytes((DOCKER / "secrets.sh").read_bytes())
        self._script.chmod(0o755)

    def run(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([self._script, *words], input=given, capture_output=True, text=True, check=False)

    def read(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.folder.iterdir()}


@pytest.fixture
def secrets(tmp_path):
    return Secrets(tmp_path)


def test_secrets_are_made_once_and_shown_to_nobody(secrets):
    made = secrets.run()
    assert made.returncode == 0, made.stderr
    first = secrets.read()
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} <= set(first)
    passwords = [value for name, value in first.items() if name.endswith("_password")]
    assert len(set(passwords)) == len(passwords) == 5
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in passwords)
    assert not any(value in made.stdout + made.stderr for value in passwords)
    assert stat.S_IMODE(secrets.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.folder.iterdir()} == {0o444}
    secrets.run()
    assert secrets.read() == first


def test_logins_come_and_go(secrets):
    secrets.run()
    assert secrets.run("user", "ada", given="correct horse\n").returncode == 0
    assert secrets.run("user", "ad.", given="battery staple\n").returncode == 0
    assert secrets.run("user", "ada", given="another password\n").returncode == 0
    names = [line.partition(":")[0] for line in secrets.read()["proxy_users"].splitlines()]
    assert names == ["admin", "ad.", "ada"]
    assert secrets.run("remove", "ad.").returncode == 0
    users = secrets.read()["proxy_users"].splitlines()
    assert [line.partition(":")[0] for line in users] == ["admin", "ada"]
    salt = users[1].split("$")[2]
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", salt, "-stdin"], input="another password", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert users[1] == f"ada:{hashed.stdout.strip()}"


@pytest.mark.parametrize(("name", "password"), [("a:b", "long enough"), ("", "long enough"), ("ada", "short")])
def test_a_login_that_cannot_be_is_refused(secrets, name, password):
    secrets.run()
    before = secrets.read()
    assert secrets.run("user", name, given=f"{password}\n").returncode == 2
    assert secrets.read() == before
