"""The whole command on a study of seconds: what it leaves behind, what a second call does, and each kind of study."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from sweep_process import Lab, study

from lora_lab.tracking.mirror import catch_up

BUILTIN = {
    "train": {"path": "builtin/stdlib-code", "max_examples": 16},
    "eval": {"path": "builtin/stdlib-code", "split": "validation", "max_examples": 8},
}
TIMES = {"train_seconds", "eval_seconds", "tokens_per_second"}

PLAIN_LOSS = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model_folder, adapter_folder, rows, examples, max_length = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), adapter_folder).eval()
nll = count = 0
for line in open(rows).read().splitlines()[: int(examples)]:
    ids = tokenizer(json.loads(line)["text"], return_tensors="pt").input_ids[:, : int(max_length)]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]
    chosen = torch.log_softmax(logits.double(), -1).gather(1, ids[0, 1:, None])
    nll -= chosen.sum().item()
    count += chosen.numel()
print(nll / count)
"""


@pytest.fixture(scope="module")
def finished(prepared_folder, tmp_path_factory):
    """A study that was run to its end; only to be read."""
    lab = Lab(tmp_path_factory.mktemp("finished"))
    shutil.copytree(prepared_folder, lab.folder, dirs_exist_ok=True)
    shutil.rmtree(lab.folder / "data")
    lab.write(study(data=BUILTIN))
    ended = lab.sweep()
    assert ended.code == 0, ended.err
    return lab, ended


@pytest.fixture
def copied(finished, tmp_path):
    """A finished study of one's own."""
    shutil.copytree(finished[0].folder, tmp_path, dirs_exist_ok=True)
    return Lab(tmp_path)


def test_it_says_what_happened_and_where_everything_is(finished):
    lab, ended = finished
    assert ended.err == ""
    assert "6/6 trials" in ended.out
    assert "Verdict" in ended.out
    assert "runs/tiny/report.html" in ended.out
    assert "python -m lora_lab.ui study.yaml   then open" in ended.out
    assert "python -m lora_lab.export study.yaml --to all" in ended.out
    assert (lab.run_folder() / "report.html").read_text().startswith("<!")
    assert (lab.run_folder() / "summary.md").read_text().strip()


def test_every_trial_ends_and_asha_prunes(finished):
    results = finished[0].results()
    assert sorted(results) == list(range(6))
    assert {result.state for result in results.values()} == {"complete", "pruned"}
    for result in results.values():
        assert set(result.params) == {"r", "alpha_ratio", "learning_rate"}
        assert len(result.curve) == (2 if result.state == "complete" else 1)


def test_no_checkpoint_is_left_and_nothing_lies_outside_the_run_folder(finished):
    lab, _ = finished
    assert not list(lab.run_folder().rglob("*checkpoint*"))
    assert not list(lab.run_folder().rglob("*.partial"))
    assert {path.name for path in lab.folder.iterdir()} == {
        "base",
        "study.yaml",
        "runs",
        "logs",
        "mlflow.db",
        "mlartifacts",
    }


@pytest.mark.slow
def test_plain_transformers_and_peft_load_the_best_adapter_and_find_its_loss(finished, tmp_path):
    lab, _ = finished
    best = min((one for one in lab.results().values() if one.has_value), key=lambda one: one.eval_loss)
    script = tmp_path / "plain_loss.py"
    script.write_text(PLAIN_LOSS)
    rows = lab.run_folder() / "data/builtin/stdlib-code/validation.jsonl"
    arguments = [lab.folder / "base", lab.run_folder() / "best/adapter", rows, 8, 48]
    plain = subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert float(plain.stdout) == pytest.approx(best.eval_loss, abs=1e-4)


def test_the_best_configuration_is_a_study_file_again(finished):
    lab, _ = finished
    best = min((one for one in lab.results().values() if one.has_value), key=lambda one: one.eval_loss)
    kept = yaml.safe_load((lab.run_folder() / "best/config.yaml").read_text())
    assert list(kept) == ["model", "data", "training", "lora"]
    assert kept["lora"]["r"] == best.config.lora.r
    assert kept["training"]["learning_rate"] == best.config.training.learning_rate
    described = json.loads((lab.run_folder() / "best/adapter/adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"]) == (best.config.lora.r, best.config.lora.alpha)


