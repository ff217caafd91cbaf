"""Clusterings by name, for the command line, recipes and plan files."""

from typing import Any

from clusterprune.arguments import make_by_name
from clusterprune.clustering._base import Clustering
from clusterprune.clustering.agglomerative import Agglomerative
from clusterprune.clustering.birch import Birch
from clusterprune.clustering.dbscan import DBSCAN
from clusterprune.clustering.hdbscan import HDBSCAN
from clusterprune.clustering.kmeans import KMeans
from clusterprune.clustering.mean_shift import MeanShift
from clusterprune.clustering.optics import OPTICS
from clusterprune.clustering.spectral import Spectral

_CLUSTERINGS: dict[str, type[Any]] = {
    kind.name: kind for kind in (DBSCAN, HDBSCAN, OPTICS, KMeans, Agglomerative, Spectral, MeanShift, Birch)
}


def names() -> tuple[str, ...]:
    """Return the names that :func:`create` knows."""
    return tuple(_CLUSTERINGS)


def create(name: str, **options: Any) -> Clustering:
    """Return the clustering called ``name`` with the given options.

    ``create(c.name, **dataclasses.asdict(c))`` equals ``c``.

    Raises
    ------
    ArgumentError
        The name, an option or an option's value does not exist, or a required option is missing;
        the message lists what there is.

    Examples
    --------
    >>> create("dbscan", eps=0.02)
    DBSCAN(eps=0.02, min_samples=5)
    """
    return make_by_name("clustering", _CLUSTERINGS, name, options)
