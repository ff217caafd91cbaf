"""Which classes a network is good at, or has become better or worse at."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from plotly.graph_objects import Figure

from clusterprune.report._base import Display, Rows, single
from clusterprune.report._style import BLUE, GREY, ORANGE, figure
from clusterprune.report.run import Run

_SHOWN = 20
"""Bars of a figure: of more classes, those that changed the most."""


class Classes(Display):
    """Percent right of every class before and after, those that lost most first; of one network, the worst first."""

    name: ClassVar[str] = "classes"
    title: ClassVar[str] = "Class by class"

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read ``details.json``."""
        run = single(runs)
        found = {} if run is None else run.details.get("classes", {})
        if len(found.get("hits", ())) == 1:
            return cls._of_one(found)
        if len(found.get("hits", ())) < 2:
            return None
        before, after = found["hits"].values()
        rows: Rows = [
            {
                "class": name, "images": images, "original, %": 100 * b / images, "compact, %": 100 * a / images,
                "change, points": 100 * (a - b) / images, "two standard errors": spread(b, a, images),
            }
            for name, images, b, a in zip(found["names"], found["images"], before, after, strict=True)
            if images
        ]  # fmt: skip
        rows.sort(key=lambda row: row["change, points"])
        if not rows:
            return None
        worst, best = rows[0], rows[-1]
        lost = sum(row["change, points"] < -row["two standard errors"] for row in rows)
        told = "No class" if not lost else "One class" if lost == 1 else f"{lost} classes"
        return cls(
            rows,
            f"The most was lost on {worst['class']} ({worst['change, points']:+.1f} points), the least on "
            f"{best['class']} ({best['change, points']:+.1f}). {told} of {len(rows)} lost more than chance explains.",
        )

    @classmethod
    def _of_one(cls, found: Mapping[str, Any]) -> Self | None:
        """Read the hits of a network that nothing is compared with."""
        (hits,) = found["hits"].values()
        rows: Rows = [
            {"class": name, "images": images, "right, %": 100 * right / images, "two standard errors": error}
            for name, images, right in zip(found["names"], found["images"], hits, strict=True)
            if images
            for error in [spread(right, right, images) / math.sqrt(2)]
        ]
        rows.sort(key=lambda row: row["right, %"])
        if not rows:
            return None
        worst, best = rows[0], rows[-1]
        return cls(
            rows,
            f"{worst['class']} is recognised least often, in {worst['right, %']:.1f} % of its images, "
            f"{best['class']} most often, in {best['right, %']:.1f} %.",
        )

    def plot(self) -> Figure:
        """Draw a bar for each class, with what chance may do to it."""
        rows = self.rows
        if len(rows) > _SHOWN:
            rows = [*rows[: _SHOWN // 2], *rows[-(_SHOWN // 2) :]]
        shown, unit, title = ("change, points", " points", "change, points")
        if shown not in rows[0]:
            shown, unit, title = ("right, %", " %", "right, %")
        changes = [row[shown] for row in rows]
        return figure(
            [
                {
                    "type": "bar", "orientation": "h", "y": [str(row["class"]) for row in rows], "x": changes,
                    "marker": {
                        "color": [ORANGE if change < 0 else BLUE for change in changes],
                        "pattern": {"shape": ["/" if change < 0 else "" for change in changes]},
                    },
                    "error_x": {"array": [row["two standard errors"] for row in rows], "thickness": 1, "color": GREY},
                    "hovertemplate": f"%{{y}}: %{{x:+.2f}}{unit}<extra></extra>", "showlegend": False,
                }
            ],
            height=110 + 24 * len(rows), xaxis={"title": f"{title} (± 2 s. e.)"},
            yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
        )  # fmt: skip


def spread(before: int, after: int, images: int) -> float:
    """Return two standard errors of a change of the percent right, in points, as if the two had seen different images.

    They have seen the same, so that chance does less than this; how much less, the hits alone do not say. Neither all
    nor none right is taken for certain (Agresti and Coull 1998).
    """
    shares = [(hits + 2) / (images + 4) for hits in (before, after)]
    return 200 * math.sqrt(sum(share * (1 - share) for share in shares) / (images + 4))
