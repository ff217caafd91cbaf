"""What ε, MinPts and the distance do to the widths that clustering feature maps gives (ACP, Figs. 4 to 8)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from clusterprune.clustering import DBSCAN
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Images, Progress
from clusterprune.methods._work import Work
from clusterprune.methods.clustered import cluster
from clusterprune.methods.layers import published_layers
from clusterprune.similarity import ChannelPoints, FeatureMaps
from clusterprune.studies.figures._base import Row, Study, Subject, seeded
from clusterprune.studies.figures.drawing import Drawing
from clusterprune.surgery.apply import apply

EPS = (0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.030, 0.040, 0.050)
QUANTITIES = {"params": "parameters", "macs": "MACs", "channels": "channels"}
DISTANCES = ("cosine", "euclidean", "manhattan", "chebyshev")


class _Remembered:
    """A similarity that gathers its points once."""

    name: ClassVar[str] = "feature_maps"

    def __init__(self, similarity: FeatureMaps) -> None:
        self._similarity = similarity
        self._points: dict[str, ChannelPoints] = {}

    def points(
        self, graph: ChannelGraph, groups: Sequence[Group], images: Images | None, progress: Progress | None = None
    ) -> dict[str, ChannelPoints]:
        """Return the points of all groups."""
        if not self._points:
            self._points = self._similarity.points(graph, groups, images, progress)
        return self._points


@dataclass(frozen=True)
class _Clustered(Study):
    """Clusters feature maps, and says what is left; trains the cut network where a training is given."""

    def cut(self, subject: Subject, folder: Path, *, eps: float, min_samples: int, metric: str = "cosine") -> Row:
        """Return what one clustering leaves of the network."""
        graph, inputs, similarity = _seen(subject, metric)
        clustering = DBSCAN(eps=eps, min_samples=min_samples)
        plan = cluster(
            graph, inputs, similarity=similarity, clustering=clustering, merging="least_squares", seed=subject.seed
        )
        summary = plan.summary(graph)
        widths = summary.widths
        found: Row = {
            "macs": summary.macs.after,
            "params": summary.params.after,
            "channels": sum(width.after for width in widths.values()),
            "macs_removed": 100 * (1 - summary.macs.kept),
            "params_removed": 100 * (1 - summary.params.kept),
            "channels_removed": 100 * (1 - _after(widths) / max(1, _before(widths))),
            "before": {name: width.before for name, width in widths.items()},
            "after": {name: width.after for name, width in widths.items()},
        }
        if subject.test is None:
            return found
        small = apply(subject.network.model, plan, graph=graph).eval()
        found["accuracy_untrained"] = subject.worth(small)["accuracy"]
        if subject.training is not None:
            work = Work(folder, seeded(subject.training, subject.seed), subject.seed, resume=True, watch=subject.watch)
            work.fit(small, subject.task, f"ε = {eps:g}, MinPts = {min_samples}")
            found["accuracy"] = subject.worth(small.eval())["accuracy"]
        return found


def _seen(subject: Subject, metric: str) -> tuple[ChannelGraph, Tensor, _Remembered]:
    """Return the papers' layers of the network, its inputs, and its mean feature maps, all gathered once."""
    memory = subject.memory
    if "graph" not in memory:
        memory["graph"], memory["inputs"] = published_layers(subject.network.graph()), subject.inputs()
    similarity = memory.setdefault(metric, _Remembered(FeatureMaps(metric=metric)))  # type: ignore[arg-type]
    return memory["graph"], memory["inputs"], similarity


def _before(widths: Any) -> int:
    return sum(width.before for width in widths.values())


def _after(widths: Any) -> int:
    return sum(width.after for width in widths.values())


