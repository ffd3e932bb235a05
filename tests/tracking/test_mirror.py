from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import scripted_study
from scripted_study import (
    assert_mirrored,
    evaluated,
    logged,
    points_in_mlflow,
    runs_in_mlflow,
    started,
    study_started,
    write_first_half,
    write_second_half,
    write_study,
)

from lora_lab.tracking import mirror
from lora_lab.tracking.address import ui_command, ui_environment
from lora_lab.tracking.journal import Journal
from lora_lab.tracking.mirror import MlflowMirror, catch_up
from lora_lab.tracking.records import Attached, Measured, StudyEnded, TrialEnded


@pytest.fixture
def dead_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(mirror, "FIRST_DELAY_S", 0.1)
    monkeypatch.setattr(mirror, "LONGEST_DELAY_S", 0.5)
    monkeypatch.setattr(mirror, "POLL_S", 0.05)


def wait_for(condition, timeout_s=240.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_study_is_mirrored_exactly(folder, database_uri, client, tmp_path):
    write_study(folder)
    assert catch_up(folder, database_uri) is None
    assert_mirrored(client, folder)
    parent, children = runs_in_mlflow(client, "rank_alpha")
    assert parent.data.params == {"model_name_or_path": "builtin/tiny-llama"}
    assert parent.data.tags["mlflow.note.content"] == "Which rank?"
    assert parent.data.tags["lora_lab.best_trial"] == "0"
    assert [item.dataset.name for item in parent.inputs.dataset_inputs] == ["stdlib-code"]
    assert [item.path for item in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    adapter = client.list_artifacts(children[0].info.run_id, "adapter")
    assert [item.path for item in adapter] == ["adapter/adapter_config.json"]
    assert (tmp_path / "mlartifacts" / "rank_alpha").is_dir()
    assert children[1].data.tags["lora_lab.reason"] == "asha"


def test_a_mirror_follows_while_the_study_runs(folder, database_uri, client, quick):
    with Journal(folder) as journal:
        follower = MlflowMirror(folder, database_uri)
        follower.start()
        assert follower.status.startswith("behind")
        write_first_half(journal)
        wait_for(lambda: follower.status == "ok")
        _, children = runs_in_mlflow(client, "rank_alpha")
        assert children[0].info.status == "RUNNING"
        write_second_half(journal)
        assert follower.close() is None
    assert_mirrored(client, folder)


def test_sending_everything_again_changes_nothing(folder, database_uri, client):
    write_study(folder)
    for _ in range(2):
        assert catch_up(folder, database_uri) is None
        (folder / "mlflow.cursor").unlink()
    assert catch_up(folder, database_uri) is None
    assert_mirrored(client, folder)


def test_a_resumed_study_continues_its_runs(folder, database_uri, client):
    with Journal(folder) as journal:
        write_first_half(journal)
        journal.append(StudyEnded(state="interrupted"))
    assert catch_up(folder, database_uri) is None
    before, _ = runs_in_mlflow(client, "rank_alpha")
    assert before.info.status == "KILLED"
    with Journal(folder) as journal:
        journal.append(study_started(), started(0), *(logged(0, step) for step in range(4, 8)))
        assert catch_up(folder, database_uri) is None
        after, children = runs_in_mlflow(client, "rank_alpha")
        assert (after.info.run_id, after.info.status) == (before.info.run_id, "RUNNING")
        assert children[0].info.status == "RUNNING"
        write_second_half(journal)
    assert catch_up(folder, database_uri) is None
    assert_mirrored(client, folder)


def test_a_trial_that_ended_and_is_told_again_has_no_double_points(folder, database_uri, client):
    ended = TrialEnded(number=0, state="complete", step=1, metrics={"trainable_params": 64, "eval_loss": 0.5})
    for _ in range(2):
        with Journal(folder) as journal:
            journal.append(study_started(), started(0), logged(0, 1), ended)
        assert catch_up(folder, database_uri) is None
        time.sleep(0.002)
    _, children = runs_in_mlflow(client, "rank_alpha")
    points = points_in_mlflow(client, children[0])
    assert (points["trainable_params"], points["eval_loss"]) == ([(0, 64.0)], [(1, 0.5)])


def test_a_lost_store_is_filled_again(folder, database_uri, client, migrated_database, tmp_path):
    from mlflow import MlflowClient

    write_study(folder)
    assert catch_up(folder, database_uri) is None
    (tmp_path / "other.db").write_bytes(migrated_database.read_bytes())
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert catch_up(folder, other) is None
    assert_mirrored(MlflowClient(other), folder)
    assert catch_up(folder, database_uri) is None
    assert_mirrored(client, folder)


def test_a_deleted_experiment_is_restored(folder, database_uri, client):
    deleted = client.create_experiment("rank_alpha")
    client.delete_experiment(deleted)
    write_study(folder)
    assert catch_up(folder, database_uri) is None
    assert_mirrored(client, folder)


def test_a_deleted_run_with_news_is_restored(folder, database_uri, client):
    with Journal(folder) as journal:
        write_first_half(journal)
        assert catch_up(folder, database_uri) is None
        _, children = runs_in_mlflow(client, "rank_alpha")
        client.delete_run(children[0].info.run_id)
        write_second_half(journal)
    assert catch_up(folder, database_uri) is None
    assert_mirrored(client, folder)


def test_long_curves_go_in_calls_within_the_limits(folder, database_uri, client):
    with Journal(folder) as journal:
        journal.append(study_started(), started(0), *(logged(0, step) for step in range(3000)))
        journal.append(*(evaluated(0, step) for step in range(0, 3000, 100)))
    assert catch_up(folder, database_uri) is None
    _, children = runs_in_mlflow(client, "rank_alpha")
    points = points_in_mlflow(client, children[0])
    assert [step for step, _ in points["loss"]] == list(range(3000))
    assert len(points["eval_loss"]) == 30


def test_hostile_names_and_long_values_do_not_stop_the_mirror(folder, database_uri, client):
    with Journal(folder) as journal:
        journal.append(study_started())
        hostile = TrialEnded(number=0, state="failed", reason="<script>\n" * 5000, metrics={"a:b<c>": 1.0})
        journal.append(started(0), hostile, Attached(number=0, path=folder / "gone"))
    assert catch_up(folder, database_uri) is None
    _, children = runs_in_mlflow(client, "rank_alpha")
    assert children[0].data.metrics == {"a_b_c_": 1.0}
    assert children[0].data.tags["lora_lab.reason"].startswith("<script>")


def test_without_mlflow_nothing_waits_and_nothing_is_lost(folder, database_uri, client, dead_port, quick):
    with Journal(folder) as journal:
        follower = MlflowMirror(folder, f"http://user:hunter22@127.0.0.1:{dead_port}")
        follower.start()
        for step in range(1000):
            journal.append(logged(9, step))
        wait_for(lambda: "1000 events (" in follower.status and "starting" not in follower.status)
        note = follower.close(timeout_s=10)
    assert not (folder / "mlflow.cursor").exists()
    assert "lacks 1000 events" in note
    assert "the next sweep or ui command" in note
    assert "\n" not in note
    assert "hunter22" not in note + follower.status
    assert catch_up(folder, database_uri) is None
    _, children = runs_in_mlflow(client, "rank_alpha")
    assert len(client.get_metric_history(children[9].info.run_id, "loss")) == 1000


def test_only_one_process_sends_at_a_time(folder, database_uri, client, quick):
    with Journal(folder) as journal:
        follower = MlflowMirror(folder, database_uri)
        follower.start()
        write_first_half(journal)
        wait_for(lambda: follower.status == "ok")
        write_second_half(journal)
        other = MlflowMirror(folder, database_uri)
        other.start()
        wait_for(lambda: "another process" in other.status)
        assert follower.close() is None
        assert other.close() is None
    assert_mirrored(client, folder)


@pytest.mark.slow
def test_kill_minus_nine_at_every_kind_of_call(folder, migrated_database, tmp_path):
    from mlflow import MlflowClient

    places = ["create_run|1", "create_run|3", "log_batch|4", "log_batch|11", "set_terminated|1"]
    places += ["update_run|1", "log_inputs|1", "log_artifacts|1", "_save_cursor|1", "_save_cursor|4"]
    studies = []
    for index, place in enumerate(places):
        study = tmp_path / str(index) / "rank_alpha"
        write_study(study)
        (study.parent / "mlflow.db").write_bytes(migrated_database.read_bytes())
        studies.append((study, f"sqlite:///{study.parent / 'mlflow.db'}", place))
    program = [
        sys.executable,
        scripted_study.__file__,
        *(f"{study}|{uri}|{place}" for study, uri, place in studies),
    ]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    killed = [line for line in done.stdout.splitlines() if line.endswith(" -9")]
    assert len(killed) >= len(places) - 1, done.stdout  # update_run is called for a resumed study only
    for study, uri, _ in studies:
        assert catch_up(study, uri) is None
        assert_mirrored(MlflowClient(uri), study)


def command_lines_of(session: int) -> list[str]:
    """What everybody on this machine sees of the processes of a session."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(process.name)) == session:
                lines.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    assert any("mlflow" in line for line in lines)
    return lines


@pytest.mark.slow
def test_a_server_that_comes_back_gets_everything_and_shows_it(folder, database_uri, client, dead_port, quick):
    write_study(folder)
    follower = MlflowMirror(folder, f"http://127.0.0.1:{dead_port}")
    follower.start()
    wait_for(lambda: "(" in follower.status and "starting" not in follower.status)
    server = subprocess.Popen(
        ui_command(dead_port),
        cwd=Path(folder).parent,
        env=os.environ | ui_environment(database_uri),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: follower.status == "ok")
        assert follower.close() is None
        assert_mirrored(client, folder)
        assert not [line for line in command_lines_of(server.pid) if database_uri in line]
        _, children = runs_in_mlflow(client, "rank_alpha")
        address = f"http://127.0.0.1:{dead_port}/get-artifact?run_uuid={children[0].info.run_id}"
        with urllib.request.urlopen(f"{address}&path=adapter/adapter_config.json") as answer:
            assert answer.read() == b"{}"
    finally:
        server.terminate()
        server.wait(120)


@pytest.mark.slow
def test_the_terminal_shows_nothing_but_the_note(folder, tmp_path, dead_port):
    write_study(folder)
    program = (
        "import sys; from pathlib import Path; from lora_lab.tracking.mirror import catch_up; "
        "[print(catch_up(Path(sys.argv[1]), uri)) for uri in sys.argv[2:]]"
    )
    uris = [f"http://127.0.0.1:{dead_port}", f"sqlite:///{tmp_path / 'new.db'}"]
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *uris],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    note, nothing = done.stdout.splitlines()
    assert note.startswith(f"MLflow at {uris[0]} lacks ")
    assert (nothing, done.stderr) == ("None", "")


def test_a_process_may_end_while_mlflow_is_still_starting(folder, tmp_path):
    write_study(folder)
    program = (
        "import sys; from pathlib import Path; from lora_lab.tracking.mirror import catch_up; "
        "print(catch_up(Path(sys.argv[1]), sys.argv[2], timeout_s=0.3))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), f"sqlite:///{tmp_path / 'new.db'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "MLflow is starting" in done.stdout
    assert done.stderr == ""


def test_what_is_measured_after_training_comes_to_the_trial_and_of_the_base_to_the_study(folder, database_uri, client):
    write_study(folder)
    with Journal(folder) as journal:
        journal.append(
            Measured(number=0, metrics={"mmlu/acc": 0.5, "mmlu/acc_stderr": 0.01}),
            Measured(number=None, metrics={"base/mmlu/acc": 0.25}),
        )
    assert catch_up(folder, database_uri) is None
    parent, children = runs_in_mlflow(client, "rank_alpha")
    assert {key: children[0].data.metrics[key] for key in ("mmlu/acc", "mmlu/acc_stderr")} == {
        "mmlu/acc": 0.5,
        "mmlu/acc_stderr": 0.01,
    }
    assert parent.data.metrics["base/mmlu/acc"] == 0.25
    assert children[0].info.status == "FINISHED"
