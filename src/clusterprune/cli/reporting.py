"""The pictures and the page that a run ends with, and that never make one fail."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from clusterprune import runs
from clusterprune.data import Split
from clusterprune.files.writing import reason_of
from clusterprune.report import REPORT_NAME, opened, write_page
from clusterprune.tasks import Task


def leave_sheet(
    folder: Path, models: Mapping[str, Callable[[], nn.Module | None]], task: Task | None, test: Split | None,
    tell: Callable[[str, str], None],
) -> None:  # fmt: skip
    """Draw some test images with what networks make of them, where the task can; if that fails, say so in a line.

    Parameters
    ----------
    models, task, test
        As :func:`clusterprune.runs.write_sheet` has them.
    tell
        Called with a sentence and its style.
    """
    if task is None or test is None:
        return
    try:
        runs.write_sheet(folder / runs.SHEET_NAME, models, task, test)
    except Exception as error:  # the run is done, whatever becomes of its pictures
        tell(f"{runs.SHEET_NAME} was not drawn ({reason_of(error)}).", "yellow")


def leave_report(folder: Path, tell: Callable[[str, str], None]) -> None:
    """Write ``report.html`` into the folder of a run that is done; if that fails, say so in a line.

    Parameters
    ----------
    tell
        Called with a sentence and its style.
    """
    try:
        write_page(opened([folder]), folder / REPORT_NAME)
    except Exception as error:  # the run is done, whatever becomes of its pictures
        again = f"clusterprune report {shlex.quote(str(folder))}"
        tell(f"{REPORT_NAME} was not written ({reason_of(error)}). '{again}' tries again.", "yellow")
