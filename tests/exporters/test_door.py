"""The command: what it prints, where it writes, how it fails; and every command of the guide."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from export_trained import REPOSITORY, sweep

from lora_lab.command_line import run_command
from lora_lab.export import TARGETS, export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("door"), training={"num_train_epochs": 1, "warmup_steps": 0})


@pytest.fixture
def door(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parents[1])

    def call(*words: str):
        monkeypatch.setattr("sys.argv", ["export", *words])
        with pytest.raises(SystemExit) as end:
            run_command(export)
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return call


@pytest.mark.slow
def test_all_writes_what_is_possible_and_names_the_rest(door, run):
    code, out, err = door("study.yaml", "--to", "all", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["study"], said["trial"], said["roles"], said["refused"]) == (
        "handover",
        0,
        ["best", "recommended"],
        [],
    )
    assert [one["target"] for one in said["exports"]] == list(TARGETS)
    for one in said["exports"]:
        folder = Path(one["folder"])
        assert folder == Path("runs/handover/exports/0000") / one["target"]
        assert one["command"] in (folder / "README.md").read_text()
    code, out, err = door("study.yaml", "--to", "all", "--rows", "--output", "elsewhere")
    assert code == 0
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == sorted(set(TARGETS) - {"peft", "unsloth"})
    assert "error: --to peft: --rows: prompt_completion: " in err
    assert "leave --rows out" in err


@pytest.mark.slow
def test_a_refusal_alone_is_an_error(door):
    code, out, err = door("study.yaml", "--to", "ms-swift", "--tokens")
    assert code == 2
    assert "error: --to ms-swift: --tokens: tokens: ms-swift 4.6.0: it reads no token ids; use --rows" in err
    assert not Path("runs/handover/exports/0000/ms-swift").exists() or "ms-swift:" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "abacus"], "--to must be one of peft, trl,"),
        ([], "give --to (peft, trl,"),
        (["--to", "trl", "--best", "--trial", "0"], "exclude each other"),
        (["--to", "trl", "--rows", "--tokens"], "exclude each other"),
        (["--to", "trl", "--trial", "9"], "has no such trial; it has 1, numbered from 0"),
    ],
)
def test_mistakes_are_one_line(door, words, said):
    code, _, err = door("study.yaml", *words)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/exporting.md", "README.md"])
def test_the_commands_of_the_guide_run(door, page):
    text = (REPOSITORY / page).read_text()
    commands = re.findall(r"^python -m lora_lab\.export +(.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        _, *words = shlex.split(command, comments=True)
        code, _, err = door("study.yaml", *words)
        assert (code, err) == (0, ""), command


@pytest.mark.slow
def test_the_guide_names_every_target():
    text = (REPOSITORY / "docs/exporting.md").read_text()
    assert all(f"`{target}`" in text for target in TARGETS)
