"""All displays, in the order in which a page shows them."""

from collections.abc import Sequence

from clusterprune.report._base import Display
from clusterprune.report.checks import Checks
from clusterprune.report.classes import Classes
from clusterprune.report.command_line import CommandLine
from clusterprune.report.frozen import Frozen
from clusterprune.report.headline import Headline
from clusterprune.report.loss_curves import LossCurves
from clusterprune.report.merged_channels import MergedChannels
from clusterprune.report.published import Published
from clusterprune.report.ranking import Ranking
from clusterprune.report.run import Run
from clusterprune.report.search_history import SearchHistory
from clusterprune.report.several import OverLatency, OverMacs, Table
from clusterprune.report.training import Training
from clusterprune.report.widths import Widths

DISPLAYS: dict[str, type[Display]] = {
    kind.name: kind
    for kind in (
        Headline, Published, Ranking, OverMacs, OverLatency, Table, Checks, Widths, Classes, LossCurves, Training,
        SearchHistory, MergedChannels, Frozen, CommandLine,
    )
}  # fmt: skip


def displays(runs: Sequence[Run]) -> list[Display]:
    """Return what can be shown of one run or several; what their files do not say is left out."""
    found = (_of(kind, runs) for kind in DISPLAYS.values())
    return [display for display in found if display is not None]


def _of(kind: type[Display], runs: Sequence[Run]) -> Display | None:
    """Return a display; none where files of another release, or of somebody else, hold something unforeseen."""
    try:
        return kind.of(runs)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
