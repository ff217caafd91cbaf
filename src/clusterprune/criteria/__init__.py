"""How much each channel matters: a score per channel, of which the lowest go."""

from clusterprune.criteria._base import Criterion, HasLoss, ScoreInputs, Targets
from clusterprune.criteria._filters import OfFilters, by_filter
from clusterprune.criteria._registry import CriterionName, ScoreFunction, create, name_of, names, read_criterion
from clusterprune.criteria.batch_norm import BatchNormScale
from clusterprune.criteria.chance import Random
from clusterprune.criteria.fpgm import FPGM
from clusterprune.criteria.hrank import HRank
from clusterprune.criteria.norms import L1, L2
from clusterprune.criteria.scoring import checked_scores
from clusterprune.criteria.taylor import Taylor

__all__ = [
    "FPGM",
    "L1",
    "L2",
    "BatchNormScale",
    "Criterion",
    "CriterionName",
    "HRank",
    "HasLoss",
    "OfFilters",
    "Random",
    "ScoreFunction",
    "ScoreInputs",
    "Targets",
    "Taylor",
    "by_filter",
    "checked_scores",
    "create",
    "name_of",
    "names",
    "read_criterion",
]
