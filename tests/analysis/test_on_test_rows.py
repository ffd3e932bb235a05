"""What is said of the best and the recommended configuration on rows that chose nothing."""

from __future__ import annotations

from analysis.simulated import BASE_LOSS, trial

from lora_lab.analysis.on_test_rows import on_test_rows
from lora_lab.analysis.verdict import decide

LOSSES = {8: (4.010, 4.012, 4.011), 64: (4.000, 4.002, 4.001)}


def trials(shift: dict[int, float] | None = None):
    """Three seeds of two ranks; on the test rows each rank's loss is higher by its `shift`."""
    found = []
    for r, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            metrics = {} if shift is None else {"test_eval_loss": loss + shift[r]}
            found.append(trial(len(found), loss, r=r, seed=seed, metrics=metrics))
    return found


def test_both_choices_are_told_with_what_chose_them() -> None:
    ran = trials({8: 0.02, 64: 0.05})
    findings = decide(ran, BASE_LOSS, 0.025)
    assert findings.cheapest.config.lora.r == 8
    assert on_test_rows(ran, findings, {"eval_loss": BASE_LOSS, "test_eval_loss": 5.1}) == (
        "eval_loss on rows that chose nothing (data.test): trial 3, the best, has 4.0510 nats per token (95% interval "
        "4.0494 to 4.0526; 4.0010 on the rows that chose it), trial 0, the recommended one, has 4.0310 (95% interval "
        "4.0294 to 4.0326; 4.0110 on the rows that chose it); the bare base has 5.1000."
    )


def test_one_that_is_both_is_told_once() -> None:
    ran = trials({8: 0.02, 64: 0.05})
    findings = decide(ran, BASE_LOSS, 0.0001)
    told = on_test_rows(ran, findings, {})
    assert findings.cheapest is findings.best
    assert told is not None
    assert told.count("trial ") == 1
    assert "bare base" not in told


def test_without_test_rows_nothing_is_said() -> None:
    ran = trials()
    assert on_test_rows(ran, decide(ran, BASE_LOSS, 0.025), {"eval_loss": BASE_LOSS}) is None
