# ruff: noqa: E501 - one hostile file per line
from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.common.errors import InputError, LoraLabError, StudyFileError
from lora_lab.study.file.loading import load_study
from lora_lab.study.file.yaml_source import MAX_BYTES, format_key_path, parse_yaml, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_CALLS = 100_000
"""Of functions, to refuse a file; a usual study takes two thousand, one of two thousand keys forty thousand."""

ACCEPTED = [
    ("1e-4", 1e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("1.", 1.0), ("0", 0), ("-7", -7), ("+3", 3),
    ("0.10", 0.1), ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None), ("yes", "yes"),
    ("on", "on"), ("No", "No"), ("2024-01-01", "2024-01-01"), ("12:30:45", "12:30:45"), ("1.2.3", "1.2.3"),
    ("'010'", "010"), ('"1e-4"', "1e-4"), ("nan", "nan"), ("0b7", "0b7"), (".*q_proj", ".*q_proj"),
    ("[1, [a, 2.0]]", [1, ["a", 2.0]]), ("{a: {b: 1}}", {"a": {"b": 1}}), ("|\n  x\n  y\n", "x\ny\n"),
    ("9223372036854775807", 2**63 - 1), ("abc # comment", "abc"), ("=", "="), ("äöü 🙂", "äöü 🙂"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), ACCEPTED)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    data = parse_yaml(f"key: {text}", "x.yaml").data
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


def test_every_key_and_item_has_its_line() -> None:
    source = parse_yaml("# top\na: 1\nb:\n  c:\n    - x\n    - y: 2\nd: {e: 3,\n  f: 4}\n", "x.yaml")
    assert source.lines == {
        (): 2, ("a",): 2, ("b",): 3, ("b", "c"): 4, ("b", "c", 0): 5, ("b", "c", 1): 6, ("b", "c", 1, "y"): 6,
        ("d",): 7, ("d", "e"): 7, ("d", "f"): 8,
    }  # fmt: skip


def test_windows_line_ends_and_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    source = read_yaml(path)
    assert source.data == {"a": 1, "b": 2}
    assert source.lines["b",] == 2


def test_key_paths_read_as_in_the_file() -> None:
    assert format_key_path(("sweep", "parameters", "r", "values", 2)) == "sweep.parameters.r.values[2]"
    assert format_key_path(("a", "b\nc")) == "a.'b\\nc'"


PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="ascii"), max_size=8)


DATA = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner)
)


def problem_in(text: str) -> StudyFileError | None:
    try:
        parse_yaml(text, "x.yaml")
    except StudyFileError as error:
        return error
    return None


@given(DATA)
def test_what_pyyaml_writes_is_read_back(data: object) -> None:
    text = yaml.safe_dump({"k": data})
    problem = problem_in(text)
    if problem is None:
        assert parse_yaml(text, "x.yaml").data == {"k": data}
    else:  # texts like 0o7, which PyYAML writes without quotes, and escaped control characters
        assert "some YAML loaders" in str(problem) or "control character" in str(problem)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    problem = problem_in(text)
    if problem is not None:
        assert str(problem).startswith("x.yaml:")
        assert "\n" not in str(problem)


TOP = "study_name: s\nmodel: {model_name_or_path: m}\ndata: {train: t}\n"
SWEEP = "sweep:\n  n_trials: 2\n  parameters:\n    r: {values: [4, 8]}\n"

