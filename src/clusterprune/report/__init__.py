"""What a run has found, as something to look at: charts and tables read from its files, and a page of them."""

from clusterprune.report._base import Display, Rows
from clusterprune.report._registry import DISPLAYS, displays
from clusterprune.report.lanes import draw_graph
from clusterprune.report.page import REPORT_NAME, render, write_page
from clusterprune.report.run import Run, opened

__all__ = [
    "DISPLAYS", "REPORT_NAME", "Display", "Rows", "Run", "displays", "draw_graph", "opened", "render", "write_page",
]  # fmt: skip