def test_mlflow_has_every_trial_with_its_state_parameters_and_figures(finished):
    lab, _ = finished
    parent, children = lab.children()
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["lora_lab.state"] == "complete"
    results = lab.results()
    assert sorted(int(run.data.tags["lora_lab.trial"]) for run in children) == sorted(results)
    for run in children:
        result = results[int(run.data.tags["lora_lab.trial"])]
        assert run.data.tags["lora_lab.state"] == result.state
        assert run.info.status == ("FINISHED" if result.state == "complete" else "KILLED")
        assert float(run.data.params["r"]) == result.config.lora.r
        assert float(run.data.params["learning_rate"]) == result.config.training.learning_rate
        assert {name: run.data.metrics[name] for name in result.metrics} == pytest.approx(dict(result.metrics))


def test_a_complete_study_is_only_read_and_does_not_import_torch(finished):
    lab, _ = finished
    again = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lora_lab.sweep", "study.yaml"],
        cwd=lab.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is complete already" in again.stdout
    assert "Verdict" in again.stdout
    imported = {line.split("|")[-1].strip() for line in again.stderr.splitlines()}
    assert "optuna" in imported
    assert not imported & {"torch", "transformers", "peft", "mlflow"}


def test_more_trials_go_on_and_keep_the_first_ones(copied):
    before = copied.results()
    ended = copied.sweep("--trials", "8")
    assert ended.code == 0, ended.err
    assert "6 done before" in ended.out
    after = copied.results()
    assert sorted(after) == list(range(8))
    assert {number: after[number] for number in before} == before
    assert sorted(int(run.data.tags["lora_lab.trial"]) for run in copied.children()[1]) == list(range(8))


@pytest.mark.slow
def test_fresh_starts_over_under_a_new_name(copied):
    before = copied.results()
    ended = copied.sweep("--fresh", "--set", "sweep.n_trials=2")
    assert ended.code == 0, ended.err
    assert "runs/tiny-2/report.html" in ended.out
    assert len(copied.results("tiny-2")) == 2
    assert copied.results() == before


def test_fresh_and_resume_exclude_each_other(lab):
    lab.write(study())
    ended = lab.sweep("--fresh", "--resume")
    assert ended.code == 2
    assert ended.err.startswith("error: --fresh starts over")


def test_the_report_is_built_anew_from_the_storage(copied):
    page, summary = copied.run_folder() / "report.html", copied.run_folder() / "summary.md"
    told = summary.read_text()
    page.unlink()
    summary.unlink()
    ended = copied.report()
    assert (ended.code, ended.out.strip()) == (0, "runs/tiny/report.html"), ended.err
    assert summary.read_text() == told
    assert page.stat().st_size > 10_000


def test_a_change_that_would_mix_trials_is_refused_with_a_diff(copied):
    before = copied.results()
    ended = copied.sweep("--set", "data.max_length=40")
    assert ended.code == 2
    assert "data.max_length: 48 -> 40" in ended.err
    assert "--fresh" in ended.err
    assert copied.results() == before


def test_quiet_prints_the_verdict_and_json_prints_objects(lab):
    lab.write(study(sweep={"n_trials": 2}))
    objects = [json.loads(line) for line in lab.sweep("--json").out.splitlines()]
    kinds = [one.get("event", one.get("kind")) for one in objects]
    assert kinds.count("started") == 1
    assert kinds[-1] == "verdict"
    assert kinds.count("trial_ended") == 2
    results = lab.results()
    assert objects[-1]["best_value"] == min(one.eval_loss for one in results.values() if one.has_value)

    quiet = lab.sweep("--quiet", "--trials", "3")
    assert (quiet.code, quiet.err) == (0, "")
    assert "started" not in quiet.out
    assert "Verdict" in quiet.out


def test_finalists_are_confirmed_with_fresh_seeds(lab):
    lab.write(study(sweep={"n_trials": 3, "pruner": "none", "confirm": {"top": 1, "seeds": 2}}))
    ended = lab.sweep()
    assert ended.code == 0, ended.err
    results = lab.results()
    search = [one for one in results.values() if not one.replicate]
    winner = min(search, key=lambda one: one.eval_loss)
    repeats = [one for one in results.values() if one.replicate]
    assert len(search) == 3
    assert [(one.confirms, one.replicate) for one in repeats] == [(winner.number, 1), (winner.number, 2)]
    assert len({one.config.training.seed for one in (winner, *repeats)}) == 3
    assert all(one.params == winner.params for one in repeats)
    assert len({one.eval_loss for one in (winner, *repeats)}) == 3
    assert "mean of 2 retrainings" in ended.out
    confirming = [run for run in lab.children()[1] if "confirms" in run.data.tags]
    assert sorted(run.data.tags["replicate"] for run in confirming) == ["1", "2"]

    again = lab.sweep()
    assert "is complete already" in again.out
    assert lab.results() == results


