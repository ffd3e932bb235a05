"""The HTTP side with a scripted author: what is answered, how it is streamed, and what is refused."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient
from test_desk import Scripted

from lora_lab.builtin.catalog import model_folder
from lora_lab.serving.app import make_app
from lora_lab.serving.desk import Desk
from lora_lab.serving.members import Member, Members
from lora_lab.study.settings import ModelSettings
from lora_lab.training.base.loading import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
POSITIONS = 64


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelSettings(model_name_or_path=str(model_folder("builtin/tiny-llama"))))


@pytest.fixture
def client(tokenizer, request):
    tokenizer.chat_template = getattr(request, "param", TEMPLATE)
    everyone = [Member("base"), Member("trial-7", ("best", "recommended"), "r=8", "eval_loss 2.5")]
    desk = Desk(Scripted())
    yield TestClient(make_app(Members(everyone, tokenizer, POSITIONS), desk), base_url="http://127.0.0.1")
    desk.close()


def chat(**more) -> dict:
    return {"model": "best", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3} | more


def test_the_models_by_their_names(client):
    listed = client.get("/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["base", "trial-7"]
    assert listed["data"][1]["aliases"] == ["best", "recommended"]
    assert client.get("/health").json() == {"status": "ok"}


def test_a_chat_and_a_completion(client, tokenizer):
    answer = client.post("/v1/chat/completions", json=chat()).json()
    prompt = tokenizer("<user>Hello<assistant>", add_special_tokens=False)["input_ids"]
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "bbb"}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 3, "total_tokens": len(prompt) + 3}
    answer = client.post("/v1/completions", json={"model": "base", "prompt": "ab", "max_tokens": 60}).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert set(answer["choices"][0]["text"]) == {"a"}


@pytest.mark.parametrize("kind", ["chat/completions", "completions"])
def test_a_stream_has_the_same_text(client, kind):
    asked = chat() if kind == "chat/completions" else {"model": "best", "prompt": "Hello", "max_tokens": 3}
    with client.stream("POST", f"/v1/{kind}", json=asked | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    texts = [one["delta"].get("content", "") if kind == "chat/completions" else one["text"] for one in choices]
    assert "".join(texts) == "bbb"
    assert [one["finish_reason"] for one in choices][-1] == "length"


def test_what_openai_clients_send_for_their_own_books_is_taken(client):
    more = {"user": "me", "n": 1, "frequency_penalty": 0, "logprobs": False, "stop": None, "tool_choice": "auto"}
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    one = client.post("/v1/chat/completions", json=chat(**more)).json()
    other = client.post("/v1/chat/completions", json=chat(messages=parts)).json()
    assert one["usage"] == other["usage"]


@pytest.mark.parametrize(
    ("path", "asked", "status", "words"),
    [
        (
            "chat/completions",
            chat(model="trial-9"),
            404,
            "there is no 'trial-9'; there are base, trial-7, best, recommended",
        ),
        ("chat/completions", chat(max_tokens=0), 400, "max_tokens: Input should be greater than or equal to 1"),
        ("chat/completions", chat(max_tokens=POSITIONS), 400, "more than the 64 positions of this base"),
        ("chat/completions", chat(temperature=3), 400, "temperature"),
        ("chat/completions", chat(n=2), 400, "n: is not done here"),
        ("chat/completions", chat(logprobs=True), 400, "logprobs: is not done here"),
        ("chat/completions", chat(wish="?"), 400, "wish: is not done here"),
        ("chat/completions", chat(messages=[]), 400, "messages"),
        ("chat/completions", chat(stop=["a"] * 5), 400, "stop"),
        ("chat/completions", {"model": "base"}, 400, "messages: Field required"),
        ("completions", {"model": "base", "prompt": ["a", "b"]}, 400, "prompt: Input should be a valid string"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(client, path, asked, status, words):
    answer = client.post(f"/v1/{path}", json=asked)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_what_is_no_json_is_refused(client):
    answer = client.post("/v1/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("client", [None], indirect=True)
def test_a_chat_needs_a_template(client):
    answer = client.post("/v1/chat/completions", json=chat())
    assert answer.status_code == 400
    assert "no chat template; use /v1/completions" in answer.json()["error"]["message"]
    assert client.get("/v1/models").json()["has_chat"] is False


@pytest.mark.parametrize("client", ["{{ raise_exception('only users here') }}"], indirect=True)
def test_a_template_that_refuses_says_why(client):
    answer = client.post("/v1/chat/completions", json=chat())
    assert answer.status_code == 400
    assert "only users here" in answer.json()["error"]["message"]


def test_pages_elsewhere_cannot_reach_it(client):
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
