"""Who belongs with whom: scikit-learn's algorithms behind one protocol."""

from clusterprune.clustering._base import NOISE, Clustering, Clusters, CountKnob, LengthKnob, Reads
from clusterprune.clustering._registry import create, names
from clusterprune.clustering.agglomerative import LINKAGES, Agglomerative, Linkage
from clusterprune.clustering.birch import Birch
from clusterprune.clustering.dbscan import DBSCAN
from clusterprune.clustering.hdbscan import HDBSCAN
from clusterprune.clustering.kmeans import KMeans
from clusterprune.clustering.mean_shift import MeanShift
from clusterprune.clustering.optics import OPTICS
from clusterprune.clustering.spectral import Spectral

__all__ = [
    "DBSCAN",
    "HDBSCAN",
    "LINKAGES",
    "NOISE",
    "OPTICS",
    "Agglomerative",
    "Birch",
    "Clustering",
    "Clusters",
    "CountKnob",
    "KMeans",
    "LengthKnob",
    "Linkage",
    "MeanShift",
    "Reads",
    "Spectral",
    "create",
    "names",
]
