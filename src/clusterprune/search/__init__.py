"""Searching for the widths of a network: swarms as Optuna samplers, and studies that workers share."""

from clusterprune.search.bees import BeeColonySampler
from clusterprune.search.searcher import Fitness, OnEvaluation
from clusterprune.search.settings import SamplerName
from clusterprune.search.study import StudyHeader, search, study_header, work
from clusterprune.search.swarm import ParticleSwarmSampler
from clusterprune.search.trials import Evaluation, SearchResult

__all__ = [
    "BeeColonySampler",
    "Evaluation",
    "Fitness",
    "OnEvaluation",
    "ParticleSwarmSampler",
    "SamplerName",
    "SearchResult",
    "StudyHeader",
    "search",
    "study_header",
    "work",
]
