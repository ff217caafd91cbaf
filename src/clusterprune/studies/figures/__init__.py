"""The papers' figures and ablations, on any network and data."""

from clusterprune.studies.figures._base import Row, Studied, Study, Subject, run
from clusterprune.studies.figures._registry import STUDIES, find

__all__ = ["STUDIES", "Row", "Studied", "Study", "Subject", "find", "run"]
