"""What CP's rate, clusters and schedule do to accuracy (CP, Figs. 4 and 5, Tables 3 and 4)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from clusterprune.methods._work import Work
from clusterprune.methods.cp import CP
from clusterprune.methods.cp_rates import SCHEDULES
from clusterprune.studies.figures._base import Row, Study, Subject, seeded
from clusterprune.studies.figures.drawing import Drawing
from clusterprune.train.record import LOG_NAME


def train_by(subject: Subject, settings: Mapping[str, Any], folder: Path, study: str) -> tuple[Row, list[Row]]:
    """Run CP; return what the compact network costs and is worth, and the record of every epoch."""
    method = CP.read(settings)
    training = seeded(subject.needed(study), subject.seed)
    work = Work(folder / "run", training, subject.seed, resume=True, watch=subject.watch)
    made = method.run(subject.network, subject.task, work)
    log = (folder / "run" / "training" / LOG_NAME).read_text(encoding="utf-8")
    return subject.worth(made.model), [json.loads(line) for line in log.splitlines()]


@dataclass(frozen=True)
class _OfCP(Study):
    """Runs CP once a point."""

    trains: ClassVar[bool] = True

    def settings(self, point: Row) -> Row:
        """Return CP's settings at a point, as plain values."""
        raise NotImplementedError

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Run CP at one point."""
        return [train_by(subject, self.settings(point), folder, self.name)[0]]


@dataclass(frozen=True)
class PruningRate(_OfCP):
    """Accuracy and MACs against the pruning rate, at a constant share of clusters (CP, Fig. 4)."""

    name: ClassVar[str] = "pruning-rate"
    shows: ClassVar[str] = "CP, Fig. 4: accuracy and MACs by pruning rate"
    finding: ClassVar[str] = "MACs fall steadily with the rate; accuracy holds up to about half, then falls."

    values: tuple[float, ...] = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75)
    clusters: float = 0.25

    def points(self) -> list[Row]:
        """Return the rates."""
        return [{"goal": goal} for goal in self.values]

    def settings(self, point: Row) -> Row:
        """Return CP's settings."""
        return {"goal": point["goal"], "clusters": {"share": self.clusters}}

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw accuracy and MACs over the rate."""
        draw_two(rows, "goal", "pruning rate", drawing)


@dataclass(frozen=True)
class ClusterShare(_OfCP):
    """Accuracy and MACs against the share of clusters, at a constant rate (CP, Fig. 4)."""

    name: ClassVar[str] = "cluster-count"
    shows: ClassVar[str] = "CP, Fig. 4: accuracy and MACs by number of clusters"
    finding: ClassVar[str] = "More clusters keep more accuracy and more MACs; few hold it nearly as well."

    values: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    goal: float = 0.5

    def points(self) -> list[Row]:
        """Return the shares."""
        return [{"clusters": share} for share in self.values]

    def settings(self, point: Row) -> Row:
        """Return CP's settings."""
        return {"goal": self.goal, "clusters": {"share": point["clusters"]}}

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw accuracy and MACs over the number of clusters."""
        draw_two(rows, "clusters", "clusters, as a share of the filters", drawing)


def draw_two(rows: Sequence[Row], key: str, label: str, drawing: Drawing) -> None:
    """Draw accuracy and MACs over one setting."""
    left, right = drawing.axes(1, 2)
    x = [row[key] for row in rows]
    if all("accuracy" in row for row in rows):
        drawing.line(left, x, [row["accuracy"] for row in rows], "accuracy", 0)
    drawing.finish(left, label, "accuracy (%)", legend=False)
    drawing.line(right, x, [row["macs"] / 1e6 for row in rows], "MACs", 1)
    drawing.finish(right, label, "MACs (M)", legend=False)


@dataclass(frozen=True)
class Schedules(_OfCP):
    """Accuracy by epoch for the three schedules, from random and from trained weights (CP, Fig. 5)."""

    name: ClassVar[str] = "schedules"
    shows: ClassVar[str] = "CP, Fig. 5: accuracy by epoch for three schedules"
    finding: ClassVar[str] = "Fast-slow ends best, from random weights as from trained ones."

    goal: float = 0.5
    starts: tuple[str, ...] = ("scratch", "trained")

    def points(self) -> list[Row]:
        """Return schedules and starts."""
        return [{"start": start, "schedule": schedule} for start in self.starts for schedule in SCHEDULES]

    def settings(self, point: Row) -> Row:
        """Return CP's settings."""
        return {"goal": self.goal, "schedule": point["schedule"], "scratch": point["start"] == "scratch"}

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Run CP, and return the validation accuracy of every epoch and the compact network's at the end."""
        end, history = train_by(subject, self.settings(point), folder, self.name)
        rows = [
            {"epoch": record["epoch"], "accuracy_by_epoch": value}
            for record in history
            if (value := next((v for k, v in record.items() if k.startswith("validation_")), None)) is not None
        ]
        return [*rows, end]

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw a line for every schedule, and panels for the starts."""
        for axes, start in zip(drawing.axes(1, len(self.starts)), self.starts, strict=True):
            for number, schedule in enumerate(SCHEDULES):
                mine = [r for r in rows if r["start"] == start and r["schedule"] == schedule and "epoch" in r]
                x, y = [row["epoch"] for row in mine], [row["accuracy_by_epoch"] for row in mine]
                drawing.line(axes, x, y, schedule, number, marker=False)
            axes.set_title(f"from {'random' if start == 'scratch' else 'trained'} weights", fontsize=8)
            drawing.finish(axes, "epoch", "validation accuracy (%)")

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say which schedule ends best."""
        parts = []
        for start in self.starts:
            ends = {row["schedule"]: row["accuracy"] for row in rows if row["start"] == start and "accuracy" in row}
            if ends:
                best = max(ends, key=lambda schedule: ends[schedule])
                said = ", ".join(f"{name} {value:.2f}" for name, value in ends.items())
                parts.append(f"from {start} weights {best} ends best ({said})")
        return "; ".join(parts).capitalize() + "." if parts else ""


