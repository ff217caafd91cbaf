"""Pictures of what clustering finds: feature maps that are alike, filters by cluster (CP, Fig. 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples

from clusterprune.clustering import KMeans
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.methods.layers import published_layers
from clusterprune.similarity import FeatureMaps, Filters
from clusterprune.studies.figures._base import Row, Study, Subject
from clusterprune.studies.figures.drawing import COLOURS, Drawing


def layer_of(graph: ChannelGraph, name: str | None) -> Group:
    """Return a group by name; the first of the papers' layers for None."""
    groups = {group.name: group for group in published_layers(graph).prunable}
    if name is None:
        return next(iter(groups.values()))
    if name not in groups:
        raise ArgumentError(f"layer={name!r} is none that the papers cut here; choose from {', '.join(groups)}")
    return groups[name]


@dataclass(frozen=True)
class _OfLayer(Study):
    """Looks at one layer."""

    layer: str | None = None

    def points(self) -> list[Row]:
        """Return the layer."""
        return [{"layer": self.layer}]


@dataclass(frozen=True)
class SimilarMaps(_OfLayer):
    """The pairs of a layer's feature maps of one image that are most alike, as pictures (CP, Fig. 1a)."""

    name: ClassVar[str] = "similar-maps"
    shows: ClassVar[str] = "CP, Fig. 1a: feature maps that are alike"
    finding: ClassVar[str] = "Layers have pairs of feature maps that can hardly be told apart."

    pairs: int = 6

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Find the nearest pairs, no channel in two of them, and return their maps."""
        del folder
        graph = subject.network.graph()
        group = layer_of(graph, point["layer"])
        # Of one image, of which something can be seen; means over many are grey, and alike for that.
        shown = FeatureMaps().points(graph, [group], subject.inputs()[:1])[group.name].vectors
        if shown is None:
            return []
        distances = 1 - torch.corrcoef(shown.double()).nan_to_num(-1.0)
        distances.fill_diagonal_(float("inf"))
        side = round(shown.shape[1] ** 0.5)
        if side * side != shown.shape[1]:
            raise ArgumentError(f"layer={group.name!r} has maps that are not square; choose another")
        rows: list[Row] = []
        for _ in range(min(self.pairs, len(distances) // 2)):
            i, j = divmod(int(distances.argmin()), len(distances))
            maps = [shown[k].view(side, side).tolist() for k in (i, j)]
            rows.append({"group": group.name, "pair": [i, j], "distance": float(distances[i, j]), "maps": maps})
            distances[[i, j]] = float("inf")
            distances[:, [i, j]] = float("inf")
        return rows

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw the pairs below one another."""
        axes = drawing.axes(2, len(rows), size=(1.1, 1.3))
        for column, row in enumerate(rows):
            for line, picture in enumerate(row["maps"]):
                place = axes[line * len(rows) + column]
                place.imshow(picture, cmap="gray")
                place.set_axis_off()
                place.set_title(f"channel {row['pair'][line]}", fontsize=6)

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say how near the nearest are."""
        said = ", ".join(f"{1 - row['distance']:.2f}" for row in rows)
        return (
            f"Correlations of the nearest pairs of {rows[0]['group']}, no channel in two of them: {said}."
            if rows
            else ""
        )


@dataclass(frozen=True)
class FilterClusters(_OfLayer):
    """A layer's filters on their two principal axes, coloured by cluster (CP, Fig. 1c)."""

    name: ClassVar[str] = "filter-clusters"
    shows: ClassVar[str] = "CP, Fig. 1c: filters by cluster, on two principal axes"
    finding: ClassVar[str] = "Filters fall into clusters that stand apart."

    clusters: int = 5

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        """Cluster the filters, and return where they are."""
        del folder
        graph = subject.network.graph()
        group = layer_of(graph, point["layer"])
        vectors = Filters().points(graph, [group], None)[group.name].vectors
        if vectors is None:
            return []
        labels = KMeans(min(self.clusters, len(vectors)), seed=subject.seed).fit(vectors=vectors).labels
        filters: Any = vectors.to(torch.float64).numpy()
        places: Any = PCA(2, random_state=0).fit_transform(filters)
        told = 1 < len(set(labels)) < len(filters)
        apart: Any = silhouette_samples(filters, labels) if told else [0.0] * len(filters)
        return [
            {"group": group.name, "filter": number, "cluster": int(label), "x": float(x), "y": float(y),
             "silhouette": float(silhouette)}
            for number, (label, (x, y), silhouette) in enumerate(zip(labels, places, apart, strict=True))
        ]  # fmt: skip

    def draw(self, rows: Sequence[Row], drawing: Drawing) -> None:
        """Draw a point for every filter."""
        (axes,) = drawing.axes()
        for cluster in sorted({row["cluster"] for row in rows}):
            mine = [row for row in rows if row["cluster"] == cluster]
            colour = COLOURS[cluster % len(COLOURS)]
            axes.scatter([r["x"] for r in mine], [r["y"] for r in mine], color=colour, s=18, label=f"cluster {cluster}")
        drawing.finish(axes, "first principal axis", "second")
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    def verdict(self, rows: Sequence[Row]) -> str:
        """Say how far the clusters are apart, in all dimensions of the filters."""
        if not rows:
            return ""
        mean = sum(row["silhouette"] for row in rows) / len(rows)
        said = "stand apart" if mean > 0.5 else "stand somewhat apart" if mean > 0.25 else "run into one another"
        return f"The clusters of {rows[0]['group']} {said}: their mean silhouette is {mean:.2f} (1 is the most)."
