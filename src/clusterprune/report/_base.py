"""What a display is: numbers read from runs, as a table, and drawn as a figure that says in words what it shows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from plotly.graph_objects import Figure

from clusterprune.report.run import Run

Rows = list[dict[str, Any]]
"""A table: a list of rows, each with a value by the name of its column; pandas.DataFrame(rows) takes it as it is."""


@dataclass(frozen=True)
class Display(ABC):
    """One chart or table of a report. It is made of the files of runs (:meth:`of`), and draws without them.

    - `name`, by which the command line asks for it; `title`, above it on the page.
    - `folded`: whether the page shows its table only when asked to, because a figure shows the same.

    Attributes
    ----------
    rows
        The data.
    statement
        What there is to see, in a sentence or two: the label for who does not see it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    folded: ClassVar[bool] = True

    rows: Rows
    statement: str

    @classmethod
    @abstractmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read it from the files of one run or several; None where they do not say what it shows."""

    def frame(self) -> Rows:
        """Return the data as a list of rows."""
        return [dict(row) for row in self.rows]

    def plot(self) -> Figure | None:
        """Return the figure in the colours of a light page; None where the table is all there is to look at."""
        return None


def single(runs: Sequence[Run]) -> Run | None:
    """Return the run of a report on one; None where several are compared."""
    return runs[0] if len(runs) == 1 else None
