"""Environments for the packages of `packages.toml`, made once under `.exports/` and used again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / ".exports"
PACKAGES = tomllib.loads((Path(__file__).parent / "packages.toml").read_text())
QUIET = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "WANDB_DISABLED": "true",
}


class NoPythonError(Exception):
    """There is no interpreter on this machine that is new enough for a package."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has one package."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *words: str | Path, folder: Path, timeout_s: float = 900.0) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment (or `python`) in `folder`; what it did."""
        first, *rest = map(str, words)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | QUIET
        environment["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{environment['PATH']}"
        return subprocess.run(
            [str(self.folder / "bin" / first), *rest],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )


def environment(name: str) -> Environment:
    """The environment of a package, made anew where its versions changed."""
    package = PACKAGES[name]
    digest = hashlib.sha256(json.dumps(package).encode()).hexdigest()[:12]
    folder = FOLDER / name
    stamp = folder / "made.txt"
    if stamp.is_file() and stamp.read_text() == digest:
        return Environment(folder)
    interpreter = _python(*package["python"])
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    for words in package["steps"]:
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *words], check=True)
    [packages] = (folder / "lib").glob("python3*/site-packages")
    for stub in package["stubs"]:
        (packages / stub).mkdir()
        (packages / stub / "__init__.py").touch()
    stamp.write_text(digest)
    return Environment(folder)


def _python(major: int, minor: int) -> str:
    """An interpreter of at least this version: our own, or one on the path."""
    if sys.version_info >= (major, minor):
        return sys.executable
    names = [f"python{major}.{later}" for later in range(minor, minor + 4)]
    for found in (*map(shutil.which, names), *_of_pyenv(names)):
        if found and subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode == 0:
            return found
    raise NoPythonError(f"needs Python {major}.{minor} or newer, and there is none here")


def _of_pyenv(names: list[str]) -> list[str]:
    """Interpreters that pyenv keeps without putting them on the path."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return [str(path) for name in names for path in sorted(root.glob(f"*/bin/{name}"))]


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PACKAGES:
        environment(wanted)
