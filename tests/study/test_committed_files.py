"""Every study in the repository and every example in the documentation is one that loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_lab.study.file.loading import load_study

ROOT = Path(__file__).parents[2]
STUDIES = sorted(ROOT.glob("studies/*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_committed_studies_load_and_are_named_after_their_file(path):
    spec = load_study(path)
    assert spec.study_name == path.stem
    assert spec.question.endswith("?")
    if spec.model.model_name_or_path.startswith("builtin/"):
        assert isinstance(spec.sweep.pack_size, int), "a study of the built-in base is reproducible"


@pytest.mark.parametrize("document", ["README.md", "docs/study-file.md"])
def test_the_examples_of_the_documentation_load(document, tmp_path):
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(example)
        assert load_study(path).sweep.parameters


def test_studies_that_the_readme_names_exist():
    named = set(re.findall(r"studies/\w+\.yaml", (ROOT / "README.md").read_text()))
    assert named
    assert all((ROOT / name).is_file() for name in named)
