"""Rows with a class: which columns hold their texts, what may stand as a class, and which classes there are."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.data.bad_rows import BadField
from lora_lab.data.examples import Labeled
from lora_lab.data.fields import cut, shown, string
from lora_lab.data.readers import ClassName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from lora_lab.data.bad_rows import BadRows
    from lora_lab.data.readers import RawRow

PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
)
"""What the two texts of a row are called in GLUE and its kin, beside `text` and `text_pair`."""
NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?e[+-]?\d+)", re.IGNORECASE)
"""A number that is not whole, as CSV has it."""
MOST_LISTED = 10


def text_columns(names: Iterable[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Under which names the texts stand where the study does not say it: `{text: premise, text_pair: hypothesis}`."""
    present = set(names) - set(columns.values())
    if "text" in columns:
        return {}
    for text, pair in PAIRS:
        if {text, pair} <= present:
            return {"text": text, "text_pair": pair}
    return {} if "text" in present or "sentence" not in present else {"text": "sentence"}


def to_labeled(row: RawRow) -> Labeled:
    """The text of a row, the second one where there is one, and its class.

    Raises:
        BadField: a text that is missing or none, or what is no class.
    """
    texts = [string(row.fields, "text", "text")]
    if row.fields.get("text_pair") is not None:
        texts.append(string(row.fields, "text_pair", "text_pair"))
    return Labeled(tuple(texts), _class(row.fields), place=row.place)


def _class(fields: Mapping[str, Any]) -> str:
    value = fields.get("label")
    if value is None:
        raise BadField("label", f"{'is null' if 'label' in fields else 'is missing'}; add a class, or delete the row")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        if value < 0:
            raise BadField("label", f"is {value}, which stands for no class in test splits; take a split with classes")
        return str(value)
    if isinstance(value, str):
        name = string(fields, "label", "label")
        if not NUMBER.fullmatch(name.strip()):
            return name
    raise BadField(
        "label",
        f"must be a class, an integer or a string, but is {shown(value)} ({type(value).__name__}); numbers are not "
        "learned as such (regression): name the classes",
    )


def class_names(labels: Sequence[str], source: str) -> tuple[str, ...]:
    """The classes of training rows: in the order that the data declare, else sorted, numbers by their value.

    Raises:
        InputError: there is only one.
    """
    declared = {label.names for label in labels if isinstance(label, ClassName)}
    counts = Counter(labels)
    if len(counts) == 1:
        raise InputError(
            f"{source}: label: must have two classes or more, but all {len(labels)} rows are {cut(labels[0])}; add "
            "rows of another class"
        )
    if len(declared) == 1 and counts.keys() <= set(names := declared.pop()):
        return names
    if all(label.isdecimal() for label in counts):
        return tuple(sorted(map(str, counts), key=int))
    return tuple(sorted(map(str, counts)))


def known_only(examples: Sequence[Labeled], names: Sequence[str], bad: BadRows) -> list[Labeled]:
    """The examples whose class is one of `names`; the others go into `bad`."""
    known = set(names)
    listed = ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")
    for example in examples:
        if example.label not in known:
            bad.add(
                example.place,
                f"label: {cut(example.label)} is none of the {len(names)} classes of the training rows ({listed}); "
                "correct it, or give model.labels",
            )
    return [example for example in examples if example.label in known]
