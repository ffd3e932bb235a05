from __future__ import annotations

import io
import json
import math

import pytest
from analysis.simulated import BASE_LOSS, results, trial
from rich.console import Console

from lora_lab.analysis.verdict import decide
from lora_lab.analysis.wording import config_label
from lora_lab.study.events import Evaluated, Finished, Logged
from lora_lab.terminal.display import Display, JsonView, PlainView, choose_display
from lora_lab.terminal.end_table import end_table
from lora_lab.terminal.live import LiveView, live_view
from lora_lab.terminal.messages import Note, RetrainingsPlanned, SessionOver, StudyBegan, Tick, TrialBegan, TrialOver
from lora_lab.terminal.progress import RunningTrial, StudyProgress


class Clock:
    """A clock that goes on when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


CONFIG = trial(0, 4.0, r=16, alpha_ratio=2.0, learning_rate=1e-3).config
LABEL = config_label(CONFIG, ())


def logged(number: int, step: int, epoch: float = 0.5) -> Logged:
    return Logged(number=number, step=step, epoch=epoch, loss=4.2, grad_norm=1.0, learning_rate=1e-3)


def evaluated(number: int, loss: float, evaluation: int = 1) -> Evaluated:
    return Evaluated(number=number, step=64, epoch=float(evaluation), evaluation=evaluation, eval_loss=loss)


def play(display: Display) -> None:
    """A small study: one trial completes, one diverges."""
    display.tell(StudyBegan("rank_alpha", 2, 2))
    display.tell(TrialBegan(0, CONFIG, LABEL))
    display.tell(TrialBegan(1, CONFIG, LABEL))
    for step in range(1, 51):
        display.tell(logged(0, step))
    display.tell(Tick(5200.0, "MLflow: ok"))
    display.tell(evaluated(0, 4.05))
    display.tell(Finished(number=0, step=64, epoch=1.0, metrics={"eval_loss": 4.05}))
    display.tell(TrialOver(0, "complete", 4.05))
    display.tell(TrialOver(1, "diverged", None, "loss is nan\nat step 3\x1b[31m"))
    display.tell(Note("write the report with: lora-lab report x.yaml"))
    display.tell(SessionOver())
    display.tell(SessionOver())


def text_of(renderable: object, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, height=40).print(renderable)
    return stream.getvalue()


def test_plain_lines_have_no_noise_per_step() -> None:
    stream = io.StringIO()
    play(Display(PlainView(stream), Clock()))

    assert stream.getvalue().splitlines() == [
        "rank_alpha: 2 trials, 2 at a time",
        "trial 0 started: r=16 alpha=32 all-linear, 3 epochs, lr 1e-3",
        "trial 1 started: r=16 alpha=32 all-linear, 3 epochs, lr 1e-3",
        "trial 0 epoch 1: eval_loss 4.0500",
        "[1/2] trial 0 complete, eval_loss 4.0500",
        "[2/2] trial 1 diverged: loss is nan at step 3 [31m",
        "write the report with: lora-lab report x.yaml",
        "rank_alpha: 2/2 trials (1 complete, 1 diverged); best trial 0: eval_loss 4.0500; 0.0 s",
    ]


def test_retrainings_are_counted_on_and_are_not_the_best_of_the_search() -> None:
    plain, lines, live = io.StringIO(), io.StringIO(), Terminal()
    displays = [
        Display(PlainView(plain), Clock()),
        Display(JsonView(lines), Clock()),
        Display(LiveView(Console(file=live, force_terminal=True, width=80, height=30))),
    ]
    for display in displays:
        display.tell(StudyBegan("rank_alpha", 1, 2))
        display.tell(TrialBegan(0, CONFIG, LABEL))
        display.tell(TrialOver(0, "complete", 4.05))
        display.tell(RetrainingsPlanned((0,), 2))
        for number in (1, 2):
            display.tell(TrialBegan(number, CONFIG, LABEL, is_retraining=True))
            display.tell(TrialOver(number, "complete", 4.0))
        display.tell(SessionOver())

    said = plain.getvalue().splitlines()
    assert said[3] == "search done; 2 retrainings of trial 0 with fresh seeds"
    assert said[-2].startswith("[3/3] trial 2 complete")
    assert said[-1] == "rank_alpha: 3/3 trials (3 complete); best trial 0: eval_loss 4.0500; 0.0 s"
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert {"event": "retraining", "numbers": [0], "count": 2} in told
    assert told[-1]["best_trial"] == 0
    assert said[3] in live.getvalue()
    assert "3/3 done" in live.getvalue()


def test_quiet_prints_nothing_but_the_end() -> None:
    plain, lines = io.StringIO(), io.StringIO()
    play(Display(PlainView(plain, quiet=True), Clock()))
    play(Display(JsonView(lines, quiet=True), Clock()))

    assert plain.getvalue().count("\n") == 1
    assert plain.getvalue().startswith("rank_alpha: 2/2 trials")
    assert json.loads(lines.getvalue())["event"] == "stopped"


def test_every_json_line_is_an_object_of_strict_json() -> None:
    stream = io.StringIO()
    display = Display(JsonView(stream), Clock())
    play(display)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]

    assert [line["event"] for line in lines[:3]] == ["started", "trial_started", "trial_started"]
    assert sum(line["event"] == "logged" for line in lines) == 50
    assert lines[1]["config"]["lora"]["r"] == 16
    (finished,) = [line for line in lines if line["event"] == "finished"]
    assert finished["metrics"] == {"eval_loss": 4.05}
    assert lines[-1]["states"] == {"complete": 1, "diverged": 1}
    assert lines[-1]["best_trial"] == 0


def test_a_loss_that_is_not_finite_is_null_in_json() -> None:
    stream = io.StringIO()
    Display(JsonView(stream)).tell(evaluated(3, math.nan))

    assert json.loads(stream.getvalue())["eval_loss"] is None


def test_a_reader_that_went_away_does_not_stop_the_study() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    play(Display(PlainView(Closed())))
    play(Display(JsonView(Closed())))


def test_characters_that_the_stream_lacks_are_replaced() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Display(PlainView(stream)).tell(Note("5.0 ± 0.1"))

    assert raw.getvalue() == b"5.0 ? 0.1\n"


def test_resuming_counts_what_was_done_before() -> None:
    stream = io.StringIO()
    display = Display(PlainView(stream), Clock())
    display.tell(StudyBegan("rank_alpha", 10, 2, done=4))
    display.tell(TrialOver(4, "pruned", 4.5, "rung 1"))

    assert stream.getvalue().splitlines() == [
        "rank_alpha: 10 trials, 4 done before, 2 at a time",
        "[5/10] trial 4 pruned, eval_loss 4.5000: rung 1",
    ]


def test_the_display_fits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    assert isinstance(choose_display(quiet=False, json=False, stream=Terminal())._views[0], LiveView)
    assert isinstance(choose_display(quiet=False, json=False, stream=io.StringIO())._views[0], PlainView)
    assert isinstance(choose_display(quiet=True, json=False, stream=Terminal())._views[0], PlainView)
    assert isinstance(choose_display(quiet=False, json=True, stream=Terminal())._views[0], JsonView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(quiet=False, json=False, stream=Terminal())._views[0], PlainView)


def test_the_live_display_draws_and_leaves_lost_trials_above_the_view() -> None:
    stream = Terminal()
    play(Display(LiveView(Console(file=stream, force_terminal=True, width=80, height=30))))

    drawn = stream.getvalue()
    assert "trial 1 diverged: loss is nan at step 3 [31m" in drawn
    assert "\x1b[31m\n" not in drawn
    assert "2/2 done" in drawn
    assert "MLflow: ok" in drawn
    assert "write the report with" in drawn


def test_the_live_view_fits_80_columns_and_shows_every_slot() -> None:
    progress = StudyProgress(Clock())
    progress.take(StudyBegan("rank_alpha", 32, 8, done=0))
    for result in results()[:8]:
        progress.take(TrialBegan(result.number, result.config, LABEL))
        progress.take(logged(result.number, 40, 1.5))
        progress.take(evaluated(result.number, 4.0 + result.number / 100))
    progress.take(Tick(5233.0, "MLflow: behind: 12 events"))
    lines = text_of(live_view(progress)).splitlines()

    assert max(map(len, lines)) <= 80
    assert "0/32 done, 8/8 running" in lines[0]
    assert "5,233 tokens/s" in lines[1]
    assert [line.split()[0] for line in lines[3:11]] == [str(number) for number in range(8)]
    assert lines[3].rstrip().endswith("best")
    assert lines[4].rstrip().endswith("+0.010")
    assert lines[-1].rstrip() == "MLflow: behind: 12 events"


def test_slots_beyond_the_terminal_are_counted() -> None:
    progress = StudyProgress(Clock())
    progress.take(StudyBegan("rank_alpha", 64, 64, done=0))
    for number in range(64):
        progress.take(TrialBegan(number, CONFIG, LABEL))

    lines = text_of(live_view(progress, height=20)).splitlines()

    assert len(lines) <= 20
    assert "and 52 more" in lines[-1]


def test_hostile_names_are_no_markup_in_the_terminal() -> None:
    progress = StudyProgress(Clock())
    progress.take(StudyBegan("rank_alpha", 1, 1, done=0))
    progress.take(TrialBegan(0, trial(0, 4.0, target_modules="[red]x[/red]").config, LABEL))

    assert "[red]x" in text_of(live_view(progress))


def test_the_time_left_comes_from_finished_work() -> None:
    clock = Clock()
    progress = StudyProgress(clock)
    progress.take(StudyBegan("rank_alpha", 14, 2, done=4))
    clock.now_s += 60
    assert progress.left_s is None
    progress.take(TrialBegan(0, CONFIG, LABEL))
    progress.take(TrialOver(0, "complete", 4.0))
    progress.take(TrialBegan(1, CONFIG, LABEL))
    progress.take(logged(1, 96, epoch=1.5))

    # One and a half of ten trials took 60 s.
    assert progress.left_s == pytest.approx(60 / 1.5 * 8.5)


def test_max_steps_measures_a_trial_by_its_steps() -> None:
    running = RunningTrial(0, trial(0, 4.0, max_steps=100).config, LABEL, step=25, epoch=2.9)

    assert running.share == 0.25


def test_only_trials_that_reached_their_end_can_be_the_best() -> None:
    progress = StudyProgress(Clock())
    progress.take(TrialBegan(0, CONFIG, LABEL))
    progress.take(TrialOver(0, "pruned", 3.0))
    progress.take(TrialOver(1, "complete", math.nan))
    assert progress.best is None
    progress.take(TrialOver(2, "shared", 4.0))
    assert progress.best == (4.0, 2, "")


def test_events_of_trials_without_a_slot_are_ignored() -> None:
    progress = StudyProgress(Clock())
    progress.take(evaluated(99, 4.0))

    assert progress.running == {}
    assert progress.rungs == {}


def test_the_end_table_ranks_and_marks() -> None:
    trials = [trial(0, 4.2, r=8), trial(1, 4.0, r=64), trial(2, 4.005, r=4), trial(3, state="pruned")]
    text = text_of(end_table(trials, decide(trials, BASE_LOSS, margin=0.01)))

    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["=1", "*2", "0"]
    assert "the cheapest tie (recommended)" in " ".join(text.split())


def test_the_recommended_trial_is_shown_even_beyond_the_top() -> None:
    trials = [trial(number, 4.0 + number / 10_000, r=64 - number) for number in range(12)]
    lines = text_of(end_table(trials, decide(trials, BASE_LOSS, margin=0.01))).splitlines()

    assert [line.split()[0] for line in lines[1:10]] == [*(f"={number}" for number in range(8)), "*11"]


def test_the_end_table_fits_80_columns() -> None:
    trials = results()
    table = end_table(trials, decide(trials, BASE_LOSS, margin=0.01))

    assert max(map(len, text_of(table).splitlines())) <= 80
    assert "4.0253" in text_of(table)


def test_without_a_finished_trial_the_table_says_what_became_of_them() -> None:
    trials = [trial(0, state="diverged"), trial(1, state="out_of_memory")]

    text = text_of(end_table(trials, decide(trials, BASE_LOSS, margin=0.01)), width=120)

    assert "diverged" in text
    assert "out of memory" in text
    assert "recommended" not in text
