from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

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
from lora_lab.terminal.progress import RunningTrial, StudyProgress, base_text

if TYPE_CHECKING:
    from lora_lab.study.results import TrialResult


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
        "rank_alpha: 2/2 trials (1 complete, 1 diverged); best single run so far trial 0: eval_loss 4.0500; 0.0 s",
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
    assert said[-1].startswith("rank_alpha: 3/3 trials (3 complete); best single run so far trial 0: eval_loss 4.0500")
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert {"event": "retraining", "numbers": [0], "count": 2} in told
    assert told[-1]["best_single_run"] == 0
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
    assert lines[-1]["best_single_run"] == 0


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


def test_the_bare_base_is_told_with_the_units_of_all_that_was_measured() -> None:
    assert base_text({"eval_loss": 3.25}) == "before training, the bare base has eval_loss 3.2500 nats per token"
    said = base_text({"eval_loss": 3.25, "exact_match": 0.125, "forgetting_loss": 2.5})
    assert said.endswith("exact match 0.125, 2.5000 on the general text of data.forgetting")


@pytest.mark.parametrize(("epoch", "when"), [(1.0, "epoch 1"), (2.0, "epoch 2"), (1 / 6, "step 64"), (2.5, "step 64")])
def test_an_evaluation_between_epochs_is_told_by_its_step(epoch: float, when: str) -> None:
    stream = io.StringIO()
    Display(PlainView(stream), Clock()).tell(replace(evaluated(3, 4.05), epoch=epoch))

    assert stream.getvalue() == f"trial 3 {when}: eval_loss 4.0500\n"


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


def test_a_verdict_names_the_best_alone() -> None:
    plain, lines, live = io.StringIO(), io.StringIO(), Terminal()
    views = (
        PlainView(plain),
        JsonView(lines),
        LiveView(Console(file=live, force_terminal=True, width=80, height=30)),
    )
    display = Display(views[0], Clock(), *views[1:])
    display.tell(StudyBegan("rank_alpha", 1, 2))
    display.tell(TrialBegan(0, CONFIG, LABEL))
    display.tell(TrialOver(0, "complete", 4.05))
    display.tell(SessionOver(verdict_follows=True))

    assert plain.getvalue().splitlines()[-1] == "rank_alpha: 1/1 trials (1 complete); 0.0 s"
    assert "verdict_follows" not in json.loads(lines.getvalue().splitlines()[-1])
    assert "best run" not in live.getvalue().rpartition("1/1 done")[2]


def test_a_trial_that_is_another_one_is_told_as_that() -> None:
    stream = io.StringIO()
    display = Display(PlainView(stream), Clock())
    display.tell(StudyBegan("rank_alpha", 2, 2))
    display.tell(TrialOver(1, "shared", 4.05, "trial 0 after 1 epoch"))

    assert stream.getvalue().splitlines()[-1] == "[1/2] trial 1 is trial 0 after 1 epoch: eval_loss 4.0500"


def table_of(trials: list[TrialResult], width: int = 80, margin: float = 0.01) -> list[str]:
    """The lines of the table at the end, and of what is said below it."""
    table, words = end_table(trials, decide(trials, BASE_LOSS, margin=margin), width)
    return [line.rstrip() for line in (*text_of(table, width).splitlines(), *words)]


def test_the_end_table_ranks_and_marks() -> None:
    trials = [trial(0, 4.2, r=8), trial(1, 4.0, r=64), trial(2, 4.005, r=4), trial(3, state="pruned")]
    lines = table_of(trials)

    assert [line.split()[0] for line in lines[1:4]] == ["=1", "*2", "0"]
    assert lines[4:] == [
        "loss: eval_loss, nats per token; one run each",
        "* the cheapest tie (recommended);  = a tie",
        "all of these: all-linear, 3 epochs, lr 2e-3",
    ]


