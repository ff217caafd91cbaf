"""Searching for the widths of a network: a particle swarm as an Optuna sampler, and studies that workers share."""

from clusterprune.search.searcher import Fitness, Progress
from clusterprune.search.study import Begun, begun, search, work
from clusterprune.search.swarm import ParticleSwarmSampler
from clusterprune.search.trials import Evaluation, SearchResult

__all__ = [
    "Begun",
    "Evaluation",
    "Fitness",
    "ParticleSwarmSampler",
    "Progress",
    "SearchResult",
    "begun",
    "search",
    "work",
]
