"""`lora_lab.evaluate`: for every adapter, the numbers that lm-evaluation-harness gives for it alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lora_lab.command_line import run_command
from lora_lab.evaluate import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an optional extra")
pytestmark = [pytest.mark.lm_eval, pytest.mark.timeout(900)]

TASKS = ("local_choice", "local_generation", "local_rolling")
TRIALS = ("0", "1", "2", "3")
Call = tuple[int, str, str]


@pytest.fixture(autouse=True)
def _without_a_look_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`simple_evaluate` lists all packages, drivers and commits at its end, which takes longer than these tasks."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
    monkeypatch.setattr("lm_eval.evaluator.get_git_commit_hash", lambda: "")


@pytest.fixture
def door(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Call]:
    monkeypatch.chdir(place)

    def call(*words: str) -> Call:
        common = ["colors.yaml", "--include-path", "tasks", "--tracking-uri", "http://127.0.0.1:9"]
        monkeypatch.setattr("sys.argv", ["evaluate", *common, *words])
        with pytest.raises(SystemExit) as end:
            run_command(evaluate)
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return call


def alone(
    place: Path, adapter: str | None, tasks: tuple[str, ...] = TASKS, num_fewshot: int | None = None
) -> dict[str, dict[str, Any]]:
    """What the harness itself says of an adapter."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from lora_lab.builtin.catalog import model_folder

    model = HFLM(
        pretrained=str(model_folder("builtin/tiny-llama")), peft=adapter, device="cpu", dtype="float32", batch_size=4
    )
    manager = TaskManager(include_path=str(place / "tasks"), include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, num_fewshot=num_fewshot, log_samples=False
    )
    return {task: dict(found["results"][task]) for task in tasks}


def test_every_adapter_gets_the_numbers_that_the_harness_gives_it_alone(door: Callable[..., Call], place: Path) -> None:
    code, out, err = door("--tasks", ",".join(TASKS), "--trials", ",".join(TRIALS), "--batch-size", "5", "--json")
    assert code == 0, err
    told = {task["task"]: task["columns"] for task in json.loads(out)["tasks"]}
    assert told.keys() == set(TASKS)
    seen = set()
    for column in ("base", *TRIALS[1:]):
        adapter = None if column == "base" else str(place / f"runs/colors/trials/{int(column):04d}/adapter")
        expected = alone(place, adapter)
        for task in TASKS:
            metrics = {key: value for key, value in expected[task].items() if "," in key and "_stderr" not in key}
            assert told[task][column].keys() == {key.partition(",")[0] for key in metrics}
            for key, value in metrics.items():
                score = told[task][column][key.partition(",")[0]]
                assert score["value"] == pytest.approx(value, rel=1e-6, abs=1e-6), (task, column, key)
                stderr = expected[task][key.replace(",", "_stderr,")]
                if isinstance(stderr, float):
                    assert score["stderr"] == pytest.approx(stderr, rel=1e-6, abs=1e-6)
                seen.add((task, key, round(value, 9)))
    for task in TASKS:
        assert len({value for name, _, value in seen if name == task}) > 1, f"{task}: all adapters are alike"


def test_solved_examples_are_those_that_the_harness_draws(door: Callable[..., Call], place: Path) -> None:
    words = ("--tasks", "local_generation", "--trials", "1", "--num-fewshot", "3", "--batch-size", "4", "--json")
    code, out, err = door(*words)
    assert code == 0, err
    [task] = json.loads(out)["tasks"]
    assert task["settings"]["num_fewshot"] == 3
    expected = alone(place, str(place / "runs/colors/trials/0001/adapter"), ("local_generation",), 3)
    without = alone(place, str(place / "runs/colors/trials/0001/adapter"), ("local_generation",))
    told = task["columns"]["1"]["letters"]["value"]
    assert told == pytest.approx(expected["local_generation"]["letters,none"], rel=1e-6)
    assert told != without["local_generation"]["letters,none"], "examples change answers"


def test_a_request_is_computed_once_for_all_and_the_scores_are_kept(
    door: Callable[..., Call], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_lab.training.packed.model import PackedModel

    rows: list[tuple[int, ...]] = []
    real = PackedModel.label_scores

    def counted(self: PackedModel, batch: Any, adapters: Any) -> Any:
        rows.append(batch.rows)
        return real(self, batch, adapters)

    monkeypatch.setattr(PackedModel, "label_scores", counted)
    code, out, err = door("--tasks", "local_choice", "--trials", "0,2", "--limit", "4", "--batch-size", "6")
    assert code == 0, err
    packed = 3 - sum(
        json.loads((place / f"runs/colors/trials/000{n}/adapter/adapter_config.json").read_text())["use_dora"]
        for n in (0, 2)
    )
    assert rows == [(6,) * packed, (6,) * packed], "4 documents of 3 choices, for all at once"
    assert "local_choice" in out
    assert "base" in out
    assert "trial 2" in out

    code, _, err = door("--tasks", "local_choice", "--trials", "1", "--limit", "4")
    assert code == 0, err
    kept = json.loads((place / "runs/colors/evaluate/local_choice.json").read_text())
    assert kept["settings"]["limit"] == 4
    assert kept["columns"].keys() == {"base", "0", "2", "1"}
    events = [json.loads(line) for line in (place / "runs/colors/events.jsonl").read_text().splitlines()]
    measured = [event for event in events if event["kind"] == "Measured"]
    assert {event["number"] for event in measured[-2:]} == {None, 1}
    assert "local_choice/acc_stderr" in measured[-1]["metrics"] or "local_choice/acc_stderr" in measured[-2]["metrics"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "local_choice,nothing"], "--tasks nothing: lm-evaluation-harness"),
        (["--tasks", "local_sampling", "--trials", "0"], "--tasks local_sampling: its generation_kwargs ask for"),
        (["--tasks", "local_choice", "--trials", "9"], "--trials 9: study colors has no such trial; it has 4"),
        (["--tasks", "local_choice", "--trials", "worst"], "--trials worst: must be best, recommended, all or"),
        (["--tasks", "local_choice", "--limit", "0"], "--limit: must be above 0"),
        (["--tasks", ","], "--tasks: names one thing at least"),
        (["--tasks", "local_choice", "--include-path", "nowhere"], "--include-path: nowhere is no folder"),
    ],
)
def test_mistakes_are_one_line(door: Callable[..., Call], words: list[str], said: str) -> None:
    code, _, err = door(*words)
    assert code == 2
    assert said in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
