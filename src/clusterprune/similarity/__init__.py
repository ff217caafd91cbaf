"""How alike two channels are: distances between feature maps (ICP, ACP) or filters (CP)."""

from clusterprune.similarity._base import METRICS, Metric, Similarity, pairwise_distances
from clusterprune.similarity._registry import create, names
from clusterprune.similarity.feature_maps import PLACES, FeatureMaps, MeanMaps, Place
from clusterprune.similarity.filters import BatchNormTensors, Filters

__all__ = [
    "METRICS",
    "PLACES",
    "BatchNormTensors",
    "FeatureMaps",
    "Filters",
    "MeanMaps",
    "Metric",
    "Place",
    "Similarity",
    "create",
    "names",
    "pairwise_distances",
]
