"""What a call of `sweep` sees of the one before: nothing until there are trials, and all that they stand on after."""

from __future__ import annotations

import io
import json
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.numpy import load_file, save_file
from samples import sample

import lora_lab.builtin
from lora_lab.common.errors import InputError, TrainingError
from lora_lab.results.folder import RunFolder
from lora_lab.results.results import check_finished
from lora_lab.results.storage import storage_url
from lora_lab.runner.options import RunOptions
from lora_lab.runner.session import SessionEnd, run_study
from lora_lab.runner.stopping import StopRequest
from lora_lab.search.store import open_store
from lora_lab.study.spec import StudySpec
from lora_lab.terminal.display import Display, PlainView
from lora_lab.terminal.messages import TrialOver
from lora_lab.training.memory.room import MemoryLimit

if TYPE_CHECKING:
    from lora_lab.study.results import TrialResult
    from lora_lab.terminal.messages import Message
    from lora_lab.terminal.progress import StudyProgress

MODEL = Path(lora_lab.builtin.__file__).parent / "tiny-llama"
NO_SERVER = "http://127.0.0.1:9"


class StopAfterATrial:
    """A view that asks the sweep to end as soon as its first trial has: no report is made."""

    def __init__(self, stop: StopRequest) -> None:
        self.request = stop

    def show(self, message: Message, progress: StudyProgress) -> None:
        if isinstance(message, TrialOver):
            self.request.signal = signal.SIGINT


