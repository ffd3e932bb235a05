"""The files of each target for six trials, word for word.

To write them anew after a change that is meant: `UPDATE_GOLDEN=1 python -m pytest tests/exporters/test_golden.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from export_made import exported

from lora_lab.exporters import axolotl, llama_factory, ms_swift, peft_script, trl, unsloth
from lora_lab.exporters.handover import hand_over

GOLDEN = Path(__file__).parent / "golden"
TRIALS = {
    "plain": {"lora": {"target_modules": "all-linear", "layers": "all"}},
    "qlora": {"model": {"quantization": "nf4", "double_quant": True}, "lora": {"layers": "all"}},
    "rslora": {"lora": {"use_rslora": True, "layers": "all", "target_modules": "attention"}},
    "layers": {"lora": {"target_modules": "all-linear", "layers": "last_half", "lora_alpha": 22.5}},
    "head": {"lora": {"target_modules": "all-linear+head", "layers": "all"}},
    "dora": {"lora": {"use_dora": True, "layers": "all"}},
}
FILES = {
    "peft": peft_script.FILE,
    "trl": trl.FILE,
    "axolotl": axolotl.FILE,
    "llama-factory": llama_factory.FILE,
    "unsloth": unsloth.FILE,
    "ms-swift": ms_swift.FILE,
}


@pytest.mark.parametrize("name", TRIALS)
@pytest.mark.parametrize("target", FILES)
def test_the_files_of_a_trainer_are_these(data, tmp_path, target, name):
    export = hand_over(exported(data, **TRIALS[name]), target, tmp_path)
    if export.folder is None:
        text = "".join(f"refused: {remark.text}\n" for remark in export.refusals)
    else:
        settings = (export.folder / FILES[target]).read_text()
        head = settings.split("\n\n\n")[0].rstrip() + "\n"  # the rest of a script is the template
        text = (
            (head if FILES[target].endswith(".py") else settings) + "---\n" + (export.folder / "README.md").read_text()
        )
    golden = GOLDEN / name / f"{target}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_file_names_this_machine(data, tmp_path):
    trial = exported(data)
    for target in FILES:
        folder = hand_over(trial, target, tmp_path).folder
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_relative_to(folder / "base"):
                content = path.read_bytes()
                for private in (str(Path.home()), str(tmp_path), str(trial.location)):
                    assert private.encode() not in content, path
