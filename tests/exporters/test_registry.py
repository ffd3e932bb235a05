"""`export --register`: a version of a model in MLflow's registry, which loads again and answers."""

from __future__ import annotations

import json

import pytest
import torch
from sweep_process import lab, prepared_folder, study  # noqa: F401 -- fixtures

from lora_lab.common.errors import InputError
from lora_lab.tracking.registry import check_name


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b"])
def test_a_name_that_mlflow_does_not_take_is_refused_first(name):
    with pytest.raises(InputError, match="--register: a model's name"):
        check_name(name)


def registered(lab, *words: str) -> dict:  # noqa: F811
    ended = lab.start("--register", "tickets", "--json", *words, verb="export").end()
    assert ended.code == 0, ended.err
    return json.loads(ended.out)["registered"]


@pytest.mark.slow
def test_the_winner_is_registered_loaded_and_asked(lab, monkeypatch):  # noqa: F811
    content = study(sweep={"sampler": "grid", "pruner": "none", "parameters": {"r": {"values": [2, 4]}}})
    content["sweep"].pop("n_trials")
    lab.write(content)
    assert lab.sweep("--quiet").code == 0
    first = registered(lab, "--recommended")
    assert first["version"] == "1"
    assert first["uri"] in ("models:/tickets@recommended", "models:/tickets@best")
    second = registered(lab, "--trial", "0")
    assert second["version"] == "2"

    import mlflow
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    mlflow.set_tracking_uri(f"sqlite:///{lab.folder / 'mlflow.db'}")
    monkeypatch.chdir(lab.folder)
    client = mlflow.MlflowClient()
    version = client.get_model_version("tickets", "1")
    assert version.tags["base"] == "base"
    assert float(version.tags["eval_loss"]) > 0
    assert "How it was chosen" in version.description
    run = client.get_run(version.run_id)
    assert run.data.tags["lora_lab.trial"] in ("0", "1")
    assert client.get_model_version_by_alias("tickets", first["uri"].partition("@")[2]).version

    adapter = mlflow.artifacts.download_artifacts("models:/tickets@recommended")
    base = AutoModelForCausalLM.from_pretrained(lab.folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    ids = torch.tensor([[5, 6, 7]])
    answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > 3
    assert str(lab.folder) not in json.dumps(version.to_proto().description), "no path of this machine"

    ended = lab.start("--register", "tickets", "--tracking-uri", "sqlite:///other.db", verb="export").end()
    assert ended.code == 0, "another store is sent the runs first"
