"""How CP's rates rise over the epochs, and its clusters over the layers: functions of numbers alone (CP, Fig. 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from clusterprune.methods.cp_rates import SCHEDULES, adaptive_share, pruning_rate, usual_real_rate
from clusterprune.studies.figures._base import Row, Study, Subject
from clusterprune.studies.figures.drawing import Drawing


@dataclass(frozen=True)
class Rates(Study):
    """The three schedules of the pruning rate, and the share of clusters by depth."""

    name: ClassVar[str] = "rates"
    shows: ClassVar[str] = "CP, Fig. 3: rates by epoch, clusters by depth"
    finding: ClassVar[str] = (
        "Fast-slow is near its goal early on; deeper layers get more clusters, for they extract more kinds of features."
    )
    looks: ClassVar[bool] = False

    goal: float = 0.5
    epochs: int = 200
    curvature: float = 5.0
    layers: int = 13

    def points(self) -> list[Row]:
        """Return the schedules, and the depth."""
        return [*({"curve": schedule} for schedule in SCHEDULES), {"curve": "clusters by depth"}]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Return the points of a curve."""
        del subject, folder
        if point["curve"] in SCHEDULES:
            rates = [
                pruning_rate(point["curve"], self.goal, epoch, self.epochs, self.curvature)
                for epoch in range(1, self.epochs + 1)
            ]
            return [{"epoch": epoch, "rate": rate} for epoch, rate in enumerate(rates, 1)]
        real = usual_real_rate(self.goal)
        shares = [adaptive_share(layer, self.layers, self.goal, real) for layer in range(1, self.layers + 1)]
        return [{"layer": layer, "share": share} for layer, share in enumerate(shares, 1)]

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw both."""
        left, right = drawing.axes(1, 2)
        for number, schedule in enumerate(SCHEDULES):
            mine = [row for row in rows if row["curve"] == schedule]
            drawing.line(left, [r["epoch"] for r in mine], [r["rate"] for r in mine], schedule, number, marker=False)
        drawing.finish(left, "epoch", "share of filters replaced")
        mine = [row for row in rows if row["curve"] not in SCHEDULES]
        drawing.line(right, [row["layer"] for row in mine], [row["share"] for row in mine], "adaptive", 0)
        drawing.finish(right, "layer", "clusters, as a share of the filters")

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say where the schedules are after a fifth of the epochs."""
        early = max(1, self.epochs // 5)
        at = {row["curve"]: row["rate"] / self.goal for row in rows if row.get("epoch") == early}
        shares = [row["share"] for row in rows if "share" in row]
        falls = "falls" if shares[-1] < shares[0] else "rises" if shares[-1] > shares[0] else "stays"
        said = ", ".join(f"{name} {share:.0%}" for name, share in at.items())
        return f"After a fifth of the epochs: {said} of the goal; the share of clusters {falls} with depth."
