"""The live terminal view of a running study, which redraws itself in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lora_lab.analysis.wording import duration_text, measure_text, number_text, one_line, rate_text, targets_text
from lora_lab.terminal.heartbeat import activity_text
from lora_lab.terminal.messages import Note, RetrainingsPlanned, SessionOver, StudyBegan, TrialOver
from lora_lab.terminal.progress import ending_text, retrainings_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from lora_lab.terminal.messages import Message
    from lora_lab.terminal.progress import RunningTrial, StudyProgress

REFRESHES_PER_SECOND = 4
BAR_WIDTH = 10
LONGEST_NOTE = 2000
FRAME_LINES = 8
"""Lines of the live view that are not trials, without the one of other work."""


class LiveView:
    """A view that redraws itself four times a second in a thread; messages only change numbers.

    Notes, retrainings and trials that were lost leave a line above it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def show(self, message: Message, progress: StudyProgress) -> None:
        """Begin to draw, leave a line above the view, or draw once more and leave the view on the screen."""
        match message:
            case StudyBegan():
                self._live = Live(
                    get_renderable=lambda: live_view(progress, self._console.height),
                    console=self._console,
                    refresh_per_second=REFRESHES_PER_SECOND,
                )
                self._live.start()
            case RetrainingsPlanned():
                self._console.print(Text(retrainings_text(message, progress)))
            case TrialOver(state="diverged" | "out_of_memory" | "failed"):
                self._console.print(Text(ending_text(message, progress.measure), style="yellow"))
            case Note(text):
                self._console.print(Text(one_line(text, LONGEST_NOTE)))
            case SessionOver() if self._live is not None:
                self._live.stop()


def live_view(progress: StudyProgress, height: int = 40) -> RenderableType:
    """The live view as it stands, for a terminal of `height` lines and at least 80 columns."""
    # A tuple is taken in one step of the interpreter: the training thread may change the dict meanwhile.
    running = tuple(progress.running.values())
    doing = activity_text(progress)
    room = max(1, height - FRAME_LINES - bool(doing))
    parts: list[RenderableType] = [_header(progress, len(running)), _trial_lines(progress, running[:room])]
    if len(running) > room:
        parts.append(Text(f"and {len(running) - room} more", style="dim"))
    if progress.best and not progress.verdict_follows:
        value, number, label = progress.best
        said = f"{progress.measure.label} {measure_text(progress.measure, value)}"
        best = Text(f"best run so far: trial {number}  {said}  ", style="green", no_wrap=True)
        parts.append(best.append(label, style="default"))
    if doing:
        parts.append(Text(doing, style="cyan", no_wrap=True, overflow="ellipsis"))
    if progress.tracking:
        parts.append(Text(one_line(progress.tracking), style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _header(progress: StudyProgress, running: int) -> RenderableType:
    states = progress.states
    lost = states["diverged"] + states["out_of_memory"] + states["failed"]
    line = Text(progress.study_name, style="bold", no_wrap=True, overflow="ellipsis")
    places = f"{running}/{progress.pack_size} running" if progress.pack_size else f"{running} running"
    counts = f"  {progress.done}/{progress.total} done, {places}, {states['pruned']} pruned, {lost} lost"
    line.append(counts, style="not bold")
    left = progress.left_s
    speed = f"{progress.tokens_per_second:,.0f} tokens/s, {duration_text(progress.elapsed_s)}"
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(1, progress.total), completed=progress.done, width=24, complete_style="cyan")
    grid.add_row(bar, speed + ("" if left is None else f", about {duration_text(left)} left"))
    return Group(line, grid)


def _trial_lines(progress: StudyProgress, trials: Sequence[RunningTrial]) -> Text:
    """Running trials as lines of fixed columns; with a `rich.table.Table` a refresh takes 5 ms, without 0.9 ms."""
    heads = f"{'trial':>5} {'r':>4} {'alpha':>5} {'targets':<12} {'lr':>6} {'epoch':>7} {'':{BAR_WIDTH}}"
    text = Text(f"{heads} {'loss':>6} {'eval':>6} {'vs best':>7}", style="dim", no_wrap=True)
    for trial in trials:
        _add_trial(text, trial, progress.behind(trial))
    return text


def _add_trial(text: Text, trial: RunningTrial, behind: float | None) -> None:
    lora, training = trial.config.lora, trial.config.training
    targets = targets_text(lora)
    if cell_len(targets) > 12:
        targets = set_cell_size(targets, 11) + "…"
    filled = round(BAR_WIDTH * trial.share)
    against = "" if behind is None else "best" if behind <= 0 else f"+{behind:.3f}"
    text.append(
        f"\n{trial.number:>5} {lora.r:>4} {number_text(lora.alpha):>5} {set_cell_size(targets, 12)} "
        f"{rate_text(training.learning_rate):>6} {f'{trial.epoch:.1f}/{training.num_train_epochs}':>7} ",
        style="not dim",
    )
    text.append("━" * filled, style="not dim cyan").append("─" * (BAR_WIDTH - filled), style="dim")
    text.append(f" {_loss(trial.loss):>6} {_loss(trial.eval_loss):>6} {against:>7}", style="not dim")


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
