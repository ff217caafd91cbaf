"""How alike two channels are: distances between feature maps (ICP, ACP) or filters (CP)."""

from clusterprune.similarity._base import METRICS, ChannelPoints, Metric, Similarity, pairwise_distances
from clusterprune.similarity._registry import SimilarityName, create, names, read_similarity
from clusterprune.similarity.comparing import checked_points
from clusterprune.similarity.feature_maps import PLACES, FeatureMaps, MeanMaps, Place
from clusterprune.similarity.filters import BatchNormTensors, Filters

__all__ = [
    "METRICS",
    "PLACES",
    "BatchNormTensors",
    "ChannelPoints",
    "FeatureMaps",
    "Filters",
    "MeanMaps",
    "Metric",
    "Place",
    "Similarity",
    "SimilarityName",
    "checked_points",
    "create",
    "names",
    "pairwise_distances",
    "read_similarity",
]
