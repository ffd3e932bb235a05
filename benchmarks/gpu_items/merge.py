"""Several calls on one kind of card as one: python -m gpu_items.merge OUTPUT.json FIRST.json SECOND.json ...

A cell that a later call measured takes the place of the earlier one. Times are compared within a call only: where
`Trainer` was measured anew at a length, the earlier call's cells of that length are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FACTS = ("began", "elapsed_s", "project")


def merged(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """The facts of the last call, all calls' items, and which call gave each cell (`call`, from 0)."""
    items: dict[str, Any] = {}
    for index, call in enumerate(calls):
        for item, found in call["items"].items():
            mine = items.setdefault(item, {"cells": {}})
            mine["order"] = list(dict.fromkeys([*mine.get("order", []), *found.get("order", [])]))
            again = {name.removesuffix("Trainer") for name in found["cells"] if name.endswith(" Trainer")}
            mine["cells"] = {n: line for n, line in mine["cells"].items() if not n.startswith(tuple(again))}
            mine["cells"] |= {name: line | {"call": index} for name, line in found["cells"].items()}
            mine["notes"] = [*mine.get("notes", []), *found.get("notes", [])]
            mine["not_run"] = [name for name in mine["order"] if name not in mine["cells"]]
    facts = {key: value for key, value in calls[-1].items() if key != "items"}
    return facts | {"calls": [{key: call[key] for key in FACTS} for call in calls], "items": items}


if __name__ == "__main__":
    output, *files = map(Path, sys.argv[1:])
    output.write_text(json.dumps(merged([json.loads(file.read_text()) for file in files]), indent=1) + "\n")
