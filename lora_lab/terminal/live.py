"""The live terminal view of a running study, which redraws itself in a thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lora_lab.analysis.wording import duration_text, nats, number_text, one_line, rate_text, value_text
from lora_lab.terminal.progress import Progress, Slot, ending_text, retraining_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from lora_lab.study.events import TrialEvent
    from lora_lab.study.results import TrialState
    from lora_lab.study.settings import TrialConfig

REFRESHES_PER_SECOND = 4
BAR_WIDTH = 10
FRAME_LINES = 8
"""Lines of the live view that are not slots."""


class LiveDisplay:
    """A view that redraws itself four times a second in a thread; events only change numbers."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = Progress(clock)
        self._console = console
        self._live = Live(
            get_renderable=lambda: live_view(self._progress, console.height),
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
        )

    def start(self, study_name: str, total_trials: int, pack_size: int | None, *, done: int = 0) -> None:
        """Begin to draw."""
        self._progress.start(study_name, total_trials, pack_size, done)
        self._live.start()

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Add the trial's slot."""
        self._progress.slots[number] = Slot(number, config)

    def retraining(self, numbers: Sequence[int], count: int) -> None:
        """Leave a line above the view."""
        self._progress.retraining(count)
        self._console.print(Text(retraining_text(numbers, count)))

    def event(self, event: TrialEvent) -> None:
        """Change the numbers of the trial's slot."""
        self._progress.update(event)

    def trial_ended(self, number: int, state: TrialState, eval_loss: float | None = None, reason: str = "") -> None:
        """Free the slot; a trial that was lost also leaves a line above the view."""
        self._progress.ended(number, state, eval_loss, reason)
        if state in ("diverged", "out_of_memory", "failed"):
            self._console.print(Text(ending_text(number, state, eval_loss, reason), style="yellow"))

    def tick(self, tokens_per_second: float, tracking: str = "") -> None:
        """Keep the speed and the state of the tracker."""
        self._progress.tokens_per_second, self._progress.tracking = tokens_per_second, tracking

    def note(self, text: str) -> None:
        """Leave a line above the view."""
        self._console.print(Text(one_line(text, 2000)))

    def stop(self) -> None:
        """Draw once more, and leave the view on the screen."""
        self._live.stop()


def live_view(progress: Progress, height: int = 40) -> RenderableType:
    """The live view as it stands, for a terminal of `height` lines and at least 80 columns."""
    # A tuple is taken in one step of the interpreter: the training thread may change the dict meanwhile.
    slots = tuple(progress.slots.values())
    room = max(1, height - FRAME_LINES)
    parts: list[RenderableType] = [_header(progress, len(slots)), _slot_lines(progress, slots[:room])]
    if len(slots) > room:
        parts.append(Text(f"and {len(slots) - room} more", style="dim"))
    if progress.best:
        loss, number, label = progress.best
        best = Text(f"best: trial {number}  eval_loss {nats(loss)}  ", style="green", no_wrap=True)
        parts.append(best.append(label, style="default"))
    if progress.tracking:
        parts.append(Text(one_line(progress.tracking), style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _header(progress: Progress, running: int) -> RenderableType:
    states = progress.states
    lost = states["diverged"] + states["out_of_memory"] + states["failed"]
    line = Text(progress.study_name, style="bold", no_wrap=True, overflow="ellipsis")
    slots = f"{running}/{progress.pack_size} running" if progress.pack_size else f"{running} running"
    counts = f"  {progress.done}/{progress.total} done, {slots}, {states['pruned']} pruned, {lost} lost"
    line.append(counts, style="not bold")
    left = progress.left_s
    speed = f"{progress.tokens_per_second:,.0f} tokens/s, {duration_text(progress.elapsed_s)}"
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(1, progress.total), completed=progress.done, width=24, complete_style="cyan")
    grid.add_row(bar, speed + ("" if left is None else f", about {duration_text(left)} left"))
    return Group(line, grid)


def _slot_lines(progress: Progress, slots: Sequence[Slot]) -> Text:
    """Slots as lines of fixed columns; with a `rich.table.Table` a refresh takes 5 ms, without 0.9 ms."""
    heads = f"{'trial':>5} {'r':>4} {'alpha':>5} {'targets':<12} {'lr':>6} {'epoch':>7} {'':{BAR_WIDTH}}"
    text = Text(f"{heads} {'loss':>6} {'eval':>6} {'vs best':>7}", style="dim", no_wrap=True)
    for slot in slots:
        _add_slot(text, slot, progress.behind(slot))
    return text


def _add_slot(text: Text, slot: Slot, behind: float | None) -> None:
    lora, training = slot.config.lora, slot.config.training
    targets = value_text(lora.target_modules)
    if cell_len(targets) > 12:
        targets = set_cell_size(targets, 11) + "…"
    filled = round(BAR_WIDTH * slot.share)
    against = "" if behind is None else "best" if behind <= 0 else f"+{behind:.3f}"
    text.append(
        f"\n{slot.number:>5} {lora.r:>4} {number_text(lora.alpha):>5} {set_cell_size(targets, 12)} "
        f"{rate_text(training.learning_rate):>6} {f'{slot.epoch:.1f}/{training.num_train_epochs}':>7} ",
        style="not dim",
    )
    text.append("━" * filled, style="not dim cyan").append("─" * (BAR_WIDTH - filled), style="dim")
    text.append(f" {_loss(slot.loss):>6} {_loss(slot.eval_loss):>6} {against:>7}", style="not dim")


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