def test_marks_that_no_row_has_are_not_explained() -> None:
    assert "= a tie" not in "\n".join(table_of([trial(0, 4.2, r=8), trial(1, 4.0, r=4)]))


def test_the_recommended_trial_is_shown_even_beyond_the_top() -> None:
    lines = table_of([trial(number, 4.0 + number / 10_000, r=64 - number) for number in range(12)])

    assert [line.split()[0] for line in lines[1:10]] == [*(f"={number}" for number in range(8)), "*11"]
    assert lines[-1] == "9 of 12 configurations that finished; the report has all"


@pytest.mark.parametrize("width", [72, 80, 100])
def test_the_end_table_fits_its_terminal_and_cuts_nothing(width: int) -> None:
    trials = [
        replace(one, metrics=one.metrics | {"peak_memory_bytes": 1.2e9, "train_seconds": 3599.0 + number})
        for number, one in enumerate(results())
    ]
    lines = table_of(trials, width)
    table = lines[: lines.index(next(line for line in lines if line.startswith("loss:")))]

    assert max(map(len, table)) <= width
    assert "…" not in "".join(table)
    assert any("all-linear" in line for line in table)


def test_what_was_searched_tells_the_rows_apart_whatever_it_is() -> None:
    trials = [
        trial(0, 4.0, lora_dropout=0.1),
        trial(1, 4.1, lora_dropout=0.0),
        trial(2, 4.2, use_rslora=True),
        trial(3, 4.3, weight_decay=0.2),
    ]
    lines = table_of(trials)

    said = [line.split("  ")[-1].strip() for line in lines[1:5]]
    assert said == ["dropout 0.1", "lora_dropout=0", "rsLoRA", "weight_decay=0.2"]


def test_what_is_at_its_default_is_told_where_it_was_searched() -> None:
    searched = {"layers": "all", "use_rslora": False, "warmup_steps": 0}
    trials = [trial(0, 4.0, **searched), trial(1, 4.1, **searched | {"layers": "last_half"}), trial(2, 4.2, r=4)]
    first, rest = "\n".join(table_of(trials)).split("\n    1 ")

    for text in ("layers=all", "use_rslora=false", "warmup_steps=0"):
        assert text in first
    assert "layers last_half" in rest


def test_replicates_are_one_row_with_the_mean_that_the_verdict_has() -> None:
    trials = [trial(seed, 4.0 + 0.1 * seed, r=8, seed=seed) for seed in range(2)]
    trials += [trial(2 + seed, 4.02 + 0.01 * seed, r=4, seed=seed) for seed in range(2)]
    lines = table_of(trials)

    best = decide(trials, BASE_LOSS, margin=0.01).best
    assert best is not None
    assert lines[1].split()[:2] == [f"*{best.number}", f"{best.value:.4f}"] == ["*2", "4.0250"]
    assert lines[2].split()[:2] == ["0", "4.0500"]
    assert "loss: eval_loss, nats per token; means over 2 seeds" in lines


def test_a_lucky_single_run_does_not_stand_above_the_retrained_best() -> None:
    trials = [trial(0, 4.00, r=8), trial(1, 3.99, r=4), trial(2, 4.5, r=2)]
    trials += [trial(3 + n, 4.01, r=8, replicate=n, confirms=0) for n in (1, 2)]
    lines = table_of(trials)

    assert [line.split()[:3] for line in lines[:4]] == [
        ["trial", "loss", "runs"],
        ["*0", "4.0100", "2"],
        ["1", "3.9900", "1"],
        ["2", "4.5000", "1"],
    ]
    assert any("of retrained ones, over their fresh seeds alone" in line for line in lines)


def test_without_a_finished_trial_the_table_says_what_became_of_them() -> None:
    text = "\n".join(table_of([trial(0, state="diverged"), trial(1, state="out_of_memory")], width=120))

    assert "diverged" in text
    assert "out of memory" in text
    assert "recommended" not in text
