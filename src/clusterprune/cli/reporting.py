"""The page that every run ends with, and that never makes one fail."""

import shlex
from collections.abc import Callable
from pathlib import Path

from clusterprune.files.writing import reason_of
from clusterprune.report import REPORT_NAME, opened, write_page


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
