"""That a study runs and where it is, on a line, in JSON, and in a file."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pytest
from analysis.simulated import trial
from rich.console import Console

from lora_lab.common.activity import TRAINING, Activity
from lora_lab.study.events import Logged
from lora_lab.terminal.display import Display, JsonView, PlainView
from lora_lab.terminal.heartbeat import StatusFile, heartbeat_line
from lora_lab.terminal.live import live_view
from lora_lab.terminal.messages import Heartbeat, SessionOver, StudyBegan, Tick, TrialBegan, TrialOver, Working
from lora_lab.terminal.progress import StudyProgress

CONFIG = trial(0, 4.0, r=16).config


class Clock:
    """A clock that goes on when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def training(clock: Clock) -> list:
    """Two trials on their way, told as they go on."""

    def tick(*steps: int) -> Tick:
        return Tick(812.4, "ok", {number: (step, 360) for number, step in enumerate(steps)})

    yield StudyBegan("rank_alpha", 24, 2, done=3)
    yield from (TrialBegan(number, CONFIG, "r=16") for number in range(2))
    yield Working(TRAINING)
    yield tick(0, 60)
    clock.now_s += 120
    yield Logged(number=0, step=120, epoch=1.0, loss=2.31, grad_norm=1.0, learning_rate=1e-3)
    yield tick(120, 180)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(clock):
    progress = StudyProgress(clock)
    for message in training(clock):
        progress.take(message)
    return progress


def test_a_line_has_steps_loss_speed_and_the_time_left_of_trials_and_study(progress):
    # A step of each trial takes a second. In 120 s, 240/360 of a trial were trained; 21 trials, less 300/360, are left.
    assert heartbeat_line(progress) == (
        "after 2 min 0 s: trial 0 step 120/360 loss 2.3100 (4 min 0 s left), trial 1 step 180/360 (3 min 0 s left); "
        "812 tokens/s; 3/24 trials done, about 1 h 0 min left"
    )


def test_a_resumed_trial_is_timed_by_what_this_session_trained(progress, clock):
    assert progress.running[1].gained == pytest.approx(120 / 360)
    assert progress.left_of_trial(progress.running[1]) == pytest.approx(180)


def test_other_work_is_told_with_its_parts(progress, clock):
    progress.take(Working(Activity("evaluation of trials 0, 1", 10, 80)))
    assert "; 3/24 trials done" in heartbeat_line(progress)
    assert "after 2 min 0 s: evaluation of trials 0, 1: 10/80 batches; 3/24" in heartbeat_line(progress)
    clock.now_s += 20
    progress.take(Working(Activity("evaluation of trials 0, 1", 30, 80)))
    said = "evaluation of trials 0, 1: 30/80 batches, about 50 s left"
    assert said in heartbeat_line(progress)
    stream = io.StringIO()
    Console(file=stream, width=80).print(live_view(progress))
    assert said in stream.getvalue()
    progress.take(Working(TRAINING))
    assert "trial 0 step 120/360" in heartbeat_line(progress)


def test_time_never_goes_back_and_loading_counts_for_no_estimate(clock):
    progress = StudyProgress(clock)
    progress.take(Working(Activity("loading base")))
    clock.now_s += 60
    assert heartbeat_line(progress).startswith("after 1 min 0 s: loading base")
    for message in training(clock):
        progress.take(message)
    assert heartbeat_line(progress).startswith("after 3 min 0 s: trial 0 step 120/360")
    assert heartbeat_line(progress).endswith("about 1 h 0 min left")


def test_no_time_is_left_to_tell_where_all_is_trained(progress, clock):
    for number in range(21):
        progress.take(TrialOver(number, "complete", 4.0))
    clock.now_s += 30
    progress.take(Working(Activity("writing the report")))
    assert heartbeat_line(progress) == "after 2 min 30 s: writing the report; 24/24 trials done"


@pytest.mark.parametrize("total", [10, None])
def test_work_whose_parts_are_all_done_has_no_time_left(progress, clock, total):
    progress.take(Working(Activity("evaluation of trials 0, 1", 5, total)))
    clock.now_s += 20
    progress.take(Working(Activity("evaluation of trials 0, 1", 10, total)))
    assert "left" not in heartbeat_line(progress).partition(";")[0]


