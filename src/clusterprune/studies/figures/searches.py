"""What ACP's swarm adds to its clustering, and how it does beside other methods (ACP, Table IX and Fig. 9)."""

from collections.abc import Sequence
from dataclasses import dataclass
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

    def points(self) -> list[Row]:
        """Return every ε twice."""
        return [{"eps": eps, "swarm": swarm} for eps in self.values for swarm in (False, True)]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Run ACP."""
        cycles = self.cycles if point["swarm"] else 0
        method = find("acp").read({"eps": point["eps"], "cycles": cycles, "fitness": self.fitness, "equal_macs": False})
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
            axes.set_ylim(max(0, min(row["accuracy"] for row in rows) - 5), 100)
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


@dataclass(frozen=True)
class Competitors(Study):
    """Methods side by side at several budgets, each with the same training (ACP, Fig. 9)."""

    name: ClassVar[str] = "competitors"
    shows: ClassVar[str] = "ACP, Fig. 9: methods by accuracy and MACs removed"
    finding: ClassVar[str] = "ACP keeps the most accuracy at every size."
    trains: ClassVar[bool] = True

    methods: tuple[str, ...] = ("oneshot", "icp", "acp", "cp", "l1", "fpgm", "hrank", "taylor", "sfp", "slimming")
    keep_macs: tuple[float, ...] = (0.75, 0.5, 0.25)

    def points(self) -> list[Row]:
        """Return every method at every budget."""
        return [{"method": name, "keep_macs": keep} for name in self.methods for keep in self.keep_macs]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Run one method at one budget."""
        training = seeded(subject.needed(self.name), subject.seed)
        method, own = method_of(Contender.read(point["method"]), point["keep_macs"], training)
        work = Work(folder / "run", own, subject.seed, resume=True, watch=subject.watch)
        made = method.run(subject.network, subject.task, work)
        whole = subject.worth(subject.network.model)
        found = subject.worth(made.model)
        found["macs_removed"] = 100 * (1 - found["macs"] / whole["macs"])
        found["params_removed"] = 100 * (1 - found["params"] / whole["params"])
        return [found | ({"whole": whole["accuracy"]} if "accuracy" in whole else {})]

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw accuracy over MACs and over parameters removed."""
        for axes, cost in zip(drawing.axes(1, 2), ("macs", "params"), strict=True):
            for number, name in enumerate(self.methods):
                mine: list[Any] = [row for row in rows if row["method"] == name and "accuracy" in row]
                removed, kept = [row[f"{cost}_removed"] for row in mine], [row["accuracy"] for row in mine]
                drawing.line(axes, removed, kept, name, number)
            if rows and "whole" in rows[0]:
                axes.axhline(rows[0]["whole"], color="0.5", linewidth=0.8, linestyle=":")
            drawing.finish(axes, f"{'MACs' if cost == 'macs' else 'parameters'} removed (%)", "accuracy (%)")

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say who leads at each budget."""
        best = []
        for keep in self.keep_macs:
            mine = [row for row in rows if row["keep_macs"] == keep and "accuracy" in row]
            if mine:
                first = max(mine, key=lambda row: row["accuracy"])
                best.append(f"{first['method']} at {keep:.0%} ({first['accuracy']:.2f})")
        return f"The most accuracy keeps {', '.join(best)} of the MACs." if best else ""