@dataclass(frozen=True)
class Eps(_Clustered):
    """Size, accuracy, and channels of every layer, against ε (ACP, Figs. 6 and 7)."""

    name: ClassVar[str] = "eps"
    shows: ClassVar[str] = "ACP, Figs. 6 and 7: what ε leaves"
    finding: ClassVar[str] = (
        "Parameters, MACs and channels fall as ε grows, and accuracy with them, first slowly; most channels go from "
        "the deep layers of VGG-16."
    )

    values: tuple[float, ...] = EPS
    min_samples: int = 5

    def points(self) -> list[Row]:
        """Return a point for every ε."""
        return [{"eps": eps} for eps in self.values]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Cluster with one ε."""
        return [self.cut(subject, folder, eps=point["eps"], min_samples=self.min_samples)]

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw what is left over ε, and the widths of the layers."""
        removed, accuracy, layers = drawing.axes(1, 3)
        x = [row["eps"] for row in rows]
        for number, (name, label) in enumerate(QUANTITIES.items()):
            drawing.line(removed, x, [row[f"{name}_removed"] for row in rows], label, number)
        drawing.finish(removed, "ε", "removed (%)")
        for number, (name, label) in enumerate(
            (("accuracy_untrained", "merged, not trained"), ("accuracy", "trained"))
        ):
            if all(name in row for row in rows):
                drawing.line(accuracy, x, [row[name] for row in rows], label, number)
        drawing.finish(accuracy, "ε", "accuracy (%)")
        draw_widths(layers, [rows[0], rows[len(rows) // 2], rows[-1]], "eps", "ε", drawing)

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say whether more ε removes more."""
        removed = [row["macs_removed"] for row in sorted(rows, key=lambda row: row["eps"])]
        grows = all(after >= before for before, after in itertools.pairwise(removed))
        said = "grow" if grows else "do not always grow"
        return f"The MACs removed {said} with ε here ({removed[0]:.1f} to {removed[-1]:.1f} %)."


def draw_widths(axes: Any, rows: Sequence[Row], key: str, label: str, drawing: Drawing) -> None:
    """Draw the channels of every layer, before and after."""
    names = list(rows[0]["before"])
    numbers = list(range(1, len(names) + 1))
    drawing.line(axes, numbers, [rows[0]["before"][name] for name in names], "before", 6, marker=False)
    by_value = {row[key]: row["after"] for row in rows}
    for number, (value, after) in enumerate(by_value.items()):
        left = [after[name] for name in names]
        drawing.shade(axes, numbers, left, f"{label} = {value}", number / max(1, len(by_value) - 1))
    drawing.finish(axes, "layer", "channels")


@dataclass(frozen=True)
class MinSamples(_Clustered):
    """Channels left in every layer for several MinPts (ACP, Fig. 4)."""

    name: ClassVar[str] = "min-samples"
    shows: ClassVar[str] = "ACP, Fig. 4: channels left by MinPts"
    finding: ClassVar[str] = "More channels stay as MinPts grows, and from five on little changes."

    values: tuple[int, ...] = tuple(range(1, 11))
    eps: float = 0.010

    def points(self) -> list[Row]:
        """Return a point for every MinPts."""
        return [{"min_samples": number} for number in self.values]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Cluster with one MinPts."""
        return [self.cut(subject, folder, eps=self.eps, min_samples=point["min_samples"])]

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw the layers' channels, a line for every MinPts, and their sum."""
        layers, total = drawing.axes(1, 2)
        draw_widths(layers, rows, "min_samples", "MinPts", drawing)
        drawing.line(total, [row["min_samples"] for row in rows], [row["channels"] for row in rows], "channels", 0)
        drawing.finish(total, "MinPts", "channels left", legend=False)

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say whether more MinPts leave more channels."""
        left = [row["channels"] for row in sorted(rows, key=lambda row: row["min_samples"])]
        grows = all(after >= before for before, after in itertools.pairwise(left))
        return f"Channels left {'grow' if grows else 'do not always grow'} with MinPts here ({left[0]} to {left[-1]})."


@dataclass(frozen=True)
class Grid(_Clustered):
    """Parameters, MACs and channels removed over a grid of ε and MinPts (ACP, Fig. 5)."""

    name: ClassVar[str] = "grid"
    shows: ClassVar[str] = "ACP, Fig. 5: what ε and MinPts remove"
    finding: ClassVar[str] = "Much ε and few MinPts remove the most; ε does more than MinPts."

    eps: tuple[float, ...] = (0.005, 0.010, 0.020, 0.030, 0.040)
    min_samples: tuple[int, ...] = (1, 3, 5, 7, 10)

    def points(self) -> list[Row]:
        """Return every pair."""
        return [{"eps": eps, "min_samples": number} for eps in self.eps for number in self.min_samples]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Cluster with one pair."""
        return [self.cut(subject, folder, eps=point["eps"], min_samples=point["min_samples"])]

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw three maps of what is removed."""
        by_pair = {(row["eps"], row["min_samples"]): row for row in rows}
        for axes, (name, label) in zip(drawing.axes(1, 3), QUANTITIES.items(), strict=True):
            table = [[by_pair[eps, number][f"{name}_removed"] for number in self.min_samples] for eps in self.eps]
            axes.imshow(table, cmap="cividis", aspect="auto", vmin=0, vmax=100)
            for i, line in enumerate(table):
                for j, value in enumerate(line):
                    axes.text(j, i, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black")
            axes.set_xticks(range(len(self.min_samples)), self.min_samples)
            axes.set_yticks(range(len(self.eps)), self.eps)
            axes.set(xlabel="MinPts", ylabel="ε", title=f"{label} removed (%)")

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say where the most is removed."""
        most = max(rows, key=lambda row: row["macs_removed"])
        return (
            f"The most MACs, {most['macs_removed']:.1f} %, go at ε = {most['eps']:g}, MinPts = {most['min_samples']}; "
            f"the corner of most ε and fewest MinPts is at {max(self.eps):g} and {min(self.min_samples)}."
        )


@dataclass(frozen=True)
class Metrics(_Clustered):
    """The same sweep for four distances between feature maps (ACP, Fig. 8)."""

    name: ClassVar[str] = "metric"
    shows: ClassVar[str] = "ACP, Fig. 8: four distances between feature maps"
    finding: ClassVar[str] = (
        "At the same size, cosine keeps the most accuracy; the others depend on the scale of the maps."
    )

    metrics: tuple[str, ...] = DISTANCES
    quantiles: tuple[float, ...] = (0.01, 0.02, 0.05, 0.10, 0.20)
    """ε as a quantile of the distances between channels: the four have different scales."""
    min_samples: int = 5

    def points(self) -> list[Row]:
        """Return every pair of distance and ε."""
        return [{"metric": metric, "quantile": share} for metric in self.metrics for share in self.quantiles]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Cluster by one distance."""
        if point["metric"] not in DISTANCES:
            raise ArgumentError(f"metrics must be of {', '.join(DISTANCES)}, but got metrics={point['metric']!r}")
        eps = self._eps(subject, point["metric"], point["quantile"])
        return [
            {"eps": eps, **self.cut(subject, folder, eps=eps, min_samples=self.min_samples, metric=point["metric"])}
        ]

    def _eps(self, subject: Subject, metric: str, quantile: float) -> float:
        graph, inputs, similarity = _seen(subject, metric)
        points = similarity.points(graph, list(graph.prunable), inputs)
        apart = [p.distances[p.distances.triu(1) > 0].quantile(quantile) for p in points.values()]
        return float(sum(float(value) for value in apart) / len(apart))

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw accuracy over what is removed, a line for each distance."""
        left, right = drawing.axes(1, 2)
        name = "accuracy" if all("accuracy" in row for row in rows) else "accuracy_untrained"
        for number, metric in enumerate(self.metrics):
            mine = [row for row in rows if row["metric"] == metric]
            drawing.line(left, [row["quantile"] for row in mine], [row["macs_removed"] for row in mine], metric, number)
            if all(name in row for row in mine):
                drawing.line(right, [row["macs_removed"] for row in mine], [row[name] for row in mine], metric, number)
        drawing.finish(left, "ε, as a quantile of the distances", "MACs removed (%)")
        drawing.finish(right, "MACs removed (%)", "accuracy (%)")

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say what each distance keeps where as much is removed by all."""
        name = "accuracy" if all("accuracy" in row for row in rows) else "accuracy_untrained"
        if not all(name in row for row in rows):
            return ""
        lines = {
            metric: sorted((row["macs_removed"], row[name]) for row in rows if row["metric"] == metric)
            for metric in self.metrics
        }
        low, high = max(line[0][0] for line in lines.values()), min(line[-1][0] for line in lines.values())
        if low > high:
            return "No share of the MACs is removed by all of the distances here."
        middle = (low + high) / 2
        kept = {
            metric: float(np.interp(middle, [x for x, _ in line], [y for _, y in line]))
            for metric, line in lines.items()
        }
        said = ", ".join(f"{metric} {value:.1f}" for metric, value in kept.items())
        best = max(kept, key=lambda metric: kept[metric])
        return f"Where {middle:.0f} % of the MACs are removed, {best} keeps the most accuracy here ({said})."
