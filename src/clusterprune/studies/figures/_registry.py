"""The studies by name."""

from clusterprune.errors import ArgumentError
from clusterprune.models.sources import suggestion
from clusterprune.studies.figures._base import Study
from clusterprune.studies.figures.clusters import Eps, Grid, Metrics, MinSamples
from clusterprune.studies.figures.pictures import FilterClusters, SimilarMaps
from clusterprune.studies.figures.rates import Rates
from clusterprune.studies.figures.searches import Competitors, Swarm
from clusterprune.studies.figures.training import Clusterings, ClusterShare, CountKinds, PruningRate, Schedules

STUDIES: dict[str, type[Study]] = {
    study.name: study
    for study in (
        Eps, MinSamples, Grid, Metrics, Swarm, Competitors, SimilarMaps, FilterClusters, Rates, PruningRate,
        ClusterShare, Schedules, CountKinds, Clusterings,
    )
}  # fmt: skip


def find(name: str) -> type[Study]:
    """Return a study.

    Raises
    ------
    ArgumentError
        If there is none of that name.
    """
    if name not in STUDIES:
        raise ArgumentError(
            f"study={name!r} is not known. {suggestion(name, list(STUDIES))}'clusterprune study --list' shows all"
        )
    return STUDIES[name]
