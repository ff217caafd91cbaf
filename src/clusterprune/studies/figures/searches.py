"""What ACP's swarm adds to its clustering, and how it does beside other methods (ACP, Table IX and Fig. 9)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from clusterprune.methods import find
from clusterprune.methods._work import Work
from clusterprune.studies.comparison import Contender, method_of
from clusterprune.studies.figures._base import Row, Study, Subject, seeded
from clusterprune.studies.figures.drawing import Drawing


@dataclass(frozen=True)
class Swarm(Study):
    """ACP with and without its swarm (ACP, Table IX)."""

    name: ClassVar[str] = "swarm"
    shows: ClassVar[str] = "ACP, Table IX: with and without the swarm"
    finding: ClassVar[str] = "The swarm adds up to two points to the widths that clustering gives."
    trains: ClassVar[bool] = True

    values: tuple[float, ...] = (0.010, 0.020, 0.035)
    """ε"""
    cycles: int = 5
    fitness: str = "merge"
    inherits: bool = False
    """Whether the last training begins with the original's weights; as published, from random ones, it takes long."""

    def points(self) -> list[Row]:
        """Return every ε twice."""
        return [{"eps": eps, "swarm": swarm} for eps in self.values for swarm in (False, True)]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Run ACP."""
        cycles = self.cycles if point["swarm"] else 0
        settings = {"fitness": self.fitness, "retraining_inherits": self.inherits, "equal_macs": False}
        method = find("acp").read({"eps": point["eps"], "cycles": cycles, **settings})
        training = seeded(subject.needed(self.name), subject.seed)
        work = Work(folder / "run", training, subject.seed, resume=True, watch=subject.watch)
        return [subject.worth(method.run(subject.network, subject.task, work).model)]

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw bars for every ε."""
        (axes,) = drawing.axes()
        names = [f"ε = {eps:g}" for eps in self.values]
        if all("accuracy" in row for row in rows):
            of = {swarm: [row["accuracy"] for row in rows if row["swarm"] == swarm] for swarm in (False, True)}
            drawing.bars(axes, names, {"clustering alone": of[False], "with the swarm": of[True]})
            drawing.shares(axes, [row["accuracy"] for row in rows])
        drawing.finish(axes, "", "accuracy (%)")

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say by how much."""
        if not all("accuracy" in row for row in rows):
            return ""
        by = {(row["eps"], row["swarm"]): row["accuracy"] for row in rows}
        gains = {eps: by[eps, True] - by[eps, False] for eps in self.values}
        said = ", ".join(f"ε = {eps:g}: {gain:+.2f}" for eps, gain in gains.items())
        helped = sum(gain > 0 for gain in gains.values())
        return f"The swarm helps at {helped} of {len(gains)} values of ε here ({said} points)."


QUOTED: tuple[tuple[str, float, float], ...] = (
    ("sfp", 14.70, 0.30), ("sfp", 41.10, 0.19), ("sfp", 52.60, -0.24), ("l1", 27.60, 0.02), ("hrank", 16.80, 0.26),
    ("hrank", 42.40, -0.09), ("fpgm", 52.60, -0.70), ("lasso", 50.00, -1.00), ("abcpruner", 54.13, -0.03),
    ("acp", 38.64, 0.60), ("acp", 54.42, 0.21), ("acp", 57.84, -0.27), ("icp", 26.32, 1.06), ("icp", 51.36, 0.59),
    ("icp", 71.32, -0.02), ("cp", 58.60, -0.05),
)  # fmt: skip
"""What papers say of ResNet-56 on CIFAR-10: method, MACs removed in percent, change of accuracy in points. ACP's Table
IV quotes the competitors from their own papers; the originals differ, from 92.80 to 93.60 percent."""


@dataclass(frozen=True)
class Competitors(Study):
    """Methods side by side at several budgets, each with the same training, and what papers say (ACP, Fig. 9).

    `wlp` makes nothing smaller, and stands where it would be if zeros were free.
    """

    name: ClassVar[str] = "competitors"
    shows: ClassVar[str] = "ACP, Fig. 9: methods by accuracy and MACs removed"
    finding: ClassVar[str] = "ACP keeps the most accuracy at every size."
    trains: ClassVar[bool] = True

    methods: tuple[str, ...] = (
        "oneshot", "icp", "acp", "cp", "l1", "fpgm", "hrank", "taylor", "sfp", "slimming", "lasso", "abcpruner", "wlp",
    )  # fmt: skip
    keep_macs: tuple[float, ...] = (0.75, 0.5, 0.25)
    panels: tuple[str, ...] = ("macs", "params", "papers")
    """What is drawn: accuracy over the MACs removed, over the parameters removed, and what papers say."""

    def points(self) -> list[Row]:
        """Return every method at every budget."""
        return [{"method": name, "keep_macs": keep} for name in self.methods for keep in self.keep_macs]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Run one method at one budget."""
        training = seeded(subject.needed(self.name), subject.seed)
        method, own = method_of(Contender.read(point["method"]), point["keep_macs"], training)
        few = {name: min(len(subject.task.train), getattr(method, name)) for name in method.in_images}
        work = Work(folder / "run", own, subject.seed, resume=True, watch=subject.watch)
        made = replace(method, **few).run(subject.network, subject.task, work)
        if "whole" not in subject.memory:
            subject.memory["whole"] = subject.worth(subject.network.model)
        whole = subject.memory["whole"]
        # What is unstructured makes nothing smaller; it is drawn where it would be if zeros were free.
        found = subject.worth(made.model) | made.record.get("if_zeros_were_free", {})
        found["macs_removed"] = 100 * (1 - found["macs"] / whole["macs"])
        found["params_removed"] = 100 * (1 - found["params"] / whole["params"])
        return [found | ({"whole": whole["accuracy"]} if "accuracy" in whole else {})]

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw accuracy over MACs and over parameters removed, and beside them what papers say."""
        for axes, panel in zip(drawing.axes(1, len(self.panels)), self.panels, strict=True):
            if panel == "papers":
                self._draw_papers(axes, drawing)
            else:
                self._draw_ours(axes, rows, panel, drawing)

    def _draw_ours(self, axes: Any, rows: Sequence[Row], cost: str, drawing: Drawing) -> None:
        for number, name in enumerate(self.methods):
            mine: list[Any] = [row for row in rows if row["method"] == name and "accuracy" in row]
            removed, kept = [row[f"{cost}_removed"] for row in mine], [row["accuracy"] for row in mine]
            label = f"{name} (if zeros were free)" if name == "wlp" else name
            drawing.line(axes, removed, kept, label, number)
        if rows and "whole" in rows[0]:
            axes.axhline(rows[0]["whole"], color="0.5", linewidth=0.8, linestyle=":")
        drawing.finish(axes, f"{'MACs' if cost == 'macs' else 'parameters'} removed (%)", "accuracy (%)")

    def _draw_papers(self, axes: Any, drawing: Drawing) -> None:
        for number, name in enumerate(self.methods):
            said = sorted((removed, change) for method, removed, change in QUOTED if method == name)
            if said:
                drawing.line(axes, [removed for removed, _ in said], [change for _, change in said], name, number)
        axes.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
        axes.set_title("quoted from papers: ResNet-56, CIFAR-10", fontsize=8)
        drawing.finish(axes, "MACs removed (%)", "change of accuracy (points)", legend=False)

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say who leads at each budget."""
        best = []
        for keep in self.keep_macs:
            mine = [row for row in rows if row["keep_macs"] == keep and "accuracy" in row]
            if mine:
                first = max(mine, key=lambda row: row["accuracy"])
                best.append(f"{first['method']} at {keep:.0%} ({first['accuracy']:.2f})")
        return f"The most accuracy keeps {', '.join(best)} of the MACs." if best else ""
