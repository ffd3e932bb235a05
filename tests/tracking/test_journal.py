from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_study import evaluated, logged, started, study_started, write_study

from lora_lab.common.errors import StorageError
from lora_lab.study.events import Evaluated, Finished, Logged
from lora_lab.tracking.journal import JOURNAL_NAME, Journal, journal_id, read
from lora_lab.tracking.records import Attached, TrialEnded


def records(folder):
    return [entry.record for entry, _ in read(folder)]


def test_what_is_appended_is_read_back_equal(folder):
    written = [
        study_started(),
        started(3),
        logged(3, 1),
        evaluated(3, 1),
        TrialEnded(number=3, state="complete", step=1, metrics={"eval_loss": 0.5}, adapter_folder=folder / "a"),
        Attached(number=None, path=Path("/elsewhere/report.html")),
    ]
    with Journal(folder) as journal:
        journal.append(*written)
    assert records(folder) == written


def test_a_journal_of_an_earlier_version_is_read(folder):
    """The end of a trial used to name its adapter's folder."""
    with Journal(folder) as journal:
        journal.append(started(0))
    line = {"kind": "Finished", "at_ms": 1, "number": 0, "step": 1, "epoch": 1.0, "metrics": {"eval_loss": 0.5}}
    with (folder / JOURNAL_NAME).open("a") as file:
        file.write(json.dumps({**line, "adapter_folder": "trials/0000/adapter"}) + "\n")
    assert records(folder) == [started(0), Finished(number=0, step=1, epoch=1.0, metrics={"eval_loss": 0.5})]


def test_offsets_continue_where_reading_stopped(folder):
    write_study(folder)
    everything = list(read(folder))
    for entry, offset in everything[:: len(everything) // 7]:
        rest = [later for later, _ in read(folder, offset)]
        assert rest == [later for later, _ in everything][everything.index((entry, offset)) + 1 :]


def test_a_folder_without_a_journal_has_no_entries(folder):
    assert records(folder) == []
    assert journal_id(folder) is None


def test_reopening_keeps_the_identity(folder):
    with Journal(folder):
        first = journal_id(folder)
    with Journal(folder):
        assert journal_id(folder) == first


@pytest.mark.parametrize("torn", [b'{"kind": "Logged", "num', b"\x00" * 100, b"{"])
def test_a_torn_last_line_is_ignored_then_cut(folder, torn):
    with Journal(folder) as journal:
        journal.append(started(0), logged(0, 1))
    with (folder / "events.jsonl").open("ab") as file:
        file.write(torn)
    assert records(folder) == [started(0), logged(0, 1)]
    with Journal(folder) as journal:
        journal.append(logged(0, 2))
    assert records(folder) == [started(0), logged(0, 1), logged(0, 2)]


def test_every_cut_of_the_file_can_be_continued(folder):
    with Journal(folder) as journal:
        journal.append(started(0), *(logged(0, step) for step in range(3)))
    whole = (folder / "events.jsonl").read_bytes()
    for length in range(0, len(whole), 5):
        (folder / "events.jsonl").write_bytes(whole[:length])
        with Journal(folder) as journal:
            journal.append(*(logged(0, step) for step in range(3)))
        assert [item.step for item in records(folder) if isinstance(item, Logged)] == [0, 1, 2]


def test_a_resumed_trial_has_every_step_once(folder):
    with Journal(folder) as journal:
        journal.append(started(0), *(logged(0, step) for step in range(1, 8)), evaluated(0, 4))
    with Journal(folder) as journal:
        journal.append(started(0))
        for step in range(4, 12):
            journal.append(logged(0, step), *([evaluated(0, step)] if step % 4 == 0 else []))
        journal.append(logged(1, 1))
    measured = [
        (item.number, type(item), item.step) for item in records(folder) if isinstance(item, (Logged, Evaluated))
    ]
    assert sorted(step for number, kind, step in measured if (number, kind) == (0, Logged)) == list(range(1, 12))
    assert [step for number, kind, step in measured if kind is Evaluated] == [4, 8]
    assert [step for number, _, step in measured if number == 1] == [1]


def test_not_a_number_survives(folder):
    with Journal(folder) as journal:
        journal.append(TrialEnded(number=0, state="diverged", metrics={"loss": math.nan, "grad_norm": math.inf}))
    metrics = records(folder)[0].metrics
    assert math.isnan(metrics["loss"])
    assert metrics["grad_norm"] == math.inf


def test_a_damaged_line_is_named_with_its_place(folder):
    with Journal(folder) as journal:
        journal.append(started(0))
    size = (folder / "events.jsonl").stat().st_size
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b"garbage\n")
    with pytest.raises(StorageError, match=rf"events.jsonl: the line at byte {size} .*delete it"):
        records(folder)
    with pytest.raises(StorageError):
        Journal(folder)


def test_a_folder_that_cannot_be_made_is_a_named_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot open .* for writing"):
        Journal(tmp_path / "file" / "study")


def test_a_full_disk_is_a_named_error_and_costs_nothing_that_was_written(folder):
    # The kernel refuses to let the file grow, in the middle of a line, as it does on a full disk.
    program = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from scripted_study import logged, started
from lora_lab.common.errors import StorageError
from lora_lab.study.events import Logged
from lora_lab.tracking.journal import Journal, read
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({str(folder)!r})
journal = Journal(folder)
journal.append(started(0), logged(0, 1))
size = (folder / "events.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
try:
    journal.append(logged(0, 2))
except StorageError as error:
    print(error)
assert (folder / "events.jsonl").stat().st_size == size
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append(logged(0, 2), logged(0, 3))
assert [entry.record.step for entry, _ in read(folder) if isinstance(entry.record, Logged)] == [1, 2, 3]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert "free some space" in done.stdout


def test_secrets_do_not_reach_the_file(folder, monkeypatch):
    monkeypatch.setenv("CANARY_API_KEY", "canary-value-123")
    reason = "no https://me:hunter22@host/x?token=abc123 with canary-value-123 and hf_abcdefghijklmnop"
    with Journal(folder) as journal:
        journal.append(TrialEnded(number=0, state="failed", reason=reason))
    text = (folder / "events.jsonl").read_text()
    for secret in ("hunter22", "abc123", "canary-value-123", "hf_abcdefghijklmnop"):
        assert secret not in text
    assert "no https://" in text


def test_importing_the_package_imports_no_mlflow():
    program = "import sys, lora_lab.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, env=dict(os.environ)).returncode == 0


def test_times_increase_even_when_the_clock_goes_back(folder):
    with Journal(folder) as journal:
        journal.append(started(0))
    path = folder / "events.jsonl"
    in_an_hour = next(entry.at_ms for entry, _ in read(folder)) + 3_600_000
    path.write_text(re.sub(r'"at_ms": \d+', f'"at_ms": {in_an_hour}', path.read_text()))
    with Journal(folder) as journal:
        journal.append(logged(0, 1))
        journal.append(logged(0, 2))
    assert [entry.at_ms - in_an_hour for entry, _ in read(folder)] == [0, 1, 2]
