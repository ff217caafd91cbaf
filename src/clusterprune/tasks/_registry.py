"""Tasks by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from clusterprune.tasks.classification import Classification
from clusterprune.tasks.detection import Detection
from clusterprune.tasks.plain import Plain

TASKS: Mapping[str, type[Any]] = MappingProxyType({kind.name: kind for kind in (Classification, Detection, Plain)})
"""The class of each task; all are made with ``train``, ``validation``, ``mean``, ``std`` and options of their own."""
