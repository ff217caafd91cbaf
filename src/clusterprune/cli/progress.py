"""The one place where what the library reports becomes something to look at while waiting."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from clusterprune.cli.console import console, duration, quiet
from clusterprune.files.credentials import hide_passwords

QUIET_SECONDS = 10.0
"""Where the output is no terminal, a long phase says how far it is this often."""


class Display:
    """Show phases with the time they have left: bars on a terminal, plain lines elsewhere.

    It is a progress callback of the library: call it as ``display(phase, done, total)``. A phase begins when
    its name is first heard, and ends when it is done or the next one begins. A total of 0 means that nobody
    knows how long it takes.

    Parameters
    ----------
    to
        Where to show; standard error by default, so that standard output holds results alone.
    """

    def __init__(self, to: Console | None = None) -> None:
        self._console = to or console(stderr=True)
        self._console.quiet |= quiet()
        self._bars: Progress | None = None
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                _Left(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bars = Progress(*columns, console=self._console, refresh_per_second=5)
        self._phase = self._over = ""
        self._task = TaskID(0)
        self._first = 0
        self._began = self._told = 0.0

    def __enter__(self) -> Self:
        """Start showing."""
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave what is finished on the screen."""
        if kind is None:
            self._finish()
        elif self._bars and self._phase:
            # A bar that stands still would look as if work went on.
            self._bars.update(self._task, visible=False)
        if self._bars:
            self._bars.stop()

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` steps of a phase are behind us."""
        ends = 0 < total <= done
        if phase != self._phase:
            if ends and phase == self._over:
                return  # said before
            self._finish()
            self._begin(phase, done)
        if self._bars:
            self._bars.update(self._task, completed=done, total=total or None, note=note)
        elif self._first < done < total and time.monotonic() - self._told > QUIET_SECONDS:
            self._told = time.monotonic()
            passed = self._told - self._began
            left = duration(passed * (total - done) / (done - self._first))
            self.line(f"{phase}: {100 * done // total} % after {duration(passed)}, about {left} left {note}".rstrip())
        if ends:
            self._finish()

    def line(self, text: str, style: str = "") -> None:
        """Print a line above the bars."""
        self._console.print(Text(hide_passwords(text), style=style), soft_wrap=True)

    def _begin(self, phase: str, done: int) -> None:
        # A resumed run begins in the middle: what was done before says nothing about the speed.
        self._phase, self._first = phase, done
        self._began = self._told = time.monotonic()
        if self._bars:
            self._task = self._bars.add_task(phase, total=None, completed=done, note="")

    def _finish(self) -> None:
        if not self._phase:
            return
        passed = time.monotonic() - self._began
        if self._bars:
            total = self._bars.tasks[self._bars.task_ids.index(self._task)].total or 1
            self._bars.update(self._task, completed=total, total=total, note="")
        else:
            self.line(f"{self._phase}: {duration(passed)}")
        self._phase, self._over = "", self._phase


class _Left(ProgressColumn):
    """The time a task has left; once it is done, the time it took."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(duration(task.finished_time or 0.0), style="green")
        if task.total is None or task.time_remaining is None:
            return Text(duration(task.elapsed or 0.0), style="dim")
        return Text(f"{duration(task.time_remaining)} left", style="cyan")
