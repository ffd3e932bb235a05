"""Rows of alpaca -> prompt and completion, in the words of the Hub's tatsu-lab/alpaca."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.data.bad_rows import BadField
from lora_lab.data.examples import Completion
from lora_lab.data.fields import from_json, shown, string

if TYPE_CHECKING:
    from lora_lab.data.readers import RawRow

SYSTEM = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
SYSTEM_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
INSTRUCTION = "\n\n### Instruction:\n"
INPUT = "\n\n### Input:\n"
RESPONSE = "\n\n### Response:\n"


def to_completion(row: RawRow) -> Completion:
    """The instruction, with its `input`, as the prompt, and the output as the completion.

    `system` takes the place of the first sentence; each [instruction, response] of `history` comes before the
    instruction in the same form, and is given, not learned.

    Raises:
        BadField: a field that is missing, or no text.
    """
    instruction = string(row.fields, "instruction", "instruction")
    context = "" if row.fields.get("input") is None else string(row.fields, "input", "input", may_be_empty=True)
    parts = [_system(row, SYSTEM_WITH_INPUT if context else SYSTEM)]
    parts += [f"{INSTRUCTION}{asked}{RESPONSE}{answer}" for asked, answer in _history(row)]
    parts += [INSTRUCTION, instruction]
    if context:
        parts += [INPUT, context]
    return Completion(
        prompt="".join([*parts, RESPONSE]), completion=string(row.fields, "output", "output"), place=row.place
    )


def _system(row: RawRow, default: str) -> str:
    if row.fields.get("system") is None:
        return default
    return string(row.fields, "system", "system", may_be_empty=True) or default


def _history(row: RawRow) -> list[tuple[str, str]]:
    turns: Any = from_json(row.fields.get("history")) or []
    if not isinstance(turns, list):
        raise BadField("history", f"must be a list of [instruction, response], but is {shown(turns)}; correct the row")
    pairs = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadField(
                f"history[{index}]", f"must be [instruction, response], but is {shown(turn)}; correct the row"
            )
        asked, answer = ({"": text} for text in turn)
        pairs.append((string(asked, "", f"history[{index}][0]"), string(answer, "", f"history[{index}][1]")))
    return pairs
