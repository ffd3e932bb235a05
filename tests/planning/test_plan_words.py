"""What a plan says in words, without planning anything."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from lora_lab.planning.calibration import Calibration
from lora_lab.planning.plan import Adapter, EngineUse, Memory, Plan, Work
from lora_lab.planning.planner import _space_text
from lora_lab.study.spec import StudySpec
from lora_lab.terminal.plan_text import print_plan

TERMS = {
    name: 2**20 * size
    for name, size in (
        *(("base", 513), ("quantization", 0), ("adapters", 6), ("gradients", 6)),
        *(("optimizer", 12), ("activations", 4000), ("logits", 180)),
    )
}
WORK = Work(36, (1e13, 1.9e13), 6e13, None, None)


def adapter(r: int, targets: str = "all-linear", layers: str = "all") -> Adapter:
    return Adapter(r, targets, layers, 305_280 * r, 0.226 * r, ("attention: q_proj",), ("head: lm_head",))


def memory(r: int = 8, **changes) -> Memory:
    made = Memory("none", r, "all-linear", "all", 8, 512, "", "packed", 5 * 2**30, TERMS, None, None)
    return replace(made, **changes)


def plan(**changes) -> Plan:
    made = Plan(
        *("walk", "Which rank?", "base", 134_515_008, "a CPU", None, None, "grid", "none", 4),
        is_exact=True,
        duplicates=0,
        shared=0,
        trained=4,
        retrainings=0,
        space={"r": "4, 8"},
        trajectory=None,
        pack_size="4",
        packs=1,
        engines=(EngineUse("packed", "A and B alone are trained", 2),),
        adapters=(adapter(4), adapter(8)),
        memory=(memory(4), memory(8)),
        work=WORK,
        notes=(),
    )
    return replace(made, **changes)


def said(made: Plan, width: int = 80, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    print_plan(made, Console(file=stream, width=width, force_terminal=terminal, color_system=None, highlight=False))
    return stream.getvalue()


def line_of(text: str, label: str) -> str:
    return next(line.removeprefix(label).strip() for line in text.splitlines() if line.startswith(label))


def test_conditions_are_told_in_words():
    parameters = {
        "r": {"values": [4, 8]},
        "lora_dropout": {"values": [0.0, 0.05], "when": {"r": {"min": 8}}},
        "use_rslora": {"values": [False, True], "when": {"r": {"min": 4, "max": 8}}},
        "lora_alpha": {"values": [8, 16], "when": {"r": {"values": [4, 8]}}},
    }
    spec = StudySpec.model_validate(
        {
            "study_name": "told",
            "model": {"model_name_or_path": "nowhere"},
            "data": {"train": "nowhere.jsonl"},
            "sweep": {"sampler": "grid", "pruner": "none", "parameters": parameters},
        }
    )
    assert _space_text(spec, "lora_dropout") == "0, 0.05 (when r at least 8)"
    assert _space_text(spec, "use_rslora") == "false, true (when r at least 4 and at most 8)"
    assert _space_text(spec, "lora_alpha") == "8, 16 (when r in 4, 8)"


KINDS = {
    "ranks": [memory(r) for r in (4, 8)],
    "quantization": [memory(quantization=one) for one in ("none", "nf4", "nf4+double", "int8")],
    "layers and targets": [
        memory(layers=layers, target_modules=targets)
        for layers in ("all", "last_half", "0,2,4,6,… (12)")
        for targets in ("all-linear", "mlp", "q_proj,k_proj,v_proj,o_proj,… (7)")
    ],
    "everything": [
        memory(r, quantization="nf4+double", layers=layers, other=other, rows=rows)
        for r in (4, 256)
        for layers in ("all", "first_half")
        for rows in (1, 16)
        for other in ("gradient_checkpointing=true, optimizer=adamw_8bit", "lora_dropout=0.05")
    ],
    "reference": [memory(engine="reference", predicted_bytes=None, terms=None), memory()],
}


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_fit_a_narrow_terminal_and_cut_nothing(kind, width, limited):
    rows = [replace(row, fits=True, at_once=12) if limited else row for row in KINDS[kind]]
    text = said(plan(memory=tuple(rows), limit_bytes=2**34 if limited else None), width, terminal=True)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace(",… (12)", "").replace(",… (7)", "")
    for row in rows:
        for part in (f"r={row.r}", *row.other.split(", ")):
            assert part in text


def test_what_all_rows_share_is_said_once():
    text = said(plan())
    assert text.count("8 x 512 tokens") == 1
    assert "all of these: no quantization, all-linear, all layers, 8 x 512 tokens" in text


def test_of_many_ranks_the_ends_are_shown_and_what_does_not_fit():
    ranks = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    rows = [memory(r, target_modules=targets, fits=r < 128) for targets in ("mlp", "attention") for r in ranks]
    text = said(plan(memory=tuple(rows), limit_bytes=2**34))
    shown = [line for line in text[text.index("Memory of") :].splitlines() if "r=" in line and "GiB" in line]
    assert len(shown) == 6
    assert {r for r in ranks if any(f"r={r} " in line for line in shown)} == {1, 128, 256}
    assert "only the lowest and the highest rank of each kind are shown" in text


def test_counts_of_nothing_are_not_told():
    assert line_of(said(plan()), "trials") == "4 configurations of the grid: all trained"
    some = plan(shared=1, trained=3, retrainings=1)
    assert line_of(said(some), "trials") == (
        "4 configurations of the grid: 1 read off longer runs, 3 trained; 1 retraining of the best"
    )


def test_engines_are_told_by_their_share():
    assert line_of(said(plan()), "engine") == "packed: A and B alone are trained (all trials)"
    two = plan(engines=(EngineUse("packed", "so", 3), EngineUse("reference", "because", 1)))
    assert line_of(said(two), "engine") == "packed: so (3 of 4 kinds of trials)"


TIMED = Calibration(600.0, 500.0, 700.0, 500.0, 60.0, 40.0, 4, 800.0, 12, 30)


@pytest.mark.parametrize(
    ("work", "timed", "ending"),
    [
        (WORK, None, "of 36 full rows; --calibrate times some steps and tells how long that takes"),
        (replace(WORK, examples=1), TIMED, "of 1 full row"),
        (replace(WORK, seconds=90.0, tokens_per_second=812.0), None, "1 min 30 s at the 812 tokens/s of this study's"),
        (Work(None, None, None, None, None, "x.jsonl is no file"), None, "unknown: x.jsonl is no file; --calibrate"),
        (Work(None, None, None, None, None, "x.jsonl is no file"), TIMED, "unknown: x.jsonl is no file"),
    ],
)
def test_work_has_a_next_step_where_its_time_is_not_known(work, timed, ending):
    line = line_of(said(plan(work=work, calibration=timed)), "work")
    assert ending in line
    assert ("--calibrate" in line) == (timed is None and work.seconds is None)
