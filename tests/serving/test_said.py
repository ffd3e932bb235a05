from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.serving.said import Said


def of_bytes(tokens) -> str:
    """A byte-level tokenizer: a character may take several tokens."""
    return bytes(tokens).decode(errors="replace")


def pieces(text: str, stop=()) -> tuple[list[str], bool]:
    said, given = Said(of_bytes, stop), []
    for token in text.encode():
        given.append(said.add(token))
        if said.stopped:
            break
    return [*given, said.rest()], said.stopped


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")),
    st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
)
def test_the_pieces_are_the_text_before_the_first_stop(text, stop):
    given, stopped = pieces(text, stop)
    cut = min((text.find(one) for one in stop if one in text), default=None)
    if cut is None:
        assert "".join(given) == text
        assert not stopped
    else:
        assert stopped
        assert text.startswith("".join(given))
        assert not any(one in "".join(given) for one in stop)


def test_a_character_is_given_when_it_is_whole():
    assert pieces("aé")[0] == ["a", "", "é", ""]


@pytest.mark.parametrize(("text", "given"), [("12END3", "12"), ("12EN3", "12EN3"), ("12EN", "12EN"), ("END", "")])
def test_what_may_become_a_stop_is_held_back(text, given):
    found, stopped = pieces(text, ["END"])
    assert "".join(found) == given
    assert stopped is ("END" in text)
    assert not any("E" in piece for piece in found[:3])