@pytest.mark.slow
def test_several_metrics(lab):
    metrics = [{"name": "eval_loss", "goal": "minimize"}, {"name": "trainable_params", "goal": "minimize"}]
    lab.write(study(sweep={"metric": metrics, "pruner": "none", "sampler": "nsga2", "n_trials": 4}))
    ended = lab.sweep()
    assert ended.code == 0, ended.err
    assert all(set(one.metrics) >= {"eval_loss", "trainable_params"} for one in lab.results().values())


@pytest.mark.slow
def test_conditional_parameters_are_searched_only_where_they_hold(lab):
    parameters = {"r": {"values": [2, 8]}, "lora_dropout": {"values": [0.1, 0.2], "when": {"r": {"min": 8}}}}
    lab.write(study(sweep={"sampler": "grid", "pruner": "none", "n_trials": None, "parameters": parameters}))
    ended = lab.sweep()
    assert ended.code == 0, ended.err
    trained = [(one.config.lora.r, one.config.lora.lora_dropout) for one in lab.results().values()]
    assert sorted(trained) == [(2, 0.0), (8, 0.1), (8, 0.2)]


@pytest.mark.slow
def test_equivalent_configurations_are_trained_once(lab):
    """The preset `attention` and its explicit list are the same training."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    parameters = {"target_modules": {"values": ["attention", names]}, "r": {"values": [2, 4]}}
    lab.write(study(sweep={"sampler": "grid", "pruner": "none", "n_trials": None, "parameters": parameters}))
    ended = lab.sweep()
    assert ended.code == 0, ended.err
    results = lab.results()
    shared = [one for one in results.values() if one.state == "shared"]
    assert len(shared) == len([one for one in results.values() if one.state == "complete"]) == 2
    for one in shared:
        source = results[one.source]
        assert source.config.lora.r == one.config.lora.r
        assert (one.metrics, one.curve) == (source.metrics, source.curve)
        assert not (lab.run_folder() / f"trials/{one.number:04d}").exists()
    states = {run.data.tags["lora_lab.trial"]: run.data.tags["lora_lab.state"] for run in lab.children()[1]}
    assert all(states[str(one.number)] == "shared" for one in shared)


@pytest.mark.slow
def test_mlflow_away_for_the_whole_sweep_gets_everything_later(lab):
    lab.write(study(sweep={"n_trials": 3}))
    ended = lab.sweep("--tracking-uri", "http://127.0.0.1:9")
    assert ended.code == 0
    assert "MLflow at http://127.0.0.1:9 lacks" in ended.err
    assert len(ended.err.splitlines()) == 1

    assert catch_up(lab.run_folder(), f"sqlite:///{lab.folder / 'mlflow.db'}") is None
    parent, children = lab.children()
    assert parent.info.status == "FINISHED"
    results = lab.results()
    assert len(children) == len(results)
    for run in children:
        result = results[int(run.data.tags["lora_lab.trial"])]
        assert run.data.tags["lora_lab.state"] == result.state
        assert {name: run.data.metrics[name] for name in result.metrics} == pytest.approx(dict(result.metrics))


@pytest.mark.slow
def test_a_diverging_trial_harms_neither_its_neighbors_nor_the_sweep(lab):
    def losses(rates: list[float], name: str) -> dict[float, tuple]:
        parameters = {"learning_rate": {"values": rates}}
        sweep = {"sampler": "grid", "pruner": "none", "n_trials": None, "parameters": parameters}
        lab.write(study(name, sweep=sweep))
        ended = lab.sweep()
        assert ended.code == 0, ended.err
        return {one.config.training.learning_rate: one for one in lab.results(name).values()}

    mixed = losses([1e-3, 5e-3, 1e20], "mixed")
    control = losses([1e-3, 5e-3], "control")
    assert mixed[1e20].state == "diverged"
    assert "optimizer step" in mixed[1e20].reason
    for rate, one in control.items():
        assert mixed[rate].eval_loss == pytest.approx(one.eval_loss, abs=1e-4)


@pytest.mark.slow
def test_two_runs_of_one_study_are_equal(finished, lab):
    """With a fixed pack size: the same trials, values and prunings to the last bit."""
    lab.write(study(data=BUILTIN))
    assert lab.sweep().code == 0
    left, right = finished[0].results(), lab.results()
    assert left.keys() == right.keys()
    for number, one in left.items():
        other = right[number]
        assert (one.state, one.params, one.config, one.curve) == (other.state, other.params, other.config, other.curve)
        assert {k: v for k, v in one.metrics.items() if k not in TIMES} == {
            k: v for k, v in other.metrics.items() if k not in TIMES
        }