HOSTILE = [
    # Code and object construction
    ("model: !!python/object/apply:os.system [echo]", 1, "model", "tags"),
    ("model: !!python/name:os.system", 1, "model", "tags"),
    ("a: 1\nmodel:\n  dtype: !!python/object/new:subprocess.Popen [ls]", 3, "model.dtype", "tags"),
    ("model: !!python/module:os", 1, "model", "tags"),
    ("model: !!binary aGVsbG8=", 1, "model", "tags"),
    ("model: !!str 1", 1, "model", "tags"),
    ("model: ! x", 1, "model", "tags"),
    ("model: !include /etc/passwd", 1, "model", "tags"),
    ("? !!python/object:x.Y a\n: 1", 1, "", "tags"),
    ("%TAG ! tag:yaml.org,2002:python/\n---\na: 1", 1, "", "directives"),
    ("%YAML 1.1\n---\na: 1", 1, "", "directives"),
    ("a: ${PATH}\n--- {b: 1}", 2, "", "more than one document"),
    # Aliases, anchors, merge keys, bombs
    ("a: &x 1\nb: *x", 1, "a", "anchors"),
    ("b: *x", 1, "b", "aliases"),
    ("a: &a [*a]", 1, "a", "anchors"),
    ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]", 1, "a", "anchors"),
    ("\n".join(f"{c}: &{c} [" + ",".join([f"*{p}"] * 9) + "]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)), 1, "b", "anchors"),
    ("<<: {a: 1}", 1, "", "merge"),
    ("lora:\n  <<: *base", 2, "lora", "merge"),
    ("&k key: 1", 1, "", "anchors"),
    # Depth and size
    ("a: " + "[" * 5000, 1, "a[0][0]", "levels deep"),
    ("[" * 400_000, 1, "[0]", "levels deep"),
    ("{a: " * 5000, 1, "a.a", "levels deep"),
    ("- " * 500_000, 1, "[0]", "levels deep"),
    ("[?" * 300_000, 1, "[0]", "a key must be text"),
    ("a: [" + "1," * 500_000 + "]", 1, "a[", "more than 2000 values"),
    ("".join(f"k{n}: 1\n" for n in range(90_000)), 2000, "k1999", "more than 2000 values"),
    ("# " + "x" * MAX_BYTES, None, "", "larger than"),
    ("a: " + "9" * 500_000, 1, "a", "64 bits"),
    ("a: 1e" + "9" * 500_000, 1, "a", "too large"),
    # Duplicates
    ("study_name: a\nstudy_name: b", 2, "study_name", "duplicate key; it stands on line 1"),
    ("lora:\n  r: 4\n  lora_dropout: 0.1\n  r: 8", 4, "lora.r", "line 2"),
    ("sweep:\n  parameters:\n    r: {values: [1], values: [2]}", 3, "sweep.parameters.r.values", "duplicate"),
    ('lora: {r: 1, "r": 2}', 1, "lora.r", "duplicate"),
    # Scalars that loaders read in different ways, and numbers that are none
    ("lora: {r: 010}", 1, "lora.r", "write 10 or '010'"),
    ("lora: {r: 0x10}", 1, "lora.r", "plain decimal digits"),
    ("lora: {r: 0o17}", 1, "lora.r", "plain decimal digits"),
    ("lora: {r: 0b11}", 1, "lora.r", "plain decimal digits"),
    ("lora: {r: 1_000}", 1, "lora.r", "plain decimal digits"),
    ("training:\n  learning_rate: .nan", 2, "training.learning_rate", "finite"),
    ("training:\n  learning_rate: -.inf", 2, "training.learning_rate", "finite"),
    ("training: {learning_rate: 1e999}", 1, "training.learning_rate", "too large"),
    ("lora: {r: 99999999999999999999}", 1, "lora.r", "64 bits"),
    # Keys
    ("1: a", 1, "", "a key must be text, but is 1"),
    ("true: a", 1, "", "a key must be text, but is true"),
    ("lora: {~: 1}", 1, "lora", "a key must be text"),
    ("? [a, b]\n: 1", 1, "", "a list or a mapping"),
    ("{a: 1}: 2", 1, "", "a list or a mapping"),
    # Bytes and syntax
    (b"a: 1\nb: \xff\xfe", 2, "", "not UTF-8"),
    ("a: 1\n".encode("utf-16"), 1, "", "not UTF-8"),
    ("a: 1\nb: x\0y", 2, "", "control character"),
    ("a: \x1b[31mred", 1, "", "control character"),
    ('a: "\\0"', 1, "a", "control character"),
    ('a: "\\ud800"', 1, "a", ""),
    ("lora:\n\tr: 1", 2, "lora", "use spaces"),
    ("lora: [1, 2", 1, "lora", "flow sequence"),
    ("a: 'x", 1, "a", "quoted scalar"),
    ("question: why: not", 1, "", "needs quotes"),
    ("a: @x", 1, "a", "cannot start any token"),
    ("a: 1\n b: 2", 2, "", "not valid YAML"),
    ("", 1, "", "is empty"),
    ("# nothing", 1, "", "is empty"),
    ("- a\n- b", 1, "", "mapping"),
    ("just text", 1, "", "mapping"),
    # Valid YAML, but no study
    (TOP + SWEEP + "import: os", 8, "import", "unknown key"),
    (TOP + SWEEP + "model_class: os.system", 8, "model_class", "unknown key"),
    (TOP.replace("m}", "m, trust_remote_code: true}") + SWEEP, 2, "model.trust_remote_code", "unknown key"),
    (TOP.replace("s\n", "../../etc\n") + SWEEP, 1, "study_name", "names a folder"),
    (TOP.replace("s\n", "-rf\n") + SWEEP, 1, "study_name", "names a folder"),
    (TOP.replace("s\n", '"<script>"\n') + SWEEP, 1, "study_name", "names a folder"),
    (TOP.replace("s\n", '"a\\nb"\n') + SWEEP, 1, "study_name", "names a folder"),
    (TOP.replace("s\n", "x" * 300 + "\n") + SWEEP, 1, "study_name", "names a folder"),
    (TOP + "sweep: /dev/zero", 4, "sweep", "not a regular file"),
    (TOP + "sweep: ..", 4, "sweep", "is a folder"),
    (TOP + "sweep: nowhere.yaml", 4, "sweep", "no such file"),
    (TOP + SWEEP.replace("r:", "os.system:"), 7, "sweep.parameters.os.system", "no key that can be searched"),
    (TOP + SWEEP.replace("[4, 8]", "[" + "0," * 1900 + "]"), 7, "sweep.parameters.r.values[0]", "at least 1"),
    (TOP + SWEEP.replace("[4, 8]", "[" + "null," * 1900 + "]"), 7, "sweep.parameters.r.values[0]", "is empty"),
    (TOP + SWEEP + "".join(f"key{n}: 1\n" for n in range(1900)), 8, "key0", "unknown key"),
]  # fmt: skip


@contextmanager
def few_calls() -> Iterator[None]:
    """Bounds the work of a block by the calls of functions in it, which no busy machine changes."""
    made = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal made
        made += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
        assert made < MOST_CALLS


@pytest.mark.parametrize(
    ("content", "line", "key", "reason"),
    HOSTILE,
    ids=[f"{n}-{case[2][:20]}-{case[3]}" for n, case in enumerate(HOSTILE)],
)
def test_hostile_files_are_refused_at_once_with_their_place(
    content: str | bytes, line: int | None, key: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StudyFileError) as refused, few_calls():
        load_study(path)
    assert refused.value.source == str(path)
    assert refused.value.line == line
    assert refused.value.key_path.startswith(key) if key else not refused.value.key_path.strip("[0]")
    assert reason in str(refused.value)
    assert str(refused.value).isprintable() or "\n" in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["a: [1, {b: 2e-1}]\nc: 'x'", "a: 1\na: 2", "a: &x 1", "a: !!str 1", "a: 010", "a: [1"]
)
def test_pyyaml_without_libyaml_reads_and_refuses_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_libyaml = problem_in(text)
    monkeypatch.setattr("lora_lab.study.file.yaml_source._LOADER", yaml.SafeLoader)
    without = problem_in(text)
    assert (with_libyaml is None) == (without is None)
    if without is None:
        assert parse_yaml(text, "x").data == {"a": [1, {"b": 0.2}], "c": "x"}
    elif with_libyaml is not None:
        assert (without.line, without.key_path) == (with_libyaml.line, with_libyaml.key_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.yaml", "no such file; its folder has there.yaml"),
        ("no/folder/x.yaml", "nor its folder"),
        (".", "is a folder"),
        ("x" * 300, "cannot be read"),
    ],
)
def test_a_path_that_is_no_file_says_so(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "there.yaml").touch()
    with pytest.raises(InputError, match=reason) as refused:
        load_study(tmp_path / name)
    assert not isinstance(refused.value, StudyFileError)
    assert str(tmp_path) in str(refused.value)


def test_a_null_byte_in_a_path_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"a\\x00b"):
        load_study(Path("a\0b"))


def test_errors_of_this_package_have_one_root() -> None:
    assert issubclass(StudyFileError, LoraLabError)