def test_a_trial_at_its_last_step_has_no_time_left(progress):
    progress.take(Tick(812.4, "ok", {0: (360, 360), 1: (360, 360)}))
    assert "trial 0 step 360/360 loss 2.3100, trial 1 step 360/360;" in heartbeat_line(progress)
    assert "0.0 s" not in heartbeat_line(progress)


def test_of_a_large_pack_a_line_names_some_trials(progress):
    for number in range(2, 9):
        progress.take(TrialBegan(number, CONFIG, "r=16"))
    assert "trial 3 step 0, 5 more; 812 tokens/s" in heartbeat_line(progress)


def test_before_the_study_is_open_a_line_has_what_is_loaded(clock):
    progress = StudyProgress(clock)
    progress.take(Working(Activity("loading base")))
    clock.now_s += 45
    assert heartbeat_line(progress) == "after 45 s: loading base"


def test_a_study_that_is_asked_to_end_says_so(progress):
    progress.take(Heartbeat("stopping"))
    assert heartbeat_line(progress).startswith("after 2 min 0 s: stopping, trial 0 step 120/360")


@pytest.mark.parametrize(("quiet", "expected"), [(False, [30, 60, 90]), (True, [])])
def test_lines_come_every_thirty_seconds_whatever_runs(clock, quiet, expected):
    stream, said = io.StringIO(), []
    display = Display(PlainView(stream, quiet=quiet), clock)
    display.tell(Working(Activity("loading base")))
    for second in range(100):
        before = stream.getvalue()
        display.tell(Heartbeat())
        if stream.getvalue() != before:
            said.append(second)
        clock.now_s += 1
    assert said == expected


def test_programs_get_the_same_as_values(clock):
    stream = io.StringIO()
    display = Display(JsonView(stream), clock)
    for message in training(clock):
        display.tell(message)
    for _ in range(31):
        display.tell(Heartbeat())
        clock.now_s += 1
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    [heartbeat] = [one for one in told if one["event"] == "heartbeat"]
    assert "working" not in {one["event"] for one in told}
    assert heartbeat["doing"] == "training"
    assert heartbeat["trials"][0] == {
        "number": 0,
        "step": 120,
        "total_steps": 360,
        "loss": 2.31,
        "eval_loss": None,
        "left_s": pytest.approx(240 * 150 / 120),
    }
    assert heartbeat["since_last_step_s"] == 30
    assert (heartbeat["done"], heartbeat["total_trials"], heartbeat["state"]) == (3, 24, "running")


class TestStatusFile:
    @pytest.fixture
    def status(self, tmp_path, clock):
        def now() -> datetime:
            return datetime.fromtimestamp(clock.now_s, UTC)

        return StatusFile(tmp_path / "status.json", now)

    def test_a_process_that_lives_and_does_not_move_shows(self, status, clock, tmp_path):
        display = Display(status, clock)
        display.tell(Heartbeat())
        for message in training(clock):
            display.tell(message)
        clock.now_s += 600
        display.tell(Heartbeat())
        values = json.loads((tmp_path / "status.json").read_text())
        times = [datetime.fromisoformat(values[name]).timestamp() for name in ("last_step_at", "written_at")]
        assert times == [1120.0, 1720.0]
        assert values["trials"][1]["step"] == 180
        assert values["pid"] > 0
        assert values["host"]

    def test_it_is_written_every_few_seconds_and_at_the_end(self, status, clock, tmp_path):
        path, display, written = tmp_path / "status.json", Display(status, clock), []
        for second in range(6):
            path.unlink(missing_ok=True)
            display.tell(Heartbeat())
            if path.exists():
                written.append(second)
            clock.now_s += 1
        display.tell(TrialOver(0, "complete", 4.0))
        display.tell(SessionOver())
        assert written == [0, 2, 4]
        display.tell(Heartbeat("ended"))
        assert json.loads(path.read_text())["state"] == "ended"
        assert [file.name for file in tmp_path.iterdir()] == ["status.json"]

    def test_a_disk_that_cannot_be_written_ends_nothing(self, clock, tmp_path):
        (tmp_path / "file").write_text("")
        Display(StatusFile(tmp_path / "file" / "status.json"), clock).tell(Heartbeat())
