"""`lora_lab.serve` as a process, with real adapters: who answers says what `peft` says alone, and Ctrl-C ends it."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel
from sweep_process import lab, prepared_folder, study  # noqa: F401 -- fixtures
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_lab.results.folder import RunFolder

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTION = "def add(a, b):"
NEW = 12


@pytest.fixture
def finished(lab):  # noqa: F811
    """A folder with a study of two adapters, one plain and one that shares no pass, on a base with a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(lab.folder / "base")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(lab.folder / "base")
    content = study(
        training={"learning_rate": 3e-2},
        sweep={"sampler": "grid", "pruner": "none", "parameters": {"use_dora": {"values": [False, True]}}},
    )
    content["sweep"].pop("n_trials")
    lab.write(content)
    ended = lab.sweep("--quiet")
    assert ended.code == 0, ended.err
    return lab


def request(address: str, path: str, values: dict) -> dict:
    body = json.dumps(values).encode()
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}/v1/{path}", body, {"Content-Type": "application/json"}),
        timeout=60,
    ) as answer:
        return json.load(answer)


def alone(lab, prompt: str, *, special: bool) -> dict[str, str]:  # noqa: F811
    """What `generate` says with each adapter, and without one."""
    tokenizer = AutoTokenizer.from_pretrained(lab.folder / "base")
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=special)["input_ids"]
    said = {}
    folder = RunFolder(lab.run_folder())
    for name, number in (("base", None), ("trial-0", 0), ("trial-1", 1)):
        model = AutoModelForCausalLM.from_pretrained(lab.folder / "base", dtype=torch.float32)  # as a CPU trains it
        if number is not None:
            model = PeftModel.from_pretrained(model, folder.files_of(number).adapter)
        whole = model.eval().generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW
        )
        said[name] = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    return said


@pytest.mark.slow
def test_everyone_answers_as_alone_and_ctrl_c_ends_it(finished):
    for words, message in (
        (("--trials", "9"), "study tiny has no such trial"),
        (("--trials", "0", "--top", "1"), "--trials and --top both choose adapters"),
    ):
        ended = finished.start(*words, verb="serve").end()
        assert ended.code == 2
        assert message in ended.err

    command = finished.start("--trials", "0,1", "--port", "0", verb="serve")
    command.wait_for("until Ctrl-C")
    text = command.out.read_text()
    address = re.search(r"http://127\.0\.0\.1:\d+", text)[0]
    assert "python -m lora_lab.export study.yaml --to vllm" in text

    chat = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": NEW}
    asked = [("chat/completions", chat | {"model": name}) for name in ("base", "trial-0", "trial-1")]
    asked += [("completions", {"model": name, "prompt": QUESTION, "max_tokens": NEW}) for name in ("trial-0", "base")]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: request(address, *one)["choices"][0], asked))
    of_chat = alone(finished, f"user: {QUESTION}\nassistant: ", special=False)
    of_text = alone(finished, QUESTION, special=True)
    assert len(set(of_chat.values())) == 3, "the adapters say different things"
    assert [one["message"]["content"] for one in answers[:3]] == list(of_chat.values())
    assert [one["text"] for one in answers[3:]] == [of_text["trial-0"], of_text["base"]]

    sampled = {"model": "trial-0", "prompt": QUESTION, "max_tokens": NEW, "temperature": 1.0, "seed": 1}
    one, same, other = (
        request(address, "completions", sampled | more)["choices"][0]["text"] for more in ({}, {}, {"seed": 2})
    )
    assert one == same != other

    with pytest.raises(urllib.error.HTTPError) as refused:
        request(address, "completions", {"model": "nobody", "prompt": "x"})
    assert refused.value.code == 404
    assert "there is no 'nobody'" in refused.value.read().decode()

    long = {"model": "trial-1", "prompt": QUESTION, "max_tokens": 400, "stop": None, "temperature": 2.0, "stream": True}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: request(address, "completions", long))
        time.sleep(0.3)
        command.signal(signal.SIGINT)
        ended = command.end(10)  # an open answer does not hold it back
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err