class Study:
    """A study of one step a trial in a folder with its base and data, begun and gone on with in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(MODEL, folder / "base")
        for name, first in (("train", 0), ("eval", 100), ("general", 200)):
            rows = ({"text": f"def number_{index}(): return {index}"} for index in range(first, first + 10))
            self.write(name, *rows)
        self.run_folder = RunFolder.of("s", folder / "runs")

    def write(self, name: str, *rows: dict[str, str]) -> None:
        (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def spec(self, changes: dict[str, Any]) -> StudySpec:
        parts: dict[str, Any] = {
            "study_name": "s",
            "model": {"model_name_or_path": "base"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 24},
            "training": {"per_device_train_batch_size": 4, "max_steps": 1},
            "lora": {"target_modules": ["q_proj"]},
            "sweep": {"sampler": "grid", "pruner": "none", "pack_size": 1, "parameters": {"r": {"values": [2, 4]}}},
        }
        for section, values in changes.items():
            parts[section] = {**parts[section], **values}
        return StudySpec.model_validate(parts)

    def run(
        self, changes: dict[str, Any] | None = None, *, whole: bool = False, memory: str | None = None
    ) -> SessionEnd:
        spec, stop = self.spec(changes or {}), StopRequest()
        return run_study(
            spec,
            self.run_folder,
            "",
            RunOptions(memory_limit=MemoryLimit.parse(memory), tracking_uri=NO_SERVER),
            display=Display(PlainView(io.StringIO()) if whole else StopAfterATrial(stop)),
            stop=stop,
        )

    def results(self) -> list[TrialResult]:
        spec = self.spec({})
        with open_store(spec, storage_url(spec, self.run_folder), create=False) as store:
            return store.results()


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Study(tmp_path)


def one_line(error: Exception) -> str:
    assert "\n" not in str(error)
    assert "; " in str(error), "no way out"
    return str(error)


# Before there are trials


def spoil_the_base(study: Study) -> None:
    weights = load_file(study.folder / "base" / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    shutil.copytree(study.folder / "base", study.folder / "spoiled")
    save_file(weights, study.folder / "spoiled" / "model.safetensors", metadata={"format": "pt"})


def keep_one_row(study: Study) -> None:
    study.write("one", {"text": "def first(): pass"})


def one_row_is_left(study: Study) -> None:
    study.write("left", {"text": "def first(): pass"}, {"text": ""}, {"other": "x"})


def nothing(study: Study) -> None:
    pass


MISTAKES = {
    "data path": (nothing, {"data": {"train": "trian.jsonl"}}, "trian.jsonl"),
    "evaluation path": (nothing, {"data": {"eval": "evla.jsonl"}}, "evla.jsonl"),
    "base path": (nothing, {"model": {"model_name_or_path": "./bsae"}}, "./bsae"),
    "targets": (nothing, {"lora": {"target_modules": ["q_prjo"]}}, "q_prjo"),
    "metrics": (
        nothing,
        {
            "sweep": {"metric": [{"name": "eval_loss"}, {"name": "trainable_params"}]},
            "data": {"train": "trian.jsonl"},
        },
        "trian.jsonl",
    ),
    "one evaluation row": (keep_one_row, {"data": {"eval": "one.jsonl"}}, "at least 2 rows"),
    "one evaluation row of a share": (nothing, {"data": {"eval": 0.1}}, "at least 2 rows"),
    "one evaluation row that is left": (
        one_row_is_left,
        {"data": {"eval": "left.jsonl", "skip_invalid": True}},
        "at least 2 rows",
    ),
    "one evaluation row with retrainings": (
        keep_one_row,
        {"data": {"eval": "one.jsonl"}, "sweep": {"confirm": {"top": 1, "seeds": 2}}},
        "at least 2 rows",
    ),
    "one evaluation row of a file": (
        nothing,
        {"data": {"eval": {"path": "eval.jsonl", "max_examples": 1}}},
        "at least 2 rows",
    ),
    "a base without a loss": (
        spoil_the_base,
        {"model": {"model_name_or_path": "spoiled"}},
        "must be finite, but is nan",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_corrected_and_the_study_begins(study, mistake):
    """Nothing of a study counts before its first trial, so that nothing of it stands in the way of a correction."""
    prepare, changes, named = MISTAKES[mistake]
    prepare(study)
    with pytest.raises(InputError) as refused:
        study.run(changes)
    assert named in str(refused.value)
    assert study.results() == []
    study.run()
    assert [one.state for one in study.results()] == ["complete"]


def test_a_study_that_was_stored_before_its_first_trial_may_still_be_changed(study):
    """As older versions left one behind."""
    study.run_folder.make()
    old = study.spec({"data": {"max_length": 12}})
    with open_store(old, storage_url(old, study.run_folder)) as store:
        store.record.replace_spec(old)
        store.record.keep_base_values({"eval_loss": 1.0})
    study.run()
    with open_store(old, storage_url(old, study.run_folder), create=False) as store:
        assert store.record.stored_spec() == study.spec({})
        assert store.record.base_values() != {"eval_loss": 1.0}


# Once there are


def fewer_rows(study: Study) -> None:
    path = study.folder / "train.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")


def other_row(name: str) -> Any:
    def change(study: Study) -> None:
        path = study.folder / f"{name}.jsonl"
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + '\n{"text": "another row"}\n')

    return change


def trained_weights(study: Study) -> None:
    path = study.folder / "base" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"] *= 1.01
    save_file(weights, path, metadata={"format": "pt"})


def other_template(study: Study) -> None:
    path = study.folder / "base" / "chat_template.jinja"
    path.write_text(path.read_text() + " " if path.exists() else "{{ messages }}")


FORGETTING = {"data": {"forgetting": "general.jsonl"}}
FIRST = {"data": {"max_train_examples": 4}}
SHARE = {"data": {"eval": 0.2}}
CHANGES = {
    "rows of which a share is held out": (SHARE, fewer_rows, "data.train: train.jsonl"),
    "a training row": ({}, other_row("train"), "data.train: train.jsonl"),
    "a training row that is left off": (
        {"data": {"max_train_examples": 4}},
        other_row("train"),
        "data.train: train.jsonl",
    ),
    "an evaluation row": ({}, other_row("eval"), "data.eval: eval.jsonl"),
    "a row of general text": (FORGETTING, other_row("general"), "data.forgetting: general.jsonl"),
    "weights": ({}, trained_weights, "the weights of base"),
    "chat template": ({}, other_template, "the chat template of base"),
}


@pytest.mark.parametrize("change", sample(CHANGES, ["a training row", "an evaluation row", "weights"]))
def test_a_study_goes_on_only_with_what_its_trials_were_trained_on(study, change):
    changes, make, named = CHANGES[change]
    study.run(changes)
    before = study.results()
    kept = shutil.copytree(study.folder, study.folder / "kept", ignore=shutil.ignore_patterns("runs", "kept"))

    make(study)
    with pytest.raises(InputError) as refused:
        study.run(changes)
    assert f"another content of {named};" in one_line(refused.value)
    assert "--fresh" in str(refused.value)
    assert study.results() == before

    shutil.rmtree(study.folder / "base")
    shutil.copytree(kept, study.folder, dirs_exist_ok=True)
    study.run(changes)
    assert len(study.results()) == 2


def test_a_study_from_before_contents_were_kept_goes_on(study):
    study.run()
    with open_store(study.spec({}), storage_url(study.spec({}), study.run_folder)) as store:
        store._study.set_user_attr("contents", {})
    study.run()
    assert len(study.results()) == 2


# Its end


FAILURES = {
    "diverged": ({"training": {"learning_rate": 1e9, "max_grad_norm": 0.0, "max_steps": 3}}, None),
    "out_of_memory": ({}, "9MB"),
    "failed": (
        {
            "data": {"train": "prompts.jsonl", "max_length": 64},
            "sweep": {"parameters": {"max_length": {"values": [8, 9]}}},
        },
        None,
    ),
}


@pytest.mark.parametrize("state", FAILURES)
def test_a_study_none_of_whose_trials_finished_says_so(study, state):
    changes, memory = FAILURES[state]
    study.write("prompts", *({"prompt": "a long prompt " * 6, "completion": "end"} for _ in range(4)))
    outcome = study.run(changes, whole=True, memory=memory)
    assert [one.state for one in outcome.results.trials] == [state] * 2
    assert not study.run_folder.best.exists()
    with pytest.raises(TrainingError, match=r"^no trial of study s finished \(trial 0 ") as none:
        check_finished(outcome.results)
    assert one_line(none.value)


def test_a_study_with_one_trial_that_finished_has_a_verdict(study):
    rates = {"parameters": {"learning_rate": {"values": [1e-3, 1e9]}}}
    changes = {"training": {"max_grad_norm": 0.0, "max_steps": 3}, "sweep": rates}
    outcome = study.run(changes, whole=True)
    assert [one.state for one in outcome.results.trials] == ["complete", "diverged"]
    check_finished(outcome.results)