@dataclass(frozen=True)
class _Bars(_OfCP):
    """Compares named choices."""

    choices: ClassVar[Mapping[str, Row]]

    def points(self) -> list[Row]:
        """Return the choices."""
        return [{"choice": name} for name in self.choices]

    def settings(self, point: Row) -> Row:
        """Return CP's settings."""
        return dict(self.choices[point["choice"]])

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw bars of accuracy and of MACs."""
        left, right = drawing.axes(1, 2)
        names = [row["choice"] for row in rows]
        if all("accuracy" in row for row in rows):
            drawing.bars(left, names, {"accuracy": [row["accuracy"] for row in rows]})
            drawing.shares(left, [row["accuracy"] for row in rows])
        drawing.finish(left, "", "accuracy (%)", legend=False)
        drawing.bars(right, names, {"MACs": [row["macs"] / 1e6 for row in rows]})
        drawing.finish(right, "", "MACs (M)", legend=False)

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say which ends best."""
        if not all("accuracy" in row for row in rows):
            return ""
        most = max(row["accuracy"] for row in rows)
        best = " and ".join(row["choice"] for row in rows if row["accuracy"] == most)
        said = ", ".join(f"{row['choice']} {row['accuracy']:.2f}" for row in rows)
        return f"Best here: {best} ({said})."


@dataclass(frozen=True)
class CountKinds(_Bars):
    """Constant, silhouette and adaptive numbers of clusters (CP, Table 3)."""

    name: ClassVar[str] = "cluster-kinds"
    shows: ClassVar[str] = "CP, Table 3: three ways to count clusters"
    finding: ClassVar[str] = (
        "Adaptive numbers keep more accuracy than constant ones and remove more; silhouette's keep a little more and "
        "remove less."
    )
    choices: ClassVar[Mapping[str, Row]] = {
        "constant, 5": {"goal": 0.5, "clusters": {"constant": 5}},
        "silhouette": {"goal": 0.5, "clusters": "silhouette"},
        "adaptive": {"goal": 0.5, "clusters": "adaptive"},
    }


@dataclass(frozen=True)
class Clusterings(_Bars):
    """k-means, spectral, agglomerative and mean-shift (CP, Table 4)."""

    name: ClassVar[str] = "clusterings"
    shows: ClassVar[str] = "CP, Table 4: four clusterings of filters"
    finding: ClassVar[str] = "k-means keeps as much accuracy as any; mean shift finds its own number and removes least."
    choices: ClassVar[Mapping[str, Row]] = {
        "k-means": {"goal": 0.5},
        "spectral": {"goal": 0.5, "clustering": "spectral"},
        "agglomerative": {"goal": 0.5, "clustering": "agglomerative"},
        "mean shift": {"goal": 0.5, "clustering": "mean_shift"},
    }
