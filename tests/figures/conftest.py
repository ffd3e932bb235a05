from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import partial
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from analysis.simulated import BASE_FORGETTING, BASE_LOSS, results, study

from lora_lab.analysis.audit import audit
from lora_lab.analysis.verdict import decide
from lora_lab.figures.report import panels_of, write_report
from lora_lab.results.folder import RunFolder
from lora_lab.results.gather import gather
from lora_lab.results.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.figures.evidence import Evidence
    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec


@dataclass
class Page:
    """A report as a browser would parse it."""

    source: str
    scripts: list[str] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    words: str = ""

    @property
    def policy(self) -> str:
        return next(value for tag, name, value in self.attributes if tag == "meta" and "default-src" in value)

    @property
    def plots(self) -> list[str]:
        return [value for tag, name, value in self.attributes if tag == "div" and name == "id"]

    @property
    def ids(self) -> set[str]:
        return {value for _, name, value in self.attributes if name == "id"}

    def hash_of(self, script: str) -> str:
        return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


class Reader(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page
        self.inside: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append(tag)
        self.page.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "link", "img", "input"):
            self.inside.append((tag, dict(attrs).get("type") or ""))

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag, kind = self.inside[-1] if self.inside else ("", "")
        if tag == "script" and kind == "application/json":
            self.page.data.append(json.loads(data))
        elif tag == "script":
            self.page.scripts.append(data)
        elif tag != "style":
            self.page.words += data


def gathered(
    folder: Path, results: list[TrialResult], spec: StudySpec | None = None, base_loss: float = BASE_LOSS
) -> Evidence:
    """What the report shows of these trials, with every statistic; there are no adapters."""
    spec = spec or study()
    findings = decide(results, base_loss, margin=spec.sweep.verdict.margin)
    notes = audit(spec, findings, results)
    base = {"eval_loss": base_loss, "forgetting_loss": BASE_FORGETTING}
    command = "python -m lora_lab.sweep studies/rank_alpha.yaml"
    return gather(Results(spec, results, findings, {}, notes, base), RunFolder(folder / "run"), command)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """What the report shows of a study with everything in it; only to be read."""
    return gathered(tmp_path_factory.mktemp("whole"), results())


@pytest.fixture(scope="session")
def page(whole: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Its report; only to be read."""
    path = tmp_path_factory.mktemp("whole-report") / "report.html"
    write_report(path, whole, panels_of(whole))
    return read_page(path)


@pytest.fixture
def evidence(tmp_path: Path) -> Callable[..., Evidence]:
    return partial(gathered, tmp_path)


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Page]:
    """Write a report and read it back; further keywords replace fields of the evidence."""

    def make(
        results: list[TrialResult], spec: StudySpec | None = None, base_loss: float = BASE_LOSS, **changes: Any
    ) -> Page:
        folder = tmp_path / "study"
        folder.mkdir(exist_ok=True)
        whole = replace(gathered(folder, results, spec, base_loss), **changes)
        path = tmp_path / "report.html"
        write_report(path, whole, panels_of(whole))
        return read_page(path)

    return make


def read_page(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    Reader(page).feed(page.source)
    return page
