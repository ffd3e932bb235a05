"""The card of an adapter: metadata that the Hub takes, and a text without any path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from analysis.simulated import trial
from huggingface_hub import ModelCard

from lora_lab.analysis.verdict import decide
from lora_lab.results.card import base_words, card, hub_id
from lora_lab.study.engines import engine_for
from lora_lab.study.results import TrialResult
from lora_lab.study.settings import TrialConfig


def result(model: str = "builtin/tiny-llama", **data) -> TrialResult:
    data = {"train": "builtin/stdlib-code"} | data
    config = TrialConfig.model_validate(
        {"model": {"model_name_or_path": model}, "data": data, "training": {}, "lora": {"lora_alpha": 22.5}}
    )
    metrics = {"eval_loss": 2.5, "trainable_params": 1e4, "train_seconds": 2.0, "peak_memory_bytes": 1e7}
    return TrialResult(
        number=4,
        state="complete",
        params={},
        config=config,
        engine=engine_for(config),
        metrics=metrics,
        curve={1: 2.5},
    )


def written(one: TrialResult) -> ModelCard:
    return ModelCard(card("tickets", one, decide([one], 3.0, 0.01, losses={})))


def test_an_adapter_of_a_hub_model_says_so():
    found = written(result("acme/base-1B", train="acme/tickets", eval={"path": "acme/tickets", "split": "test"}))
    data = found.data.to_dict()
    assert {key: data[key] for key in ("base_model", "base_model_relation", "library_name", "pipeline_tag")} == {
        "base_model": "acme/base-1B",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
    }
    assert data["datasets"] == ["acme/tickets"]
    assert data["tags"] == ["lora", "peft", "lora_lab", "base_model:adapter:acme/base-1B"]
    [index] = data["model-index"]
    [measured] = index["results"]
    assert measured["dataset"] == {"type": "acme/tickets", "name": "acme/tickets"}
    assert measured["metrics"] == [{"type": "loss", "value": 2.5, "name": "eval_loss"}]
    assert 'from_pretrained("acme/base-1B")' in found.text


def test_what_was_measured_on_test_rows_stands_beside_it_under_its_own_dataset():
    one = result("acme/base-1B", train="acme/tickets", eval="acme/tickets", test={"path": "acme/unseen"})
    data = written(replace(one, metrics={**one.metrics, "test_eval_loss": 2.75})).data.to_dict()
    found = {row["dataset"]["name"]: row["metrics"] for row in data["model-index"][0]["results"]}
    assert found == {
        "acme/tickets": [{"type": "loss", "value": 2.5, "name": "eval_loss"}],
        "acme/unseen": [{"type": "loss", "value": 2.75, "name": "test_eval_loss"}],
    }


def test_a_local_model_and_local_data_leave_no_path(tmp_path):
    base = tmp_path / "alice" / "llama-private"
    base.mkdir(parents=True)
    rows = tmp_path / "alice" / "rows.jsonl"
    rows.touch()
    found = written(result(str(base), train=str(rows)))
    data = found.data.to_dict()
    assert "base_model" not in data
    assert "datasets" not in data
    assert "base_model_relation" not in data
    assert data["model-index"][0]["results"][0]["dataset"] == {"type": "local", "name": "rows.jsonl"}
    text = str(found)
    assert "llama-private" in text
    for private in (str(tmp_path), "alice", str(Path.home())):
        assert private not in text


def test_the_card_says_how_the_trial_was_chosen():
    found = written(result())
    assert "the lowest loss and the cheapest that ties with it" in found.text
    assert "2.5000 nats per token; the bare base has 3.0000" in found.text
    assert "trained once, so no interval is known" in found.text
    assert "lora_alpha: 22.5" in found.text


def test_an_adapter_that_is_not_of_the_last_evaluation_says_of_which():
    reason = "stopped early at evaluation 5 (step 40): 2 evaluations without a better eval_loss"
    assert "\nStopped early at evaluation 5 (step 40): 2 evaluations" in written(replace(result(), reason=reason)).text
    assert "Stopped" not in written(result()).text


def test_replicates_give_an_interval():
    trials = [trial(number, 2.5 + 0.01 * number, seed=number) for number in range(3)]
    found = card("tickets", trials[0], decide(trials, 3.0, 0.01, losses={}))
    assert "Over 3 trainings: 2.5100, 95% " in found


@pytest.mark.parametrize(
    ("name", "found"),
    [("owner/name", "owner/name"), ("builtin/tiny-llama", None), ("/models/x", None), ("./a/b", None), ("x", None)],
)
def test_only_names_of_the_hub_are_ids(name, found):
    assert hub_id(name) == found


def test_a_builtin_base_has_its_name():
    assert base_words(result().config.model) == "builtin/tiny-llama"
