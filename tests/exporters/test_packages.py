"""Exports in the packages that they are for: their own parsers, and training where a CPU can (`make test-exports`).

Each package has an environment of its own (`packages.toml`); the first run installs them, which takes long.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from environments import NoPythonError, environment
from export_made import exported
from export_trained import steps, sweep, trainer_steps
from safetensors.torch import load_file
from test_golden import TRIALS

from lora_lab.builtin.catalog import model_folder
from lora_lab.exporters.handover import hand_over

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.exports, pytest.mark.timeout(7200)]

VALIDATORS = {
    "llama-factory": """
import yaml
from llamafactory.hparams import get_train_args
get_train_args(yaml.safe_load(open("llamafactory.yaml")))
""",
    "ms-swift": """
from swift.cli.main import parse_yaml_args
from swift.utils import parse_args
try:
    from swift import SftArguments
except ImportError:
    from swift.llm import TrainArguments as SftArguments
_, rest = parse_args(SftArguments, parse_yaml_args(["swift.yaml"]))
assert not rest, rest
""",
    "axolotl": """
import yaml
from axolotl.cli.config import load_cfg
found = load_cfg("axolotl.yaml")
renamed = {"model_revision": "revision_of_model"}
lost = [key for key in yaml.safe_load(open("axolotl.yaml")) if renamed.get(key, key) not in found]
assert not lost, lost
""",
    "unsloth": """
import ast
ast.parse(open("train_unsloth.py").read())
""",
}
"""What each package has to check a file of settings; Axolotl drops unknown keys, so what comes back is compared."""

LAUNCHED = {
    "llama-factory": ("llamafactory-cli", "train", "llamafactory.yaml"),
    "ms-swift": ("swift", "sft", "swift.yaml"),
    "axolotl": ("axolotl", "train", "axolotl.yaml", "--launcher", "python"),
    "unsloth": ("python", "train_unsloth.py"),
}


@pytest.fixture(scope="module", params=list(VALIDATORS))
def package(request):
    try:
        return request.param, environment(request.param)
    except NoPythonError as error:
        pytest.skip(f"{request.param}: {error}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained trial on a float32 copy of the built-in base, whose whole epoch is one step."""
    folder = tmp_path_factory.mktemp("packages")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = model_folder("builtin/tiny-llama")
    AutoModelForCausalLM.from_pretrained(base, dtype="float32").save_pretrained(folder / "float32")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "float32")
    return sweep(folder, model={"model_name_or_path": "float32"})


@pytest.mark.parametrize("name", TRIALS)
def test_the_package_parses_the_export(package, data, tmp_path, name):
    target, own = package
    export = hand_over(exported(data, **TRIALS[name]), target, tmp_path)
    if export.folder is None:
        assert export.refusals
        return
    done = own.run("python", "-c", VALIDATORS[target], folder=export.folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_the_package_reaches_the_losses_of_the_trial(package, run, monkeypatch):
    """In the digits that it keeps; the adapter within 1e-5."""
    target, own = package
    from lora_lab.command_line import run_command
    from lora_lab.export import export as door

    monkeypatch.chdir(run.parents[1])
    monkeypatch.setattr("sys.argv", ["export", "study.yaml", "--to", target])
    with pytest.raises(SystemExit):
        run_command(door)
    folder = run / "exports" / "0000" / target
    shutil.rmtree(folder / "output", ignore_errors=True)
    done = own.run(*LAUNCHED[target], folder=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-4000:]
    losses = _losses(folder / "output", done.stdout + done.stderr)
    assert losses == pytest.approx(steps(run, 0)["loss"], rel=2e-4)
    written = sorted((folder / "output").rglob("adapter_model.safetensors"))
    ours, theirs = (load_file(path) for path in (run / "trials" / "0000" / "adapter" / written[0].name, written[0]))
    assert theirs.keys() == ours.keys()
    assert max(float((theirs[key] - ours[key]).abs().max()) for key in ours) <= 1e-5


def _losses(output: Path, printed: str) -> list[float]:
    for state in sorted(output.rglob("trainer_state.json"), reverse=True):
        return trainer_steps(state)["loss"]
    for log in output.rglob("*.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        if any("loss" in line for line in lines):
            return [float(line["loss"]) for line in lines if "loss" in line and "eval_loss" not in line]
    return [float(found) for found in re.findall(r"'loss': '?([0-9.]+)", printed)]
