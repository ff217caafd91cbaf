"""Searching for the widths of a network: a particle swarm as an Optuna sampler, and studies that workers share."""

from clusterprune.search.searcher import Fitness, OnEvaluation
from clusterprune.search.study import StudyHeader, search, study_header, work
from clusterprune.search.swarm import ParticleSwarmSampler
from clusterprune.search.trials import Evaluation, SearchResult

__all__ = [
    "Evaluation",
    "Fitness",
    "OnEvaluation",
    "ParticleSwarmSampler",
    "SearchResult",
    "StudyHeader",
    "search",
    "study_header",
    "work",
]
