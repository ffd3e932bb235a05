"""The page of `lora_lab.serve` in headless Chromium: one question, two answers beside each other."""

from __future__ import annotations

import queue
import sys
import threading
from pathlib import Path

import pytest

from lora_lab.builtin.catalog import model_folder
from lora_lab.serving.desk import Desk
from lora_lab.serving.members import Member, Members
from lora_lab.serving.server import Served, run
from lora_lab.study.settings import ModelSettings
from lora_lab.training.base.loading import load_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "serving"))
from test_desk import Scripted

pytestmark = pytest.mark.browser


@pytest.fixture(params=["{% for m in messages %}{{ m.content }}{% endfor %}", None], ids=["chat", "text"])
def address(request):
    """Where a server with a scripted author answers."""
    tokenizer = load_tokenizer(ModelSettings(model_name_or_path=str(model_folder("builtin/tiny-llama"))))
    tokenizer.chat_template = request.param
    everyone = [
        Member("base"),
        Member("trial-7", ("best",), "r=8 <b>all-linear</b>", "eval_loss 2.5"),
        Member("trial-9"),
    ]
    served, said = Served(Members(everyone, tokenizer, None), Desk(Scripted())), queue.Queue()
    threading.Thread(target=run, args=(served, 0, said.put), daemon=True).start()
    yield said.get(timeout=30).split()[2]
    served.desk.close()


def test_one_question_is_answered_by_both(address, page):
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.get_by_label("left").select_option("base")
    page.get_by_label("right").select_option("trial-7")
    assert page.get_by_text("best · r=8 <b>all-linear</b> · eval_loss 2.5").count(), "labels are texts, not HTML"
    page.get_by_label("question").fill("Hi <i>there</i>")
    page.get_by_label("question").press("Enter")
    for _ in range(2):
        page.wait_for_function("document.querySelectorAll('li.said:not(.busy)').length === 2")
    said = page.locator("li.said").all_inner_texts()
    assert [set(text) for text in said] == [{"a"}, {"b"}]
    assert page.locator("li.asked").all_inner_texts() == ["Hi <i>there</i>"] * 2
    page.get_by_label("right").select_option("trial-9")
    assert page.locator("li.said").count() == 1, "another adapter begins a conversation of its own"
    page.get_by_role("button", name="New").click()
    assert page.locator("li").count() == 0
    page.get_by_label("question").fill("x")
    page.get_by_label("tokens").fill("5000")
    page.evaluate("document.querySelector('form').noValidate = true")
    page.get_by_role("button", name="Ask").click()
    page.locator("li.error").first.wait_for()
    assert "max_tokens" in page.locator("li.error").first.inner_text()
    assert errors == []
