"""A study in two files, as a user has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

STUDY = """\
study_name: rank_alpha
question: How do rank and alpha trade off?
model:
  model_name_or_path: builtin/tiny-llama
data:
  train: builtin/stdlib-code
  eval: 0.1
  forgetting: builtin/stdlib-prose
  max_length: 128
training:
  learning_rate: 2e-3
  num_train_epochs: 3
lora: {lora_dropout: 0.0}
sweep: ../sweeps/rank_alpha.yaml
"""

SWEEP = """\
metric: {name: eval_loss, goal: minimize}
sampler: tpe
n_trials: 32
parameters:
  r: {values: [4, 8, 16]}
  alpha_ratio: {values: [0.5, 1, 2]}
  target_modules: {values: [attention, [q_proj, v_proj]]}
  learning_rate: {min: 1e-4, max: 1e-2, log: true}
  weight_decay: {values: [0.0, 0.1], when: {r: {min: 8}}}
confirm: {top: 3, seeds: 3}
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """`studies/rank_alpha.yaml` with its sweep in `sweeps/rank_alpha.yaml`."""
    for folder, text in (("studies", STUDY), ("sweeps", SWEEP)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rank_alpha.yaml").write_text(text)
    return tmp_path / "studies" / "rank_alpha.yaml"


@pytest.fixture
def sweep_file(study_file: Path) -> Path:
    return study_file.parent.parent / "sweeps" / "rank_alpha.yaml"
